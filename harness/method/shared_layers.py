"""Trains layer-side cells together: the backbone runs once, and each cell's changes see only that cell's rows.

Shapes: N rows of all cells, ordered by cell; M positions of all rows where they are packed; Q query and K key
positions; `...` stands for positions and widths.

A module that no cell changes runs once on all N rows. A module that some cell changes splits its input by cell, hands
each piece to that cell's changes, and joins the results. Low-rank updates of one shape take a shorter way: two batched
products serve all cells (`harness.method.low_rank`). A network may train on packed rows, [1, M, in], without padding
(`harness.backbone.packed_rows`); then the positions are split in place of the rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.backbone import Packing, present_packing
from harness.method.cell_error import errors_of_cell
from harness.method.layer_change import Change, LayerChange
from harness.method.low_rank import CellBlocks, LowRank, add_all_updates

Index = np.ndarray[Any, np.dtype[np.int64]]
CALLS_TOGETHER = 2
"""Cost of low-rank updates that are computed together, in calls of the module that they change.

There are two batched products, down and up, however many cells there are. `num_changes` feeds the estimate of what
one more micro-batch costs, so a rough figure is enough.
"""


@dataclass
class ChangedModule:
    """A module of the backbone that some cells change, with what it was and what each cell changes."""

    module: nn.Module
    original: Callable[..., Tensor]
    """The module's `forward` before any change."""
    own: Callable[..., Tensor] | None
    """A `forward` that stood on the module itself and not on its class; accelerate sets one to spread layers."""
    changes: dict[int, list[LayerChange]]
    """By cell, in the order in which the method listed them."""

    def put(self, forward: Callable[..., Tensor] | None) -> None:
        """Let the module run `forward`; None gives it back the `forward` of its class."""
        if forward is None:
            self.module.__dict__.pop("forward", None)
        else:
            self.module.__dict__["forward"] = forward


