"""Groups results into leaderboards.

There is a board for each suite and backbone. It has a row for each method, and each row an entry for each task.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.data import BENCHMARK as OWN
from harness.data import METRICS, all_tasks, mean_score, round_score, sample_std
from harness.errors import UserError
from harness.report.published import PublishedRecord, PublishedRow
from harness.report.source_runs import SourceRuns
from harness.report.yardstick import Reader, find_apart
from harness.results import (
    COMMON_TO_A_COLUMN,
    COMMON_TO_AN_ENTRY,
    AnsweringCost,
    Result,
    best_point,
    commits_of,
    find_differences,
    in_order_asked,
    origin_of,
    overlaps,
    results_by_task,
)
from harness.suite import Cell, Key, ReportSeeds

Repetition = tuple[tuple[int, ...], tuple[str, ...]]
"""What tells runs of one grid point apart: random seeds, and what the cell starts from. See `Cell.repetition`."""
ROWS, K = "rows.", "rows.k"
"""Start of the names of few-shot settings, and the name of the number of rows, as `_settings` writes them."""
ALL_ROWS = "all"
"""What stands for k in the row of a method that sees the whole training split."""


@dataclass
class Entry:
    """A method on a task: the runs of the grid point with the best dev score."""

    runs: list[Result] = field(default_factory=list)
    failed: list[Result] = field(default_factory=list)
    """Runs without a score: they failed, or were never begun because the method does not fit the backbone."""
    num_grid_runs: int = 1
    """Grid points that were run, over all searches; 1 without a grid."""
    num_grid_failed: int = 0
    num_grid_unfit: int = 0
    num_raced_out: int = 0
    """Grid runs that successive halving stopped early."""
    grid: list[dict[str, Any]] = field(default_factory=list)
    """The winning grid point of each search."""
    searches: list[list[Result]] = field(default_factory=list)
    """Per repetition on which the whole grid was run: the results of all points in the order of the grid. Empty without
    a grid."""

    @property
    def scores(self) -> list[float]:
        """Test score of each run. Rounded here too: a file made elsewhere may hold the noise of float sums."""
        return [round_score(run.test.score) for run in self.runs if run.test]

    @property
    def mean(self) -> float | None:
        """Mean test score over runs; None without any."""
        return mean_score(self.scores) if self.scores else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation of the test score over runs; None for fewer than two."""
        return sample_std(self.scores)

    @property
    def heads(self) -> list[str]:
        """Kinds of trained heads (`recipe.head`) that answers were read off by; empty where they were written."""
        return sorted({run.cell.recipe.head for run in self.runs if run.cell.recipe.has_head})

    @property
    def num_answers(self) -> int:
        """Test rows answered, over all runs."""
        return sum(run.test.num_rows for run in self.runs if run.test)

    @property
    def num_unreadable(self) -> int:
        """How many of `num_answers` are empty, or no label or number as the task asks; each counts as wrong."""
        return sum(run.test.num_unreadable for run in self.runs if run.test)

    choosers: list[Result] = field(default_factory=list)
    """Runs whose dev score chose the grid point that other seeds then ran: the best of several draws, so they are
    too good on average. They are among `runs` unless they were left out."""
    left_out: list[Result] = field(default_factory=list)
    """Those of `choosers` that do not count, since the report was asked for the other seeds alone."""
    reruns: list[list[Result]] = field(default_factory=list)
    """Runs of one cell with one seed, the one that counts first: repeats of the suite, and runs of other folders. Only
    `rerun_std` tells of them: no mean, interval or test holds a further run."""
    sources: SourceRuns | None = None
    """Where the runs find the source cells that they started from."""
    stale: list[str] = field(default_factory=list)
    """What has changed since the runs were made, such as the method file; the command fills it in."""
    mixed: list[str] = field(default_factory=list)
    """In what the runs and grid runs differ although they should be equal, such as the method file."""
    commits: list[str] = field(default_factory=list)
    """The commits of the harness that made the runs and grid runs; empty where there is only one."""

    apart: str = ""
    """Why the entry may not be ranked with the rest of its column, e.g. since other rows were scored; mostly empty."""

    @property
    def num_reruns(self) -> int:
        """Further runs of cells and seeds that count."""
        return sum(len(same) - 1 for same in self.reruns)

    @property
    def rerun_std(self) -> float | None:
        """Standard deviation of the test score between runs of one cell and seed, pooled over repeated cells."""
        return pooled_std([[run.test.score for run in same if run.test] for same in self.reruns])

    @property
    def has_hidden_grid_failures(self) -> bool:
        """Whether grid runs failed that are not in `failed`, and so are not in its footnote."""
        shown = {id(run) for run in self.failed}
        return any(run.status == "failed" and id(run) not in shown for search in self.searches for run in search)

    @property
    def num_duplicates(self) -> int:
        """Dev and test rows whose text also stands in train; the largest number of any run."""
        return max((run.data.num_duplicates for run in self.runs if run.data), default=0)


