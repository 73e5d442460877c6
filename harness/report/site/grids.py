"""Tables of the pages: a laid-out table with links, sort keys, and the colour and marker of each method."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.report.boards import Board
from harness.report.figures.colours import Look
from harness.report.leaderboard_table import lay_out
from harness.report.marks import Marks, mark_board, mark_within_k
from harness.report.site import names
from harness.report.statistics.significance import Significance
from harness.report.table_cells import DASH, Cell, Column, Table
from harness.suite import Bold


@dataclass(frozen=True)
class Item:
    """One cell of a table and the address it leads to. `links` are (text, address) pairs that follow its text."""

    cell: Cell
    href: str = ""
    look: Look | None = None
    links: tuple[tuple[str, str], ...] = ()

    @property
    def order(self) -> float | None:
        """Sort key: the number that the cell begins with, as printed, so that equal texts sort as equal; or None."""
        found = re.match(r"[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?", self.cell.text)
        return float(found[0].replace(",", "")) if found else None


@dataclass
class Grid:
    """A table of a page."""

    id: str
    title: str
    caption: str
    columns: list[Column]
    rows: list[list[Item]]
    row_ids: list[str]
    """Id of each row as a target of links; empty if nothing leads to it."""
    apart: int
    """Index of the first published row; the number of rows if there is none."""
    notes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> set[int]:
        """Indices of the columns that sort by number: each of their cells begins with one, is empty or a dash."""
        found = set()
        for index in range(1, len(self.columns)):
            items = [row[index] for row in self.rows if row[index].cell.text not in ("", DASH)]
            if items and all(item.order is not None for item in items):
                found.add(index)
        return found

    def insert(self, index: int, column: Column, items: Sequence[Item]) -> None:
        """Insert a column in front of the one at `index`."""
        self.columns.insert(index, column)
        for row, item in zip(self.rows, items, strict=True):
            row.insert(index, item)

    def move(self, index: int, to: int) -> None:
        """Move the column at `index` in front of the one at `to`, which must be further left."""
        self.columns.insert(to, self.columns.pop(index))
        for row in self.rows:
            row.insert(to, row.pop(index))

    def select(self, indices: Sequence[int]) -> Grid:
        """A grid of the columns at `indices` alone. It keeps the footnotes that they use, numbered from 1 again."""
        columns = [self.columns[i] for i in indices]
        rows = [[row[i] for i in indices] for row in self.rows]
        used = [number for column in columns for number in column.notes]
        used += [number for row in rows for item in row for number in item.cell.notes]
        new_number = {number: i for i, number in enumerate(dict.fromkeys(used), 1)}

        def renumber(numbers: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(new_number[number] for number in numbers)

        return replace(
            self,
            columns=[replace(column, notes=renumber(column.notes)) for column in columns],
            rows=[[replace(i, cell=replace(i.cell, notes=renumber(i.cell.notes))) for i in row] for row in rows],
            notes=[self.notes[number - 1] for number in new_number],
        )


def plain_grid(table: Table, name: str) -> Grid:
    """A laid-out table as a grid without links."""
    rows = [[Item(cell) for cell in row] for row in table.rows]
    return Grid(name, table.title, table.caption, table.columns, rows, [""] * len(rows), len(rows), table.notes,
                table.remarks)  # fmt: skip


def board_grid(board: Board, verdict: Significance | None, styles: Mapping[str, Look], bold: Bold = "ties") -> Grid:
    """The leaderboard of a board with time and memory, and an average per benchmark if there are several."""
    marks = mark_board(board, verdict, bold)
    grid = plain_grid(lay_out(board, costs=True, significance=verdict, marks=marks), names.board_id(board))
    grid.apart = len(board.rows)
    for row, items in zip(board.rows, grid.rows, strict=False):
        for i, column in enumerate(grid.columns):
            if column.task and row.entries.get(column.task):
                page = f"{names.task_page(column.task)}#{names.row_id(board, row.name)}"
                items[i] = replace(items[i], href=page)
        method = row.method
        items[0] = replace(items[0], href=names.method_page(method), look=styles[method])
    # a phone shows the first columns only, so the average comes right behind the method
    grid.move(next(i for i, column in enumerate(grid.columns) if column.title == "average"), 1)
    if len(set(board.benchmarks.values())) > 1:
        for benchmark in dict.fromkeys(board.benchmarks.values()):
            _add_average(grid, board, benchmark, marks)
    return grid


def groups(columns: Sequence[Column]) -> list[list[Column]]:
    """Neighbouring columns with the same benchmark, as lists."""
    return [list(group) for _, group in itertools.groupby(columns, key=lambda column: column.benchmark)]


def tasks_of(board: Board, benchmark: str) -> list[str]:
    """The tasks of a board that belong to a benchmark."""
    return [task for task in board.tasks if board.benchmarks[task] == benchmark]


def _add_average(grid: Grid, board: Board, benchmark: str, marks: Marks) -> None:
    """Insert the average over a benchmark's tasks in front of them, unless it has one task or none."""
    tasks = tasks_of(board, benchmark)
    first = next((i for i, column in enumerate(grid.columns) if column.task in tasks), None)
    if not benchmark or len(tasks) < 2 or first is None:
        return
    means = [row.average(tasks) for row in board.rows]
    # these averages are not tested, so by the tests none is bold
    ranks = mark_within_k(board, tasks) if marks.rule == "best" else [""] * len(means)
    cells = [Cell(DASH if mean is None else f"{mean:z.1f}", rank) for mean, rank in zip(means, ranks, strict=True)]
    theirs = [row.average(tasks) for row in board.published]
    cells += [Cell(DASH if mean is None else f"{mean:z.1f}") for mean in theirs]
    note = "averages of one benchmark are not tested against each other, so no test makes one bold"
    if note not in grid.notes:
        grid.notes.append(note)
    column = Column("average", benchmark, (grid.notes.index(note) + 1,))
    grid.insert(first, column, [Item(cell) for cell in cells])
