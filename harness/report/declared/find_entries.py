"""Finds entries by the settings of their cells, for declared tables and figures.

A leaderboard takes all results of one suite and backbone. A declared layout asks for some, of any suite: "lora on boolq
with rank 8". `EntryIndex` holds the entries of all results and answers such questions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.data import BENCHMARK as OWN
from harness.data import all_tasks
from harness.report.boards import Entry, make_entry
from harness.report.published import record_spelling
from harness.report.yardstick import find_apart
from harness.results import Result, results_by_task
from harness.suite import Condition, ReportSeeds, Where, spelled

NOT_SEARCHABLE = {"grid", "grid_index", "search_seed", "study", "seed", "repeat", "definition"}
"""Fields of a cell that differ between the runs of one entry, or hold a whole task: no entry is found by them."""


@dataclass(frozen=True)
class FoundEntry:
    """An entry with the settings that all its cells share, as {"hp.rank": 4, "task": "cb", ...}."""

    settings: Mapping[str, Any]
    texts: Mapping[str, str | None]
    """The settings as texts, spelled as conditions are: a suite file may say 8 or "8"."""
    entry: Entry

    @property
    def results(self) -> list[Result]:
        return [*self.entry.runs, *self.entry.left_out, *self.entry.failed]


class EntryIndex:
    """All entries of some results.

    A grid is one entry, that of its winning point. But where a layout asks for a swept setting (`keys`), each value of
    it is an entry with a winner of its own.
    """

    def __init__(
        self, results: Iterable[Result], keys: Collection[str] = (), report_seeds: ReportSeeds = "all"
    ) -> None:
        groups: dict[tuple[object, ...], list[Result]] = defaultdict(list)
        for result in (part for whole in results for part in results_by_task(whole)):
            cell = result.cell
            swept = tuple((key, cell.grid[key]) for key in keys if key in cell.grid)
            groups[(cell.suite, cell.task, cell.backbone, result.group_id, *swept)].append(result)
        benchmarks = {name: task.benchmark for name, task in all_tasks().items()}
        self._by_task: dict[str, list[FoundEntry]] = defaultdict(list)
        for members in groups.values():
            self._by_task[members[0].cell.task].append(_found(members, keys, benchmarks, report_seeds))

    def find(self, where: Where) -> list[FoundEntry]:
        """Entries that meet all conditions. The same runs stored under two suites count once."""
        accepted = {key: _accepted(key, condition) for key, condition in where.items()}
        tasks = accepted.get("task", self._by_task.keys())
        candidates = [item for task in tasks for item in self._by_task.get(str(task), ())]
        met = [item for item in candidates if all(item.texts.get(key) in texts for key, texts in accepted.items())]
        # a mixture has one cell_id and an entry for each of its tasks, so the task is part of the key
        cells = [(item.texts["task"], frozenset(run.cell_id for run in item.results)) for item in met]
        return list(dict(zip(cells, met, strict=True)).values())


def _found(
    members: list[Result], keys: Collection[str], benchmarks: Mapping[str, str], report_seeds: ReportSeeds
) -> FoundEntry:
    cell = members[0].cell
    settings = flatten(cell.model_dump(mode="json", exclude=NOT_SEARCHABLE))
    for key in cell.grid:
        if key not in keys:
            settings[key] = "swept"  # the winner's value differs from task to task: no condition should meet it
    settings["benchmark"] = OWN if cell.definition else benchmarks.get(cell.task, "")
    settings["protocol"] = cell.protocol.title
    texts = {key: _text(key, value) for key, value in settings.items()}
    return FoundEntry(settings, texts, make_entry(members, report_seeds))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names: {"hp": {"rank": 4}, "list": [7]} -> {"hp.rank": 4, "list.0": 7}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = {str(i): item for i, item in enumerate(value)} if isinstance(value, list) else value
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def by_method(found: Iterable[FoundEntry], at: Callable[[FoundEntry], object]) -> dict[str, list[FoundEntry]]:
    """The lines of a figure: title -> entries, one line per method.

    Where a method has several entries at one point of the figure (`at`), it has a line per row label instead.
    """
    items = list(found)
    counts = Counter((item.settings["method"], at(item)) for item in items)
    crowded = {method for (method, _), count in counts.items() if count > 1}
    lines: dict[str, list[FoundEntry]] = defaultdict(list)
    for item in items:
        lines[str(item.settings["label" if item.settings["method"] in crowded else "method"])].append(item)
    return dict(sorted(lines.items()))


def keep_comparable(lines: Mapping[str, list[FoundEntry]]) -> tuple[dict[str, list[FoundEntry]], list[str]]:
    """The lines of a panel without entries whose scores were measured with other things than the rest on their task.

    Also returns a sentence for each that is left out: "dept on cb: scored with other rows than the rest: not ranked".
    """
    by_task: dict[str, dict[tuple[str, int], FoundEntry]] = defaultdict(dict)
    for title, items in lines.items():
        for i, item in enumerate(items):
            by_task[str(item.settings["task"])][title, i] = item
    apart: dict[tuple[str, int], str] = {}
    for task, found in by_task.items():
        reasons = find_apart({place: item.entry.runs for place, item in found.items()})
        apart |= {place: f"{place[0]} on {task}: {reason}" for place, reason in reasons.items()}
    kept = {t: [item for i, item in enumerate(items) if (t, i) not in apart] for t, items in lines.items()}
    return {title: items for title, items in kept.items() if items}, list(apart.values())


def _accepted(key: str, condition: Condition) -> set[str | None]:
    return {_text(key, value) for value in (condition if isinstance(condition, list) else [condition])}


def _text(key: str, value: Any) -> str | None:
    if value is None:
        return None
    return record_spelling(str(value)) if key == "backbone" else spelled(value)
