"""Decides what is bold: once for every format, every page and every declared table.

`ties`, the default: bold are the best entry of a column and all that the tests cannot tell from it. An entry with one
run is not tested, since one run cannot speak for its method; where nothing could be tested against the best, nothing is
bold and the column says why. Nothing is underlined: a second place has no test behind it.

`best`, the habit of papers: bold is the highest score as printed, underlined the next one, whatever the tests say.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.report.boards import Board, BoardRow, peers
from harness.report.statistics.intervals import LEVEL
from harness.report.statistics.significance import AVERAGE, Key, Pair, Significance
from harness.suite import Bold

UNTESTED = "neither bold nor worse: not tested against the best of the column, "
"""Start of the footnote of an entry that no test compares with the best."""
ONE_RUN = "one run cannot speak for its method"
NO_TESTS = "Nothing is bold: no test was made"


@dataclass
class Marks:
    """The marks of one table of scores."""

    rule: Bold
    ranks: dict[Key, str] = field(default_factory=dict)
    """(row, column) -> "best" (bold), or "second" (underlined), which the rule `best` alone gives."""
    empty: dict[str, list[str]] = field(default_factory=dict)
    """Column -> sentences that say why nothing in it is bold."""
    untested: dict[Key, str] = field(default_factory=dict)
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
            f"In bold the best {within} and all that cannot be told from it (paired test at {LEVEL:.0%}, Holm's "
            "correction). Nothing bold: nothing could be tested."
        )


def mark_board(board: Board, significance: Significance | None, rule: Bold = "ties") -> Marks:
    """Mark every column of a board and its averages; few-shot rows are compared within one k."""
    marks = Marks(rule, has_tests=significance is not None)
    pairs = {} if significance is None else _pairs(significance.pairs)
    for column, (title, rows) in itertools.product((*board.tasks, AVERAGE), peers(board.rows).items()):
        scores = {row.name: row.comparable_score(column, board.tasks) for row in rows}
        known = {name: score for name, score in scores.items() if score is not None}
        if rule == "best":
            ranks = mark_best(list(known.values()))
            marks.ranks |= {(name, column): rank for name, rank in zip(known, ranks, strict=True) if rank}
        elif significance is not None:
            runs = {row.name: fewest_runs(row, column, board.tasks) for row in rows}
            _mark_ties(marks, column, title, known, runs, pairs)
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


def fewest_runs(row: BoardRow, column: str, tasks: Sequence[str]) -> int:
    """Runs behind a score; behind an average, those of the task that has fewest."""
    return min((len(row.entries[t].runs) for t in (tasks if column == AVERAGE else [column]) if t in row.entries),
               default=0)  # fmt: skip


def _pairs(pairs: Sequence[Pair]) -> dict[tuple[str, frozenset[str]], Pair]:
    return {(pair.column, frozenset((pair.one, pair.other))): pair for pair in pairs}


def _mark_ties(
    marks: Marks, column: str, title: str, known: Mapping[str, float], runs: Mapping[str, int],
    pairs: Mapping[tuple[str, frozenset[str]], Pair],
) -> None:  # fmt: skip
    """Mark the entries of one column that may be compared; `title` names them if they are not all ("k=4")."""
    if len(known) < 2:
        return
    best = max(known, key=lambda name: known[name])
    tested = {
        name: pair
        for name in known
        if name != best and min(runs[name], runs[best]) > 1 and (pair := pairs.get((column, frozenset((best, name)))))
    }
    if not tested:
        one_run = runs[best] < 2 or all(runs[name] < 2 for name in known if name != best)
        reason = ONE_RUN if one_run else "predictions are missing, were changed, or differ in their rows"
        among = f" of {title}" if title else ""
        marks.empty.setdefault(column, []).append(f"nothing{among} is bold, since nothing was tested: {reason}")
        return
    for name, score in known.items():
        pair = tested.get(name)
        # what prints equal is marked equal: a reader could not see why one of two equal scores is bold
        if name == best or round(score, 1) == round(known[best], 1) or (pair and pair.adjusted >= LEVEL):
            marks.ranks[name, column] = "best"
        elif pair is None:
            reason = ONE_RUN if runs[name] < 2 else "predictions are missing, were changed, or differ in their rows"
            marks.untested[name, column] = UNTESTED + reason
