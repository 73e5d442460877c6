"""Tests which differences of a leaderboard are real: each pair of rows in each column, on the stored predictions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from harness.report.boards import Board, BoardRow, Entry, peers
from harness.report.statistics.intervals import (
    LEVEL,
    NUM_DRAWS,
    Estimate,
    Ranking,
    Sample,
    Seeds,
    compare_samples,
    holm,
    mean_of,
    rank_methods,
)
from harness.report.statistics.resampling import metric_range
from harness.results import Answers, Result

AVERAGE = "average"
"""Name of the column with the average over tasks."""
Reader = Callable[[Result], Answers | None]
"""Reads the test answers of a run; None where they are missing or were changed."""
Key = tuple[str, str]
"""(name of the row, task or AVERAGE)"""


@dataclass(frozen=True)
class Pair:
    """The test of two rows in one column."""

    column: str
    one: str
    other: str
    gap: Estimate
    """Score of `one` minus that of `other`."""
    p_value: float
    adjusted: float
    """The p-value after Holm's correction over all pairs of the table."""


@dataclass
class Significance:
    """The statistics of one board."""

    intervals: dict[Key, tuple[float, float]] = field(default_factory=dict)
    ties: set[Key] = field(default_factory=set)
    """Entries that the tests cannot tell from the best of their column, and that best itself if there are any."""
    pairs: list[Pair] = field(default_factory=list)
    rankings: dict[str, Ranking] = field(default_factory=dict)
    """Title of a group of rows, as `peers` gives it -> its ranks; "" for all rows of a board with one k."""
    warnings: dict[str, str] = field(default_factory=dict)
    """Task -> sentence, if the test split is too small to tell the best score from the second."""
    untested: list[Key] = field(default_factory=list)
    """Entries with a score that could not be tested: predictions are missing, were changed, or differ in their rows."""
    has_single_runs: bool = False
    """Whether any tested entry has one run, whose interval then says nothing about other seeds."""

    def as_json(self) -> dict[str, Any]:
        """Every interval, tie, pair and rank, for the JSON of a board."""
        pairs = [
            {
                "column": pair.column,
                "methods": [pair.one, pair.other],
                "difference": pair.gap.value,
                "interval": pair.gap.interval(),
                "p": pair.p_value,
                "p_holm": pair.adjusted,
            }
            for pair in self.pairs
        ]
        return {
            "level": LEVEL,
            "num_draws": NUM_DRAWS,
            "intervals": [{"method": m, "column": c, "interval": span} for (m, c), span in self.intervals.items()],
            "tied_with_best": [{"method": m, "column": c} for m, c in sorted(self.ties)],
            "untested": [{"method": m, "column": c} for m, c in self.untested],
            "warnings": self.warnings,
            "pairs": pairs,
            "ranking": vars(self.rankings[""]) if "" in self.rankings else None,
            **({"rankings": {k: vars(item) for k, item in self.rankings.items()}} if set(self.rankings) - {""} else {}),
        }


def assess_board(board: Board, read: Reader) -> Significance:
    """Compare all rows of a board in each task and in the average over all tasks; few-shot rows only within one k.

    `read` gives the test answers of a run.
    """
    made = Significance()
    k = {row.name: row.k for row in board.rows}
    gaps: dict[tuple[str, str], list[Estimate]] = {}
    estimates: dict[str, list[tuple[Estimate, tuple[float, float]]]] = {}
    found: list[tuple[str, str, str, Estimate, float]] = []
    for task in board.tasks:
        samples = _samples(board, task, read, made)
        for name, sample in samples.items():
            made.intervals[name, task] = sample.interval()
            estimates.setdefault(name, []).append((sample.cautious(), metric_range(sample.metrics)))
        for (one, first), (other, second) in itertools.combinations(samples.items(), 2):
            # rows with 4 and with 16 training rows differ for a reason that needs no test
            is_apart = any(row.name in (one, other) and row.entries[task].apart for row in board.rows)
            if k[one] == k[other] and first.comparable(second) and not is_apart:
                gap, p_value = compare_samples(first, second)
                gaps.setdefault((one, other), []).append(gap)
                found.append((task, one, other, gap, p_value))
    if len(board.tasks) > 1:
        for name, found_for in estimates.items():
            if len(found_for) == len(board.tasks):  # else the row has no average either
                low, high = (fmean(ends) for ends in zip(*(limits for _, limits in found_for), strict=True))
                made.intervals[name, AVERAGE] = mean_of([item for item, _ in found_for]).interval(low, high)
        for (one, other), items in gaps.items():
            if len(items) == len(board.tasks):
                gap = mean_of(items)
                found.append((AVERAGE, one, other, gap, gap.p_value))
    # one correction over the whole table: a reader looks for the smallest p in all of it
    corrected = holm([p_value for *_, p_value in found])
    made.pairs = [Pair(*item, adjusted) for item, adjusted in zip(found, corrected, strict=True)]
    if len(board.tasks) == 1:
        _repeat_as_average(made)
    _find_ties(board, made)
    rankings = {title: _ranking(rows, board.tasks) for title, rows in peers(board.rows).items()}
    made.rankings = {title: ranking for title, ranking in rankings.items() if ranking}
    return made