class SharedLayers:
    """Puts the changes of one or several cells into the backbone, and takes them out again."""

    def __init__(self, changes: Sequence[Sequence[LayerChange]]) -> None:
        """`changes` holds what `Method.layer_changes` returned, one entry per cell of the bundle.

        Raises TypeError where an entry is no list of LayerChange, ValueError where a cell replaces a module twice.
        """
        changed: dict[int, ChangedModule] = {}
        self._tables: dict[int, tuple[Any, dict[int, Tensor]]] = {}
        """By id of a T5 attention: the attention, and each cell's own table of relative positions [buckets, heads]."""
        for cell, own in enumerate(changes):
            for change in _checked(own):
                module = change.module
                if change.position_bias is not None:
                    self._tables.setdefault(id(module), (module, {}))[1][cell] = change.position_bias
                    continue
                entry = changed.setdefault(
                    id(module), ChangedModule(module, module.forward, vars(module).get("forward"), defaultdict(list))
                )
                if change.instead is not None and _instead(entry.changes[cell]) is not None:
                    raise ValueError(f"a {type(module).__name__} cannot have two changes instead of it in one cell")
                entry.changes[cell].append(change)
        self._changed = list(changed.values())
        # one cell needs no rows split and no `order`, and pays nothing for the sharing
        self._is_alone = len(changes) == 1
        self._row_counts: list[tuple[int, int]] = []
        """(cell, its rows) for the forward passes to come, as `order` was told."""
        self._blocks = CellBlocks([])
        self._packed: tuple[Packing, CellBlocks] | None = None
        """How packed rows stand, and the positions of each cell among them."""

    @property
    def num_changes(self) -> int:
        """Extra calls per forward pass that the changes of all cells cost."""
        return sum(
            CALLS_TOGETHER if _together(entry.changes.values()) else len(entry.changes) for entry in self._changed
        )

    def order(self, cells: Index) -> Index:
        """Return the order in which the rows of these cells, [N], must enter the backbone.

        The forward passes that follow expect exactly these rows, until `order` is called again.
        """
        found, counts = np.unique(cells, return_counts=True)
        self._row_counts = list(zip(found.tolist(), counts.tolist(), strict=True))
        self._blocks, self._packed = CellBlocks(counts.tolist()), None
        # stable, so that the rows of one cell keep their order and with it, in float64, every sum its last digit
        return np.argsort(cells, kind="stable")

    def attach(self) -> None:
        """Put the changes into the backbone."""
        for entry in self._changed:
            entry.put(partial(self._forward, entry))
        for module, tables in self._tables.values():
            # on the module itself, which Python looks at before the class
            module.__dict__["compute_bias"] = partial(self._position_bias, module, tables)

    def detach(self) -> None:
        """Leave every module as it was."""
        for entry in self._changed:
            entry.put(entry.own)
        for module, _ in self._tables.values():
            module.__dict__.pop("compute_bias", None)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep the changes in the backbone within this context; afterwards every module is as it was."""
        try:
            self.attach()
            yield
        finally:
            self.detach()

    def _forward(self, entry: ChangedModule, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Runs in place of a changed module's `forward`: [N, ..., in] -> [N, ..., out]."""
        if self._is_alone:  # all rows are this cell's, and an exception needs no cell named
            changes = entry.changes[0]
            whole = None if _instead(changes) is not None else entry.original(states, *args, **kwargs)
            return _changed(entry, changes, states, whole)
        return self._divided(entry, states, *args, **kwargs)

    def _position_bias(self, module: Any, tables: Mapping[int, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Runs in place of a T5 attention's `compute_bias`, with each cell's own table: [N, heads, Q, K].

        A cell alone gets [1, heads, Q, K], which transformers broadcasts over the rows.
        """

        def bias_of(cell: int) -> Tensor:
            # compute_bias reads the table off its module, so the table is exchanged for the time of the call
            weights = module.relative_attention_bias._parameters
            original = weights["weight"]
            weights["weight"] = tables.get(cell, original)
            try:
                bias: Tensor = type(module).compute_bias(module, *args, **kwargs)
                return bias
            finally:
                weights["weight"] = original

        if self._is_alone:
            return bias_of(0)
        return torch.cat([bias_of(cell).expand(count, -1, -1, -1) for cell, count in self._row_counts])

    def _divided(self, entry: ChangedModule, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply each cell's changes to that cell's rows: [N, ..., in] -> [N, ..., out], or packed, [1, M, in].

        Raises ValueError where N is not what `order` was told, and for vectors without rows, [tokens, in]: an expert
        gets some of all cells' tokens, by chance as many as there are rows, and nobody knows whose is whose.
        """
        axis, blocks = self._division(states)
        sizes, found = blocks.counts, states.shape[axis]
        if found != sum(sizes):
            what = "positions" if axis else "rows"
            raise ValueError(f"a module that cells change got {found} {what}, not {sum(sizes)}: whose is not known")
        if states.is_floating_point() and states.dim() < 3:
            raise ValueError(f"a module that cells change got {len(states)} vectors without rows: whose is not known")
        updates = _together([entry.changes.get(cell, []) for cell, _ in self._row_counts])
        if updates:
            output = entry.original(states, *args, **kwargs)
            if axis == 0:
                return add_all_updates(updates, blocks, states, output)
            return add_all_updates(updates, blocks, states[0], output[0])[None]
        # the module itself is skipped where every cell at hand puts something in its place
        replaced_by_all = all(_instead(entry.changes.get(cell, [])) is not None for cell, _ in self._row_counts)
        whole = () if replaced_by_all else torch.split(entry.original(states, *args, **kwargs), sizes, axis)
        outputs = []
        for number, (own_states, (cell, _)) in enumerate(
            zip(torch.split(states, sizes, axis), self._row_counts, strict=True)
        ):
            with errors_of_cell(cell):
                own_whole = None if replaced_by_all else whole[number]
                outputs.append(_changed(entry, entry.changes.get(cell, []), own_states, own_whole))
        return torch.cat(outputs, axis)

    def _division(self, states: Tensor) -> tuple[int, CellBlocks]:
        """Along which axis the cells stand one behind the other, and how much each has there."""
        packing, rows = present_packing(), self._blocks.counts
        # [tokens, in] has no axis for positions, and an encoder-decoder's answers are rows, of which there are several
        if packing is None or states.dim() < 3 or len(states) == sum(rows):
            return 0, self._blocks
        if states.dim() == 3 and states.shape[1] == packing.num_kept * sum(rows) != packing.total:
            return 1, CellBlocks([count * packing.num_kept for count in rows])  # an output head, at the targets alone
        if self._packed is None or self._packed[0] is not packing:
            lengths = packing.lengths.cpu().numpy()
            starts = np.cumsum(rows, dtype=np.int64) - np.array(rows)
            # rows are in the order of cells, which `order` has made
            self._packed = packing, CellBlocks(np.add.reduceat(lengths, starts).tolist())
        # norms of queries and keys may see [1, heads, M, size]; M is never the number of heads (`packed_rows`)
        return (2 if states.dim() == 4 and states.shape[1] != packing.total else 1), self._packed[1]


def _checked(changes: object) -> Sequence[LayerChange]:
    """Return what `layer_changes` gave for one cell. Raises TypeError if that is no list of LayerChange."""
    if not isinstance(changes, Sequence):
        raise TypeError(f"layer_changes() must return a list, not a {type(changes).__name__}")
    for change in changes:
        if not isinstance(change, LayerChange):
            raise TypeError(f"layer_changes() must give LayerChange objects, not a {type(change).__name__}")
    return changes


def _together(changes: Iterable[Sequence[LayerChange]]) -> list[LowRank]:
    """Return the low-rank updates of all cells where one batched product can serve them; else an empty list.

    That is so where each cell has one change, a low-rank update, and all updates have the same shape.
    """
    found = [own[0].low_rank if len(own) == 1 else None for own in changes]
    updates = [update for update in found if update is not None]
    if len(updates) < len(found) or len({update.shape for update in updates}) > 1:
        return []
    return updates


def _instead(changes: Sequence[LayerChange]) -> Change | None:
    """Return the function that one cell puts in a module's place, if it has one."""
    return next((change.instead for change in changes if change.instead is not None), None)


def _changed(entry: ChangedModule, changes: Sequence[LayerChange], states: Tensor, whole: Tensor | None) -> Tensor:
    """Apply one cell's changes to its own n rows: `states` [n, ..., in] -> [n, ..., out].

    `whole` [n, ..., out] is the unchanged module's output for these rows, or None where a change replaces the module.
    Raises ValueError where a change gives another shape, TypeError where it gives no tensor.
    """
    with _as_it_was(entry):
        instead = _instead(changes)
        output = whole if instead is None else _tensor(instead(states), entry)
        assert output is not None
        for change in changes:
            if change.low_rank is not None:
                output = change.low_rank.added(states, output)
            if change.after is not None:
                # back to the module's type: trained tensors may be finer than the bfloat16 around them
                output = _tensor(change.after(_tensor(output, entry)), entry).to(output.dtype)
        # an embedding reads ids, [n, ...], and not vectors
        read = states.shape if isinstance(entry.module, nn.Embedding) else states.shape[:-1]
        expected = (*read, output.shape[-1]) if whole is None else whole.shape
        if output.shape != expected:
            name = type(entry.module).__name__
            raise ValueError(f"a change of a {name} gave {list(output.shape)}, not {list(expected)}")
        return output


def _tensor(output: object, entry: ChangedModule) -> Tensor:
    """Return `output` if it is a tensor, else raise TypeError with the module's name."""
    if not isinstance(output, Tensor):
        raise TypeError(
            f"a change of a {type(entry.module).__name__} needs and gives a tensor, not a {type(output).__name__}"
        )
    return output


@contextmanager
def _as_it_was(entry: ChangedModule) -> Iterator[None]:
    """Run the module without its changes within this context: what stands in its place may call the module itself."""
    changed_forward = entry.module.forward
    entry.put(entry.own)
    try:
        yield
    finally:
        entry.put(changed_forward)
