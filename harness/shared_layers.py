"""Layer-side cells in one forward pass: what a cell changes sees the rows of that cell, all else sees all rows at once.

N rows, ordered by cell. A changed module of the backbone splits them, gives each cell's part to that cell's change,
and puts the parts together again; low-rank updates of one shape are computed for all cells at once. Every other module
runs once.
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

from harness.blame import blaming
from harness.layer_change import Change, LayerChange
from harness.low_rank import LowRank, Parts, added_together

Index = np.ndarray[Any, np.dtype[np.int64]]
CALLS_TOGETHER = 2
"""What low-rank updates of all cells together cost, in calls of the module that they change."""


@dataclass
class Place:
    """A module of the backbone and what each cell makes of it."""

    module: nn.Module
    original: Callable[..., Tensor]
    own: Callable[..., Tensor] | None
    """A `forward` that somebody has put on the module itself, as accelerate does to spread layers over devices."""
    changes: dict[int, list[LayerChange]]

    def put(self, forward: Callable[..., Tensor] | None) -> None:
        """Let the module run `forward`; None for that of its class."""
        if forward is None:
            self.module.__dict__.pop("forward", None)
        else:
            self.module.__dict__["forward"] = forward


class SharedLayers:
    """The changes of several cells, in the backbone together."""

    def __init__(self, changes: Sequence[Sequence[LayerChange]]) -> None:
        """`changes` of each cell, by position in the bundle."""
        places: dict[int, Place] = {}
        self._tables: dict[int, tuple[Any, dict[int, Tensor]]] = {}
        """Attentions whose table of relative positions cells have in their own form: module, and table by cell."""
        for cell, own in enumerate(changes):
            if not isinstance(own, Sequence):
                raise TypeError(f"layer_changes() must return a list, not a {type(own).__name__}")
            for change in own:
                if not isinstance(change, LayerChange):
                    raise TypeError(f"layer_changes() must give LayerChange objects, not a {type(change).__name__}")
                module = change.module
                if change.position_bias is not None:
                    self._tables.setdefault(id(module), (module, {}))[1][cell] = change.position_bias
                    continue
                place = places.setdefault(
                    id(module), Place(module, module.forward, vars(module).get("forward"), defaultdict(list))
                )
                if change.instead is not None and _instead(place.changes[cell]) is not None:
                    raise ValueError(f"a {type(module).__name__} cannot have two changes instead of it in one cell")
                place.changes[cell].append(change)
        self._places = list(places.values())
        self._is_alone = len(changes) == 1
        self._parts: list[tuple[int, int]] = []
        self._blocks = Parts([])

    @property
    def num_changes(self) -> int:
        """Calls that the changes of all cells take in a forward pass."""
        return sum(
            CALLS_TOGETHER if _together(place.changes.values()) else len(place.changes) for place in self._places
        )

    def order(self, cells: Index) -> Index:
        """The order in which rows of these cells, [N], go through the backbone; the next passes expect just these."""
        found, counts = np.unique(cells, return_counts=True)
        self._parts = list(zip(found.tolist(), counts.tolist(), strict=True))
        self._blocks = Parts(counts.tolist())
        return np.argsort(cells, kind="stable")

    def attach(self) -> None:
        """Put the changes into the backbone."""
        for place in self._places:
            place.put(partial(self._forward, place))
        for module, tables in self._tables.values():
            module.__dict__["compute_bias"] = partial(self._position_bias, module, tables)

    def detach(self) -> None:
        """Leave every module as it was."""
        for place in self._places:
            place.put(place.own)
        for module, _ in self._tables.values():
            module.__dict__.pop("compute_bias", None)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The changes in the backbone; behind it every module is as it was."""
        try:
            self.attach()
            yield
        finally:
            self.detach()

    def _forward(self, place: Place, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Instead of the module's own `forward`; the first dimension of `states` is the rows."""
        if self._is_alone:  # whose code it is, and whose rows, need not be told
            changes = place.changes[0]
            whole = None if _instead(changes) is not None else place.original(states, *args, **kwargs)
            return _changed(place, changes, states, whole)
        return self._divided(place, states, *args, **kwargs)

    def _position_bias(self, module: Any, tables: Mapping[int, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Scores of relative positions by each cell's own table, [N, heads, Q, K]; a cell alone needs [1, ...]."""

        def scores(cell: int) -> Tensor:
            weights = module.relative_attention_bias._parameters
            original = weights["weight"]
            weights["weight"] = tables.get(cell, original)
            try:
                made: Tensor = type(module).compute_bias(module, *args, **kwargs)
                return made
            finally:
                weights["weight"] = original

        if self._is_alone:
            return scores(0)
        return torch.cat([scores(cell).expand(count, -1, -1, -1) for cell, count in self._parts])

    def _divided(self, place: Place, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Each cell's rows by that cell's changes."""
        sizes = [count for _, count in self._parts]
        if len(states) != sum(sizes):
            raise ValueError(f"a module that cells change got {len(states)} rows, not {sum(sizes)}: whose is not known")
        updates = _together([place.changes.get(cell, []) for cell, _ in self._parts])
        if updates:
            return added_together(updates, self._blocks, states, place.original(states, *args, **kwargs))
        needs_whole = not self._replaces(place)
        whole = torch.split(place.original(states, *args, **kwargs), sizes) if needs_whole else ()
        parts = []
        for number, (part, (cell, _)) in enumerate(zip(torch.split(states, sizes), self._parts, strict=True)):
            with blaming(cell):
                own = whole[number] if needs_whole else None
                parts.append(_changed(place, place.changes.get(cell, []), part, own))
        return torch.cat(parts)

    def _replaces(self, place: Place) -> bool:
        """Whether each cell at hand has something in the module's own place."""
        return all(_instead(place.changes.get(cell, [])) is not None for cell, _ in self._parts)


def _together(changes: Iterable[Sequence[LayerChange]]) -> list[LowRank]:
    """The updates of all cells, if each has one, of the same shape, and nothing else; else none."""
    found = [own[0].low_rank if len(own) == 1 else None for own in changes]
    updates = [update for update in found if update is not None]
    if len(updates) < len(found) or len({update.shape for update in updates}) > 1:
        return []
    return updates


def _instead(changes: Sequence[LayerChange]) -> Change | None:
    """What one cell has in a module's own place, if anything."""
    return next((change.instead for change in changes if change.instead is not None), None)


def _changed(place: Place, changes: Sequence[LayerChange], states: Tensor, whole: Tensor | None) -> Tensor:
    """What one cell makes of a module for its rows; `whole` is what the module itself gives for them, where known."""
    with _as_it_was(place):
        instead = _instead(changes)
        made = whole if instead is None else _tensor(instead(states), place)
        assert made is not None
        for change in changes:
            if change.low_rank is not None:
                made = change.low_rank.added(states, made)
            made = made if change.after is None else _tensor(change.after(_tensor(made, place)), place).to(made.dtype)
        expected = (*states.shape[:-1], made.shape[-1]) if whole is None else whole.shape
        if made.shape != expected:
            name = type(place.module).__name__
            raise ValueError(f"a change of a {name} gave {list(made.shape)}, not {list(expected)}")
        return made


def _tensor(made: object, place: Place) -> Tensor:
    """What a module or a change gave. Raises TypeError if that is no tensor."""
    if not isinstance(made, Tensor):
        raise TypeError(
            f"a change of a {type(place.module).__name__} needs and gives a tensor, not a {type(made).__name__}"
        )
    return made


@contextmanager
def _as_it_was(place: Place) -> Iterator[None]:
    """The module without changes: what stands in its place may run it."""
    put = place.module.forward
    place.put(place.own)
    try:
        yield
    finally:
        place.put(put)
