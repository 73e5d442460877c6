"""Says which entries of a leaderboard can be told from the best of their column, from the stored predictions.

Every entry with a score gets one of four verdicts: best, tied, differs, or cannot tell, with the reason. What a table
claims is "this entry is not the best": the chance that any such claim of it is false stays at LEVEL. It is divided
evenly over the columns (and the k of few-shot rows), for each of them has a best entry: in none can all claims be true,
so Holm's steps over columns would gain nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.data import all_tasks
from harness.errors import UserError
from harness.report.boards import Board, BoardRow, Entry, peers
from harness.report.statistics.comparison import AVERAGE as AVERAGE
from harness.report.statistics.comparison import Comparison, EntryKey, Gaps, Verdict, judge
from harness.report.statistics.intervals import LEVEL, Estimate, Ranking, Sample, Seeds, holm, rank_methods
from harness.report.statistics.resampling import NUM_DRAWS
from harness.report.yardstick import Reader
from harness.results import Answers

ONE_RUN = "one run cannot speak of a method"
UNREADABLE = "predictions are missing, were changed, or differ in rows between runs, or the metric is not known here"
OTHER_ROWS = "it answered other rows than the best, or was scored by other metrics"
SOME_TASK = "it could not be tested on every task"
ALONE = "no other entry of the column could be tested"


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

    intervals: dict[EntryKey, tuple[float, float]] = field(default_factory=dict)
    verdicts: dict[EntryKey, Verdict] = field(default_factory=dict)
    """One for each entry with a score, and for each average."""
    ties: set[EntryKey] = field(default_factory=set)
    """Entries that are tied with the best of their column, and that best itself if there are any."""
    pairs: list[Pair] = field(default_factory=list)
    """All pairs of entries of a column that have several runs on the same rows, within one k."""
    rankings: dict[str, Ranking] = field(default_factory=dict)
    """Title of a group of rows, as `peers` gives it -> its ranks; "" for all rows of a board with one k."""
    warnings: dict[str, str] = field(default_factory=dict)
    """Task -> sentence, if the test split is too small to tell the best score from the second."""
    untested: list[EntryKey] = field(default_factory=list)
    """Entries with a score that could not be tested: predictions are missing, were changed, or differ in their rows."""
    has_single_runs: bool = False
    """Whether any entry has one run, whose interval then says nothing about other seeds."""
    ungrouped: set[str] = field(default_factory=set)
    """Tasks some of whose predictions do not say which rows belong together, though others do."""

    def as_json(self) -> dict[str, Any]:
        """Every interval, verdict, pair and rank, for the JSON of a board."""
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
        verdicts = [
            {"method": m, "column": c, "verdict": item.kind, "reason": item.reason, "p": item.p_value}
            for (m, c), item in self.verdicts.items()
        ]
        return {
            "level": LEVEL,
            "num_draws": NUM_DRAWS,
            "intervals": [{"method": m, "column": c, "interval": span} for (m, c), span in self.intervals.items()],
            "verdicts": verdicts,
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
    groups = peers(board.rows)
    tested: dict[tuple[str, str], Gaps] = {}
    for title, rows in groups.items():
        comparison = Comparison()
        for task in board.tasks:
            comparison.add_task(task, _samples(rows, task, read, made))
        comparison.finish(board.tasks)
        made.intervals |= comparison.intervals
        for column, gaps in comparison.gaps.items():
            known = {row.name for row in rows if _value(row, column, board.tasks) is not None}
            tested[column, title] = {pair: gap for pair, gap in gaps.items() if known.issuperset(pair)}
    pairs = [(column, names, gap) for (column, _), gaps in tested.items() for names, gap in gaps.items()]
    # one correction over the whole table: a reader looks for the smallest p in all of it
    corrected = holm([gap.p_value for *_, gap in pairs])
    made.pairs = [
        Pair(column, *names, gap.estimate, gap.p_value, adjusted)
        for (column, names, gap), adjusted in zip(pairs, corrected, strict=True)
    ]
    columns = [*board.tasks, AVERAGE] if len(board.tasks) > 1 else board.tasks
    for column, (title, rows) in itertools.product(columns, groups.items()):
        _judge_column(board, made, column, rows, tested.get((column, title), {}), len(tested))
        if column != AVERAGE:
            _warn_of(rows, made, column, title)
    if len(board.tasks) == 1:
        _repeat_as_average(made)
    rankings = {title: _ranking(rows, board.tasks) for title, rows in groups.items()}
    made.rankings = {title: ranking for title, ranking in rankings.items() if ranking}
    return made


def _judge_column(
    board: Board, made: Significance, column: str, rows: Sequence[BoardRow], gaps: Gaps, num_families: int
) -> None:
    """Fill in the verdicts of a column on rows of one k."""
    means = {row.name: value for row in rows if (value := _value(row, column, board.tasks)) is not None}
    if not means:
        return
    why = {row.name: _why_untested(made, board, column, row) for row in rows if row.name in means}
    best = max(means, key=lambda name: means[name])
    if len(means) == 1:
        made.verdicts[best, column] = Verdict("cannot tell", why[best]) if why[best] else Verdict("best")
        return
    found = judge(means, gaps, num_families) if gaps else {}
    top = next((name for name, verdict in found.items() if verdict.kind == "best"), best)
    if found and means[top] < means[best]:
        # what is below the best of those that were tested is not the best, whoever is; of the rest nothing is known
        hidden = f"the best, {best}, could not be tested: {why[best] or OTHER_ROWS}"
        found = {
            name: verdict if verdict.kind == "differs" else replace(verdict, kind="cannot tell", reason=hidden)
            for name, verdict in found.items()
        }
    untested = {name: Verdict("cannot tell", why[name] or (OTHER_ROWS if gaps else ALONE)) for name in means}
    made.verdicts |= {(name, column): verdict for name, verdict in (untested | found).items()}
    tied = {(name, column) for name, verdict in found.items() if verdict.kind == "tied"}
    made.ties |= tied | ({(top, column)} if tied else set())


def _why_untested(made: Significance, board: Board, column: str, row: BoardRow) -> str:
    """Why an entry cannot be tested against any other; empty if it can, as far as it goes by itself."""
    if column == AVERAGE:
        reasons = [_why_untested(made, board, task, row) for task in board.tasks]
        return reasons[0] if len(set(reasons)) == 1 else SOME_TASK
    if (row.name, column) in made.untested:
        return UNREADABLE
    return ONE_RUN if len(row.entries[column].runs) == 1 else ""


def _repeat_as_average(made: Significance) -> None:
    """Give the average column of a board with one task that task's intervals and tests: it is the same number.

    It counts as no further test, so it is added after all corrections.
    """
    made.intervals |= {(name, AVERAGE): span for (name, _), span in made.intervals.items()}
    made.verdicts |= {(name, AVERAGE): item for (name, _), item in made.verdicts.items()}
    made.ties |= {(name, AVERAGE) for name, _ in made.ties}
    made.pairs += [replace(pair, column=AVERAGE) for pair in made.pairs]


def _samples(rows: Sequence[BoardRow], task: str, read: Reader, made: Significance) -> dict[str, Sample]:
    """Row name -> its runs, scored, for rows whose answers can be read; the others become `untested`."""
    known: dict[str, tuple[Entry, list[tuple[Seeds, Answers]]]] = {}
    for row in rows:
        entry = row.entries.get(task)
        if entry is None or not entry.scores:
            continue
        read_runs = [(run.cell.seeds, read(run)) for run in entry.runs]
        readable = [(seeds, item) for seeds, item in read_runs if item is not None]
        made.has_single_runs |= len(read_runs) == 1
        if len(readable) < len(read_runs) or len({item.rows for _, item in readable}) > 1:
            made.untested.append((row.name, task))
            continue
        known[row.name] = entry, readable
    grouped = iter(_share_groups([item for _, runs in known.values() for _, item in runs], task, made))
    samples = {}
    for name, (entry, runs) in known.items():
        own = [(seeds, next(grouped)) for seeds, _ in runs]
        try:
            samples[name] = _sample(entry, own)
        except UserError:  # a metric that nobody here knows: results come from elsewhere too
            made.untested.append((name, task))
    return samples


def _share_groups(runs: Sequence[Answers], task: str, made: Significance) -> list[Answers]:
    """The same answers, each with the groups of rows of those that have them, as far as all answered the same rows."""
    known = {item.rows: item for item in runs if item.groups is not None}
    belongs = bool(task in all_tasks() and all_tasks()[task].together)
    if any(item.groups is None and item.rows not in known for item in runs) and (known or belongs):
        made.ungrouped.add(task)
    return [replace(item, groups=known[item.rows].groups) if item.rows in known else item for item in runs]


def _sample(entry: Entry, answers: Sequence[tuple[Seeds, Answers]]) -> Sample:
    record = entry.runs[0].metrics
    assert record is not None, "a run with a score says how it was scored"
    return Sample.of(answers, record.reported, record.labels)


def _warn_of(rows: Sequence[BoardRow], made: Significance, task: str, title: str) -> None:
    """Warn of a test split that is too small to tell the best score from the second."""
    means = {row.name: mean for row in rows if task in row.entries and (mean := row.entries[task].mean) is not None}
    if means:
        _warn(rows, made, task, max(means, key=lambda name: means[name]), means, title)


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
        text = f"the best score{f' of {title}' if title else ''} is known to ±{margin:z.1f}"
        text += f", the second is {gap:z.1f} below it"
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
