"""Search budgets: what the choice of a row's settings has cost, and whether the rows of a table had equal ones.

What a row started from was trained for it (`init_from`), so it is part of the cost; each row that starts from a source
bears the whole of it. What a mixture took is divided evenly over its tasks, as its parameters are; its trials count for
each of them.

Whoever tries more settings ranks higher (Dodge et al. 2019, "Show Your Work"), so a table has to say both.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from harness.report.boards import Board, BoardRow, Entry, peers
from harness.report.source_runs import SourceRuns
from harness.results import Result

SAME = 0.1
"""Training samples that differ by no more than this share count as equal: points that fail or leave early make small
differences, and one more trial of ten is a larger one."""


@dataclass(frozen=True)
class Budget:
    """What one choice of settings has cost, its failures included; a mean where there were several."""

    trials: float
    """Settings that were tried; 1 where there was nothing to choose. Points that do not fit the backbone, which takes
    no step to find out, are none, and neither are those of source cells."""
    steps: float
    """Training steps of all trials, and of the source cells that they start from."""
    samples: float
    """Rows that they were trained on, a row counted each time that it was."""
    device_s: float
    """Seconds of the device for training and evaluation, the trials' shares of their bundles."""
    num_unknown: float = 0
    """Source cells whose results are not here, so that their cost is missing."""


def entry_budget(entry: Entry) -> Budget | None:
    """The budget of a method on a task: the mean over its searches. None if nothing of it was trained."""
    searches = entry.searches or [[run] for run in (*entry.runs, *entry.failed)]
    spent = [
        _spent(search, entry.sources) for search in searches if any(run.usage and run.usage.num_steps for run in search)
    ]
    return _mean(spent) if spent else None


def row_budget(row: BoardRow) -> Budget | None:
    """The budget of a row per task: the mean over its tasks."""
    found = [budget for entry in row.entries.values() if (budget := entry_budget(entry)) is not None]
    return _mean(found) if found else None


def unequal_budgets(board: Board) -> str:
    """One sentence on rows of a board whose budgets differ on a task; empty where they are equal.

    Rows of different k are not compared, as they are not ranked.
    """
    for kind, words in (("trials", "settings tried"), ("samples", "training samples spent")):
        found: dict[str, list[float]] = {}
        for rows in peers(board.rows).values():
            values = _by_row(rows, kind)
            if any(_differ(task.values(), kind) for task in _by_task(values).values()):
                found |= {name: list(tasks.values()) for name, tasks in values.items()}
        if found:
            listed = ", ".join(f"{name} {_span(found[name])}" for name in sorted(found, key=lambda n: max(found[n])))
            return f"Unequal search budgets, so ranks follow them too; {words} for a score: {listed}."
    return ""


def _by_row(rows: Sequence[BoardRow], kind: str) -> dict[str, dict[str, float]]:
    """Row -> task -> one number of its budget; rows that train nothing are left out."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        for task, entry in row.entries.items():
            if (budget := entry_budget(entry)) is not None:
                found[row.name][task] = float(getattr(budget, kind))
    return found


def _by_task(rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for name, tasks in rows.items():
        for task, value in tasks.items():
            found[task][name] = value
    return found


def _differ(values: Iterable[float], kind: str) -> bool:
    numbers = list(values)
    return max(numbers) > min(numbers) * (1.0 if kind == "trials" else 1.0 + SAME)


def _span(values: Sequence[float]) -> str:
    low, high = (f"{round(value):,}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _spent(search: Sequence[Result], sources: SourceRuns | None) -> Budget:
    before, num_unknown = sources.behind(search) if sources else ([], 0)
    usages = [run.usage for run in (*search, *before) if run.usage]
    mixture = search[0].cell.mixture
    num_tasks = len(mixture.parts) if mixture else 1
    return Budget(
        trials=sum(run.status != "unfit" for run in search),
        steps=sum(usage.num_steps for usage in usages) / num_tasks,
        samples=sum(usage.num_samples for usage in usages) / num_tasks,
        device_s=sum(usage.total_s for usage in usages) / num_tasks,
        num_unknown=num_unknown,
    )


def _mean(budgets: Sequence[Budget]) -> Budget:
    names = [item.name for item in fields(Budget)]
    return Budget(*(statistics.fmean(getattr(budget, name) for budget in budgets) for name in names))
