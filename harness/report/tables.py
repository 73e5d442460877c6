"""Chooses the writer: boards and other tables in each of the six formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from harness.report.boards import Board
from harness.report.leaderboard_table import Table, lay_out
from harness.report.statistics.significance import Significance
from harness.report.writers.csv_json import as_csv, as_json, rows_csv
from harness.report.writers.html import html
from harness.report.writers.latex import latex
from harness.report.writers.text import markdown, terminal

WRITERS: dict[str, Callable[[Sequence[Table]], str]] = {
    "markdown": lambda tables: "\n\n".join(map(markdown, tables)) + "\n",
    "terminal": lambda tables: "\n\n".join(map(terminal, tables)) + "\n",
    "latex": latex,
    "html": html,
}
"""Formats that show a table as it is laid out. CSV and JSON hold the numbers behind it; see `records`."""


def render_boards(
    boards: Sequence[Board], style: str, costs: bool = False, significance: Sequence[Significance | None] = ()
) -> str:
    """Return all boards in the format `style`, one of `Format`; `costs` adds columns of time and memory.

    `significance` holds the statistics of each board, in their order; empty without any. CSV leaves them out: it has
    a line per entry, and a test is about two.
    """
    verdicts = significance or [None] * len(boards)
    if style == "csv":
        return as_csv(boards)
    if style == "json":
        return json.dumps([as_json(*item) for item in zip(boards, verdicts, strict=True)], indent=1) + "\n"
    return WRITERS[style]([lay_out(board, costs, verdict) for board, verdict in zip(boards, verdicts, strict=True)])


def render_tables(tables: Sequence[Table], records: Sequence[Mapping[str, object]], style: str) -> str:
    """Return tables other than boards in the format `style`. JSON and CSV hold the `records`, which are not rounded."""
    if style == "json":
        return json.dumps(records, indent=1) + "\n"
    if style == "csv":
        return rows_csv(records)
    return WRITERS[style](tables)
