"""Where the groups of a suite hold a cell, and which of them is a source: by name, without a search."""

from __future__ import annotations

from collections.abc import Sequence

from harness.families import Group
from harness.schema import Key, Start

Point = tuple[int, int]
"""(grid point, seed) of a cell within its group."""
Source = tuple[str, str, str, int]
"""(label, task, backbone, seed)"""


class GroupIndex:
    """Built once, so that work on all cells grows with their number and not with its square."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._sources: dict[Source, int] = {}
        self._cells: dict[Key, list[tuple[int, Point]]] = {}
        for index, group in enumerate(groups):
            for seed in group.seeds:  # of two groups, that of the table stands first
                self._sources.setdefault((group.label, group.task, group.backbone, seed), index)
            for point, cell in group.cells.items():
                self._cells.setdefault(cell.key, []).append((index, point))

    def of_cell(self, key: Key) -> Sequence[tuple[int, Point]]:
        """Number of the group and point there, for every place that holds the cell of that key."""
        return self._cells.get(key, ())

    def of_source(self, source: Source) -> int | None:
        """Number of the group that holds a source."""
        return self._sources.get(source)


def source_of(start: Start) -> Source:
    """Which cells a start names."""
    return start.label, start.task, start.backbone, start.seed