@dataclass
class BoardRow:
    """One row of a leaderboard."""

    label: str
    """The suite's name for the entry, mostly the method's."""
    variant: str
    """The settings that tell rows of one label apart, e.g. "prompt_length=20"; mostly empty."""
    entries: dict[str, Entry]
    """Task -> entry."""
    method: str
    """Decides colour and marker of the row; known even if every run failed."""
    k: int | None
    """Number of training rows, if few-shot; None for the whole training split."""

    @property
    def name(self) -> str:
        return f"{self.label} ({self.variant})" if self.variant else self.label

    @property
    def protocols(self) -> list[str]:
        """Titles of the protocols under which the runs of the row were made."""
        results = [run for entry in self.entries.values() for run in (*entry.runs, *entry.failed)]
        return sorted({run.cell.protocol.title for run in results})

    def average(self, tasks: Sequence[str]) -> float | None:
        """Unweighted mean of the scores on all `tasks`; None unless every task has one."""
        means = [self.entries[task].mean if task in self.entries else None for task in tasks]
        known = [mean for mean in means if mean is not None]
        return mean_score(known) if len(known) == len(tasks) else None

    def comparable_score(self, column: str, tasks: Sequence[str]) -> float | None:
        """The score in a column if it may be ranked with the rest; `column` is one of `tasks`, or else their average.

        An average is not comparable if one of its scores is not: then the tests of that task are others.
        """
        if column in tasks:
            entry = self.entries.get(column)
            return None if entry is None or entry.apart else entry.mean
        return None if any(self.entries[t].apart for t in tasks if t in self.entries) else self.average(tasks)

    def params(self, kind: Literal["num_trained", "num_kept"]) -> list[int]:
        """Distinct numbers of parameters over the row's tasks, smallest first; the share of a task for a mixture."""
        runs = [run for e in self.entries.values() for run in (*e.runs, *e.left_out) if run.params]
        return sorted({run.params.per_task(kind) for run in runs if run.params})

    def mixture_params(self) -> list[tuple[int, int]]:
        """(trained parameters, number of tasks) of each mixture in the row; `params` gives the share of a task."""
        runs = [run for entry in self.entries.values() for run in entry.runs]
        return sorted({(p.num_trained, p.num_tasks) for run in runs if (p := run.params) and p.num_tasks > 1})

    def seed_std(self) -> float | None:
        """Standard deviation of the test score between seeds, pooled over tasks."""
        return pooled_std([entry.scores for entry in self.entries.values()])

    def rerun_std(self) -> float | None:
        """Standard deviation of the test score between runs of one cell and seed, pooled over cells and tasks."""
        same = [runs for entry in self.entries.values() for runs in entry.reruns]
        return pooled_std([[run.test.score for run in runs if run.test] for runs in same])

    def heads(self) -> dict[str, list[str]]:
        """Kind of trained head (`recipe.head`) -> the tasks on which answers were read off by it, not written."""
        found: dict[str, list[str]] = defaultdict(list)
        for task, entry in self.entries.items():
            for head in entry.heads:
                found[head].append(task)
        return dict(found)

    def trained_elsewhere(self) -> list[str]:
        """Which adapters the row's runs answered with and took no step from, each with the start of its hash."""
        found = [
            f"{start.adapter} (SHA-256 {record.tensors[:10]})"
            for entry in self.entries.values()
            for run in entry.runs
            if run.is_answered_from_files
            for start, record in zip(run.cell.init_from, run.starts, strict=False)
            if start.adapter is not None
        ]
        return sorted(set(found))

    def step_seconds(self) -> float | None:
        """Seconds of training per step, the median over the row's runs."""
        return median_step_seconds(self._runs())

    def train_seconds(self) -> float | None:
        """Seconds of training of one run, its share of the bundle: the mean over runs, then over tasks."""
        usages = [[run.usage for run in entry.runs if run.usage] for entry in self.entries.values() if entry.runs]
        if not usages or not all(usages):  # a mean over some of the tasks would pass for one over all
            return None
        means = [statistics.fmean(item.train_s if item.num_steps else 0.0 for item in task) for task in usages]
        return statistics.fmean(means)

    def answering(self) -> list[AnsweringCost]:
        """What the answers of the row's runs cost, of those where it was measured."""
        return [run.answering for run in self._runs() if run.answering is not None]

    def peak_memory(self) -> int | None:
        """Largest peak memory in bytes of the bundles that the runs were trained in."""
        peaks = [run.usage.peak_memory_bytes for run in self._runs() if run.usage and run.usage.num_steps]
        return max(peaks, default=None)

    def forgetting(self) -> float | None:
        """Rise of the loss on a general text in nats per token: the mean over runs, then over tasks.

        None unless it was measured in every run: a mean over some would pass for one over all.
        """
        means = []
        for entry in self.entries.values():
            rises = [run.forgetting.rise if run.forgetting else None for run in entry.runs]
            known = [rise for rise in rises if rise is not None]
            if len(known) < len(rises):
                return None
            if known:
                means.append(statistics.fmean(known))
        return statistics.fmean(means) if means else None

    def forgetting_problems(self) -> list[str]:
        """Why it was not measured in some runs, each reason once."""
        found = (run.forgetting.problem for run in self._runs() if run.forgetting)
        return list(dict.fromkeys(problem for problem in found if problem))

    def _runs(self) -> list[Result]:
        return [run for entry in self.entries.values() for run in entry.runs]


