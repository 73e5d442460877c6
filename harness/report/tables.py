"""Writes tables: boards and others, in each of the six formats.

Markdown and the text of a terminal are written here; LaTeX, HTML, CSV and JSON have a file each in `writers/`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tabulate import tabulate

from harness.report.boards import Board
from harness.report.leaderboard_table import lay_out
from harness.report.marks import mark_board
from harness.report.statistics.significance import Significance
from harness.report.table_cells import TIED, Cell, Column, Table
from harness.report.writers.csv_json import as_csv, as_json, rows_csv
from harness.report.writers.html import html
from harness.report.writers.latex import latex
from harness.screen import on_screen
from harness.suite import Bold

Mark = Callable[[str, str], str]
"""(text, "best" | "second" | "") -> text with the marks of a format"""


def render_boards(
    boards: Sequence[Board], style: str, costs: bool = False, significance: Sequence[Significance | None] = (),
    bold: Bold = "ties", with_statistics: bool = True,
) -> str:  # fmt: skip
    """Return all boards in the format `style`: one of WRITERS, "csv" or "json".

    `costs` adds time, memory and forgetting. `significance` holds the statistics of each board, in their order; empty
    without any. By them entries are marked unless `bold` is "best"; `with_statistics` says whether a table shows more
    of them: intervals, ties, ranks. CSV has the marks alone: it has a line per entry, and a test is about two.
    """
    verdicts = significance or [None] * len(boards)
    marks = [mark_board(board, verdict, bold) for board, verdict in zip(boards, verdicts, strict=True)]
    if style == "csv":
        return as_csv(boards, marks)
    judged = list(zip(boards, verdicts, marks, strict=True))
    if style == "json":
        return json.dumps([as_json(*item) for item in judged], indent=1) + "\n"
    return WRITERS[style]([lay_out(board, costs, v if with_statistics else None, made) for board, v, made in judged])


def render_tables(tables: Sequence[Table], records: Sequence[Mapping[str, object]], style: str) -> str:
    """Return tables other than boards in the format `style`. JSON and CSV hold the `records`, which are not rounded."""
    if style == "json":
        return json.dumps(records, indent=1) + "\n"
    if style == "csv":
        return rows_csv(records)
    return WRITERS[style](tables)


def markdown(table: Table) -> str:
    """A heading, the caption, a pipe table, footnotes and remarks."""
    table = _escaped(table)
    return _text(table, f"### {table.title}\n\n{table.caption}", "pipe", _in_markdown, line_end="  ")


def terminal(table: Table) -> str:
    """The same for a terminal, with drawn lines. On a screen the best is bold by escape codes, else it stands in *."""
    return _text(table, f"{table.title}\n{table.caption}", "simple_outline", _in_terminal, line_end="", show=on_screen)


def _text(table: Table, head: str, layout: str, mark: Mark, line_end: str, show: Callable[[str], str] = str) -> str:
    """Lay out a table as text: `head`, then rows in tabulate's format `layout`, then footnotes and remarks.

    `show` replaces the characters that a screen lacks. It does so before columns are measured: "±" may become "+-",
    which is one character wider.
    """
    body = []
    for i, row in enumerate(table.rows):
        if table.sections.get(i):
            body.append([show(table.sections[i]), *[""] * (len(row) - 1)])
        body.append([show(_cell(cell, mark)) for cell in row])
    # text has no line of titles over columns, so two columns called "average" name their benchmarks themselves
    repeated = {title for title, count in Counter(column.title for column in table.columns).items() if count > 1}
    titles = [show(_column(column, with_group=column.title in repeated)) for column in table.columns]
    align = ["left"] * table.num_heads + ["right"] * (len(titles) - table.num_heads)
    # without disable_numparse, tabulate reads "70.0" as a number and prints 70
    lines = [head, "", tabulate(body, titles, tablefmt=layout, colalign=align, disable_numparse=True)]
    if table.notes:
        lines += ["", *(f"[{i}] {text}{line_end}" for i, text in enumerate(table.notes, 1))]
    lines += [line for text in table.remarks for line in ("", text)]
    return "\n".join(lines)


def _escaped(table: Table) -> Table:
    """Return the table with its texts escaped: no text becomes markup or ends a cell."""
    return replace(
        table,
        title=_plain(table.title),
        caption=_plain(table.caption),
        columns=[replace(item, title=_plain(item.title), benchmark=_plain(item.benchmark)) for item in table.columns],
        rows=[[_escaped_cell(cell) for cell in row] for row in table.rows],
        notes=list(map(_plain, table.notes)),
        remarks=list(map(_plain, table.remarks)),
        sections={i: _plain(text) for i, text in table.sections.items()},
    )


def _escaped_cell(cell: Cell) -> Cell:
    return replace(cell, text=_plain(cell.text), spread=_plain(cell.spread), interval=_plain(cell.interval))


def _plain(text: str) -> str:
    # names may come from anybody: a line end or "|" would end the table's cell, "<" would begin HTML
    return " ".join(text.split("\n")).replace("<", "&lt;").replace("|", "\\|")


def _column(column: Column, with_group: bool) -> str:
    """The title of a column with its footnotes; `with_group` puts its benchmark in front."""
    group = [column.benchmark] if with_group and column.benchmark else []
    return " ".join([*group, column.title, *(f"[{number}]" for number in column.notes)])


def _cell(cell: Cell, mark: Mark) -> str:
    """Return a cell with all its parts: "**71.2** ±0.4 (3) [70.1, 72.3] ≈ [1]"."""
    parts = [
        mark(cell.text, cell.rank),
        f"±{cell.spread}" if cell.spread else "",
        f"({cell.runs})" if cell.runs else "",
        cell.interval,
        TIED if cell.tied else "",
        *(f"[{number}]" for number in cell.notes),
    ]
    return " ".join(part for part in parts if part)


def _in_markdown(text: str, rank: str) -> str:
    return {"best": f"**{text}**", "second": f"<u>{text}</u>"}.get(rank, text)


def _in_terminal(text: str, rank: str) -> str:
    if not sys.stdout.isatty():  # a file or pipe would hold the escape codes as text
        return {"best": f"*{text}*", "second": f"_{text}_"}.get(rank, text)
    return {"best": f"\x1b[1m{text}\x1b[0m", "second": f"\x1b[4m{text}\x1b[0m"}.get(rank, text)


WRITERS: dict[str, Callable[[Sequence[Table]], str]] = {
    "markdown": lambda tables: "\n\n".join(map(markdown, tables)) + "\n",
    "terminal": lambda tables: "\n\n".join(map(terminal, tables)) + "\n",
    "latex": latex,
    "html": html,
}
"""Formats that show a table as it is laid out. CSV and JSON hold the numbers behind it; see `writers/csv_json.py`."""
