"""Figure of the best dev score against the search budget: all methods of a board, a panel per task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from harness.report.boards import Board, BoardRow
from harness.report.figures.base import blank_figure, face, label_axes, legend_beside
from harness.report.figures.colours import Look, lines_of
from harness.report.search_curves import SearchCurve, search_curve

MOST_COLUMNS = 3
"""Panels side by side, at 3.4 inches each."""


def draw_budget(board: Board, styles: Mapping[str, Look]) -> Figure | None:
    """Return the figure; None where no row was searched."""
    curves = _curves(board)
    tasks = [task for task in board.tasks if any(curve is not None for curve in curves[task].values())]
    if not tasks:
        return None
    columns = min(len(tasks), MOST_COLUMNS)
    rows = math.ceil(len(tasks) / MOST_COLUMNS)
    # 2.2 inches for the legend at the right, 1.2 for titles
    figure = blank_figure(
        f"{board.suite} on {board.backbone}: what tuning gave", (2.2 + 3.4 * columns, 1.2 + 2.8 * rows)
    )
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    for axes, task in zip(grid.flat, tasks, strict=False):
        axes.set_title(task, fontsize=9)
        drawn = [row for row in board.rows if curves[task].get(row.name) is not None]
        for row, line in zip(drawn, lines_of([row.method for row in drawn]), strict=True):
            curve, look = curves[task][row.name], styles[row.method]
            assert curve is not None
            trials = range(1, len(curve.best) + 1)
            if not curve.is_guided:
                axes.fill_between(trials, curve.low, curve.high, color=look.colour, alpha=0.12, linewidth=0)
            axes.plot(
                trials, curve.best, color=look.colour, marker=look.marker, markersize=4, linewidth=1.2,
                linestyle=line.dash, label=row.name, markerfacecolor=face(look, line),
                markevery=max(1, len(curve.best) // 8), drawstyle="steps-post" if curve.is_guided else "default",
            )  # fmt: skip
        axes.xaxis.get_major_locator().set_params(integer=True)
        label_axes(axes, "settings tried", "best dev score")
        found, names = axes.get_legend_handles_labels()
        handles |= dict(zip(names, found, strict=True))
    legend_beside(figure, list(handles.values()), list(handles))
    return figure


def _curves(board: Board) -> dict[str, dict[str, SearchCurve | None]]:
    """Task -> row -> its curve."""
    return {task: {row.name: _curve(row, task) for row in board.rows} for task in board.tasks}


def _curve(row: BoardRow, task: str) -> SearchCurve | None:
    return search_curve(row.entries[task]) if task in row.entries else None
