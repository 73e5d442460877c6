"""Marks along one line of a declared table, a column or a row, by the rules of every other table.

A line is laid out as a board of its own, so that `marks` decides and the statistics of boards test. The chance of a
false claim is that of the line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from harness.report.boards import Board, BoardRow, Entry
from harness.report.marks import mark_best, mark_board
from harness.report.statistics.significance import AVERAGE, assess_board
from harness.report.yardstick import Reader, find_apart
from harness.suite import Bold


@dataclass(frozen=True)
class LineScore:
    """One score of a line, with what it is made of."""

    value: float
    """As it is shown, 0-100."""
    entries: tuple[tuple[str, Entry], ...]
    """(task, entry) for each entry that it is the mean of; the task is "" where it is the score of one."""
    is_reported: bool = True
    """False where another metric is shown than the one that the entries are tested by."""

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(task for task, _ in self.entries)

    @property
    def k(self) -> int | None:
        """Rows of training data of its runs; None for the whole training split."""
        return min((run.cell.few_shot.k for _, e in self.entries for run in e.runs if run.cell.few_shot), default=None)


@dataclass
class LineMarks:
    """The marks of one line."""

    ranks: list[str]
    """"best", "second" or empty, one for each score."""
    notes: list[tuple[str, ...]]
    """Footnotes of each score."""
    empty: list[str] = field(default_factory=list)
    """Sentences that say why nothing in the line is bold."""


def mark_line(scores: Sequence[LineScore | None], bold: Bold, read: Reader | None) -> LineMarks:
    """Return the marks of a line; None stands for a place without a score.

    Scores are compared with those of the same tasks and of as many training rows. `read` gives the test answers of a
    run; None tests nothing.
    """
    made = LineMarks([""] * len(scores), [()] * len(scores))
    by_tasks: dict[tuple[str, ...], dict[int, LineScore]] = defaultdict(dict)
    for place, score in enumerate(scores):
        if score is not None:
            by_tasks[score.tasks][place] = score
    for tasks, members in by_tasks.items():
        # by tests, entries with other references are told apart already
        board = _as_board(tasks, members, read if bold == "best" else None)
        for row in board.rows:
            reasons = (entry.apart for entry in row.entries.values() if entry.apart)
            made.notes[int(row.label)] += tuple(dict.fromkeys(reasons))
        if bold == "best":
            _mark_highest(board, members, made)
        else:
            _mark_ties(board, members, read, made)
    return made


def _as_board(tasks: tuple[str, ...], members: dict[int, LineScore], read: Reader | None) -> Board:
    """The scores of a line as a board: a row for each, whose label is its place in the line."""
    apart = {
        task: find_apart({i: dict(score.entries)[task].runs for i, score in members.items()}, read) for task in tasks
    }
    rows = []
    for place, score in members.items():
        own = {task: replace(entry, apart=apart[task].get(place, "")) for task, entry in score.entries}
        rows.append(BoardRow(str(place), "", own, "", score.k))
    return Board("", "", list(tasks), {}, {}, rows, "", {})


def _mark_highest(board: Board, members: dict[int, LineScore], made: LineMarks) -> None:
    ranked = [row for row in board.rows if not any(entry.apart for entry in row.entries.values())]
    for k in {row.k for row in ranked}:
        places = [int(row.label) for row in ranked if row.k == k]
        for place, rank in zip(places, mark_best([members[place].value for place in places]), strict=True):
            made.ranks[place] = rank


def _mark_ties(board: Board, members: dict[int, LineScore], read: Reader | None, made: LineMarks) -> None:
    if read is None:
        return
    if not all(score.is_reported for score in members.values()):
        made.empty.append("nothing is bold, since nothing was tested: tests are about the reported metric")
        return
    marks = mark_board(board, assess_board(board, read))
    column = board.tasks[0] if len(board.tasks) == 1 else AVERAGE
    made.empty += marks.empty.get(column, [])
    for row in board.rows:
        place = int(row.label)
        made.ranks[place] = marks.of(row.name, column)
        if (row.name, column) in marks.untested:
            made.notes[place] += (marks.untested[row.name, column],)
