"""An index of a suite's groups: which group holds a cell, and which group is a named source (`init_from`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.suite.cell import Cell, Key, Start
from harness.suite.groups import Group

Point = tuple[int, int]
"""(grid point, seed) of a cell within its group."""
SourceKey = tuple[str, str, str, int]
"""(label, task, backbone, seed)"""


class GroupIndex:
    """Finds the group of a cell in one step. Without it, work on N cells would search N groups each time."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._sources: dict[SourceKey, int] = {}
        self._cells: dict[Key, list[tuple[int, Point]]] = {}
        for index, group in enumerate(groups):
            for seed in group.seeds:  # setdefault: a group of the table comes before a source of the same name
                self._sources.setdefault((group.label, group.task, group.backbone, seed), index)
            self.add(index, group.cells)

    def add(self, index: int, cells: Mapping[Point, Cell]) -> None:
        """Add cells of a group, as when a search has asked for further points."""
        for point, cell in cells.items():
            places = self._cells.setdefault(cell.key, [])
            if (index, point) not in places:
                places.append((index, point))

    def of_cell(self, key: Key) -> Sequence[tuple[int, Point]]:
        """(number of the group, grid point and seed) for every group that holds the cell with this key."""
        return self._cells.get(key, ())

    def of_source(self, source: SourceKey) -> int | None:
        """Number of the group that holds a source."""
        return self._sources.get(source)


def source_of(start: Start) -> SourceKey:
    """The group and seed that an `init_from` names."""
    return start.label, start.task, start.backbone, start.seed