@dataclass
class Board:
    """One leaderboard: a suite on a backbone."""

    suite: str
    backbone: str
    tasks: list[str]
    benchmarks: dict[str, str]
    """Task -> its benchmark. `tasks` are sorted by benchmark, so that its columns are neighbours."""
    metrics: dict[str, str]
    """Task -> label of the reported metrics, e.g. "accuracy and F1"; several joined by "or" where protocols differ."""
    rows: list[BoardRow]
    origin: str
    """One sentence: protocols, dates, commits, versions and hardware of the runs."""
    differences: dict[str, list[str]]
    """Task -> in what the results of its column differ although scores are compared, such as the rows."""
    overlaps: dict[str, str] = field(default_factory=dict)
    """Task -> sentence on the dev and test rows that also stand in train; tasks without any are missing."""
    record: PublishedRecord | None = None
    """The published numbers that were asked for."""
    published: list[PublishedRow] = field(default_factory=list)
    """Published numbers as rows. They are apart from `rows` since they are not measured here and not ranked."""
    published_note: str = ""
    """Why `published` is empty although a record was asked for."""

    folders: list[str] = field(default_factory=list)
    """Sentences on cells that stand in several of the folders that were read."""

    @property
    def leaves_out_choosers(self) -> bool:
        """Whether runs of the seed that chose a grid point are left out."""
        return any(entry.left_out for row in self.rows for entry in row.entries.values())

    @property
    def general_texts(self) -> set[str]:
        """SHA-256 of the general texts on which forgetting was measured; empty where it was not asked for."""
        runs = (run for row in self.rows for entry in row.entries.values() for run in entry.runs)
        return {run.forgetting.sha256 for run in runs if run.forgetting}


