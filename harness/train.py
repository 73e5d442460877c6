"""Train one bundle: many cells, one frozen backbone, one loop.

Each step draws every cell's own batch (own order, own seed), sorts all rows by length, cuts them into
micro-batches under a token budget, and runs the backbone once per micro-batch. The loss is the sum of the cells'
mean losses; since a row's loss reaches only its own cell's tensors, gradients equal those of separate training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from harness.backbone import Backbone
from harness.cell_state import CellFailure, CellState, Outcome, lr_factor
from harness.data import Encoded, TaskData
from harness.fused import FusedInput, Index, Rows, micro_batches
from harness.memory import TokenBudget, on_device, probed_tokens, until_it_fits
from harness.method import Method
from harness.optimizer import JointAdamW
from harness.predict import answer_split, score_split
from harness.racing import Race, losers, marks
from harness.schema import Cell, DevScore
from harness.selection import best_step

# without a graph to keep, a forward pass may hold more tokens for the same memory
EVALUATION_FACTOR = 2
MOST_PROBED_TOKENS = 131_072
# positions that a device gets through in the time that one more micro-batch costs: calls on a CPU, launches on a GPU
OVERHEAD_TOKENS = {"cpu": 128}

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after a step with (step, steps of the bundle, newest dev score by cell_id)."""


