"""Train one bundle: many cells, one frozen backbone, one loop.

Each step draws every cell's own batch (own order, own seed), sorts all rows by length, cuts them into
micro-batches under a token budget, and runs the backbone once per micro-batch. The loss is the sum of the cells'
mean losses; since a row's loss reaches only its own cell's tensors, gradients equal those of separate training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.backbone import Backbone
from harness.data import Encoded, TaskData
from harness.fused import FusedInput, Rows, micro_batches
from harness.method import Method, checked_groups
from harness.predict import answer_split, score_split
from harness.schema import Cell, DevScore, Recipe, SplitScore
from harness.selection import best_step

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called after a step with (step, steps of the bundle, newest dev score by cell_id)."""


class CellFailure(Exception):
    """One cell cannot go on; the others of its bundle can."""


@dataclass
class Outcome:
    """What training one cell gave."""

    cell: Cell
    method: Method
    history: list[DevScore] = field(default_factory=list)
    selected_step: int | None = None
    answers: dict[str, list[str]] = field(default_factory=dict)
    scores: dict[str, SplitScore] = field(default_factory=dict)
    failure: BaseException | None = None
    failed_at: int | None = None
    num_steps: int = 0
    num_samples: int = 0
    num_tokens: int = 0
    train_s: float = 0.0
    eval_s: float = 0.0


