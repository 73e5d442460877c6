"""Tables as CSV and JSON, for programs: the numbers behind the entries instead of what is printed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from harness.report.boards import Board, Entry
from harness.report.budgets import entry_budget, unequal_budgets
from harness.report.marks import Marks, mark_board
from harness.report.published import PublishedRow
from harness.report.statistics.significance import AVERAGE, Significance

CSV_COLUMNS = (
    "suite", "backbone", "method", "origin", "num_trained", "num_kept", "task", "metric", "mean", "std", "num_runs",
    "num_grid_runs", "num_grid_failed", "num_failed", "num_unreadable", "num_answers", "num_duplicates", "protocol",
    "mark", "num_choosing_runs", "num_left_out", "not_ranked",
    "rerun_std", "num_reruns",
    "searched_steps", "searched_samples", "searched_device_s",
    "heads",
)  # fmt: skip


MARK_NAMES = {"best": "bold", "second": "underlined", "": ""}


def as_csv(boards: Sequence[Board], marks: Sequence[Marks]) -> str:
    """Boards as CSV: one line per row and task, and one per row for the average; `marks` are those of each board."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for board, made in zip(boards, marks, strict=True):
        board_columns = {"suite": board.suite, "backbone": board.backbone}
        for row in board.rows:
            head = {**board_columns, "method": row.name, "origin": "measured"}
            for task, entry in sorted(row.entries.items()):
                metric = {"task": task, "metric": board.metrics.get(task, "")}
                writer.writerow({**head, **metric, **_entry_csv(entry), "mark": _mark(made, row.name, task)})
            average = {"mean": _number(row.average(board.tasks)), "mark": _mark(made, row.name, AVERAGE)}
            writer.writerow({**head, "task": "average", **average})
        for published in board.published:
            head = {**board_columns, "method": published.name, "origin": f"published: {published.record}"}
            for task, number in sorted(published.numbers.items()):
                scores = {"mean": _number(number.value), "std": _number(number.std)}
                writer.writerow({**head, "task": task, "metric": board.metrics[task], **scores})
            writer.writerow({**head, "task": "average", "mean": _number(published.average(board.tasks))})
    return out.getvalue()


def _mark(marks: Marks, row: str, column: str) -> str:
    return MARK_NAMES[marks.of(row, column)]


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
        "num_choosing_runs": len(entry.choosers),
        "num_left_out": len(entry.left_out),
        "not_ranked": entry.apart,
        "rerun_std": _number(entry.rerun_std),
        "num_reruns": entry.num_reruns,
        "searched_steps": round(budget.steps) if budget else "",
        "searched_samples": round(budget.samples) if budget else "",
        "searched_device_s": _number(budget.device_s) if budget else "",
        "heads": " ".join(entry.heads),
        "protocol": next((run.cell.protocol.title for run in (*entry.runs, *entry.failed)), ""),
    }


def _params_of_first(entry: Entry, kind: Literal["num_trained", "num_kept"]) -> object:
    """Per task, of the first run: all runs of an entry share method and settings."""
    first = next(iter((*entry.runs, *entry.left_out)), None)
    params = first.params if first else None
    return params.per_task(kind) if params else ""


def _number(value: float | None) -> object:
    # four digits after the point tell one row in a million apart
    return "" if value is None else round(value, 4) + 0.0  # no -0.0


def as_json(board: Board, significance: Significance | None = None, marks: Marks | None = None) -> dict[str, Any]:
    """A board as one JSON object: everything that its table shows, unrounded, and the statistics if given.

    `marks` says what is bold; None marks by `significance`.
    """
    made = marks or mark_board(board, significance)
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
            **({"answering": [cost.model_dump(mode="json") for cost in costs]} if (costs := row.answering()) else {}),
            "average": row.average(board.tasks),
            "average_mark": _mark(made, row.name, AVERAGE),
            "tasks": {
                task: {**_entry_json(entry), "mark": _mark(made, row.name, task)}
                for task, entry in sorted(row.entries.items())
            },
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
        **({"folders": board.folders} if board.folders else {}),
        "bold": {"rule": made.rule, "tested": made.has_tests, "nothing_bold": made.empty},
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


def _reruns_json(entry: Entry) -> dict[str, Any]:
    """The deviation between trainings of one cell and seed, and the scores of each such cell, the counted one first."""
    if not entry.num_reruns:
        return {}
    scores = {same[0].cell_id: [run.test.score for run in same if run.test] for same in entry.reruns}
    return {"rerun_std": entry.rerun_std, "reruns": scores}


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
        **({"heads": entry.heads} if entry.heads else {}),
        **({"commits": entry.commits} if entry.commits else {}),
        **({"not_ranked": entry.apart} if entry.apart else {}),
        **_reruns_json(entry),
        **({"chosen_by": [run.cell_id for run in entry.choosers]} if entry.choosers else {}),
        **({"left_out": [run.cell_id for run in entry.left_out]} if entry.left_out else {}),
        **({"stale": entry.stale} if entry.stale else {}),
        "failed": [{"cell": run.cell_id, "error": run.failure.message if run.failure else ""} for run in entry.failed],
    }
