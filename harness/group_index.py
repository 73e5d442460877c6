"""An index of the groups of a suite: which groups hold a cell, and which group holds a source."""

from __future__ import annotations

from collections.abc import Sequence

from harness.families import Group
from harness.schema import Key, Start

Point = tuple[int, int]
"""(grid point, seed) of a cell within its group."""
Source = tuple[str, str, str, int]
"""(label, task, backbone, seed)"""


class GroupIndex:
    """Built once per suite. A search through all groups for each cell would take time in the square of their number."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._sources: dict[Source, int] = {}
        self._cells: dict[Key, list[tuple[int, Point]]] = {}
        for index, group in enumerate(groups):
            for seed in group.seeds:  # groups of the table come first, so of two groups theirs is kept
                self._sources.setdefault((group.label, group.task, group.backbone, seed), index)
            for point, cell in group.cells.items():
                self._cells.setdefault(cell.key, []).append((index, point))

    def of_cell(self, key: Key) -> Sequence[tuple[int, Point]]:
        """Return (index of the group, (grid point, seed)) for every group that holds the cell with this key."""
        return self._cells.get(key, ())

    def of_source(self, source: Source) -> int | None:
        """Return the index of the group that holds a source; None if no group does."""
        return self._sources.get(source)


def source_of(start: Start) -> Source:
    """Return which cells a start names."""
    return start.label, start.task, start.backbone, start.seed