class BundleTrainer:
    """Trains the cells of one bundle; all share backbone, task, source length, precision and dropout setting."""

    def __init__(
        self,
        cells: Sequence[Cell],
        methods: Sequence[Method],
        data: TaskData,
        encoded: Mapping[str, Encoded],
        backbone: Backbone,
        max_tokens: int,
        races: Sequence[Race] = (),
    ) -> None:
        self.backbone = backbone
        self.data = data
        self.budget = TokenBudget(max_tokens)
        self.eval_budget = TokenBudget(max_tokens * EVALUATION_FACTOR)
        recipe = cells[0].recipe
        length = recipe.max_source_length or data.task.max_source_length
        self.dropout = recipe.backbone_dropout
        self.training: bool | None = None
        self.encoded = encoded
        self.states = [CellState(c, m, len(data.train)) for c, m in zip(cells, methods, strict=True)]
        self.optimizer = JointAdamW([s.groups for s in self.states], [s.recipe for s in self.states])
        self.fused = FusedInput(methods, backbone, length)
        self.active = list(range(len(cells)))
        self.races = races

    def run(self, on_step: OnStep, on_outcome: Callable[[Outcome], None]) -> None:
        """Train to the end of every cell; hand over each outcome, failed ones included, as soon as it is final."""
        steps = max(state.recipe.steps for state in self.states)
        latest: dict[str, float] = {}
        for step in range(steps):
            if not self.active:
                break
            self._train_step(step)
            due = [i for i in self.active if self._is_due(i, step + 1)]
            if due:
                self._evaluate(due, step + 1)
                self._race(step + 1)
                latest |= {s.cell.cell_id: s.history[-1].selection for s in self._outcomes(due) if s.history}
            ended = [i for i in self.active if self.states[i].recipe.steps == step + 1]
            self._finish(ended)
            on_step(step + 1, steps, latest)
            for i in {*due, *ended} - {*self.active}:
                on_outcome(self.states[i].outcome)

    def _outcomes(self, cells: Sequence[int]) -> list[Outcome]:
        return [self.states[i].outcome for i in cells]

    def _train_step(self, step: int) -> None:
        started = time.perf_counter()
        self._set_training(True)
        for i in self.active:
            self.states[i].outcome.method.on_step(step, self.states[i].recipe.steps)
        rows = self._draw()
        losses = self._accumulate(rows)
        for i in self.active:
            state = self.states[i]
            state.record_loss(losses[i])
            state.outcome.num_steps += 1
        self.optimizer.step({i: lr_factor(self.states[i].recipe, step) for i in self.active})
        positions = self._account(rows)
        self._share_time("train_s", started, {i: float(positions[i]) for i in self.active})

    def _draw(self) -> Rows:
        """Each active cell's next batch, together."""
        drawn = {i: self.states[i].order.draw(self.states[i].recipe.batch_size) for i in self.active}
        cells = np.concatenate([np.full(len(rows), i, np.int64) for i, rows in drawn.items()])
        return Rows(cells, np.concatenate(list(drawn.values())))

    def _accumulate(self, rows: Rows) -> Tensor:
        """Leave the gradient of every cell's mean loss on its tensors; return the losses, [cells].

        Where memory runs out, all is done again in smaller micro-batches.
        """
        shortest = int(self.fused.lengths(self.encoded["train"], rows).min())
        return until_it_fits(lambda tokens: self._accumulate_within(rows, tokens), self.budget, shortest, self._undo)

    def _accumulate_within(self, rows: Rows, max_tokens: int) -> Tensor:
        train, fused = self.encoded["train"], self.fused
        per_cell = np.bincount(rows.cells, train.target_lengths(rows.rows), minlength=len(self.states))
        device = self.backbone.device
        dtype = self.backbone.embedding.weight.dtype
        weights = on_device(1 / np.maximum(per_cell, 1), device).to(dtype)
        losses = torch.zeros(len(self.states), device=device, dtype=dtype)
        fused.refresh(grad=True, cells=self.active)
        for batch in self._micro_batches(fused.lengths(train, rows), max_tokens):
            embeds, mask, placed = fused.build(train, rows.take(batch))
            labels = on_device(train.targets(placed.rows), device)
            cells = on_device(placed.cells, device)
            row_losses = self._token_losses(embeds, mask, labels).sum(1).to(dtype) * weights[cells]
            row_losses.sum().backward()  # type: ignore[no-untyped-call]
            losses.index_add_(0, cells, row_losses.detach())
        fused.backward()
        return losses

    def _micro_batches(self, lengths: Index, max_tokens: int) -> list[Index]:
        return micro_batches(lengths, max_tokens, OVERHEAD_TOKENS.get(self.backbone.device.type, 8_192))

    def _undo(self) -> None:
        for state in self.states:
            state.drop_gradients()

    def _account(self, rows: Rows) -> Index:
        """Add the finished step to the work of every cell; return the positions each took, padding included."""
        train, count = self.encoded["train"], len(self.states)
        lengths = self.fused.lengths(train, rows)
        padding = np.zeros(count, np.int64)
        for batch in self._micro_batches(lengths, self.budget.tokens):
            np.add.at(padding, rows.cells[batch], lengths[batch].max() - lengths[batch])
        texts = train.source_lengths(rows.rows)
        parts = (np.ones_like(texts), texts, lengths - texts, train.target_lengths(rows.rows))
        totals = [np.bincount(rows.cells, values, minlength=count).astype(np.int64) for values in parts]
        for i in self.active:
            outcome = self.states[i].outcome
            outcome.work.add(*(int(total[i]) for total in (*totals, padding)))
            outcome.micro_batch_tokens = self.budget.tokens
            outcome.num_out_of_memory = self.budget.num_halvings + self.eval_budget.num_halvings
        positions: Index = totals[1] + totals[2] + padding
        return positions

    def probe(self) -> None:
        """On a CUDA device, set the token budgets to what its free memory holds; changes nothing else."""
        device = self.backbone.device
        if device.type != "cuda":
            return
        free, _ = torch.cuda.mem_get_info(device)
        self.budget.tokens = probed_tokens(self._peak_bytes, free, MOST_PROBED_TOKENS)
        self.eval_budget.tokens = self.budget.tokens * EVALUATION_FACTOR

    def _peak_bytes(self, tokens: int) -> int:
        """Device memory that a step with one micro-batch of the longest rows takes on top of what is in use."""
        with torch.random.fork_rng():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self._set_training(True)
            try:
                self._accumulate_within(self.longest_rows(tokens), tokens)
                return torch.cuda.max_memory_allocated() - before
            finally:
                self._undo()

    def longest_rows(self, tokens: int) -> Rows:
        """As many of the longest row, dealt out to the active cells, as fill one micro-batch."""
        train = self.encoded["train"]
        longest = int(np.argmax(train.source_lengths(np.arange(len(train)))))
        row = Rows(np.array(self.active), np.full(len(self.active), longest))
        count = max(1, tokens // int(self.fused.lengths(train, row).max()))
        return Rows(np.resize(np.array(self.active, np.int64), count), np.full(count, longest, np.int64))

    def _token_losses(self, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """[N, T]; a layer-side method is alone in its bundle and has a say in its loss."""
        method = self.states[0].outcome.method
        if method.is_layer_side():
            return method.token_losses(self.backbone, embeds, mask, labels)
        return self.backbone.token_losses(embeds, mask, labels)

    def _is_due(self, i: int, step: int) -> bool:
        recipe = self.states[i].recipe
        return step % recipe.eval_every == 0 or step == recipe.steps

    def _evaluate(self, cells: list[int], step: int) -> None:
        """Score the dev split; keep the tensors of a new best."""
        self._wait_for_device()
        started = time.perf_counter()
        self._set_training(False)
        losses = self._healthy_losses(cells, step)
        alive = [i for i in cells if i in losses]
        answers = self._answers("dev", alive) if alive else {}
        for i in alive:
            outcome = self.states[i].outcome
            score = score_split(self.data.task, self.data.dev, answers[i])
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
        """Greedy answers of each cell to every row, in smaller batches where memory runs out."""
        encoded, task = self.encoded[split], self.data.task
        rows = np.arange(len(encoded))
        shortest = int(encoded.source_lengths(rows).min() + self.fused.prompt_lengths[cells].min())
        return until_it_fits(
            lambda tokens: answer_split(self.fused, cells, encoded, task, tokens), self.eval_budget, shortest
        )

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
            for i in losers(best, keep):
                self.states[i].outcome.raced_out_at = step
                self._leave(i)

    def _leave(self, i: int) -> None:
        """Take a cell out of the bundle with all that only training needs."""
        self.states[i].best = {}
        self.active.remove(i)
        self.optimizer.release([i])

    def _healthy_losses(self, cells: list[int], step: int) -> dict[int, float | None]:
        """Mean loss of each cell since its last evaluation; a cell whose loss is not finite leaves the bundle."""
        losses: dict[int, float | None] = {}
        for i in cells:
            try:
                losses[i] = self.states[i].mean_loss()
            except CellFailure as failure:
                self.states[i].outcome.failure, self.states[i].outcome.failed_at = failure, step
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
        for i in cells:
            outcome = self.states[i].outcome
            outcome.answers["test"] = answers[i]
            outcome.scores["test"] = score_split(self.data.task, self.data.test, answers[i])
            self._leave(i)
        self._share_time("eval_s", started, self._eval_positions("test", cells))

    def _set_training(self, training: bool) -> None:
        if self.training == training:
            return
        self.training = training
        self.backbone.model.train(training and self.dropout)
        for i in self.active:
            self.states[i].outcome.method.train(training)

    def _wait_for_device(self) -> None:
        """Let the steps that the device still works on end, and count the time as training."""
        if self.backbone.device.type == "cuda":
            started = time.perf_counter()
            torch.cuda.synchronize(self.backbone.device)
            self._share_time("train_s", started, dict.fromkeys(self.active, 1.0))

    def _share_time(self, kind: str, started: float, shares: Mapping[int, float]) -> None:
        """Divide the seconds since `started` among cells in proportion to their shares."""
        elapsed = time.perf_counter() - started
        for i, share in shares.items():
            outcome = self.states[i].outcome
            setattr(outcome, kind, getattr(outcome, kind) + elapsed * share / sum(shares.values()))
