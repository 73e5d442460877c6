"""Draws the figures of leaderboards: score against cost, search budget and backbone size, ranks, training curves."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from harness.data import METRICS
from harness.report.boards import Board, BoardRow, Entry
from harness.report.figures.base import (
    GREY,
    STYLE,
    average_over,
    face,
    label_axes,
    legend_beside,
    new_figure,
    save,
    slug,
)
from harness.report.figures.budget import draw_budget
from harness.report.figures.colours import Look, lines_of, method_looks
from harness.report.figures.cost import COSTS, draw_cost
from harness.report.statistics.intervals import Ranking
from harness.report.statistics.significance import Significance
from harness.report.yardstick import find_apart

MOST_TICKS = 8
"""Ticks on an axis of steps. A panel is about 3.5 inches wide, and "30,000" at 9 points takes 0.4."""


def draw_all(boards: Sequence[Board], verdicts: Sequence[Significance | None], folder: Path) -> list[Path]:
    """Draw every figure for which there are results; return the files. Raises UserError if they cannot be written."""
    styles = method_looks({row.method for board in boards for row in board.rows})
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figures = dict(_figures(boards, verdicts or [None] * len(boards), styles))
        return [path for name, figure in figures.items() for path in save(figure, folder, name)]


def _figures(
    boards: Sequence[Board], verdicts: Sequence[Significance | None], styles: Mapping[str, Look]
) -> Iterator[tuple[str, Figure]]:
    """(file name without ending, figure) of every figure that the boards have numbers for."""
    for board, verdict in zip(boards, verdicts, strict=True):
        name = slug(f"{board.suite}-{board.backbone}")
        for cost in COSTS:
            if any(row.average(board.tasks) is not None and cost.of(row) for row in board.rows):
                yield f"{cost.name}-{name}", draw_cost(board, cost, verdict, styles)
        if (searched := draw_budget(board, styles)) is not None:
            yield f"budget-{name}", searched
        for title, ranking in verdict.rankings.items() if verdict else ():
            yield slug(f"ranks-{name}-{title}"), draw_ranks(board, ranking, styles, title)
        for task in board.tasks:
            if any(run.dev_history for row in board.rows for run in _runs(row, task)):
                yield f"curves-{name}-{slug(task)}", draw_curves(board, task, styles)
    by_suite: dict[str, list[Board]] = defaultdict(list)
    for board in boards:
        by_suite[board.suite].append(board)
    for suite, group in by_suite.items():
        if len({size for board in group if (size := _model_size(board))}) > 1:
            yield f"sizes-{slug(suite)}", draw_sizes(group, styles)


def draw_ranks(board: Board, ranking: Ranking, styles: Mapping[str, Look], among: str = "") -> Figure:
    """Average ranks, the best at the top. A band shows the ranks that Nemenyi's test cannot tell from the best.

    `among` names the rows that are ranked if they are not all of the board, e.g. "k=4".
    """
    figure, axes = new_figure(f"{board.suite} on {board.backbone}{f', {among}' if among else ''}")
    figure.set_figheight(1.5 + 0.22 * len(ranking.ranks))
    method = {row.name: row.method for row in board.rows}
    order = sorted(ranking.ranks, key=lambda name: ranking.ranks[name])
    for height, name in enumerate(order):
        look = styles[method[name]]
        axes.plot(ranking.ranks[name], height, look.marker, color=look.colour, markersize=6)
    best = ranking.ranks[order[0]]
    axes.axvspan(best, best + ranking.critical_difference, color=GREY, alpha=0.12, linewidth=0)
    axes.set_yticks(range(len(order)), order)
    axes.invert_yaxis()
    text = f"average rank over {ranking.num_tasks} tasks\nshaded: not separable from the best (Nemenyi, "
    label_axes(axes, f"{text}CD = {ranking.critical_difference:z.1f})", "")
    return figure


def draw_curves(board: Board, task: str, styles: Mapping[str, Look]) -> Figure:
    """Training loss and dev score by step: the mean over runs as a line, from lowest to highest as a band."""
    figure, (left, right) = new_figure(f"{board.suite} on {board.backbone}: {task}", columns=2)
    selection = ""
    steps_seen: set[int] = set()
    rows = [row for row in board.rows if any(run.dev_history for run in _runs(row, task))]
    for row, line in zip(rows, lines_of([row.method for row in rows]), strict=True):
        runs = [run for run in _runs(row, task) if run.dev_history]
        look = styles[row.method]
        steps_seen |= {item.step for run in runs for item in run.dev_history}
        for axes, kind in ((left, "train_loss"), (right, "selection")):
            for run in runs:
                selection = run.metrics.selection if run.metrics else selection
            curve = _mean_curve([{item.step: getattr(item, kind) for item in run.dev_history} for run in runs])
            if not curve:
                continue
            steps, lows, means, highs = zip(*curve, strict=True)
            axes.fill_between(steps, lows, highs, color=look.colour, alpha=0.15, linewidth=0)
            axes.plot(
                steps, means, color=look.colour, marker=look.marker, markersize=4, linewidth=1.2, label=row.name,
                markevery=max(1, len(steps) // 8), linestyle=line.dash, markerfacecolor=face(look, line),
            )  # fmt: skip
    for axes in (left, right):
        axes.set_xticks(thinned(sorted(steps_seen)))
    label_axes(left, "step", "training loss")
    label_axes(right, "step", f"dev {METRICS[selection].label if selection in METRICS else selection}")
    handles, names = right.get_legend_handles_labels()
    legend_beside(figure, handles, names)
    return figure


def draw_sizes(boards: Sequence[Board], styles: Mapping[str, Look]) -> Figure:
    """Average score by the number of parameters of the backbone, over the tasks that all backbones have.

    Scores that were measured with other rows, metrics or versions than those of the other backbones are left out.
    """
    tasks = sorted(set.intersection(*(set(board.tasks) for board in boards)))
    apart: set[tuple[str, str]] = set()
    for task in tasks:
        runs = {(b.backbone, row.name): _runs(row, task) for b in boards for row in b.rows if task in row.entries}
        apart |= set(find_apart(runs))
    other = (
        f"\nleft out, as not comparable: {', '.join(f'{name} on {b}' for b, name in sorted(apart))}" if apart else ""
    )
    figure, axes = new_figure(boards[0].suite + other)
    lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    method = {row.name: row.method for board in boards for row in board.rows}
    for board in boards:
        size = _model_size(board)
        for row in board.rows:
            score = row.average(tasks) if tasks else None
            if size is not None and score is not None and (board.backbone, row.name) not in apart:
                lines[row.name].append((size, score))
    for (name, points), line in zip(lines.items(), lines_of([method[name] for name in lines]), strict=True):
        look = styles[method[name]]
        axes.plot(
            *zip(*sorted(points), strict=True), color=look.colour, marker=look.marker, label=name, linewidth=1.2,
            linestyle=line.dash, markerfacecolor=face(look, line),
        )  # fmt: skip
    axes.set_xscale("log")
    sizes = sorted({size for points in lines.values() for size, _ in points})
    axes.set_xticks(sizes, [f"{size / 1e6:,.3g}M" for size in sizes])
    axes.minorticks_off()
    label_axes(axes, "parameters of the backbone", average_over(tasks))
    legend_beside(figure, *axes.get_legend_handles_labels())
    return figure


def thinned(steps: Sequence[int]) -> list[int]:
    """The steps of evaluations that get a tick: all if they are few, else every 2nd, 5th, 10th, 20th, ..."""
    most = MOST_TICKS
    for scale in (10**power for power in range(9)):
        for stride in (scale, 2 * scale, 5 * scale):
            if len(steps) // stride <= most:
                # evaluations may be uneven, such as a last one just after another: 1.5 leaves room for a number
                return _apart(steps[stride - 1 :: stride], (steps[-1] - steps[0]) / (1.5 * most))
    return []


def _apart(steps: Sequence[int], room: float) -> list[int]:
    """Drop steps whose numbers would cover each other: of two that are no more than `room` apart the later stays."""
    kept: list[int] = []
    for step in reversed(steps):
        if not kept or kept[-1] - step > room:
            kept.append(step)
    return kept[::-1]


def _mean_curve(runs: Sequence[Mapping[int, float | None]]) -> list[tuple[int, float, float, float]]:
    """(step, lowest, mean, highest) over the runs that have a value at that step; `runs` are step -> value."""
    values: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        for step, value in run.items():
            if value is not None:
                values[step].append(value)
    return [(step, min(v), statistics.fmean(v), max(v)) for step, v in sorted(values.items())]


def _runs(row: BoardRow, task: str) -> list[Any]:
    return row.entries.get(task, Entry()).runs


def _model_size(board: Board) -> int | None:
    runs = [run for row in board.rows for entry in row.entries.values() for run in entry.runs]
    return next((run.backbone.num_params for run in runs if run.backbone and run.backbone.num_params), None)