class CellState:
    """A cell in training: its method, optimiser, schedule, data order and best tensors."""

    def __init__(self, cell: Cell, method: Method, num_rows: int) -> None:
        self.recipe = cell.recipe
        self.outcome = Outcome(cell, method)
        self.order = _DataOrder(num_rows, cell.seed)
        groups = [{**group, "base_lr": group["lr"]} for group in checked_groups(method, cell.recipe.lr)]
        self.parameters: list[Tensor] = [p for group in groups for p in group["params"]]
        recipe = cell.recipe
        self.optimizer = torch.optim.AdamW(
            groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, weight_decay=recipe.weight_decay
        )
        self.best: dict[str, Tensor] = {}
        self.loss_sum: Tensor | None = None
        self.num_losses = 0

    def update(self, step: int) -> None:
        """Clip, set the learning rates of `step` (counted from 0), move, clear gradients."""
        torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        factor = lr_factor(self.recipe, step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def record_loss(self, loss: Tensor) -> None:
        """Add a step's mean loss without waiting for the device."""
        self.loss_sum = loss if self.loss_sum is None else self.loss_sum + loss
        self.num_losses += 1

    def mean_loss(self) -> float | None:
        """Mean training loss since the last call. Raises CellFailure if it is not finite."""
        if self.loss_sum is None:
            return None
        value = float(self.loss_sum) / self.num_losses
        self.loss_sum, self.num_losses = None, 0
        if not np.isfinite(value):
            raise CellFailure(f"the training loss became {value}; a lower learning rate may help")
        return value


def lr_factor(recipe: Recipe, step: int) -> float:
    """Linear warm-up from 0, then linear decay to 0 at `steps`; the first update has factor 0 / warm-up."""
    warmup = recipe.effective_warmup
    if step < warmup:
        return step / warmup
    if recipe.schedule == "constant":
        return 1.0
    return max(0.0, (recipe.steps - step) / max(1, recipe.steps - warmup))


class _DataOrder:
    """Endless row indices: a fresh permutation per epoch, from the cell's seed alone."""

    def __init__(self, num_rows: int, seed: int) -> None:
        self.num_rows = num_rows
        self.generator = torch.Generator().manual_seed(seed)
        self.waiting = np.empty(0, np.int64)

    def draw(self, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        while len(self.waiting) < count:
            epoch = torch.randperm(self.num_rows, generator=self.generator).numpy()
            self.waiting = np.concatenate([self.waiting, epoch])
        drawn, self.waiting = self.waiting[:count], self.waiting[count:]
        return drawn


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
    ) -> None:
        self.backbone = backbone
        self.data = data
        self.max_tokens = max_tokens
        recipe = cells[0].recipe
        length = recipe.max_source_length or data.task.max_source_length
        self.dropout = recipe.backbone_dropout
        self.training: bool | None = None
        self.encoded = encoded
        self.states = [CellState(c, m, len(data.train)) for c, m in zip(cells, methods, strict=True)]
        self.fused = FusedInput(methods, backbone, length)
        self.active = list(range(len(cells)))

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
            state.update(step)
            state.outcome.num_steps += 1
        self._share_time(self.active, "train_s", started)

    def _draw(self) -> Rows:
        """Each active cell's next batch, together."""
        drawn = {i: self.states[i].order.draw(self.states[i].recipe.batch_size) for i in self.active}
        for i, rows in drawn.items():
            self.states[i].outcome.num_samples += len(rows)
            self.states[i].outcome.num_tokens += int(self.encoded["train"].source_lengths(rows).sum())
        cells = np.concatenate([np.full(len(rows), i, np.int64) for i, rows in drawn.items()])
        return Rows(cells, np.concatenate(list(drawn.values())))

    def _accumulate(self, rows: Rows) -> Tensor:
        """Leave the gradient of every cell's mean loss on its tensors; return the losses, [cells]."""
        train, fused = self.encoded["train"], self.fused
        per_cell = np.bincount(rows.cells, train.target_lengths(rows.rows), minlength=len(self.states))
        device = self.backbone.device
        dtype = self.backbone.embedding.weight.dtype
        weights = torch.as_tensor(1 / np.maximum(per_cell, 1), device=device, dtype=dtype)
        losses = torch.zeros(len(self.states), device=device, dtype=dtype)
        fused.refresh(grad=True, cells=self.active)
        for batch in micro_batches(fused.lengths(train, rows), self.max_tokens):
            embeds, mask, placed = fused.build(train, rows.take(batch))
            labels = torch.as_tensor(train.targets(placed.rows), device=device)
            cells = torch.as_tensor(placed.cells, device=device)
            row_losses = self._token_losses(embeds, mask, labels).sum(1).to(dtype) * weights[cells]
            row_losses.sum().backward()  # type: ignore[no-untyped-call]
            losses.index_add_(0, cells, row_losses.detach())
        fused.backward()
        return losses

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
        started = time.perf_counter()
        self._set_training(False)
        losses = self._healthy_losses(cells, step)
        alive = [i for i in cells if i in losses]
        answers = answer_split(self.fused, alive, self.encoded["dev"], self.data.task, self.max_tokens) if alive else {}
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
        self._share_time(cells, "eval_s", started)

    def _healthy_losses(self, cells: list[int], step: int) -> dict[int, float | None]:
        """Mean loss of each cell since its last evaluation; a cell whose loss is not finite leaves the bundle."""
        losses: dict[int, float | None] = {}
        for i in cells:
            try:
                losses[i] = self.states[i].mean_loss()
            except CellFailure as failure:
                self.states[i].outcome.failure, self.states[i].outcome.failed_at = failure, step
                self.active.remove(i)
        return losses

    def _finish(self, cells: list[int]) -> None:
        """Put back the selected tensors, score the test split once, let the cells leave."""
        if not cells:
            return
        started = time.perf_counter()
        self._set_training(False)
        for i in cells:
            self.states[i].outcome.method.load_state_dict(self.states[i].best)
        answers = answer_split(self.fused, cells, self.encoded["test"], self.data.task, self.max_tokens)
        for i in cells:
            outcome = self.states[i].outcome
            outcome.answers["test"] = answers[i]
            outcome.scores["test"] = score_split(self.data.task, self.data.test, answers[i])
            self.states[i].best = {}
            self.active.remove(i)
        self._share_time(cells, "eval_s", started)

    def _set_training(self, training: bool) -> None:
        if self.training == training:
            return
        self.training = training
        self.backbone.model.train(training and self.dropout)
        for i in self.active:
            self.states[i].outcome.method.train(training)

    def _share_time(self, cells: Sequence[int], kind: str, started: float) -> None:
        share = (time.perf_counter() - started) / max(1, len(cells))
        for i in cells:
            outcome = self.states[i].outcome
            setattr(outcome, kind, getattr(outcome, kind) + share)
