"""Tables as CSV and JSON, for programs: the numbers behind the entries instead of what is printed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from harness.report.boards import Board, Entry
from harness.report.budgets import entry_budget, unequal_budgets
from harness.report.published import PublishedRow
from harness.report.statistics.significance import Significance

CSV_COLUMNS = (
    "suite", "backbone", "method", "origin", "num_trained", "num_kept", "task", "metric", "mean", "std", "num_runs",
    "num_grid_runs", "num_grid_failed", "num_failed", "num_unreadable", "num_answers", "num_duplicates", "protocol",
    "searched_steps", "searched_samples", "searched_device_s",
)  # fmt: skip


def as_csv(boards: Sequence[Board]) -> str:
    """Boards as CSV: one line per row and task, and one per row for the average."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for board in boards:
        board_columns = {"suite": board.suite, "backbone": board.backbone}
        for row in board.rows:
            head = {**board_columns, "method": row.name, "origin": "measured"}
            for task, entry in sorted(row.entries.items()):
                metric = {"task": task, "metric": board.metrics.get(task, "")}
                writer.writerow({**head, **metric, **_entry_csv(entry)})
            writer.writerow({**head, "task": "average", "mean": _number(row.average(board.tasks))})
        for published in board.published:
            head = {**board_columns, "method": published.name, "origin": f"published: {published.record}"}
            for task, number in sorted(published.numbers.items()):
                scores = {"mean": _number(number.value), "std": _number(number.std)}
                writer.writerow({**head, "task": task, "metric": board.metrics[task], **scores})
            writer.writerow({**head, "task": "average", "mean": _number(published.average(board.tasks))})
    return out.getvalue()


def rows_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of one kind as CSV, under the keys of the first; empty but for a line end where there are none."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _field(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _field(value: object) -> object:
    """Several numbers share one field, with spaces between them."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _entry_csv(entry: Entry) -> dict[str, object]:
    budget = entry_budget(entry)
    return {
        "num_trained": _params_of_first(entry, "num_trained"),
        "num_kept": _params_of_first(entry, "num_kept"),
        "mean": _number(entry.mean),
        "std": _number(entry.std),
        "num_runs": len(entry.runs),
        "num_grid_runs": entry.num_grid_runs,
        "num_grid_failed": entry.num_grid_failed,
        "num_failed": len(entry.failed),
        "num_unreadable": entry.num_unreadable if entry.runs else "",
        "num_answers": entry.num_answers if entry.runs else "",
        "num_duplicates": entry.num_duplicates if entry.runs else "",
        "searched_steps": round(budget.steps) if budget else "",
        "searched_samples": round(budget.samples) if budget else "",
        "searched_device_s": _number(budget.device_s) if budget else "",
        "protocol": next((run.cell.protocol.title for run in (*entry.runs, *entry.failed)), ""),
    }


def _params_of_first(entry: Entry, kind: Literal["num_trained", "num_kept"]) -> object:
    """Per task, of the first run: all runs of an entry share method and settings."""
    params = entry.runs[0].params if entry.runs else None
    return params.per_task(kind) if params else ""


def _number(value: float | None) -> object:
    # four digits after the point tell one row in a million apart
    return "" if value is None else round(value, 4)


def as_json(board: Board, significance: Significance | None = None) -> dict[str, Any]:
    """A board as one JSON object: everything that its table shows, unrounded, and the statistics if given."""
    rows = [
        {
            "method": row.name,
            "label": row.label,
            "num_trained": row.params("num_trained"),
            "num_kept": row.params("num_kept"),
            "protocols": row.protocols,
            "step_seconds": row.step_seconds(),
            "peak_memory_bytes": row.peak_memory(),
            **({"forgetting": row.forgetting()} if board.general_texts else {}),
            "average": row.average(board.tasks),
            "tasks": {task: _entry_json(entry) for task, entry in sorted(row.entries.items())},
        }
        for row in board.rows
    ]
    extra = {} if significance is None else {"statistics": significance.as_json()}
    return {
        "suite": board.suite,
        "backbone": board.backbone,
        "tasks": board.tasks,
        "benchmarks": board.benchmarks,
        "metrics": board.metrics,
        "differences": {task: kinds for task, kinds in board.differences.items() if kinds},
        "overlaps": board.overlaps,
        "origin": board.origin,
        "unequal_budgets": unequal_budgets(board),
        "rows": rows,
        "published": [_published_json(row, board) for row in board.published],
        "published_note": board.published_note,
        **extra,
    }


def _published_json(row: PublishedRow, board: Board) -> dict[str, Any]:
    return {
        "record": row.record,
        "method": row.name,
        "params": row.params,
        "average": row.average(board.tasks),
        "tasks": {task: asdict(number) for task, number in sorted(row.numbers.items())},
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {
        "mean": entry.mean,
        "std": entry.std,
        "scores": entry.scores,
        "num_grid_runs": entry.num_grid_runs,
        "num_grid_failed": entry.num_grid_failed,
        "budget": asdict(budget) if (budget := entry_budget(entry)) else None,
        **({"num_raced_out": entry.num_raced_out} if entry.num_raced_out else {}),
        "num_unreadable": entry.num_unreadable,
        "num_answers": entry.num_answers,
        "num_duplicates": entry.num_duplicates,
        "grid": entry.grid,
        "cells": [run.cell_id for run in entry.runs],
        "mixed": entry.mixed,
        **({"commits": entry.commits} if entry.commits else {}),
        **({"stale": entry.stale} if entry.stale else {}),
        "failed": [{"cell": run.cell_id, "error": run.failure.message if run.failure else ""} for run in entry.failed],
    }
