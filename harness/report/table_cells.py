"""A table of texts with footnotes, which the writers put into a format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

DASH = "–"
"""Stands where a score should be and none is; a cell that nothing was run for is empty."""
TIED = "≈"
"""Marks an entry that the tests cannot tell from the best of its column."""


@dataclass(frozen=True)
class Cell:
    """One cell. All texts are plain: each writer escapes them for its format."""

    text: str = ""
    rank: str = ""
    """"best", which is bold, "second", which is underlined, or empty; see `marks`."""
    spread: str = ""
    """Standard deviation over runs, as printed."""
    runs: str = ""
    """Number of runs, as printed."""
    interval: str = ""
    """Confidence interval, as printed: "[70.1, 74.3]"."""
    tied: bool = False
    """Whether the tests cannot tell the entry from the best of its column."""
    notes: tuple[int, ...] = ()
    """Numbers of its footnotes, from 1."""


@dataclass(frozen=True)
class Column:
    """The head of a column."""

    title: str
    benchmark: str = ""
    """Title over neighbouring columns that have the same one."""
    notes: tuple[int, ...] = ()
    task: str = ""
    """The task of a column of scores; empty for other columns."""


@dataclass
class Table:
    """A table, with the texts above and below it."""

    title: str
    caption: str
    columns: list[Column]
    rows: list[list[Cell]] = field(default_factory=list)
    apart: int | None = None
    """Index of the first published row, which a rule sets apart; None without any."""
    notes: list[str] = field(default_factory=list)
    """Footnotes; number 1 is the first."""
    remarks: list[str] = field(default_factory=list)
    """Sentences below the footnotes."""
    num_heads: int = 1
    """How many of the first columns name a row."""
    sections: dict[int, str] = field(default_factory=dict)
    """Index of a row -> title of the section that begins there."""

    def note(self, text: str) -> int:
        """The number of the footnote `text`, which is added if the table does not have it yet."""
        if text not in self.notes:
            self.notes.append(text)
        return self.notes.index(text) + 1


def span_of(counts: Sequence[int]) -> str:
    """Numbers in ascending order as one text: "76,800", or "400–9,000" from the first to the last."""
    if not counts:
        return DASH
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,}{DASH}{counts[-1]:,}"
