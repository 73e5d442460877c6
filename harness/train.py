"""Train one bundle: step after step, dev scores, best checkpoint, races, the test split once at a cell's end."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from harness import stop
from harness.blame import CellError
from harness.cell_state import CellFailure, Outcome, describe_failure
from harness.checkpoint import CheckpointPlan, Keeper, Training, restore
from harness.memory import until_it_fits
from harness.predict import answer_split, chance_of, score_data
from harness.racing import Chance, losers, marks
from harness.schema import DevScore, Key
from harness.selection import best_step
from harness.step import BundleStep

OnStep = Callable[[int, int, dict[Key, DevScore]], None]
"""Called after a step with (step, steps of the bundle, newest dev scores by key)."""


class BundleTrainer(BundleStep):
    """Trains the cells of one bundle from the first step, or from a checkpoint, to the end of each."""

    def run(self, on_step: OnStep, on_outcome: Callable[[Outcome], None], keeper: Keeper | None = None) -> None:
        """Train to the end of every cell; hand over each outcome, failed ones included, as soon as it is final.

        A `keeper` writes checkpoints on the way; after `restore` this goes on where the last one was written.
        Raises Stopped after a request to stop, once the state is kept.
        """
        keeper = keeper or Keeper(None)
        steps = max(state.recipe.steps for state in self.states)
        try:
            self._conclude()  # what the checkpoint was written in the middle of
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

    def _save(self, keeper: Keeper) -> None:
        """Keep the state, which others will go on from: only one that was trained on the true backbone."""
        self.prove()
        keeper.save(self.training_state())

    def training_state(self) -> Training:
        """All that a checkpoint has to hold."""
        waiting = [i for i in range(len(self.states)) if i not in self.handed_over]
        return Training(
            self.states,
            self.optimizer,
            (self.budget, self.eval_budget),
            list(self.active),
            waiting,
            self.step,
            self.team,
        )

    def restore(self, plan: CheckpointPlan) -> bool:
        """Go on from a checkpoint, if there is one of this bundle; return whether there was."""
        found = restore(plan, self.training_state())
        if found is None:
            return False
        self.step, active = found
        for i in set(self.active) - set(active):
            self._leave(i)
        return True

    def _conclude(self) -> None:
        """Whatever is due after a step: evaluation, races, the end of cells; what is done already is left alone."""
        due = [i for i in self.active if self._is_due(i, self.step)]
        if due:
            self._evaluate(due, self.step)
            self._race(self.step)
        self._finish([i for i in self.active if self.states[i].recipe.steps == self.step])

    def _hand_over(self, on_outcome: Callable[[Outcome], None], keeper: Keeper) -> None:
        """Pass on what has become final; all of it is kept first, so that a kill in between repeats nothing.

        Nothing is passed on that may have been trained or scored on another backbone than the true one.
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
        recipe, history = self.states[i].recipe, self.states[i].outcome.history
        is_done = step == 0 or (history and history[-1].step == step)
        return not is_done and (step % recipe.eval_every == 0 or step == recipe.steps)

    def _evaluate(self, cells: list[int], step: int) -> None:
        """Score the dev split; keep the tensors of a new best."""
        self._wait_for_device()
        started = time.perf_counter()
        if self.watched is not None:
            self.prove()  # the rows of a dev split cost many times as much
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
        self._share_time("eval_s", started, self._eval_positions("dev", cells))

    def _answers(self, split: str, cells: list[int]) -> dict[int, list[str]]:
        """Greedy answers of each cell to every row; a cell whose own code raises leaves, and has none."""
        while cells:
            try:
                answers = self._greedy_answers(split, cells)
                if self.watched is not None:
                    self._require_untouched()
                    self.prove()  # again: what is undone at every other call is not to be seen before
                return answers
            except CellError as error:
                self._fail(error)
                cells = [i for i in cells if i != error.cell]
        return {}

    def _greedy_answers(self, split: str, cells: list[int]) -> dict[int, list[str]]:
        """Answers of each cell to every row, in smaller batches where memory runs out."""
        encoded, task = self.encoded[split], self.data.task
        rows = np.arange(len(encoded))
        shortest = int(encoded.source_lengths(rows).min() + self.fused.prompt_lengths[cells].min())
        mine = self.team.share(len(encoded))
        label_tokens = self.states[cells[0]].recipe.label_tokens  # cells of a bundle have one
        with self.sharding.gathered():
            answers = until_it_fits(
                lambda tokens: answer_split(self.fused, cells, encoded, task, tokens, mine, label_tokens),
                self.eval_budget,
                shortest,
            )
        self._count_halvings(cells)
        return self.team.merge(answers)

    def _eval_positions(self, split: str, cells: Sequence[int]) -> dict[int, float]:
        """Positions that each cell's rows of a split take, by which the time of an evaluation is shared."""
        encoded = self.encoded[split]
        text = int(encoded.source_lengths(np.arange(len(encoded))).sum())
        return {i: float(text + len(encoded) * self.fused.prompt_lengths[i]) for i in cells}

    def _race(self, step: int) -> None:
        """At a mark of a race, let its weaker points leave the bundle."""
        for race in self.races:
            racing = [i for i in self.active if race.holds(self.states[i].outcome.cell)]
            if not racing:
                continue
            recipe = self.states[racing[0]].recipe
            keep = marks(race.num_points, recipe.steps, recipe.eval_every).get(step)
            if keep is None:
                continue
            best = {i: max(item.selection for item in self.states[i].outcome.history) for i in racing}
            begins = race.begins_at_once or self._chance.is_below(max(best.values()))
            for i in losers(best, keep) if begins else ():
                self.states[i].outcome.raced_out_at = step
                self._leave(i)

    @functools.cached_property
    def _chance(self) -> Chance:
        return chance_of(self.data)

    def _healthy_losses(self, cells: list[int], step: int) -> dict[int, float | None]:
        """Mean loss of each cell since its last evaluation; a cell whose loss is not finite leaves the bundle."""
        losses: dict[int, float | None] = {}
        for i in cells:
            try:
                losses[i] = self.states[i].mean_loss()
            except CellFailure as failure:
                self.states[i].outcome.failure, self.states[i].outcome.failed_at = describe_failure(failure), step
                self._leave(i)
        return losses

    def _finish(self, cells: list[int]) -> None:
        """Put back the selected tensors, score the test split once, let the cells leave."""
        if not cells:
            return
        self._wait_for_device()
        started = time.perf_counter()
        self._set_training(False)
        for i in cells:
            self.states[i].outcome.method.load_state_dict(self.states[i].best)
        answers = self._answers("test", cells)
        for i in answers:
            outcome = self.states[i].outcome
            outcome.answers["test"] = answers[i]
            outcome.scores["test"] = score_data(self.data, "test", answers[i])
            self._leave(i)
        self._share_time("eval_s", started, self._eval_positions("test", cells))

    def _wait_for_device(self) -> None:
        """Let the steps that the device still works on end, and count the time as training."""
        if self.backbone.device.type == "cuda":
            started = time.perf_counter()
            torch.cuda.synchronize(self.backbone.device)
            works = {i: self.states[i].outcome.work for i in self.active}
            self._share_time("train_s", started, {i: 1.0 + w.source_positions + w.padding for i, w in works.items()})
