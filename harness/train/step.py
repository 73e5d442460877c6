"""One training step of a bundle: many cells, one frozen backbone.

A step draws each cell's own batch (own order, own seed), sorts all rows by length, cuts them into micro-batches under a
token budget, and runs the backbone once per micro-batch. The loss is the sum of the cells' mean losses. A row's loss
depends on no tensor but those of its own cell, so the gradients are those of separate training.

Shapes: C cells of the bundle, N rows of a micro-batch, L positions of its padded rows, D target tokens of the longest
answer, H width of the backbone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from harness import stop
from harness.backbone import (
    Backbone,
    BackboneChanged,
    RowPrefixes,
    Seal,
    TokenBudget,
    matmul_params,
    on_device,
    probed_tokens,
    random_state,
    restore_random_state,
)
from harness.data import Encoded, TaskData, longest_answer
from harness.method import CellError, Method, errors_of_cell
from harness.suite import Cell
from harness.train.batch_input import BatchInput, Index, Rows, micro_batches, micro_batches_of_cells
from harness.train.cell_state import CellState, describe_failure, lr_factor
from harness.train.data_parallel import ALONE, UNSHARDED, Team, Unsharded
from harness.train.optimizer import JointAdamW
from harness.train.race import Race
from harness.train.row_order import row_order

EVALUATION_FACTOR = 2
"""Tokens of a micro-batch in evaluation, in times of one in training: without a graph to keep, a pass needs less room.

