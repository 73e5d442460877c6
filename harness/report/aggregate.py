"""One pass over results: which runs stand behind each entry of each table."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.metrics import METRICS
from harness.schema import Result
from harness.selection import best_point

PER_TASK_SETTINGS = ("recipe.max_source_length", "hp.source_length")
"""Settings that follow from the task and therefore do not make another row."""


@dataclass
class Entry:
    """A method on a task: the runs of the grid point that won on dev."""

    runs: list[Result] = field(default_factory=list)
    failed: list[Result] = field(default_factory=list)
    num_grid_runs: int = 0
    num_grid_failed: int = 0
    grid: list[dict[str, Any]] = field(default_factory=list)
    """The winning grid point of each search."""

    @property
    def scores(self) -> list[float]:
        return [run.test.score for run in self.runs if run.test]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def mixed(self) -> list[str]:
        """What the runs do not have in common although they should."""
        marks = {
            "method source": {run.method_sha256 for run in self.runs},
            "rows": {run.data.fingerprint for run in self.runs if run.data},
            "backbone weights": {run.backbone.fingerprint for run in self.runs if run.backbone},
        }
        return [name for name, values in marks.items() if len(values) > 1]


@dataclass
class BoardRow:
    """One row: a label, with the settings that tell it from a namesake."""

    label: str
    variant: str
    entries: dict[str, Entry]
    """Per task."""

    @property
    def name(self) -> str:
        return f"{self.label} ({self.variant})" if self.variant else self.label

    def average(self, tasks: Sequence[str]) -> float | None:
        """Unweighted mean over all `tasks`; None unless each has a score."""
        means = [self.entries[task].mean if task in self.entries else None for task in tasks]
        known = [mean for mean in means if mean is not None]
        return statistics.fmean(known) if len(known) == len(tasks) else None

    def params(self, kind: str) -> list[int]:
        """Distinct parameter counts over the row's tasks, smallest first; `kind` is num_trained or num_kept."""
        runs = [run for entry in self.entries.values() for run in entry.runs if run.params]
        return sorted({int(getattr(run.params, kind)) for run in runs})


@dataclass
class Board:
    """One table: a suite on a backbone."""

    suite: str
    backbone: str
    tasks: list[str]
    metrics: dict[str, str]
    """Task -> label of its reported metrics."""
    rows: list[BoardRow]


def collect(results: Iterable[Result]) -> list[Board]:
    """Group results into one board per suite and backbone, in the order of their names."""
    by_board: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        by_board[(result.cell.suite, result.cell.backbone)].append(result)
    return [_board(suite, backbone, items) for (suite, backbone), items in sorted(by_board.items())]


def _board(suite: str, backbone: str, results: list[Result]) -> Board:
    metrics = dict(sorted((r.cell.task, _metric_label(r)) for r in results if r.metrics))
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        groups[(result.cell.task, result.group_id)].append(result)
    distinguishing = _distinguishing(groups)
    rows: dict[tuple[str, str], BoardRow] = {}
    for (task, _), members in groups.items():
        cell = members[0].cell
        keys = distinguishing.get(cell.label, [])
        settings = _settings(members[0])
        variant = ", ".join(f"{key.split('.', 1)[1]}={settings.get(key, 'swept')}" for key in keys)
        row = rows.setdefault((cell.label, variant), BoardRow(cell.label, variant, {}))
        row.entries[task] = _entry(members)
    ordered = sorted(rows.values(), key=lambda row: (max(row.params("num_trained"), default=math.inf), row.name))
    return Board(suite, backbone, sorted({r.cell.task for r in results}), metrics, ordered)


def _entry(members: list[Result]) -> Entry:
    """Repeat the selection from the stored dev scores: per search seed, the best grid point's runs."""
    entry = Entry()
    for search_seed in sorted({r.cell.search_seed for r in members}):
        runs = [r for r in members if r.cell.search_seed == search_seed]
        searched = sorted((r for r in runs if r.cell.seed == search_seed), key=lambda r: r.cell.grid_index)
        winner = best_point(searched)
        grid = searched[winner].cell.grid if winner is not None else None
        entry.num_grid_runs += len(searched)
        entry.num_grid_failed += sum(r.status == "failed" for r in searched)
        chosen = [r for r in runs if r.cell.grid == grid] if grid is not None else []
        entry.runs += [r for r in chosen if r.status == "done"]
        entry.failed += [r for r in (chosen or runs) if r.status == "failed"]
        if grid:
            entry.grid.append(grid)
    entry.runs.sort(key=lambda r: r.cell.seed)
    return entry


def _distinguishing(groups: dict[tuple[str, str], list[Result]]) -> dict[str, list[str]]:
    """Per label, the settings in which groups on the same task differ."""
    by_place: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for (task, _), members in groups.items():
        by_place[(members[0].cell.label, task)].append(_settings(members[0]))
    found: dict[str, set[str]] = defaultdict(set)
    for (label, _), settings in by_place.items():
        keys = {key for item in settings for key in item}
        found[label] |= {key for key in keys if len({str(item.get(key, "swept")) for item in settings}) > 1}
    return {label: sorted(keys) for label, keys in found.items()}


def _settings(result: Result) -> dict[str, Any]:
    """All settings of a cell that are not swept and not implied by the task."""
    cell = result.cell
    flat = {f"recipe.{k}": v for k, v in cell.recipe.model_dump(mode="json").items()}
    flat |= {f"hp.{k}": v for k, v in cell.hp.items()} | {"method.name": cell.method}
    return {k: v for k, v in flat.items() if k not in cell.grid and k not in PER_TASK_SETTINGS}


def _metric_label(result: Result) -> str:
    assert result.metrics
    return " and ".join(METRICS[name].label if name in METRICS else name for name in result.metrics.reported)
