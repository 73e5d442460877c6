"""One pass over results: which runs stand behind each entry of each table."""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.errors import UserError
from harness.metrics import METRICS
from harness.parts import by_task
from harness.report.origin import COMMON_TO_A_COLUMN, SOURCES, commits_of, find_differences, origin_of
from harness.report.overlap import overlaps
from harness.report.published import PublishedRow, Record
from harness.schema import Result
from harness.scores import mean_score, settled, spread_of
from harness.selection import best_point
from harness.tasks import all_tasks
from harness.tasks.own import BENCHMARK as OWN

Repetition = tuple[tuple[int, ...], tuple[str, ...]]
"""See `Cell.repetition`."""


@dataclass
class Entry:
    """A method on a task: the runs of the grid point that won on dev."""

    runs: list[Result] = field(default_factory=list)
    failed: list[Result] = field(default_factory=list)
    """Runs without a score: those that failed, and those that were never begun, since the method does not fit."""
    num_grid_runs: int = 1
    num_grid_failed: int = 0
    num_grid_unfit: int = 0
    num_raced_out: int = 0
    """Grid runs that left a search by halving before their end."""
    grid: list[dict[str, Any]] = field(default_factory=list)
    """The winning grid point of each search."""
    searches: list[list[Result]] = field(default_factory=list)
    """Per searched seed, the results of all grid points in the order of the grid; empty without a grid."""

    @property
    def scores(self) -> list[float]:
        """Settled here too: results of before scores were rounded where they are made hold the noise of floats."""
        return [settled(run.test.score) for run in self.runs if run.test]

    @property
    def mean(self) -> float | None:
        return mean_score(self.scores) if self.scores else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over runs; None for fewer than two."""
        return spread_of(self.scores)

    @property
    def num_answers(self) -> int:
        """Test rows answered, over all runs."""
        return sum(run.test.num_rows for run in self.runs if run.test)

    @property
    def num_unreadable(self) -> int:
        """Answers among them that are no label of the task, no number or empty; each counted as wrong."""
        return sum(run.test.num_unreadable for run in self.runs if run.test)

    stale: list[str] = field(default_factory=list)
    """What of the origin of its runs is another today."""
    mixed: list[str] = field(default_factory=list)
    """What the runs and grid runs do not have in common although they should."""
    commits: list[str] = field(default_factory=list)
    """The commits of the harness at which its runs and grid runs were made, where they are several."""

    @property
    def has_hidden_grid_failures(self) -> bool:
        """Whether grid runs failed that are not among the entry's own failed runs."""
        shown = {id(run) for run in self.failed}
        return any(run.status == "failed" and id(run) not in shown for search in self.searches for run in search)

    @property
    def num_duplicates(self) -> int:
        """Dev and test rows that also stand in train, the most that any run had."""
        return max((run.data.num_duplicates for run in self.runs if run.data), default=0)


@dataclass
class BoardRow:
    """One row: a label, with the settings that tell it from a namesake."""

    label: str
    variant: str
    entries: dict[str, Entry]
    """Per task."""
    method: str
    """Which decides how the row looks; known even where no run of it counts."""
    k: int | None
    """Training rows of a few-shot row's cells; None where they see all. Rows of one board name their k, if any."""

    @property
    def name(self) -> str:
        return f"{self.label} ({self.variant})" if self.variant else self.label

    @property
    def protocols(self) -> list[str]:
        """Titles of the protocols that stand behind the row."""
        results = [run for entry in self.entries.values() for run in (*entry.runs, *entry.failed)]
        return sorted({run.cell.protocol.title for run in results})

    def average(self, tasks: Sequence[str]) -> float | None:
        """Unweighted mean over all `tasks`; None unless each has a score."""
        means = [self.entries[task].mean if task in self.entries else None for task in tasks]
        known = [mean for mean in means if mean is not None]
        return mean_score(known) if len(known) == len(tasks) else None

    def params(self, kind: Literal["num_trained", "num_kept"]) -> list[int]:
        """Distinct parameter counts over the row's tasks, smallest first; `kind` is num_trained or num_kept."""
        runs = [run for entry in self.entries.values() for run in entry.runs if run.params]
        return sorted({run.params.per_task(kind) for run in runs if run.params})

    def mixture_params(self) -> list[tuple[int, int]]:
        """(parameters trained in full, tasks) of the row's mixtures, of which `params` gives the share per task."""
        runs = [run for entry in self.entries.values() for run in entry.runs]
        return sorted({(p.num_trained, p.num_tasks) for run in runs if (p := run.params) and p.num_tasks > 1})

    def step_seconds(self) -> float | None:
        """Median over runs of the seconds of training per step, each run's share of its bundle."""
        costs = [run.usage.train_s / run.usage.num_steps for run in self._runs() if run.usage and run.usage.num_steps]
        return statistics.median(costs) if costs else None

    def train_seconds(self) -> float | None:
        """Seconds of training, each run's share of its bundle: the mean over runs, then over tasks."""
        usages = [[run.usage for run in entry.runs if run.usage] for entry in self.entries.values() if entry.runs]
        if not usages or not all(usages):
            return None
        means = [statistics.fmean(item.train_s if item.num_steps else 0.0 for item in task) for task in usages]
        return statistics.fmean(means)

    def peak_memory(self) -> int | None:
        """Largest peak memory in bytes of a bundle that held one of the runs."""
        peaks = [run.usage.peak_memory_bytes for run in self._runs() if run.usage and run.usage.num_steps]
        return max(peaks, default=None)

    def _runs(self) -> list[Result]:
        return [run for entry in self.entries.values() for run in entry.runs]


