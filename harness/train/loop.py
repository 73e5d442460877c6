"""Train one bundle: step after step, dev scores, the best tensors by dev score, races, and the test split once.

The dev score alone decides which tensors of a cell are kept (`selection.best_step`). The test split is scored once,
with those, when the cell has done its last step.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from harness import stop
from harness.backbone import until_it_fits
from harness.method import CellError
from harness.results import AnsweringCost, DevScore, best_step
from harness.suite import Key, Measure
from harness.train.answering_cost import measure_answering
from harness.train.cell_state import CellFailure, Outcome, describe_failure
from harness.train.checkpoint import CheckpointPlan, CheckpointWriter, TrainingState, restore_checkpoint
from harness.train.evaluate import answer_split, chance_level, fewest_tokens, score_data
from harness.train.forgetting import measure_forgetting
from harness.train.race import ChanceLevel, eliminated, rungs
from harness.train.step import BundleStep

OnStep = Callable[[int, int, dict[Key, DevScore]], None]
"""Called after a step with (step, steps of the bundle, newest dev scores by key)."""


class BundleTrainer(BundleStep):
    """Trains the cells of one bundle from the first step, or from a checkpoint, to the end of each."""

    def run(
        self, on_step: OnStep, on_outcome: Callable[[Outcome], None], keeper: CheckpointWriter | None = None
    ) -> None:
        """Train every cell to its end; pass each outcome, failed ones included, to `on_outcome` as soon as it is final.

        A `keeper` writes checkpoints on the way. After `restore`, training goes on from the step of the checkpoint.
        Raises Stopped after a request to stop, once a checkpoint is written, and BackboneChanged where a method has
        changed the backbone.
        """
        keeper = keeper or CheckpointWriter(None)
        steps = max(state.num_steps for state in self.states)
        try:
            # some cells take no step, and a checkpoint may have been written between a step and its evaluation
            self._conclude()
            self._hand_over(on_outcome, keeper)
            while self.active and self.step < steps:
                self._train_step(self.step)
                self.step += 1
                self.is_settled = True
                self._conclude()
                on_step(self.step, steps, self._latest())
                self._hand_over(on_outcome, keeper)
                if keeper.is_due(self.training_state()):
                    self._save(keeper)
                if signum := self.team.agree(self.team.requested()):
                    raise stop.Stopped(signum)
        except stop.Stopped as stopped:
            if self.is_settled and not stopped.at_once:
                self._save(keeper)
            raise

    def _save(self, keeper: CheckpointWriter) -> None:
        """Write a checkpoint. The backbone is proven first: a run that goes on from it cannot tell any more."""
        self.prove()
        keeper.save(self.training_state())

    def training_state(self) -> TrainingState:
        """What a checkpoint holds: all of the bundle that changes in training."""
        waiting = [i for i in range(len(self.states)) if i not in self.handed_over]
        return TrainingState(
            self.states,
            self.optimizer,
            (self.budget, self.eval_budget),
            list(self.active),
            waiting,
            self.step,
            self.team,
        )

    def restore(self, plan: CheckpointPlan) -> bool:
        """Load the bundle's checkpoint if there is one that fits; return whether there was."""
        restored = restore_checkpoint(plan, self.training_state())
        if restored is None:
            return False
        self.step, active = restored
        for i in set(self.active) - set(active):
            self._leave(i)
        return True

    def _conclude(self) -> None:
        """Do what is due after a step: evaluate, race, end the cells that have no more steps.

        A second call after the same step does nothing, so that it is safe after a restore.
        """
        due = [i for i in self.active if self._is_due(i, self.step)]
        if due:
            self._evaluate(due, self.step)
            self._race(self.step)
        self._finish([i for i in self.active if self.states[i].num_steps == self.step])

    def _hand_over(self, on_outcome: Callable[[Outcome], None], keeper: CheckpointWriter) -> None:
        """Pass on the outcomes that have become final.

        The backbone is proven first, so that no result of a changed one gets out. Then a checkpoint is written: a
        process that is killed while it passes on several outcomes trains none of them again.
        """
        final = [i for i in range(len(self.states)) if i not in self.active and i not in self.handed_over]
        if final:
            self.prove()
        if final and len(final) + len(self.active) > 1:
            keeper.save(self.training_state())
        for i in final:
            on_outcome(self.states[i].outcome)
            self.handed_over.add(i)

    def _latest(self) -> dict[Key, DevScore]:
        """The newest dev score of each cell."""
        outcomes = [state.outcome for state in self.states]
        return {outcome.cell.key: outcome.history[-1] for outcome in outcomes if outcome.history}

    def _is_due(self, i: int, step: int) -> bool:
        """Whether a cell is to be evaluated after this step and has not been yet; the last step always is."""
        state, history = self.states[i], self.states[i].outcome.history
        if history and history[-1].step == step:
            return False
        return step == state.num_steps or (step > 0 and step % state.recipe.eval_every == 0)

    def _evaluate(self, cells: list[int], step: int) -> None:
        """Score the dev split for these cells; copy the tensors of a cell whose score is its best so far."""
        self._wait_for_device()
        started = time.perf_counter()
        if self.watched is not None:
            self.prove()  # reads each weight once: a small part of what the forward passes over a dev split cost
        self._set_training(False)
        losses = self._healthy_losses(cells, step)
        alive = [i for i in cells if i in losses]
        answers = self._answers("dev", alive)
        for i in answers:
            self.states[i].forget_losses()
            outcome = self.states[i].outcome
            score = score_data(self.data, "dev", answers[i])
            entry = DevScore(
                step=step,
                selection=score.metrics[self.data.task.selection],
                metrics=score.metrics,
                train_loss=losses[i],
            )
            outcome.history.append(entry)
            if best_step((item.step, item.selection) for item in outcome.history) == step:
                outcome.selected_step = step
                outcome.answers["dev"], outcome.scores["dev"] = answers[i], score
                self.states[i].best = {k: v.detach().clone() for k, v in outcome.method.state_dict().items()}
        self._account_evaluation("dev", cells, started)

    def _answers(self, split: str, cells: list[int]) -> dict[int, list[str]]:
        """Answers of each cell to every row of a split; a cell whose own code raises leaves, and is not in the result.

        The split is then answered again for the others.
        """
        while cells:
            try:
                answers = self._written_answers(split, cells)
                if self.watched is not None:
                    self._require_untouched()
                    self.prove()  # again, as a change that every second call undoes shows only on one side
                return answers
            except CellError as error:
                self._fail(error)
                cells = [i for i in cells if i != error.cell]
        return {}

    def _written_answers(self, split: str, cells: list[int]) -> dict[int, list[str]]:
        """Answers of each cell to every row, in smaller micro-batches when memory runs out.

        Several processes each answer their share of the rows, and have all answers afterwards.
        """
        encoded, task = self.encoded[split], self.data.task
        label_tokens = self.states[cells[0]].recipe.label_tokens  # cells of a bundle have one
        shortest = fewest_tokens(self.fused, cells, encoded, task, label_tokens)
        with self.sharding.gathered():
            answers = until_it_fits(
                lambda tokens: answer_split(self.fused, cells, encoded, task, tokens, self.team.share, label_tokens),
                self.eval_budget,
                shortest,
            )
        self._count_halvings(cells)
        return self.team.merge(answers)

    def _account_evaluation(self, split: str, cells: Sequence[int], started: float) -> None:
        """Count the positions of prompts of each cell, and divide the time of the evaluation by all positions."""
        encoded = self.encoded[split]
        text = int(encoded.source_lengths(np.arange(len(encoded))).sum())
        text += 0 if encoded.choices is None else len(encoded.choices.ids)
        in_rows, apart = self.fused.row_prompts, self.fused.positions_apart(cells)
        prompts = {i: len(encoded) * int(in_rows[i]) + int(apart[i]) for i in cells}
        for i, count in prompts.items():
            self.states[i].outcome.eval_prompt_tokens += count
        self._share_time("eval_s", started, {i: float(text + count) for i, count in prompts.items()})

    def _race(self, step: int) -> None:
        """At a rung of a race, let the grid points with the lower dev scores leave the bundle."""
        for race in self.races:
            racing = [i for i in self.active if race.holds(self.states[i].outcome.cell)]
            if not racing:
                continue
            recipe = self.states[racing[0]].recipe
            keep = rungs(race.num_points, recipe.steps, recipe.eval_every).get(step)
            if keep is None:
                continue
            best = {i: max(item.selection for item in self.states[i].outcome.history) for i in racing}
            begins = race.begins_at_once or self._chance.is_below(max(best.values()))
            for i in eliminated(best, keep) if begins else ():
                self.states[i].outcome.raced_out_at = step
                self._leave(i)

    @functools.cached_property
    def _chance(self) -> ChanceLevel:
        """The dev score of a constant answer; scored once, at the first rung."""
        return chance_level(self.data)

    def _healthy_losses(self, cells: list[int], step: int) -> dict[int, float | None]:
        """Mean loss of each cell since its last evaluation; a cell whose loss is not finite fails and leaves.

        This is where a step's losses are read: until then they stay on the device, and no step waits for them.
        """
        losses: dict[int, float | None] = {}
        for i in cells:
            try:
                losses[i] = self.states[i].mean_loss()
            except CellFailure as failure:
                self.states[i].outcome.failure, self.states[i].outcome.failed_at = describe_failure(failure), step
                self._leave(i)
        return losses

    def _finish(self, cells: list[int]) -> None:
        """Load the selected tensors of these cells, score the test split once, and let the cells leave."""
        if not cells:
            return
        self._wait_for_device()
        self._set_training(False)
        for i in cells:
            self.states[i].outcome.method.load_state_dict(self.states[i].best)
        # before anything is counted: a stop in it then leaves accounts that a later run can add to
        cells = [i for i in cells if self._measure_forgetting(i)]
        started = time.perf_counter()
        answers = self._answers("test", cells)
        for i in answers:
            outcome = self.states[i].outcome
            outcome.answers["test"] = answers[i]
            outcome.scores["test"] = score_data(self.data, "test", answers[i])
            self._leave(i)
        if cells:
            self._account_evaluation("test", cells, started)

    def _measure_forgetting(self, i: int) -> bool:
        """Measure what a cell has forgotten, if its recipe asks for it; return whether its own code has not raised.

        If it has, the cell fails and leaves. The time is none of training or evaluation. Several processes all measure
        the same.
        """
        outcome, folder = self.states[i].outcome, self.suite_folder
        name, is_sharded = self.states[i].recipe.forgetting_text, self.sharding.is_sharded
        try:
            outcome.forgetting = measure_forgetting(self.fused, i, name, folder, is_sharded)
        except CellError as error:
            self._fail(error)
            return False
        return True

    def answering_cost(self, outcome: Outcome, measure: Measure) -> AnsweringCost | None:
        """What the answers of a cell that has ended cost, if that is asked for; random numbers stay where they were."""
        (i,) = [i for i, state in enumerate(self.states) if state.outcome is outcome]
        label_tokens, tokens = self.states[i].recipe.label_tokens, self.eval_budget.tokens
        with torch.random.fork_rng():
            return measure_answering(self.fused, i, self.encoded["dev"], self.data.task, tokens, label_tokens, measure)

    def _wait_for_device(self) -> None:
        """Wait until a GPU has finished the steps that were launched, and count that time as training.

        Without it, an evaluation would be charged for it. It is divided by the positions that cells have taken so far.
        """
        if self.backbone.device.type == "cuda":
            started = time.perf_counter()
            torch.cuda.synchronize(self.backbone.device)
            works = {i: self.states[i].outcome.work for i in self.active}
            self._share_time("train_s", started, {i: 1.0 + w.source_positions + w.padding for i, w in works.items()})