def pooled_std(samples: Iterable[Sequence[float]]) -> float | None:
    """The standard deviation within samples, sqrt(sum of squares / sum of (n - 1)); None if none has two values."""
    known = [sample for sample in samples if len(sample) > 1]
    if not known:
        return None
    squares = sum((len(sample) - 1) * statistics.variance(sample) for sample in known)
    return math.sqrt(squares / sum(len(sample) - 1 for sample in known))


def peers(rows: Sequence[BoardRow]) -> dict[str, list[BoardRow]]:
    """Rows that may be ranked against each other: few-shot rows only with rows of the same k.

    Returns title -> rows: "k=4", "k=all" and so on, or "" alone where all rows have one k.
    """
    by_k: dict[int | None, list[BoardRow]] = defaultdict(list)
    for row in rows:
        by_k[row.k].append(row)
    if len(by_k) < 2:
        return {"": list(rows)}
    return {f"k={ALL_ROWS if k is None else k}": members for k, members in by_k.items()}


def collect_boards(
    results: Iterable[Result], record: PublishedRecord | None = None, report_seeds: ReportSeeds = "all",
    reruns: Mapping[Key, Sequence[Result]] | None = None,
) -> list[Board]:  # fmt: skip
    """Return one board per suite and backbone, sorted by their names. A mixture's result counts on each of its tasks.

    With a `record`, each board also holds the published numbers for its backbone and tasks. `report_seeds` says whether
    the seed that chose a grid point counts: `make_entry`. `reruns` holds runs of other folders, by the key of their
    cell.
    """
    by_board: dict[tuple[str, str], list[Result]] = defaultdict(list)
    known = list(results)
    sources = SourceRuns(known)
    for result in (part for whole in known for part in results_by_task(whole)):
        by_board[(result.cell.suite, result.cell.backbone)].append(result)
    boards = [_board(suite, backbone, items, report_seeds) for (suite, backbone), items in sorted(by_board.items())]
    for entry in (entry for board in boards for row in board.rows for entry in row.entries.values()):
        _add_reruns(entry, reruns or {})
        entry.sources = sources
    if record is not None:
        for board in boards:
            _add_published(board, record)
    return boards


def hold_references_apart(boards: Iterable[Board], read: Reader) -> None:
    """Say of each entry whose stored references differ from those of its column that it may not be ranked.

    For tables without tests, which would pair no such runs. `read` gives the test answers of a run.
    """
    for board in boards:
        for task in board.tasks:
            column = {row.name: row.entries[task] for row in board.rows if task in row.entries}
            runs = {name: entry.runs for name, entry in column.items() if not entry.apart}
            for name, reason in find_apart(runs, read).items():
                column[name].apart = reason


def _add_reruns(entry: Entry, reruns: Mapping[Key, Sequence[Result]]) -> None:
    """Add the runs that other folders hold of an entry's cells."""
    for run in (run for run in entry.runs if run.key in reruns):
        others = [part for whole in reruns[run.key] for part in results_by_task(whole)]
        scored = [part for part in others if part.cell.task == run.cell.task and part.test]
        known = next((same for same in entry.reruns if same[0] is run), None)
        if known is not None:
            known += scored
        elif scored:
            entry.reruns.append([run, *scored])


