"""The limit on the number of cells of a suite. Cells are counted before any is made: one line can declare billions."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import UserError
from harness.suite.load import Suite


@dataclass(frozen=True)
class EntryCount:
    """How many cells one table entry has: every grid point with every seed."""

    title: str
    num_points: int
    num_seeds: int

    @property
    def num_cells(self) -> int:
        return self.num_points * self.num_seeds


class CellLimit:
    """Counts cells, and raises UserError when there are more than `execution.max_cells`."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.most = suite.file.execution.max_cells
        self.num_cells = 0

    def require_entries(self, backbones: int, tasks: int, shots: int, methods: int, once: int = 0) -> None:
        """Raise UserError if the table entries alone are too many. Each has at least one cell, so none is looked at.

        `once` of the methods have one entry whatever the number of shots.
        """
        number = backbones * tasks * (shots * (methods - once) + once)
        if number > self.most:
            axes = {"backbones": backbones, "tasks": tasks, "numbers of shots": shots, "methods": methods}
            factors = " x ".join(f"{count:,} {axis}" for axis, count in axes.items() if count > 1)
            if once and shots > 1:
                factors += f", {once:,} of them once"
            raise self._refusal(f"declares {number:,} table entries ({factors}), each of one cell or more", number)

    def require_table(self, entries: list[EntryCount]) -> None:
        """Raise UserError if the table entries have too many cells in all."""
        self.num_cells = sum(entry.num_cells for entry in entries)
        if self.num_cells > self.most:
            largest = max(entries, key=lambda entry: entry.num_cells)
            part = (
                f"{largest.title} alone has {largest.num_points:,} grid points x {largest.num_seeds:,} seeds"
                if largest.num_cells > 1
                else f"{len(entries):,} table entries"
            )
            raise self._refusal(f"declares {self.num_cells:,} cells ({part})", self.num_cells)

    def add_source(self, entry: EntryCount) -> None:
        """Count cells that others start from. Raises UserError if with those counted before they are too many."""
        self.num_cells += entry.num_cells
        if self.num_cells > self.most:
            what = f"needs {self.num_cells:,} cells or more with those that others start from"
            part = f"{entry.title} has {entry.num_points:,} grid points x {entry.num_seeds:,} seeds"
            raise self._refusal(f"{what} ({part})", self.num_cells)

    def _refusal(self, found: str, number: int) -> UserError:
        return UserError(
            f"{found}; execution.max_cells is {self.most:,}",
            where=self.suite.document.path,
            hint=f"If that is meant: --set execution.max_cells={number}, or the key in the suite file.",
        )
