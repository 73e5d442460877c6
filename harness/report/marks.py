"""Decides what is bold: once for every format, every page and every declared table.

`ties`, the default: bold are the best entry of a column and all that are tied with it. What cannot be told is neither:
an entry with one run, since one run cannot speak of a method, and one that too few seeds leave open; its footnote says
so. Where nothing could be told from the best, nothing is bold and the column says why. Nothing is underlined: a second
place has no test behind it.

`best`, the habit of papers: bold is the highest score as printed, underlined the next one, whatever the tests say.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.report.boards import Board, peers
from harness.report.statistics.comparison import FEW_SEEDS, EntryKey, Verdict
from harness.report.statistics.intervals import LEVEL
from harness.report.statistics.significance import AVERAGE, ONE_RUN, Significance
from harness.suite import Bold

UNTESTED = "neither bold nor worse, not tested against the best of the column: "
"""Start of the footnote of an entry that no test compares with the best."""
OPEN = "neither bold nor worse, left open: "
"""Start of the footnote of an entry that a test leaves open."""
NO_TESTS = "Nothing is bold: no test was made"


@dataclass
class Marks:
    """The marks of one table of scores."""

    rule: Bold
    ranks: dict[EntryKey, str] = field(default_factory=dict)
    """(row, column) -> "best" (bold), or "second" (underlined), which the rule `best` alone gives."""
    empty: dict[str, list[str]] = field(default_factory=dict)
    """Column -> sentences that say why nothing in it is bold."""
    untested: dict[EntryKey, str] = field(default_factory=dict)
    """Entries of a column with bold ones that no test compares with its best -> why."""
    has_tests: bool = False

    def of(self, row: str, column: str) -> str:
        """The mark of an entry: "best", "second" or empty."""
        return self.ranks.get((row, column), "")

    def reading(self, within: str) -> str:
        """A sentence above the table that says what bold means; `within` is "of a column" or the like."""
        if self.rule == "best":
            return f"In bold the highest score {within}, underlined the second; no test stands behind (--bold best)."
        return (
            f"In bold the best {within} and all that cannot be told from it (paired test, {LEVEL:.0%} for any "
            "false claim of the table), but for those that a footnote leaves open. Nothing bold: nothing could be told."
        )


def mark_board(board: Board, significance: Significance | None, rule: Bold = "ties") -> Marks:
    """Mark every column of a board and its averages; few-shot rows are compared within one k."""
    marks = Marks(rule, has_tests=significance is not None)
    for column, (title, rows) in itertools.product((*board.tasks, AVERAGE), peers(board.rows).items()):
        scores = {row.name: row.comparable_score(column, board.tasks) for row in rows}
        known = {name: score for name, score in scores.items() if score is not None}
        if rule == "best":
            ranks = mark_best(list(known.values()))
            marks.ranks |= {(name, column): rank for name, rank in zip(known, ranks, strict=True) if rank}
        elif significance is not None:
            _mark_ties(marks, column, title, known, significance)
    return marks


def mark_best(values: Sequence[float | None]) -> list[str]:
    """Marks for values by the rule `best`. They are compared as printed: equal texts get equal marks."""
    printed = [None if value is None else round(value, 1) for value in values]
    order = sorted({value for value in printed if value is not None}, reverse=True)
    names = dict(zip(order, ("best", "second"), strict=False))
    return ["" if value is None else names.get(value, "") for value in printed]


def mark_within_k(board: Board, tasks: Sequence[str]) -> list[str]:
    """Marks by the rule `best` for the average over some tasks of a board, one for each of its rows."""
    found: dict[str, str] = {}
    for rows in peers(board.rows).values():
        scores = [row.comparable_score(AVERAGE, tasks) for row in rows]
        found |= dict(zip((row.name for row in rows), mark_best(scores), strict=True))
    return [found[row.name] for row in board.rows]


def _mark_ties(marks: Marks, column: str, title: str, known: Mapping[str, float], significance: Significance) -> None:
    """Mark the entries of one column that may be compared; `title` names them if they are not all ("k=4")."""
    if len(known) < 2:
        return
    verdicts = {name: significance.verdicts[name, column] for name in known if (name, column) in significance.verdicts}
    best = [name for name, verdict in verdicts.items() if verdict.kind == "best"]
    top = best[0] if best else None
    # a best entry beside others that are all open has been told from nobody
    if top is None or not {verdict.kind for verdict in verdicts.values()} & {"tied", "differs"}:
        top = None
        among = f" of {title}" if title else ""
        why = "; ".join(_reasons(verdicts.values()))
        text = f"nothing{among} is bold, since nothing could be told" + (f": {why}" if why else "")
        marks.empty.setdefault(column, []).append(text)
    for name, verdict in verdicts.items():
        # what prints equal is marked equal: a reader could not see why one of two equal scores is bold
        prints_equal = top is not None and round(known[name], 1) == round(known[top], 1)
        if prints_equal or (top is not None and verdict.kind in ("best", "tied")):
            marks.ranks[name, column] = "best"
        elif verdict.kind == "cannot tell" and (top is not None or verdict.reason not in (ONE_RUN, FEW_SEEDS)):
            marks.untested[name, column] = (OPEN if verdict.reason == FEW_SEEDS else UNTESTED) + verdict.reason


def _reasons(verdicts: Iterable[Verdict]) -> list[str]:
    """Each reason once; one that stands within a longer one is told by it."""
    found = list(dict.fromkeys(verdict.reason for verdict in verdicts if verdict.reason))
    told = "\n".join(found)
    return [reason for reason in found if told.count(reason) == 1]
