"""Files of cells between tabs, written with quotes around some cells or without any; the file itself shows which.

GLUE's files have no such quotes: a quotation mark is part of the text, whether one or a pair. pandas, R and
spreadsheets put cells that hold a quotation mark, a tab or a line end between quotes and double the quotes inside.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

QUOTE = '"'
_CELL = re.compile(r'"((?:[^"]|"")*)"(?=\t|$)|([^"\t]*)(?=\t|$)', re.DOTALL)
_FIGURES = re.compile(r"[+-]?[0-9.]*(?:[eE][+-]?[0-9]+)?")


@dataclass
class _Evidence:
    """Which ways of writing a table explain every quote met so far, all cells being well formed."""

    num_wrapped: int = 0
    minimal: bool = True
    """Between quotes stand only cells that hold a quotation mark, a tab or a line end: pandas."""
    commas: bool = True
    """Between quotes stand these and cells with a comma, and no others: spreadsheets."""
    all_texts: bool = True
    """Every cell but numbers stands between quotes, the header too: R, and pandas when told so."""

    def add(self, text: str, wrapped: bool) -> None:
        needs = QUOTE in text or "\t" in text or "\n" in text
        self.num_wrapped += wrapped
        self.minimal = self.minimal and (needs or not wrapped)
        self.commas = self.commas and wrapped == (needs or "," in text)
        self.all_texts = self.all_texts and (wrapped or _FIGURES.fullmatch(text) is not None)

    @property
    def is_quoted(self) -> bool:
        return self.num_wrapped > 0 and (self.minimal or self.commas or self.all_texts)


def is_quoted(lines: Iterable[str], most: int) -> bool:
    """Whether all quotation marks of a file are those of a writer of tables; `most` characters may stand in a cell.

    One mark that no writer would leave alone says that all are text: `5" nails`, a lone quote, a cell like `"yes"` that
    needs no quotes beside others that have none. Quotes join lines only where a line has not the cells of the
    first, so a quote that opens in one row and one that closes in a later do not swallow what is between.
    """
    evidence, num_cells = _Evidence(), 0
    for record in _records(lines, most):
        cells = _cells("".join(record))
        if cells is None:
            return False
        num_cells = num_cells or len(cells)
        if len(cells) != num_cells and QUOTE in "".join(record):
            return False
        if len(record) > 1 and all(line.count("\t") + 1 == num_cells for line in record):
            return False
        for text, wrapped in cells:
            evidence.add(text, wrapped)
    return evidence.is_quoted


def quoted_rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, cells) of each row of a file with quotes."""
    reader = csv.reader(lines, "excel-tab", strict=True)
    for cells in reader:
        yield reader.line_num, cells


def _records(lines: Iterable[str], most: int) -> Iterator[list[str]]:
    """Lines, each with those after it as long as a quote is open."""
    record: list[str] = []
    num_quotes = size = 0
    for line in lines:
        record.append(line)
        num_quotes += line.count(QUOTE)
        size += len(line)
        if num_quotes % 2 == 0 or size > most:
            yield record
            record, num_quotes, size = [], 0, 0
    if record:
        yield record


def _cells(record: str) -> list[tuple[str, bool]] | None:
    """(text, whether it stood between quotes) of each cell; None where a quotation mark is out of place."""
    record = record.removesuffix("\n")
    if QUOTE not in record:
        return [(cell, False) for cell in record.split("\t")]
    cells, at = [], 0
    while True:
        found = _CELL.match(record, at)
        if found is None:
            return None
        wrapped = found[1] is not None
        cells.append((found[1].replace(QUOTE * 2, QUOTE) if wrapped else found[2], wrapped))
        if found.end() == len(record):
            return cells
        at = found.end() + 1