@dataclass
class Board:
    """One table: a suite on a backbone."""

    suite: str
    backbone: str
    tasks: list[str]
    benchmarks: dict[str, str]
    """Task -> benchmark that it belongs to; `tasks` are in the order of these."""
    metrics: dict[str, str]
    """Task -> label of its reported metrics; of all of them where protocols differ."""
    rows: list[BoardRow]
    origin: str
    """When, with which commit and on what the runs were made."""
    differences: dict[str, list[str]]
    """Task -> what results of different rows were not made with in common."""
    overlaps: dict[str, str] = field(default_factory=dict)
    """Task -> how many dev and test rows also stand in train; tasks with none are missing."""
    record: Record | None = None
    """Whose numbers are asked for."""
    published: list[PublishedRow] = field(default_factory=list)
    """Rows of other people's numbers, apart from `rows`: not measured, not ranked."""
    published_note: str = ""
    """Why there are none although some were asked for."""


def peers(rows: Sequence[BoardRow]) -> dict[str, list[BoardRow]]:
    """Rows that are ranked against each other, those of one k: title ("k=4"; "" where there is one group) -> rows."""
    by_k: dict[int | None, list[BoardRow]] = defaultdict(list)
    for row in rows:
        by_k[row.k].append(row)
    if len(by_k) < 2:
        return {"": list(rows)}
    return {f"k={ALL_ROWS if k is None else k}": members for k, members in by_k.items()}


def collect(results: Iterable[Result], record: Record | None = None) -> list[Board]:
    """Group results into one board per suite and backbone, in the order of their names.

    With a `record`, each board also holds the published numbers on its backbone and tasks.
    """
    by_board: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in (part for whole in results for part in by_task(whole)):
        by_board[(result.cell.suite, result.cell.backbone)].append(result)
    boards = [_board(suite, backbone, items) for (suite, backbone), items in sorted(by_board.items())]
    if record is not None:
        for board in boards:
            _add_published(board, record)
    return boards


def _add_published(board: Board, record: Record) -> None:
    runs: dict[str, list[Result]] = defaultdict(list)
    for row in board.rows:
        for task, entry in row.entries.items():
            runs[task] += entry.runs
    board.record = record
    board.published = record.rows(board.backbone, board.metrics, runs)
    if not board.published:
        board.published_note = f"{record.name} has no score on {board.backbone} for these tasks"


def _board(suite: str, backbone: str, results: list[Result]) -> Board:
    labels: dict[str, set[str]] = defaultdict(set)
    for result in results:
        if result.metrics:
            labels[result.cell.task].add(metric_label(result))
    metrics = {task: " or ".join(sorted(names)) for task, names in sorted(labels.items())}
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        groups[(result.cell.task, result.group_id)].append(result)
    distinguishing = _distinguishing(groups)
    rows: dict[tuple[str, str], BoardRow] = {}
    for (task, _), members in groups.items():
        cell = members[0].cell
        keys = distinguishing.get(cell.label, [])
        settings = _settings(members[0])
        variant = ", ".join(f"{key.split('.', 1)[1]}={_value_in(settings, key)}" for key in keys)
        row = rows.setdefault(
            (cell.label, variant),
            BoardRow(cell.label, variant, {}, cell.method, cell.few_shot.k if cell.few_shot else None),
        )
        if task in row.entries:  # ids that a run does not give
            raise UserError(f"two groups of results of '{row.name}' on {task} would share a table entry",
                            hint="harness verify names results whose ids are not their own.")  # fmt: skip
        row.entries[task] = make_entry(members)
    ordered = sorted(rows.values(), key=_place)
    benchmarks = _benchmarks(results)
    tasks = list(benchmarks)
    notes = {task: find_differences([r for r in results if r.cell.task == task], COMMON_TO_A_COLUMN) for task in tasks}
    return Board(suite, backbone, tasks, benchmarks, metrics, ordered, origin_of(results), notes, overlaps(results))


