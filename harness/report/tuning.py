"""The table of grid searches: what each further grid run gains, and how much choosing by test would flatter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from harness.data import mean_score, round_score
from harness.report.boards import Board, Entry
from harness.report.leaderboard_table import LEFT_OUT
from harness.report.table_cells import Cell, Column, Table
from harness.report.yardstick import kinds_apart
from harness.results import Result, best_point, dev_selection


@dataclass(frozen=True)
class TuningRecord:
    """The grid search of a method on a task; the mean over searches if several seeds were searched."""

    suite: str
    backbone: str
    method: str
    task: str
    num_points: int
    """Grid points per search."""
    num_searches: int
    num_failed: int
    num_raced_out: int
    """Grid points that successive halving stopped early. They have no test score, so `by_test` is then not known."""
    by_dev: float | None
    """Test score of the point with the best dev score, on the seed that searched. Where that seed is left out of the
    report it is the mean of the other seeds at that point; None if they have no run."""
    by_test: float | None
    """The best test score of any point. Choosing by it is forbidden; it is here to show what that would gain."""
    optimism: float | None
    """by_test - by_dev: by how much a table chosen by test is too high."""
    expected_best_dev: tuple[float, ...]
    """Expected best dev score after 1, 2, ... of the grid runs, failed ones included; empty if points stopped early."""


def trial_scores(search: Sequence[Result]) -> list[float]:
    """Dev scores in the order of the trials. One that failed used up budget and left no model: its score is 0.

    Points that do not fit the backbone were never run, and have none.
    """
    search = [result for result in search if result.status != "unfit"]
    scores = [0.0 if result.status == "failed" else dev_selection(result) for result in search]
    has_failed = any(result.status == "failed" for result in search)
    return [max(0.0, score) for score in scores] if has_failed else scores


def expected_best(scores: Sequence[float]) -> list[float]:
    """Expected best of n runs drawn from the B = len(scores) that were made, for n = 1 ... B.

    They are drawn without replacement, which is the unbiased estimator (Tang et al. 2020, section 3). With replacement,
    as in Dodge et al. (2019), a draw may hold a run twice, so that B runs could not even give their own best.
    """
    ordered, total = sorted(scores), len(scores)
    # the i-th smallest (from 0) is the largest of n where the other n - 1 come from the i below it
    return [
        math.fsum(math.comb(i, n - 1) * value for i, value in enumerate(ordered)) / math.comb(total, n)
        for n in range(1, total + 1)
    ]


def tuning_records(board: Board) -> list[TuningRecord]:
    """One record per row and task with a grid, if at least one grid run did not fail."""
    found = []
    for row in board.rows:
        for task in board.tasks:
            entry = row.entries.get(task)
            if entry is not None and any(map(_is_fair, entry.searches)):
                found.append(_tuning_record(board, row.name, task, entry))
    return found


def lay_out_tuning(board: Board) -> Table:
    """The records of a board as a table."""
    found = tuning_records(board)
    longest = max((len(item.expected_best_dev) for item in found), default=0)
    counts = _shown_counts(longest)
    names = ["method", "task", "grid runs", "chosen by dev", "chosen by test", "optimism"]
    caption = (
        "Grid searches. Test score of the point that the dev score chooses, of the point that the test score would "
        "choose (never shown as a result), and their gap; then the best dev score to expect after so many grid runs "
        "(Tang et al. 2020: drawn without replacement; a failed run counts as a run with score 0)."
    )
    if any(_is_guided(search) for row in board.rows for entry in row.entries.values() for search in entry.searches):
        caption += " Of a search by tpe it is the best so far, in the order of its trials: they follow from each other."
    if board.leaves_out_choosers:
        caption += f" {LEFT_OUT}: chosen by dev is the mean of the others, so optimism holds that seed's luck too."
    columns = [*map(Column, names), *(Column(f"dev after {count}") for count in counts)]
    table = Table(f"{board.suite} on {board.backbone}: tuning", caption, columns)
    for item in found:
        curve = item.expected_best_dev
        overlap = (table.note(board.overlaps[item.task]),) if item.task in board.overlaps else ()
        head = [
            Cell(item.method),
            Cell(item.task, notes=overlap),
            Cell(_runs(item), notes=tuple(map(table.note, _remarks(item)))),
        ]
        scores = [
            Cell("–" if score is None else f"{score:z.1f}") for score in (item.by_dev, item.by_test, item.optimism)
        ]
        table.rows.append([*head, *scores, *(Cell(f"{curve[n - 1]:z.1f}" if n <= len(curve) else "") for n in counts)])
    known = [item.optimism for item in found if item.optimism is not None]
    if known:
        mean = mean_score(known)
        table.remarks.append(f"A table chosen by test would stand {mean:z.1f} points higher on average.")
    elif not found:
        table.remarks.append("No grid was searched.")
    searches = [s for row in board.rows for entry in row.entries.values() for s in entry.searches if _done(s)]
    if mixed := sum(not _is_fair(search) for search in searches):
        table.remarks.append(f"Left out: searches whose points were scored with different rows or metrics ({mixed}).")
    table.remarks += [f"{text}." for text in board.folders]
    return table


def tuning_rows(boards: Sequence[Board]) -> list[dict[str, object]]:
    """The records of all boards, for CSV and JSON."""
    return [asdict(item) for board in boards for item in tuning_records(board)]


def _tuning_record(board: Board, name: str, task: str, entry: Entry) -> TuningRecord:
    searches = [search for search in entry.searches if _is_fair(search)]
    by_dev: float | None = mean_score(_score(search[best_point(search) or 0]) for search in searches)
    if entry.left_out:
        by_dev = entry.mean
    num_failed = sum(result.status == "failed" for search in searches for result in search)
    num_raced_out = sum(result.raced_out_at is not None for search in searches for result in search)
    num_points = max(map(len, searches))
    head = (board.suite, board.backbone, name, task, num_points, len(searches), num_failed, num_raced_out, by_dev)
    # points that stopped early have no test score, and a dev score of fewer steps: neither curve nor gap is known
    if num_raced_out:
        return TuningRecord(*head, by_test=None, optimism=None, expected_best_dev=())
    by_test = mean_score(max(map(_score, _done(search))) for search in searches)
    curves = [_best_after(search) for search in searches]
    # points that do not fit the backbone were never run, in some searches perhaps more: the mean goes as far as the
    # shortest
    curve = tuple(mean_score(values) for values in zip(*curves, strict=False))
    optimism = None if by_dev is None else round_score(by_test - by_dev)
    return TuningRecord(*head, by_test, optimism, curve)


def _best_after(search: Sequence[Result]) -> list[float]:
    """The best dev score to expect after 1, 2, ... runs; of a guided search, whose runs have one order, the best so
    far."""
    scores = trial_scores(search)
    if _is_guided(search):
        return list(itertools.accumulate(scores, max))
    return expected_best(scores)


def _is_guided(search: Sequence[Result]) -> bool:
    """Whether each trial follows from those before, so that their order is no accident."""
    return any(result.cell.study.startswith("tpe-") for result in search)


def _remarks(item: TuningRecord) -> list[str]:
    """Footnotes on grid runs that failed or stopped early."""
    remarks = []
    if item.num_failed:
        remarks.append(f"{item.num_failed} grid runs failed: never chosen, each a run with score 0 in what to expect")
    if item.num_raced_out:
        total = item.num_points * item.num_searches
        remarks.append(
            f"searched by halving: {item.num_raced_out} of {total} left early, untested, so no choice by test is known"
        )
    return remarks


def _is_fair(search: Sequence[Result]) -> bool:
    """Whether a search has points to choose among, all measured with the same rows, references and metrics."""
    return bool(_done(search)) and not kinds_apart(search)


def _done(search: Sequence[Result]) -> list[Result]:
    return [result for result in search if result.test is not None]


def _score(result: Result) -> float:
    assert result.test is not None, "only finished runs are compared"
    return result.test.score


def _runs(item: TuningRecord) -> str:
    """The column of grid runs: "6", or "6 × 3 searches"."""
    return f"{item.num_points}" if item.num_searches == 1 else f"{item.num_points} × {item.num_searches} searches"


def _shown_counts(longest: int) -> list[int]:
    """The numbers of runs that get a column: 1, 2, 4, ... and the last, for early runs gain most."""
    powers = [2**i for i in range(longest.bit_length()) if 2**i < longest]
    return [*powers, longest] if longest else []