def _repeat_as_average(made: Significance) -> None:
    """Give the average column of a board with one task that task's intervals and tests: it is the same number.

    It counts as no further test, so it is added after Holm's correction.
    """
    made.intervals |= {(name, AVERAGE): span for (name, _), span in made.intervals.items()}
    made.pairs += [replace(pair, column=AVERAGE) for pair in made.pairs]


def _samples(board: Board, task: str, read: Reader, made: Significance) -> dict[str, Sample]:
    """Row name -> its runs scored on all draws, for rows whose answers can be read; the others become `untested`."""
    samples = {}
    for row in board.rows:
        entry = row.entries.get(task)
        if entry is None or not entry.scores:
            continue
        read_runs = [(run.cell.seeds, read(run)) for run in entry.runs]
        readable = [(seeds, item) for seeds, item in read_runs if item is not None]
        if len(readable) < len(read_runs) or len({item.rows for _, item in readable}) > 1:
            made.untested.append((row.name, task))
            continue
        made.has_single_runs |= len(readable) == 1
        samples[row.name] = _sample(entry, readable)
    return samples


def _sample(entry: Entry, answers: Sequence[tuple[Seeds, Answers]]) -> Sample:
    record = entry.runs[0].metrics
    assert record is not None, "a run with a score says how it was scored"
    return Sample.of(answers, record.reported, record.labels)


def _find_ties(board: Board, made: Significance) -> None:
    """Fill in the ties with the best of each column, and warnings about test splits that are too small."""
    groups = peers(board.rows).items()
    for column, (title, rows) in itertools.product((*board.tasks, AVERAGE), groups):
        means = {row.name: _value(row, column, board.tasks) for row in rows}
        known = {name: value for name, value in means.items() if value is not None}
        if not known:
            continue
        best = max(known, key=lambda name: known[name])
        tied = {
            pair.other if pair.one == best else pair.one
            for pair in made.pairs
            if pair.column == column and best in (pair.one, pair.other) and pair.adjusted >= LEVEL
        }
        made.ties |= {(name, column) for name in tied | ({best} if tied else set())}
        if column != AVERAGE:
            _warn(rows, made, column, best, known, title)


def _warn(
    rows: Sequence[BoardRow], made: Significance, task: str, best: str, means: dict[str, float], title: str
) -> None:
    """Warn if the interval of the best score reaches further than the gap to the second. `means` is row -> score."""
    if (best, task) not in made.intervals or len(means) < 2:
        return
    low, high = made.intervals[best, task]
    # half the interval is how well the best score is known; a smaller gap to the second may be chance
    margin, gap = (high - low) / 2, means[best] - sorted(means.values())[-2]
    if margin > gap:
        runs = next(row for row in rows if row.name == best).entries[task].runs
        num_rows = next(run.test.num_rows for run in runs if run.test)
        text = f"the best score{f' of {title}' if title else ''} is known to ±{margin:.1f}"
        text += f", the second is {gap:.1f} below it"
        earlier = made.warnings.get(task)
        made.warnings[task] = f"{earlier}; {text}" if earlier else f"{num_rows:,} test rows: {text}"


def _value(row: BoardRow, column: str, tasks: Sequence[str]) -> float | None:
    """The score of a row in a column; None where it may not be ranked with the others."""
    return row.comparable_score(column, tasks)


def _ranking(rows: Sequence[BoardRow], tasks: Sequence[str]) -> Ranking | None:
    """Ranks of the rows that have a score on every task."""
    scores = {}
    for row in rows:
        means = [row.comparable_score(task, tasks) for task in tasks]
        known = [mean for mean in means if mean is not None]
        if len(known) == len(tasks):
            scores[row.name] = known
    return rank_methods(scores)