def _place(row: BoardRow) -> tuple[float, float, list[tuple[float, str]], str]:
    """Few rows before many, cheap before dear, and numbers in names by value: 4, 16, 32."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", row.name)
    # every other part is a number
    natural = [(float(part), "") if i % 2 else (-1.0, part) for i, part in enumerate(parts)]
    k = math.inf if row.k is None else row.k
    return k, max(row.params("num_trained"), default=math.inf), natural, row.name


def _value_in(settings: Mapping[str, Any], key: str) -> Any:
    return settings.get(key, ALL_ROWS if key.startswith(ROWS) else "swept")


def _benchmarks(results: list[Result]) -> dict[str, str]:
    """Task -> its benchmark; a task that nobody knows any more has none."""
    known = {name: task.benchmark for name, task in all_tasks().items()}
    found = {r.cell.task: OWN if r.cell.definition else known.get(r.cell.task, "") for r in results}
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def make_entry(members: list[Result]) -> Entry:
    """Repeat the selection from the stored dev scores, and keep the runs that it leads to."""
    entry = Entry(mixed=find_differences(members, SOURCES))
    commits = commits_of(members)
    entry.commits = commits if len(commits) > 1 else []
    ordered = sorted(members, key=lambda r: (r.cell.repetition, r.cell.grid_index, r.cell_id))
    has_grid = any(result.cell.grid != members[0].cell.grid for result in members)
    shown = _winning_runs(ordered, entry) if has_grid else ordered
    entry.runs = [r for r in shown if r.status == "done" and r.raced_out_at is None]
    entry.failed = [r for r in shown if r.status != "done"]
    for run in entry.runs:
        if run.cell.grid and run.cell.grid not in entry.grid:
            entry.grid.append(run.cell.grid)
    return entry


def _winning_runs(members: list[Result], entry: Entry) -> list[Result]:
    """Per repetition (a seed, or a draw or start of one), the run of the grid point that won on dev.

    A repetition on which the whole grid was run is searched on its own; any other shows the point that won on the
    seed its run names, or in the first search. Where every grid run failed, the failures are returned.
    """
    repetitions: dict[Repetition, list[Result]] = defaultdict(list)
    for result in members:
        repetitions[result.cell.repetition].append(result)
    size = max(map(len, repetitions.values()))
    searched = {name: results for name, results in repetitions.items() if len(results) == size}
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


def _winner_elsewhere(results: list[Result], winners: list[Result]) -> Result:
    """The winner for a repetition without a search: of the seed that it names, else the first.

    Where that seed was searched more than once, on several draws, it is the winner that the repetition has run.
    """
    named = [winner for winner in winners if winner.cell.seed == results[0].cell.search_seed] or winners[:1]
    grids = [result.cell.grid for result in results]
    return next((winner for winner in named if winner.cell.grid in grids), named[0])


def _distinguishing(groups: dict[tuple[str, str], list[Result]]) -> dict[str, list[str]]:
    """Per label, the settings in which groups on the same task differ."""
    by_place: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for (task, _), members in groups.items():
        by_place[(members[0].cell.label, task)].append(_settings(members[0]))
    found: dict[str, set[str]] = defaultdict(set)
    for (label, _), settings in by_place.items():
        keys = {key for item in settings for key in item}
        for key in keys:
            # how rows were drawn tells nothing from a cell that sees all
            drawn = key.startswith(ROWS) and key != K
            values = [item[key] for item in settings if key in item] if drawn else [_value_in(i, key) for i in settings]
            found[label] |= {key} if len(set(map(str, values))) > 1 else set()
    # scores of different k are never set beside each other unmarked, be it on different tasks or of different rows
    if len({item.get(K) for settings in by_place.values() for item in settings}) > 1:
        for label, _ in by_place:
            found[label].add(K)
    return {label: sorted(keys) for label, keys in found.items()}


ROWS, K = "rows.", "rows.k"
ALL_ROWS = "all"


def _settings(result: Result) -> dict[str, Any]:
    """All settings of a cell that are not swept."""
    cell = result.cell
    flat = {f"recipe.{k}": v for k, v in cell.recipe.model_dump(mode="json").items()}
    flat |= {f"hp.{k}": v for k, v in cell.hp.items()} | {"method.name": cell.method}
    flat |= {"task.version": cell.task_version, "suite.protocol": cell.protocol.title}
    if cell.init_from:
        flat["cell.init_from"] = " + ".join(start.title for start in cell.init_from)
    follows = {"hp.source_length"} if "recipe.max_source_length" in cell.grid else set()
    shots = cell.few_shot
    flat |= {"rows.k": shots.k, "rows.draw": shots.rule, "rows.select_with": shots.select_with} if shots else {}
    return {k: v for k, v in flat.items() if k not in cell.grid and k not in follows}


def metric_label(result: Result) -> str:
    assert result.metrics
    return " and ".join(METRICS[name].label if name in METRICS else name for name in result.metrics.reported)