def _add_published(board: Board, record: PublishedRecord) -> None:
    runs: dict[str, list[Result]] = defaultdict(list)
    for row in board.rows:
        for task, entry in row.entries.items():
            runs[task] += entry.runs
    board.record = record
    board.published = record.rows(board.backbone, board.metrics, runs)
    if not board.published:
        board.published_note = f"{record.name} has no score on {board.backbone} for these tasks"


def median_step_seconds(runs: Iterable[Result]) -> float | None:
    """Seconds of training per step, each run's share of its bundle: the median over runs; None if nothing trained.

    A median, since a run that shared the machine with something else for a while may take several times as long.
    """
    costs = [run.usage.train_s / run.usage.num_steps for run in runs if run.usage and run.usage.num_steps]
    return statistics.median(costs) if costs else None


def metric_labels(results: Iterable[Result]) -> dict[str, str]:
    """Task -> label of its reported metrics, e.g. "accuracy and F1"; several joined by "or" where results differ."""
    labels: dict[str, set[str]] = defaultdict(set)
    for result in results:
        if result.metrics:
            names = [METRICS[name].label if name in METRICS else name for name in result.metrics.reported]
            labels[result.cell.task].add(" and ".join(names))
    return {task: " or ".join(sorted(names)) for task, names in labels.items()}


def _board(suite: str, backbone: str, results: list[Result], report_seeds: ReportSeeds) -> Board:
    benchmarks = _benchmarks(results)
    differences = {
        task: find_differences([r for r in results if r.cell.task == task], COMMON_TO_A_COLUMN) for task in benchmarks
    }
    metrics = dict(sorted(metric_labels(results).items()))
    rows, origin = _rows(results, report_seeds), origin_of(results)
    for task in benchmarks:
        column = {row.name: row.entries[task] for row in rows if task in row.entries}
        for name, reason in find_apart({name: entry.runs for name, entry in column.items()}).items():
            column[name].apart = reason
    return Board(suite, backbone, list(benchmarks), benchmarks, metrics, rows, origin, differences, overlaps(results))


def _rows(results: list[Result], report_seeds: ReportSeeds) -> list[BoardRow]:
    """The rows of one board, in the order in which they are shown."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        groups[(result.cell.task, result.group_id)].append(result)
    distinguishing = _distinguishing(groups)
    rows: dict[tuple[str, str], BoardRow] = {}
    for (task, _), members in groups.items():
        cell = members[0].cell
        # rows of one label are told apart by the settings in which they differ, and by nothing else
        keys = distinguishing.get(cell.label, [])
        settings = _settings(members[0])
        variant = ", ".join(f"{key.split('.', 1)[1]}={_value_in(settings, key)}" for key in keys)
        row = rows.setdefault(
            (cell.label, variant),
            BoardRow(cell.label, variant, {}, cell.method, cell.few_shot.k if cell.few_shot else None),
        )
        if task in row.entries:  # no run makes such ids: one of the files was edited
            raise UserError(f"two groups of results of '{row.name}' on {task} would share a table entry",
                            hint="harness verify names results whose ids are not their own.")  # fmt: skip
        row.entries[task] = make_entry(members, report_seeds)
    return sorted(rows.values(), key=_display_order)


def _display_order(row: BoardRow) -> tuple[float, float, list[tuple[float, str]], str]:
    """Sort key: few training rows, then few parameters, then the name, its numbers by value (4, 16, 32)."""
    pieces = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", row.name)
    # re.split with a group returns text and number in turn, so every other piece is a number
    natural = [(float(piece), "") if i % 2 else (-1.0, piece) for i, piece in enumerate(pieces)]
    k = math.inf if row.k is None else row.k
    return k, max(row.params("num_trained"), default=math.inf), natural, row.name


def _value_in(settings: Mapping[str, Any], key: str) -> Any:
    """A setting as a row's name shows it; a cell does not hold it where its own grid sweeps it."""
    return settings.get(key, ALL_ROWS if key.startswith(ROWS) else "swept")


