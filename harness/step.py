"""One training step of a bundle: many cells, one frozen backbone.

Each step draws every cell's own batch (own order, own seed), sorts all rows by length, cuts them into
micro-batches under a token budget, and runs the backbone once per micro-batch. The loss is the sum of the cells'
mean losses; since a row's loss reaches only its own cell's tensors, gradients equal those of separate training.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from harness import stop
from harness.backbone import Backbone
from harness.blame import CellError, blaming
from harness.cell_state import CellState, describe_failure, lr_factor
from harness.data import Encoded, TaskData
from harness.distributed import ALONE, Team
from harness.fused import FusedInput, Index, Rows, micro_batches
from harness.heads import Classifier
from harness.memory import TokenBudget, on_device, probed_tokens, random_state, restore_random_state
from harness.method import Method
from harness.mixture import row_order
from harness.optimizer import JointAdamW
from harness.racing import Race
from harness.schema import Cell
from harness.seal import BackboneChanged, Seal
from harness.sharding import UNSHARDED, Unsharded

# without a graph to keep, a forward pass may hold more tokens for the same memory
EVALUATION_FACTOR = 2
MOST_PROBED_TOKENS = 131_072
# numbers of hidden states (positions x H) that a device gets through in the time that one more micro-batch costs: calls
# on a CPU, launches on a GPU
OVERHEAD_NUMBERS = {"cpu": 65_536, "cuda": 6_291_456}


def overhead_tokens(backbone: Backbone, calls_per_module: float = 1.0) -> int:
    """Positions that a backbone gets through in the time that one more micro-batch costs."""
    numbers = OVERHEAD_NUMBERS.get(backbone.device.type, OVERHEAD_NUMBERS["cuda"])
    return round(numbers / backbone.hidden * calls_per_module)


class BundleStep:
    """The cells of one bundle in training; all share backbone, task, source length, precision and dropout setting."""

    def __init__(
        self,
        cells: Sequence[Cell],
        methods: Sequence[Method],
        data: TaskData,
        encoded: Mapping[str, Encoded],
        backbone: Backbone,
        max_tokens: int,
        races: Sequence[Race] = (),
        team: Team = ALONE,
        sharding: Unsharded = UNSHARDED,
        seal: Seal | None = None,
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
        orders = [row_order(data, cell.mixture, cell.seed) for cell in cells]
        self.states = [CellState(c, m, o) for c, m, o in zip(cells, methods, orders, strict=True)]
        self.optimizer = JointAdamW([s.groups for s in self.states], [s.recipe for s in self.states])
        self.seal = None if sharding.is_sharded else seal or Seal(backbone)
        """What the backbone was when the bundle began; shards are of a backbone that ends with its processes."""
        attaches_itself = len(methods) == 1 and methods[0].runs_alone()
        self.watched = None if attaches_itself else self.seal
        """The same, where no method may have anything of its own in the backbone, not even for a while."""
        self.fused = FusedInput(methods, backbone, length, self.watched)
        self.active = list(range(len(cells)))
        self.handed_over: set[int] = set()
        self.races = races
        self.team = team
        self.sharding = sharding
        self.step = 0
        self.is_settled = True
        """Whether no step is half done."""

    def _train_step(self, step: int) -> None:
        started = time.perf_counter()
        self.is_settled = False
        self._set_training(True)
        for i in list(self.active):
            try:
                with blaming(i, self.watched):
                    self.states[i].outcome.method.on_step(step, self.states[i].recipe.steps)
            except CellError as error:
                self._fail(error)
        if not self.active:
            return
        rows, losses = self._losses(self._draw())
        for i in self.active:
            state = self.states[i]
            state.record_loss(losses[i])
            state.outcome.num_steps += 1
        self.optimizer.step({i: lr_factor(self.states[i].recipe, step) for i in self.active})
        self._require_untouched()
        positions = self._account(rows)
        self._count_halvings(self.active)
        self._share_time("train_s", started, {i: float(positions[i]) for i in self.active})

    def _require_untouched(self) -> None:
        """Raise BackboneChanged where the backbone was written to, or takes gradients, or has left its mode.

        Reads no numbers, so the host does not wait for the device; what leaves no such mark is found by `prove`.
        """
        what = None if self.watched is None else self.watched.glance(bool(self.training) and self.dropout)
        if what is not None:
            raise BackboneChanged(what, self._only_suspect())

    def _only_suspect(self) -> int | None:
        """The cell whose code it must have been: it is alone, or it alone trains a tensor of the backbone."""
        seal = self.seal
        suspects = [i for i, state in enumerate(self.states) if seal is not None and seal.holds(state.parameters)]
        suspects = [0] if len(self.states) == 1 else suspects
        return suspects[0] if len(suspects) == 1 else None

    def prove(self) -> None:
        """Raise BackboneChanged unless the backbone, without the methods in it, is the one that the bundle began with.

        All processes of a team must call it.
        """
        if self.seal is None:
            return
        with self.fused.detached():
            found = self.team.gather(self.seal.difference())
        for what in found:
            if what is not None:
                raise BackboneChanged(what, self._only_suspect())

    def _draw(self) -> Rows:
        """Each active cell's next batch, together."""
        drawn = {i: self.states[i].order.draw(self.states[i].recipe.batch_size) for i in self.active}
        cells = np.concatenate([np.full(len(rows), i, np.int64) for i, rows in drawn.items()])
        return Rows(cells, np.concatenate(list(drawn.values())))

    def _losses(self, rows: Rows) -> tuple[Rows, Tensor]:
        """Gradients and losses of a step; a cell whose own code raises leaves, and the step is done without it."""
        before = random_state()
        while len(rows):
            try:
                return rows, self._accumulate(rows)
            except CellError as error:
                self._fail(error)
                rows = rows.take(np.flatnonzero(rows.cells != error.cell))
            self._undo()
            restore_random_state(before)
        return rows, torch.zeros(len(self.states))

    def _accumulate(self, rows: Rows) -> Tensor:
        """Leave the gradient of every cell's mean loss (or sum) on its tensors; return the mean losses, [cells].

        Where memory runs out, all is done again in smaller micro-batches.
        """
        shortest = int(self.fused.lengths(self.encoded["train"], rows).min())
        losses = self.sharding.within_memory(partial(self._accumulate_within, rows), self.budget, shortest, self._undo)
        self.team.add_up(losses, [p for i in self.active for p in self.states[i].parameters])
        return losses

    def _accumulate_within(self, rows: Rows, max_tokens: int) -> Tensor:
        train, fused = self.encoded["train"], self.fused
        per_cell = np.bincount(rows.cells, train.target_lengths(rows.rows), minlength=len(self.states))
        device = self.backbone.device
        dtype = self.backbone.embedding.weight.dtype
        weights = on_device(1 / np.maximum(per_cell, 1), device).to(dtype)
        factors = on_device(np.where(self._sums_losses(), np.maximum(per_cell, 1), 1), device).to(dtype)
        losses = torch.zeros(len(self.states), device=device, dtype=dtype)
        fused.refresh(grad=True, cells=self.active)
        for batch, counts in self._dealt(rows, max_tokens):
            stop.check(stop.GRACE_S)
            row_losses, cells = self.sharding.forward(partial(self._row_losses, batch, weights * counts))
            (row_losses * factors[cells]).sum().backward()
            losses.index_add_(0, cells, row_losses.detach())
        fused.backward()
        return losses

    def _sums_losses(self) -> list[bool]:
        return [state.outcome.method.sums_losses for state in self.states]

    def _dealt(self, rows: Rows, max_tokens: int) -> list[tuple[Rows, bool]]:
        """This process's micro-batches, and whether they count: where all must compute equally often, some do not."""
        mine = rows.take(self.team.share(len(rows)))
        batches = self._micro_batches(self.fused.lengths(self.encoded["train"], mine), max_tokens)
        num_fillers = self.sharding.most(len(batches)) - len(batches)
        filler = rows.take(np.zeros(1, np.int64))
        return [(mine.take(batch), True) for batch in batches] + [(filler, False)] * num_fillers

    def _row_losses(self, batch: Rows, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted loss of each row of a micro-batch, and the cell that it belongs to, both [N]."""
        train, device = self.encoded["train"], self.backbone.device
        embeds, mask, placed = self.fused.build(train, batch)
        labels = on_device(train.targets(placed.rows), device)
        cells = on_device(placed.cells, device)
        return self._token_losses(embeds, mask, labels, cells).sum(1).to(weights.dtype) * weights[cells], cells

    def _micro_batches(self, lengths: Index, max_tokens: int) -> list[Index]:
        return micro_batches(lengths, max_tokens, overhead_tokens(self.backbone, self.fused.calls_per_module))

    def _token_losses(self, embeds: Tensor, mask: Tensor, labels: Tensor, cells: Tensor) -> Tensor:
        """[N, T]; a method that is alone in its bundle may have a say in its loss."""
        method, heads = self.states[0].outcome.method, self.fused.heads
        backbone = Classifier(self.backbone, heads, cells) if heads else self.backbone
        if method.runs_alone():
            losses = method.token_losses(backbone, embeds, mask, labels)
            shape = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            if shape != list(labels.shape):
                name = type(method).__name__
                raise ValueError(f"{name}.token_losses() must return {list(labels.shape)} (rows, targets), not {shape}")
            return losses
        return backbone.token_losses(embeds, mask, labels)

    def _undo(self) -> None:
        for state in self.states:
            state.drop_gradients()

    def _account(self, rows: Rows) -> Index:
        """Add the finished step to the work of every cell; return the positions each took, padding included."""
        train, count = self.encoded["train"], len(self.states)
        lengths = self.fused.lengths(train, rows)
        padding = np.zeros(count, np.int64)
        for own in self.team.shares(len(rows)):
            for batch in self._micro_batches(lengths[own], self.budget.tokens):
                within = own[batch]
                np.add.at(padding, rows.cells[within], lengths[within].max() - lengths[within])
        texts = train.source_lengths(rows.rows)
        parts = (np.ones_like(texts), texts, lengths - texts, train.target_lengths(rows.rows))
        totals = [np.bincount(rows.cells, values, minlength=count).astype(np.int64) for values in parts]
        for i in self.active:
            outcome = self.states[i].outcome
            outcome.work.add(*(int(total[i]) for total in (*totals, padding)))
            outcome.micro_batch_tokens = self.budget.tokens
        positions: Index = totals[1] + totals[2] + padding
        return positions

    def _count_halvings(self, cells: Sequence[int]) -> None:
        for i in cells:
            self.states[i].outcome.num_out_of_memory = self.budget.num_halvings + self.eval_budget.num_halvings

    def probe(self) -> None:
        """On a CUDA device, set the token budgets to what its free memory holds; changes nothing else."""
        device = self.backbone.device
        if device.type != "cuda" or self.sharding.is_sharded:
            return
        free, _ = torch.cuda.mem_get_info(device)
        self.budget.tokens = probed_tokens(self._peak_bytes, free, MOST_PROBED_TOKENS)
        self.eval_budget.tokens = self.budget.tokens * EVALUATION_FACTOR

    def _peak_bytes(self, tokens: int) -> int:
        """Device memory that a step with one micro-batch of the longest rows takes on top of what is in use.

        Of several processes each computes its share of the rows, and needs as many times as many for one micro-batch.
        """
        with torch.random.fork_rng():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self._set_training(True)
            try:
                self._accumulate_within(self.longest_rows(tokens * self.team.size), tokens)
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

    def _fail(self, error: CellError) -> None:
        """Record why a cell ends here, and let it leave."""
        outcome = self.states[error.cell].outcome
        outcome.failure = describe_failure(error.__cause__ or error)
        outcome.failed_at = self.step + (not self.is_settled)
        self._leave(error.cell)

    def _leave(self, i: int) -> None:
        """Take a cell out of the bundle with all that only training needs."""
        self.states[i].best = {}
        self.active.remove(i)
        self.optimizer.release([i])

    def _set_training(self, training: bool) -> None:
        if self.training == training:
            return
        self.training = training
        self.backbone.model.train(training and self.dropout)
        for i in self.active:
            self.states[i].outcome.method.train(training)
        if self.seal is not None:  # a method that holds modules of the backbone has switched those too
            self.seal.set_mode(training and self.dropout)

    def _share_time(self, kind: str, started: float, shares: Mapping[int, float]) -> None:
        """Divide the seconds since `started` among cells in proportion to their shares."""
        elapsed = time.perf_counter() - started
        for i, share in shares.items():
            outcome = self.states[i].outcome
            setattr(outcome, kind, getattr(outcome, kind) + elapsed * share / sum(shares.values()))