A wrong guess costs little: when memory runs out, the budget is halved and the pass repeated.
"""
MOST_PROBED_TOKENS = 131_072
"""Upper bound of a probed budget: 16 times the larger probe (8,192 tokens), since a line through two small probes
should not be followed without end. It is also 16 times what one more micro-batch costs on a GPU (8,192 positions at
T5-base's width), so a larger one would save less than 6 % of the time."""
OVERHEAD_NUMBERS = {"cpu": 65_536, "cuda": 6_291_456}
"""What one more micro-batch costs, in numbers of hidden states (positions x H) that the device computes in that time.

The cost is that of calling every module (CPU) or launching every kernel (GPU) once more. It stands for 128 positions on
a CPU at width 512 (T5-small), and for 8,192 on a GPU at width 768 (T5-base). It is counted in numbers, not in
positions, because a narrow backbone gets through more positions in the same time: with a fixed count, a bundle of
layer-side cells on a small backbone was cut so often that it was slower than its cells alone.
"""


CALL_WEIGHTS = {"cpu": 15_000_000, "cuda": 2_200_000_000}
"""What one more call of one module costs, in weights that the device multiplies with a position in that time.

Measured as the cost of one more micro-batch in positions, times the weights that each position meets, over the modules
that are called: 128 positions, 22 million and 190 for T5-small, on two threads; on one thread 69 for it and 20 for
SmolLM2-135M (106 million, 304), which gives 8 and 7 million. On a GPU it is the same figure of T5-base as above.
"""


def overhead_tokens(backbone: Backbone, calls_per_module: float = 1.0) -> int:
    """What one more micro-batch costs, in positions of this backbone: the lower of two estimates.

    A deep network's position costs its products (CALL_WEIGHTS); in a narrow one, moving the states through many small
    calls costs more than the products (OVERHEAD_NUMBERS). `calls_per_module` is more than 1 where cells change layers,
    since each change is one more call.
    """
    device = backbone.device.type
    numbers = OVERHEAD_NUMBERS.get(device, OVERHEAD_NUMBERS["cuda"])
    by_width = numbers / backbone.hidden
    weights = matmul_params(backbone).per_source
    calls = sum(1 for module in backbone.model.modules() if not any(module.children()))
    by_weights = CALL_WEIGHTS.get(device, CALL_WEIGHTS["cuda"]) * calls / weights if weights else by_width
    return round(min(by_width, by_weights) * calls_per_module)


LEAST_PADDING = 0.05
"""Share of padding from which a micro-batch is packed. Moving states into padded rows for attention, and back, costs
3 to 4 % of a layer of SmolLM2-135M or T5-small, by the bytes that it moves."""


class BundleStep:
    """The cells of one bundle in training, and the step that all of them take together.

    They share backbone, task, source length, precision and the backbone's dropout. `max_tokens` is the token budget of
    a micro-batch. A cell is named by its position in `cells` throughout.
    """

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
        suite_folder: str = "",
    ) -> None:
        self.backbone = backbone
        self.suite_folder = suite_folder
        """Where the suite file lies; paths in recipes are relative to it."""
        self.data = data
        self.budget = TokenBudget(max_tokens)
        self.eval_budget = TokenBudget(max_tokens * EVALUATION_FACTOR)
        recipe = cells[0].recipe
        length = recipe.max_source_length or data.task.max_source_length
        self.dropout = recipe.backbone_dropout
        self.training: bool | None = None
        """The mode that the modules are in; None before the first step or evaluation has set one."""
        self.encoded = encoded
        sizes = [len(part.train) for part in data.parts or (data,)]
        orders = [row_order(sizes, cell.mixture, cell.seed) for cell in cells]
        self.states = [CellState(c, m, o) for c, m, o in zip(cells, methods, orders, strict=True)]
        self.optimizer = JointAdamW([s.groups for s in self.states], [s.recipe for s in self.states])
        self.seal = None if sharding.is_sharded else seal or Seal(backbone)
        """Proof of what the backbone was when the bundle began. A sharded backbone has none: its tensors are divided,
        and it ends with its processes."""
        # with divided weights, every process must run as many passes as the others, so prompts stay with their rows
        answer = None if sharding.is_sharded else longest_answer(encoded, data.task, backbone, recipe.label_tokens)
        self.fused = BatchInput(methods, backbone, length, self.seal, recipe.pooling, answer, not sharding.is_sharded)
        self.overhead = overhead_tokens(backbone, self.fused.calls_per_module)
        """What one more micro-batch costs, in positions; counted before methods are in the backbone."""
        self.watched = self.fused.seal
        """The seal to hold against the backbone during a step. None for a method that attaches itself: its changes are
        in the backbone for the whole training, so only `prove`, which takes them out, can tell."""
        self.active = list(range(len(cells)))
        """Cells still in training; a cell leaves when it ends, fails or loses a race."""
        self.handed_over: set[int] = set()
        """Cells whose outcome has been passed on."""
        self.races = races
        self.team = team
        self.sharding = sharding
        self.step = 0
        """Steps done so far."""
        self.is_settled = True
        """Whether the state is that between two steps, so that a checkpoint may hold it."""

    def _train_step(self, step: int) -> None:
        """Step number `step` (0 for the first) of every active cell: draw, gradients, update, accounts.

        A cell whose own code raises is recorded as failed and leaves; the others take the step without it. Raises
        BackboneChanged where the code of a method has written to the backbone.
        """
        started = time.perf_counter()
        self.is_settled = False  # until the caller has counted the step
        self._set_training(True)
        self._call_each("on_step", step)
        if not self.active:
            return
        rows, losses = self._losses(self._draw())
        for i in self.active:
            state = self.states[i]
            state.record_loss(losses[i])
            state.outcome.num_steps += 1
        self.optimizer.step({i: lr_factor(self.states[i].recipe, step) for i in self.active})
        if self.watched is not None and (what := self.watched.written()) is not None:
            raise BackboneChanged(what, self._suspect())  # the update wrote it, so no `on_update` is to blame
        self._call_each("on_update", step)
        self.optimizer.clear()
        if not self.active:
            return
        self._require_untouched()
        positions = self._account(rows)
        self._count_halvings(self.active)
        self._share_time("train_s", started, {i: float(positions[i]) for i in self.active})

    def _call_each(self, hook: str, step: int) -> None:
        """Call `on_step` or `on_update` of every active cell; one whose code raises leaves."""
        for i in list(self.active):
            try:
                with errors_of_cell(i, self.watched):
                    getattr(self.states[i].outcome.method, hook)(step, self.states[i].recipe.steps)
            except CellError as error:
                self._fail(error)

    def _require_untouched(self) -> None:
        """Raise BackboneChanged where the backbone was written to, takes gradients, or is in the wrong mode.

        This is the cheap look after each step. It reads versions of tensors and no numbers, so the host does not wait
        for the device. A write that raises no version is found by `prove`.
        """
        difference = None if self.watched is None else self.watched.glance(bool(self.training) and self.dropout)
        if difference is not None:
            raise BackboneChanged(difference, self._suspect())

    def _suspect(self) -> int | None:
        """A cell whose code must have changed the backbone, or None where any may have.

        It is the only cell of the bundle, or the first that trains numbers of the backbone in their place.
        """
        if len(self.states) == 1:
            return 0
        if self.seal is None:
            return None
        return next((i for i, state in enumerate(self.states) if self.seal.holds(state.parameters)), None)

    def prove(self) -> None:
        """Raise BackboneChanged unless the backbone is, to the last bit, the one that the bundle began with.

        Methods are taken out for it. Every weight is read, so it is called around evaluations, before checkpoints and
        before a result is handed over, not in each step. All processes of a team must call it.
        """
        if self.seal is None:
            return
        with self.fused.detached():
            differences = self.team.gather(self.seal.difference())
        for difference in differences:
            if difference is not None:
                raise BackboneChanged(difference, self._suspect())

    def _draw(self) -> Rows:
        """The next batch of each active cell, one behind the other: [sum of batch sizes] rows."""
        batches = {i: self.states[i].order.draw(self.states[i].recipe.batch_size) for i in self.active}
        cells = np.concatenate([np.full(len(rows), i, np.int64) for i, rows in batches.items()])
        return Rows(cells, np.concatenate(list(batches.values())))

    def _losses(self, rows: Rows) -> tuple[Rows, Tensor]:
        """Leave gradients on the tensors of all cells; return the rows that counted, and mean losses [C].

        When the code of one cell raises, the cell leaves, all gradients are dropped, and the others are computed again
        from the same random numbers: they get what they would have got without it.
        """
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
        """Leave the gradient of each cell's mean loss (or sum) on its tensors; return the mean losses [C].

        When memory runs out, gradients are dropped, the token budget is halved, and all rows are computed again.
        Several processes each compute their share; losses and gradients are then added up over them.
        """
        shortest = int(self.fused.lengths(self.encoded["train"], rows).min())
        losses = self.sharding.within_memory(partial(self._accumulate_within, rows), self.budget, shortest, self._undo)
        self.team.add_up(losses, [p for i in self.active for p in self.states[i].parameters])
        return losses

    def _accumulate_within(self, rows: Rows, max_tokens: int) -> Tensor:
        """Forward and backward pass of this process's share of `rows`, in micro-batches of at most `max_tokens`.

        Leaves gradients on the cells' tensors and returns this process's part of the mean losses, [C]. A cell's loss is
        the mean over all target tokens of its whole batch, so a token's weight, 1 / tokens of its cell, is known before
        the first micro-batch, and the cut into micro-batches changes no gradient. A method with `sums_losses` gets the
        gradient of the sum instead; its reported loss is the mean all the same.
        """
        train, fused = self.encoded["train"], self.fused
        num_targets = np.bincount(rows.cells, train.target_lengths(rows.rows), minlength=len(self.states))  # [C]
        num_targets = np.maximum(num_targets, 1)  # 0 for a cell that has left; its weight meets no row
        sums = [state.outcome.method.sums_losses for state in self.states]
        device = self.backbone.device
        dtype = self.backbone.embedding.weight.dtype
        weights = on_device(1 / num_targets, device).to(dtype)  # [C]
        factors = on_device(np.where(sums, num_targets, 1), device).to(dtype)  # [C]
        losses = torch.zeros(len(self.states), device=device, dtype=dtype)
        fused.refresh(grad=True, cells=self.active)
        for group in fused.groups(self.active, max_tokens):
            own = rows.take(np.flatnonzero(np.isin(rows.cells, group)))
            fused.read_prompts(group, grad=True)
            for batch, counts in self._own_micro_batches(own, max_tokens):
                stop.raise_if_stopped(stop.GRACE_S)
                row_losses, cells = self.sharding.forward(partial(self._row_losses, batch, weights * counts))
                (row_losses * factors[cells]).sum().backward()
                losses.index_add_(0, cells, row_losses.detach())  # stays on the device, so no step waits for it
            fused.finish_prompts()
        fused.backward()
        self._add_penalties()
        return losses

    def _add_penalties(self) -> None:
        """Add the gradients of `penalty`; one process of a team does, since gradients are summed over all."""
        for i in self.active if self.team.rank == 0 else ():
            with errors_of_cell(i, self.watched):
                penalty = self.states[i].outcome.method.penalty()
                if penalty is not None:
                    penalty.backward()

    def _own_micro_batches(self, rows: Rows, max_tokens: int) -> list[tuple[Rows, bool]]:
        """This process's micro-batches, and whether each counts.

        Processes with sharded weights must compute equally often, or one would wait for ever for the others' shards.
        One with fewer micro-batches adds a single row that counts nothing.
        """
        mine = rows.take(self.team.share)
        batches = self._micro_batches(mine.cells, self.fused.lengths(self.encoded["train"], mine), max_tokens)
        num_fillers = self.sharding.most(len(batches)) - len(batches)
        filler = rows.take(np.zeros(1, np.int64))
        return [(mine.take(batch), True) for batch in batches] + [(filler, False)] * num_fillers

    def _row_losses(self, batch: Rows, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each row of a micro-batch times its cell's weight, and the cell of each row, both [N].

        `weights` is [C]. A row's loss is the sum over its target tokens.
        """
        train, device = self.encoded["train"], self.backbone.device
        embeds, mask, batch = self.fused.build(train, batch)  # [N, L, H], [N, L], and the rows in that order
        prefixes = self.fused.row_prefixes(train, batch)
        labels = on_device(train.targets(batch.rows), device)  # [N, D]
        cells = on_device(batch.cells, device)  # [N]
        with self.backbone.packed(self._is_packed(self.fused.lengths(train, batch))):
            backbone = self.fused.head_reader(batch) if self.fused.heads else self.backbone
            losses = self._token_losses(backbone, embeds, mask, labels, prefixes)
        return losses.sum(1).to(weights.dtype) * weights[cells], cells

    def _micro_batches(self, cells: Index, lengths: Index, max_tokens: int) -> list[Index]:
        """Positions of the rows of each micro-batch, by the cells and the lengths of all rows, [N].

        Packed rows are cut by the budget alone: attention pads rows of like lengths together anyway, so one more
        micro-batch would save less than its calls cost. Where cells change layers each stays in one piece.
        """
        if not self.fused.packs:
            return micro_batches(lengths, max_tokens, self.overhead)
        methods = [self.states[i].outcome.method for i in self.active]
        if len(methods) > 1 and any(type(method).layer_changes is not Method.layer_changes for method in methods):
            return micro_batches_of_cells(lengths, cells, max_tokens)
        return micro_batches(lengths, max_tokens)

    def _is_packed(self, lengths: Index) -> bool:
        """Whether a micro-batch of rows with these lengths, [N], is computed without padding."""
        return self.fused.packs and bool(lengths.sum() < (1 - LEAST_PADDING) * len(lengths) * lengths.max())

    def _token_losses(
        self, backbone: Backbone, embeds: Tensor, mask: Tensor, labels: Tensor, prefixes: RowPrefixes | None
    ) -> Tensor:
        """Loss of each target token, [N, D], from [N, L, H], [N, L] and [N, D]; with a head, of the one target.

        A method that runs alone may compute its own loss. Raises ValueError unless that is [N, D] too.
        """
        method = self.states[0].outcome.method
        if self.fused.attaches_itself:
            losses = method.token_losses(backbone, embeds, mask, labels)
            shape = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            if shape != list(labels.shape):
                name = type(method).__name__
                raise ValueError(f"{name}.token_losses() must return {list(labels.shape)} (rows, targets), not {shape}")
            return losses
        return backbone.token_losses(embeds, mask, labels, prefixes)

    def _undo(self) -> None:
        """Drop all gradients of a step that is not finished."""
        for state in self.states:
            state.drop_gradients()

    def _account(self, rows: Rows) -> Index:
        """Add the finished step to the work of each active cell; return the positions that each took, [C].

        Padding counts, and is that of the micro-batches of all processes: the cut is repeated here from the lengths
        alone, so no process has to tell the others. Packed rows have none.
        """
        train, count = self.encoded["train"], len(self.states)
        lengths = self.fused.lengths(train, rows)
        padding, apart = np.zeros(count, np.int64), np.zeros(count, np.int64)
        for group in self.fused.groups(self.active, self.budget.tokens):
            of_group = np.flatnonzero(np.isin(rows.cells, group))
            prompts = self.fused.positions_apart(group)
            filled = self.fused.positions_apart(group, padded=True) - prompts
            for own in self.team.shares:
                apart, padding = apart + prompts, padding + filled
                for batch in self._micro_batches(rows.cells[of_group[own]], lengths[of_group[own]], self.budget.tokens):
                    within = of_group[own][batch]
                    if not self._is_packed(lengths[within]):
                        np.add.at(padding, rows.cells[within], lengths[within].max() - lengths[within])
        texts = train.source_lengths(rows.rows)
        parts = (np.ones_like(texts), texts, lengths - texts, train.target_lengths(rows.rows))
        totals = [np.bincount(rows.cells, values, minlength=count).astype(np.int64) for values in parts]
        totals[2] += apart
        for i in self.active:
            outcome = self.states[i].outcome
            outcome.work.add(*(int(total[i]) for total in (*totals, padding)))
            outcome.micro_batch_tokens = self.budget.tokens
        positions: Index = totals[1] + totals[2] + padding
        return positions

    def _count_halvings(self, cells: Sequence[int]) -> None:
        """Note in these cells' outcomes how often the bundle has run out of memory so far."""
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
        """Bytes of device memory that a step with one micro-batch of the longest rows adds to what is in use.

        Several processes share the rows, so the rows of one full micro-batch for each are drawn.
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
        """The longest training row as many times as fills one micro-batch, for the active cells in turn."""
        train = self.encoded["train"]
        longest = int(np.argmax(train.source_lengths(np.arange(len(train)))))
        row = Rows(np.array(self.active), np.full(len(self.active), longest))
        count = max(1, tokens // int(self.fused.lengths(train, row).max()))
        return Rows(np.resize(np.array(self.active, np.int64), count), np.full(count, longest, np.int64))

    def _fail(self, error: CellError) -> None:
        """Record why a cell failed, and take it out of the bundle."""
        outcome = self.states[error.cell].outcome
        outcome.failure = describe_failure(error.__cause__ or error)
        outcome.failed_at = self.step + (not self.is_settled)
        self._leave(error.cell)

    def _leave(self, i: int) -> None:
        """Take a cell out of the bundle, and free its best tensors and its optimizer's moments."""
        self.states[i].best = {}
        self.active.remove(i)
        self.optimizer.release([i])

    def _set_training(self, training: bool) -> None:
        """Put backbone and methods into training or evaluation mode; the backbone trains only if it has dropout."""
        if self.training == training:
            return
        self.training = training
        self.backbone.model.train(training and self.dropout)
        for i in self.active:
            self.states[i].outcome.method.train(training)
        if self.seal is not None:  # method.train() also switched the backbone's modules that a method holds
            self.seal.set_mode(training and self.dropout)

    def _share_time(self, kind: str, started: float, shares: Mapping[int, float]) -> None:
        """Add the seconds since `started` to the field `kind` of cells' outcomes, in proportion to their shares."""
        elapsed = time.perf_counter() - started
        for i, share in shares.items():
            outcome = self.states[i].outcome
            setattr(outcome, kind, getattr(outcome, kind) + elapsed * share / sum(shares.values()))