def _benchmarks(results: list[Result]) -> dict[str, str]:
    """Task -> its benchmark, sorted by benchmark, then task. "" for a task that the program no longer knows."""
    known = {name: task.benchmark for name, task in all_tasks().items()}
    found = {r.cell.task: OWN if r.cell.definition else known.get(r.cell.task, "") for r in results}
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def make_entry(members: list[Result], report_seeds: ReportSeeds = "all") -> Entry:
    """Make the entry of one group: choose the grid point by the stored dev scores and keep its runs.

    With `report_seeds` "others" the runs of the seed that chose the point for all are left out. Where each seed
    searches for itself, each run is what a search gives, and all count.
    """
    entry = Entry(mixed=find_differences(members, COMMON_TO_AN_ENTRY))
    members, repeats = _without_repeats(members)
    commits = commits_of(members)
    entry.commits = commits if len(commits) > 1 else []
    by_repetition: dict[Repetition, list[Result]] = defaultdict(list)
    for result in members:
        by_repetition[result.cell.repetition].append(result)
    ordered = [result for _, found in sorted(by_repetition.items()) for result in in_order_asked(found)]
    has_grid = any(result.cell.grid != members[0].cell.grid for result in members)
    # without a grid there is nothing to choose, and every run counts
    shown = _winning_runs(ordered, entry) if has_grid else ordered
    entry.runs = [r for r in shown if r.status == "done" and r.raced_out_at is None]
    entry.failed = [r for r in shown if r.status != "done"]
    if entry.num_grid_runs > 1 and len({r.cell.search_seed for r in members}) == 1:
        entry.choosers = [r for r in entry.runs if r.cell.seed == r.cell.search_seed]
    if report_seeds == "others":
        entry.left_out = entry.choosers
        entry.runs = [r for r in entry.runs if r.cell.seed != r.cell.search_seed or not entry.choosers]
    for run in entry.runs if repeats else ():
        same = [r for r in repeats if _point_of(r) == _point_of(run) and r.test]
        if same:
            entry.reruns.append([run, *same])
    for run in (*entry.runs, *entry.left_out):
        if run.cell.grid and run.cell.grid not in entry.grid:
            entry.grid.append(run.cell.grid)
    return entry


def _without_repeats(members: list[Result]) -> tuple[list[Result], list[Result]]:
    """The results that count, and repeats of them, which count for their own spread alone.

    If the first training of a cell is not there, its next one stands for it.
    """
    again = sorted((result for result in members if result.cell.repeat > 1), key=lambda result: result.cell.repeat)
    counted = [result for result in members if result.cell.repeat == 1]
    points = {_point_of(result) for result in counted} if again else set()
    repeats: list[Result] = []
    for result in again:
        (repeats if _point_of(result) in points else counted).append(result)
        points.add(_point_of(result))
    return counted, repeats


def _point_of(result: Result) -> object:
    """What runs of one cell and seed have in common, however often it was trained."""
    return result.cell.repetition, result.cell.grid_index, str(sorted(result.cell.grid.items()))


def _winning_runs(members: list[Result], entry: Entry) -> list[Result]:
    """Return, for each repetition, the run of the grid point with the best dev score; fill in the entry's counts.

    A repetition on which the whole grid was run chooses its own point. Any other repetition was run at the point that
    another seed's search chose, and is shown at that point. If every grid run failed, all failures are returned.
    """
    repetitions: dict[Repetition, list[Result]] = defaultdict(list)
    for result in members:
        repetitions[result.cell.repetition].append(result)
    # a seed that follows another's search may have as many points as the grid, if reruns have changed the winner
    own = {name: results for name, results in repetitions.items() if any(_is_searched(r.cell) for r in results)}
    own = own or repetitions
    size = max(map(len, own.values()))  # of the whole grid, since at least one repetition searches it
    searched = {name: results for name, results in own.items() if len(results) == size}
    winners = {name: results[best] for name, results in searched.items() if (best := best_point(results)) is not None}
    entry.searches = list(searched.values())
    grid_runs = [result for results in entry.searches for result in results]
    entry.num_grid_runs = len(grid_runs)
    entry.num_raced_out = sum(result.raced_out_at is not None for result in grid_runs)
    entry.num_grid_failed = sum(result.status == "failed" for result in grid_runs)
    entry.num_grid_unfit = sum(result.status == "unfit" for result in grid_runs)
    if not winners:
        return grid_runs
    shown = []
    for name, results in repetitions.items():
        winner = winners.get(name) or _winner_elsewhere(results, list(winners.values()))
        shown += [result for result in results if result.cell.grid == winner.cell.grid]
    return shown


