"""Boards in every format, in the shape of the papers' tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence

from harness.report.aggregate import Board
from harness.report.html import html
from harness.report.latex import latex
from harness.report.layout import Table, lay_out
from harness.report.records import as_csv, as_json
from harness.report.significance import Significance
from harness.report.text import markdown, terminal

WRITERS: dict[str, Callable[[Sequence[Table]], str]] = {
    "markdown": lambda tables: "\n\n".join(map(markdown, tables)) + "\n",
    "terminal": lambda tables: "\n\n".join(map(terminal, tables)) + "\n",
    "latex": latex,
    "html": html,
}
"""Formats that show a table as it is laid out."""


def render(
    boards: Sequence[Board], style: str, costs: bool = False, significance: Sequence[Significance | None] = ()
) -> str:
    """Return all boards in one `Format`; with `costs`, also time and memory.

    `significance` holds what the statistics say about each board; CSV has no room for it.
    """
    verdicts = significance or [None] * len(boards)
    if style == "csv":
        return as_csv(boards)
    if style == "json":
        return json.dumps([as_json(*item) for item in zip(boards, verdicts, strict=True)], indent=1) + "\n"
    return WRITERS[style]([lay_out(board, costs, verdict) for board, verdict in zip(boards, verdicts, strict=True)])


def render_records(tables: Sequence[Table], records: Sequence[Mapping[str, object]], style: str) -> str:
    """Return other tables in one `Format`; JSON and CSV hold their `records` unrounded instead."""
    if style == "json":
        return json.dumps(records, indent=1) + "\n"
    if style == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, list(records[0]) if records else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _in_csv(value) for name, value in row.items()} for row in records)
        return out.getvalue()
    return WRITERS[style](tables)


def _in_csv(value: object) -> object:
    """Several numbers of one field with blanks between them."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else value
