"""Writes tables as LaTeX with booktabs: a file that compiles by itself, and that a paper can read with `\\input`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from harness.report.table_cells import DASH, TIED, Cell, Column, Table

# inside a document LaTeX makes \@nodocument a \relax: then only the tables are wanted, not a document around them
HEAD = r"""% compiles as it is; in a paper, \usepackage{booktabs,graphicx} and \input this file
\makeatletter\ifx\@nodocument\relax\def\tablesalone{0}\else\def\tablesalone{1}\fi\makeatother
\if\tablesalone1
\documentclass{article}
\usepackage[a4paper,landscape,margin=15mm]{geometry}
\usepackage{booktabs,graphicx}
\begin{document}
\fi
"""
TAIL = r"""
\if\tablesalone1\expandafter\enddocument\fi
"""
_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "|": r"\textbar{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    DASH: "--",
    "±": r"$\pm$",
    TIED: r"$\approx$",
    "×": r"$\times$",
    "✓": r"$\surd$",
}


def latex(tables: Sequence[Table]) -> str:
    """All tables, one `table*` each."""
    return HEAD + "\n\n".join(map(_table, tables)) + TAIL


def escape(text: str) -> str:
    """Escape a text so that it prints as it is. A letter that pdflatex has no font for becomes a question mark."""
    return _CHARACTERS.sub(_printed, text.replace("\n", " "))


def _printed(found: re.Match[str]) -> str:
    """LaTeX for one match of `_CHARACTERS`."""
    if found.lastgroup:
        return {"double": "-{}", "minus": "$-$"}[found.lastgroup]
    part = _ESCAPES.get(found[0], found[0])
    return part if len(part) > 1 or part.isascii() or part in _LATIN else "?"


_CHARACTERS = re.compile(r"(?P<double>-(?=-))|(?P<minus>(?<![\w.)-])-(?=[\d.]))|.", re.DOTALL)
"""Any one character. Two hyphens in a row would print as one dash, and the sign of a number has to be a minus."""
_LATIN = {bytes([code]).decode("latin-1") for code in range(0xC0, 0x100)}
"""Letters with accents that pdflatex prints with its own fonts."""


def _table(table: Table) -> str:
    body = []
    for i, row in enumerate(table.rows):
        body += [r"\midrule"] if i == table.apart else []
        if table.sections.get(i):
            body.append(rf"\multicolumn{{{len(row)}}}{{l}}{{\itshape {escape(table.sections[i])}}} \\")
        body.append(" & ".join(map(_cell, row)) + r" \\")
    lines = [
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{escape(table.title)}. {escape(table.caption)}}}",
        r"\par\medskip",
        r"\sbox0{\begin{tabular}{" + "l" * table.num_heads + "r" * (len(table.columns) - table.num_heads) + "}",
        r"\toprule",
        *_spanners(table.columns),
        " & ".join(map(_head, table.columns)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        # only a table that is too wide is made smaller
        r"\ifdim\wd0>\textwidth\resizebox{\textwidth}{!}{\usebox0}\else\usebox0\fi",
    ]
    below = [rf"\textsuperscript{{{i}}}\,{escape(text)}" for i, text in enumerate(table.notes, 1)]
    below += [escape(text) for text in table.remarks]
    if below:
        lines += [r"\par\smallskip", r"\begin{minipage}{\textwidth}\footnotesize", "\\\\\n".join(below)]
        lines += [r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table*}"])


def _spanners(columns: Sequence[Column]) -> list[str]:
    """A line of benchmarks over their columns, and rules under them; nothing if no column has one."""
    if not any(column.benchmark for column in columns):
        return []
    cells, rules, start = [], [], 1
    for name, group in itertools.groupby(columns, key=lambda column: column.benchmark):
        width = len(list(group))
        if name:
            cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(name)}}}")
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        else:
            cells += [""] * width
        start += width
    return [" & ".join(cells) + r" \\", "".join(rules)]


def _head(column: Column) -> str:
    return escape(column.title) + _notes(column.notes)


def _cell(cell: Cell) -> str:
    text = {"best": r"\textbf{%s}", "second": r"\underline{%s}"}.get(cell.rank, "%s") % escape(cell.text)
    spread = rf"\textsubscript{{{escape(cell.spread)}}}" if cell.spread else ""
    small = " ".join(part for part in (f"({cell.runs})" if cell.runs else "", cell.interval) if part)
    tie = rf" {_ESCAPES[TIED]}" if cell.tied else ""
    return text + spread + (rf" {{\scriptsize {escape(small)}}}" if small else "") + tie + _notes(cell.notes)


def _notes(numbers: Sequence[int]) -> str:
    return rf"\textsuperscript{{{','.join(map(str, numbers))}}}" if numbers else ""
