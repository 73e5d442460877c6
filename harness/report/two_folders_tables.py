"""Writes a comparison of two folders: tables for a reader, JSON with everything for a program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from harness.report.statistics.intervals import LEVEL
from harness.report.table_cells import DASH, Cell, Column, Table
from harness.report.tables import render_tables
from harness.report.two_folders import Difference, FolderComparison, Line

MOST_VALUE = 60
"""Characters of a value in a table: a setting may be a whole text. JSON has all of it."""


def render_comparison(found: FolderComparison, a: str, b: str, style: str) -> str:
    """Return a comparison of the folders named `a` and `b` as "terminal", "markdown" or "json"."""
    if style == "json":
        return json.dumps(_as_json(found, a, b), indent=1) + "\n"
    tables = [_both(found, a, b)]
    if not found.num_both:
        tables[0].remarks = [f"No cell is in both folders, so there is nothing to compare of {a} and {b}."]
    if found.only:
        tables.append(_only(found))
    if found.settings:
        caption = "Cells of one folder alone, each beside the cell of the other that differs least from it."
        tables.append(_apart("Settings that differ", caption, found.settings))
    if found.origins:
        caption = "Where the cells above come from. Different origins alone are no difference of the folders."
        tables.append(_apart("Origins that differ", caption, found.origins))
    return render_tables(tables, [], style)


def _both(found: FolderComparison, a: str, b: str) -> Table:
    """The lines that are not equal; the others are counted."""
    names = ["method", "grid point", "task", "backbone", "seeds", "A", "B", "B − A", "p", "answers that differ"]
    caption = (
        f"A is {a}, B is {b}. Mean test scores over seeds; the difference with its {1 - LEVEL:.0%} interval; p of the "
        "paired test on the same rows, after Holm's correction over all lines."
    )
    table = Table("Cells in both folders", caption, [*map(Column, names)], num_heads=4)
    shown = [line for line in found.lines if not line.is_equal]
    suite = ""
    for line in shown:
        if line.suite != suite:
            suite = line.suite
            table.sections[len(table.rows)] = suite
        table.rows.append(_cells(line, table))
    equal = len(found.lines) - len(shown)
    table.remarks.append(
        f"{found.num_both:,} cells are in both folders. Of {len(found.lines):,} grid points {equal:,} have equal "
        f"answers and scores" + (", and are not shown." if equal else ".")
    )
    return table


def _cells(line: Line, table: Table) -> list[Cell]:
    seeds = _numbers(line.seeds) + (f", repeat {line.repeat}" if line.repeat > 1 else "")
    texts = [line.method, line.point, line.task, line.backbone, seeds]
    heads = [*map(Cell, texts), Cell(_score(line.a)), Cell(_score(line.b))]
    if line.problem or line.gap is None:
        notes = (table.note(line.problem),) if line.problem else ()
        return [*heads, Cell(DASH, notes=notes), Cell(DASH), Cell(DASH)]
    low, high = line.gap.interval()
    p_value = line.p_value if line.adjusted is None else line.adjusted
    changed = f"{line.num_changed:,} of {line.num_answers:,}"
    gap = Cell(f"{line.gap.value:+z.1f}", interval=f"[{low:+z.1f}, {high:+z.1f}]")
    return [*heads, gap, Cell(DASH if p_value is None else f"{p_value:.3f}"), Cell(changed)]


def _only(found: FolderComparison) -> Table:
    names = ["in", "suite", "method", "task", "backbone", "cells", "seeds"]
    table = Table("Cells in one folder", "No cell of the other folder has all their settings.", [*map(Column, names)])
    table.num_heads = 5
    for item in found.only:
        texts = [item.folder, item.suite, item.method, item.task, item.backbone]
        table.rows.append([*map(Cell, [*texts, f"{item.num_cells:,}", _numbers(item.seeds)])])
    return table


def _apart(title: str, caption: str, differences: Sequence[Difference]) -> Table:
    table = Table(title, caption, [*map(Column, ["of", "key", "A", "B", "cells"])], num_heads=4)
    for item in differences:
        texts = [item.where, item.key, _short(item.a), _short(item.b), f"{item.num_cells:,}"]
        table.rows.append([*map(Cell, texts)])
    return table


def _as_json(found: FolderComparison, a: str, b: str) -> dict[str, Any]:
    """Everything that was found, numbers unrounded."""
    return {
        "a": a,
        "b": b,
        "level": LEVEL,
        "differs": found.differs,
        "num_both": found.num_both,
        "both": [_line_as_json(line) for line in found.lines],
        "only": [asdict(item) for item in found.only],
        "settings": [asdict(item) for item in found.settings],
        "origins": [asdict(item) for item in found.origins],
    }


def _line_as_json(line: Line) -> dict[str, Any]:
    gap = line.gap
    made = {key: value for key, value in vars(line).items() if key not in ("gap", "p_value", "adjusted")}
    return {
        **made,
        "equal": line.is_equal,
        "difference": None if gap is None else gap.value,
        "interval": None if gap is None else gap.interval(),
        "p": line.p_value,
        "p_holm": line.adjusted,
    }


def _score(value: float | None) -> str:
    return DASH if value is None else f"{value:z.1f}"


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _short(value: Any) -> str:
    text = DASH if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_VALUE else f"{text[: MOST_VALUE - 3]}..."
