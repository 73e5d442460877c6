"""Writes tables as one HTML page. It loads nothing from elsewhere, and every text from a file is escaped."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape

from harness.report.table_cells import TIED, Cell, Column, Table

# the only style, inside the page: a table that is sent by mail or opened from disk looks the same
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 1rem auto; max-width: 80rem; padding: 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; border-block: 2px solid; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; }
thead th { vertical-align: bottom; }
thead tr:last-child th { border-bottom: 1px solid; }
th[colspan] { text-align: center; border-bottom: 1px solid; }
th:first-child { text-align: left; }
tbody th { font-weight: normal; }
tbody th[scope] { text-align: left; }
tr.section th { font-style: italic; }
tbody tr:nth-child(even) { background: color-mix(in srgb, currentColor 6%, transparent); }
tr.apart > * { border-top: 1px solid; }
u { text-underline-offset: .2em; }
.interval { font-size: .8em; opacity: .8; }
.runs { font-size: .8em; opacity: .8; }
ol, .remark { font-size: .9em; }
"""


def html(tables: Sequence[Table]) -> str:
    """A page with all tables."""
    titles = ", ".join(table.title for table in tables)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(titles)}</title>",
            f"<style>{STYLE}</style></head>",
            "<body>",
            *(fragment(table, f"t{i}") for i, table in enumerate(tables, 1)),
            "</body>",
            "</html>\n",
        ]
    )


def fragment(table: Table, name: str) -> str:
    """One table with heading and footnotes. `name` is its id, which makes the targets of its footnotes unique."""
    rows = []
    for i, row in enumerate(table.rows):
        if table.sections.get(i):
            section = escape(table.sections[i])
            rows.append(f'<tr class="section"><th colspan="{len(row)}" scope="rowgroup">{section}</th></tr>')
        rows.append(_row(row, name, table.num_heads, apart=i == table.apart))
    notes = [f'<li id="{name}-{i}">{escape(text)}</li>' for i, text in enumerate(table.notes, 1)]
    return "\n".join(
        [
            f'<section aria-labelledby="{name}">',
            f'<h2 id="{name}">{escape(table.title)}</h2>',
            f"<p>{escape(table.caption)}</p>",
            f'<div class="scroll" role="region" aria-labelledby="{name}" tabindex="0"><table>',
            "<thead>",
            *_spanners(table.columns),
            "<tr>" + "".join(_head(column, name) for column in table.columns) + "</tr>",
            "</thead>",
            "<tbody>",
            *rows,
            "</tbody>",
            "</table></div>",
            *(["<ol>", *notes, "</ol>"] if notes else []),
            *(f'<p class="remark">{escape(text)}</p>' for text in table.remarks),
            "</section>",
        ]
    )


def _spanners(columns: Sequence[Column]) -> list[str]:
    """A row of benchmarks over their columns; nothing if no column has one."""
    if not any(column.benchmark for column in columns):
        return []
    cells = []
    for benchmark, group in itertools.groupby(columns, key=lambda column: column.benchmark):
        width = len(list(group))
        span = f'<th colspan="{width}" scope="colgroup">{escape(benchmark)}</th>'
        cells.append(span if benchmark else "<td></td>" * width)
    return [f"<tr>{''.join(cells)}</tr>"]


def _head(column: Column, name: str) -> str:
    return f'<th scope="col">{escape(column.title)}{_notes(column.notes, name)}</th>'


def _row(cells: Sequence[Cell], name: str, num_heads: int, apart: bool) -> str:
    head = "".join(f'<th scope="row">{_cell(cell, name)}</th>' for cell in cells[:num_heads])
    start = '<tr class="apart">' if apart else "<tr>"
    return start + head + "".join(f"<td>{_cell(cell, name)}</td>" for cell in cells[num_heads:]) + "</tr>"


def _cell(cell: Cell, name: str) -> str:
    mark = {"best": "<b>{}</b>", "second": "<u>{}</u>"}.get(cell.rank, "{}")
    parts = [
        mark.format(escape(cell.text)),
        f"<sub>±{escape(cell.spread)}</sub>" if cell.spread else "",
        f' <span class="runs">({escape(cell.runs)})</span>' if cell.runs else "",
        f' <span class="interval">{escape(cell.interval)}</span>' if cell.interval else "",
        f' <span title="not separable from the best">{TIED}</span>' if cell.tied else "",
        _notes(cell.notes, name),
    ]
    return "".join(parts)


def _notes(numbers: Sequence[int], name: str) -> str:
    """Superscript links to footnotes."""
    links = ", ".join(f'<a href="#{name}-{number}">{number}</a>' for number in numbers)
    return f"<sup>{links}</sup>" if links else ""
