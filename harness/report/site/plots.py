"""The numbers of the interactive plots, as plain data for the script of the page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, Literal

from harness.data import METRICS
from harness.report.boards import Board, BoardRow, peers
from harness.report.figures.colours import Look
from harness.report.site import names
from harness.report.site.grids import tasks_of
from harness.report.statistics.significance import AVERAGE, Significance
from harness.results import Result


def scatter(board: Board, verdict: Significance | None, styles: Mapping[str, Look]) -> dict[str, Any]:
    """The plot of a board: its rows, their costs (`x`) and scores (`y`). An axis has a value or None for each row."""
    rows = board.rows
    looks = [styles[row.method] for row in rows]
    spans = verdict.intervals if verdict else {}
    groups = {row.name: title for title, members in peers(rows).items() for row in members}
    return {
        "rows": [
            {
                "name": row.name,
                "href": names.method_page(row.method),
                "colour": look.colour,
                "marker": look.marker,
                "group": groups[row.name],
            }
            for row, look in zip(rows, looks, strict=True)
        ],
        "x": [
            {"label": "trainable parameters", "values": [_params(row, "num_trained") for row in rows]},
            {"label": "parameters kept for inference", "values": [_params(row, "num_kept") for row in rows]},
            {"label": "milliseconds per step", "values": [_scaled(row.step_seconds(), 1_000) for row in rows]},
            {"label": "seconds of training per run", "values": [row.train_seconds() for row in rows]},
            {"label": "peak memory in MiB", "values": [_scaled(row.peak_memory(), 2**-20) for row in rows]},
        ],
        "y": [
            {
                "label": label,
                "benchmark": benchmark,
                # a score on other rows than the others' is in the table alone: the page draws a front through points
                "values": [row.comparable_score(AVERAGE, tasks) for row in rows],
                "intervals": [spans.get((row.name, key)) for row in rows],
            }
            for label, benchmark, key, tasks in _scores(board)
        ],
    }


def curve(result: Result) -> dict[str, Any] | None:
    """Dev score and training loss of one run by step; None if it has no dev score."""
    if not result.dev_history:
        return None
    selection = result.metrics.selection if result.metrics else "score"
    return {
        "label": f"dev {METRICS[selection].label if selection in METRICS else selection}",
        "steps": [item.step for item in result.dev_history],
        "dev": [item.selection for item in result.dev_history],
        "loss": [item.train_loss for item in result.dev_history],
        "selected": result.selected_step,
    }


def _scores(board: Board) -> list[tuple[str, str, str, list[str]]]:
    """(label, benchmark, column of the statistics, tasks) of each score that the y axis can show."""
    found = []
    if len(board.tasks) > 1:
        found.append((f"average over {len(board.tasks)} tasks", "", AVERAGE, board.tasks))
    benchmarks = [name for name in dict.fromkeys(board.benchmarks.values()) if name]
    for benchmark in benchmarks if len(set(board.benchmarks.values())) > 1 else []:
        tasks = tasks_of(board, benchmark)
        if len(tasks) > 1:
            found.append((f"{benchmark}: average over {len(tasks)} tasks", benchmark, "", tasks))
    for task in board.tasks:
        found.append((f"{task} ({board.metrics.get(task, '?')})", board.benchmarks[task], task, [task]))
    return found


def _params(row: BoardRow, kind: Literal["num_trained", "num_kept"]) -> float | None:
    """Parameters of a row; the median over tasks if they differ."""
    counts = row.params(kind)
    return float(statistics.median(counts)) if counts else None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