def _is_searched(cell: Cell) -> bool:
    """Whether a cell is of its own seed's search. A seed that searched later has one cell that followed another."""
    return cell.seed == cell.search_seed


def _winner_elsewhere(results: list[Result], winners: list[Result]) -> Result:
    """The winner for a repetition that searched nothing: that of the seed it names, else the first.

    If that seed was searched on several few-shot draws, it is the winner that this repetition was run with.
    """
    named = [winner for winner in winners if winner.cell.seed == results[0].cell.search_seed] or winners[:1]
    grids = [result.cell.grid for result in results]
    return next((winner for winner in named if winner.cell.grid in grids), named[0])


def _distinguishing(groups: dict[tuple[str, str], list[Result]]) -> dict[str, list[str]]:
    """Label -> names of the settings in which groups of that label on one task differ."""
    by_label_and_task: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for (task, _), members in groups.items():
        by_label_and_task[(members[0].cell.label, task)].append(_settings(members[0]))
    found: dict[str, set[str]] = defaultdict(set)
    for (label, _), settings in by_label_and_task.items():
        keys = {key for item in settings for key in item}
        for key in keys:
            # only few-shot cells are drawn by a rule, so a cell that sees all rows does not differ in it
            drawn = key.startswith(ROWS) and key != K
            values = [item[key] for item in settings if key in item] if drawn else [_value_in(i, key) for i in settings]
            found[label] |= {key} if len(set(map(str, values))) > 1 else set()
    # with several k on a board every row names its own, on whatever task: scores of two k are not comparable
    if len({item.get(K) for settings in by_label_and_task.values() for item in settings}) > 1:
        for label, _ in by_label_and_task:
            found[label].add(K)
    return {label: sorted(keys) for label, keys in found.items()}


def _settings(result: Result) -> dict[str, Any]:
    """The settings of a cell that its grid does not sweep, as {"hp.rank": 4, "rows.k": 16, ...}."""
    cell = result.cell
    flat = {f"recipe.{k}": v for k, v in cell.recipe.model_dump(mode="json").items()}
    flat |= {f"hp.{k}": v for k, v in cell.hp.items()} | {"method.name": cell.method}
    flat |= {"task.version": cell.task_version, "suite.protocol": cell.protocol.title}
    if cell.init_from:
        # two adapters of one name are told apart by their hashes, where both have results
        titles = [f"{start.title} {start.identity[:8]}" if start.adapter else start.title for start in cell.init_from]
        flat["cell.init_from"] = " + ".join(titles)
        if result.is_answered_from_files:
            flat.pop("hp.config", None)  # the hash stands for it
    # when the text length is swept, a method that copies it into its hp follows the sweep
    follows = {"hp.source_length"} if "recipe.max_source_length" in cell.grid else set()
    shots = cell.few_shot
    flat |= {"rows.k": shots.k, "rows.draw": shots.rule, "rows.select_with": shots.select_with} if shots else {}
    if cell.row_limit is not None:
        flat |= {f"rows.{split}": rows for split, rows in cell.row_limit.model_dump().items()}
    return {k: v for k, v in flat.items() if k not in cell.grid and k not in follows}
