"""TSV files with and without quotes around cells, and how to tell which a file is.

In GLUE's files a quotation mark always belongs to the text. pandas, R and spreadsheets put a cell that holds a
quotation mark, a tab or a line end between quotes, and double the quotes inside. Taking one kind for the other changes
texts or joins rows without any error, so the quotes of the whole file decide.
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
    """Which ways of writing a table agree with every cell met so far."""

    num_wrapped: int = 0
    minimal: bool = True
    """As pandas writes: only cells that hold a quotation mark, a tab or a line end are quoted."""
    commas: bool = True
    """As spreadsheets write: these cells and those with a comma are quoted, and no others."""
    all_texts: bool = True
    """As R writes, and pandas if told to: every cell but numbers is quoted, the header too."""

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
    """Return whether the quotation marks of a file were put there by a program that writes tables.

    A single mark that no such program would write shows that all belong to the text: `5" nails`, a lone quote, or
    `"yes"`, which needs no quotes, beside cells without any. Lines that each have as many cells as the first are never
    joined, so a quote that opens in one row and one that closes in a later row do not swallow what is between. `most`
    is the longest cell in characters.
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
    """Yield (number of its last line, cells) for each row of a file with quotes."""
    reader = csv.reader(lines, "excel-tab", strict=True)
    for cells in reader:
        yield reader.line_num, cells


def _records(lines: Iterable[str], most: int) -> Iterator[list[str]]:
    """Yield each line, together with the lines after it as long as a quote is open."""
    record: list[str] = []
    num_quotes = size = 0
    for line in lines:
        record.append(line)
        num_quotes += line.count(QUOTE)
        size += len(line)
        # an odd number of quotes leaves one open; a lone quote must not collect the rest of a large file
        if num_quotes % 2 == 0 or size > most:
            yield record
            record, num_quotes, size = [], 0, 0
    if record:
        yield record


def _cells(record: str) -> list[tuple[str, bool]] | None:
    """Return (text, whether it was quoted) of each cell; None if a quotation mark is out of place."""
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
