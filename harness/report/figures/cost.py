"""Draws average score against what a method costs: trained parameters, training time or memory."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.boards import Board, BoardRow, peers
from harness.report.figures.base import GREY, average_over, label_axes, new_figure
from harness.report.figures.colours import DASHES, Look
from harness.report.figures.labels import place_labels
from harness.report.statistics.significance import AVERAGE, Significance

WIDE_SPAN = 5
"""A logarithmic axis is used if the largest cost is more than this many times the smallest. Below, a linear
axis keeps points apart too, and is easier to read."""


@dataclass(frozen=True)
class Cost:
    """A kind of cost. `of` returns it for a row: None if the results do not say, 0 if nothing is trained."""

    name: str
    title: str
    of: Callable[[BoardRow], float | None]


def _trained(row: BoardRow) -> float:
    """Trained parameters, the median over tasks where they differ."""
    return float(statistics.median(row.params("num_trained") or [0]))


def _memory(row: BoardRow) -> float | None:
    """Peak memory in MiB. A rule trains nothing, so it counts as 0 and not as what its process happened to hold."""
    usages = [run.usage for entry in row.entries.values() for run in entry.runs if run.usage]
    if not usages:
        return None
    return max(item.peak_memory_bytes / 2**20 if item.num_steps else 0.0 for item in usages)


COSTS = (
    Cost("parameters", "trained parameters", _trained),
    Cost("time", "training of one run in seconds, its share of a bundle", BoardRow.train_seconds),
    Cost("memory", "peak memory in MiB, of the whole bundle", _memory),
)


def draw_cost(board: Board, cost: Cost, verdict: Significance | None, styles: Mapping[str, Look]) -> Figure:
    """Average score against a cost, with the Pareto front. Rows that train nothing are dotted lines across."""
    figure, axes = new_figure(f"{board.suite} on {board.backbone}")
    scored = [(row, score) for row in board.rows if (score := row.average(board.tasks)) is not None]
    points = {row.name: (value, score) for row, score in scored if (value := cost.of(row)) is not None}
    trained = {name: point for name, point in points.items() if point[0] > 0}
    colours = {row.name: styles[row.method].colour for row, _ in scored}
    for row, score in scored:
        if row.name in trained:
            axes.plot(*trained[row.name], styles[row.method].marker, color=colours[row.name], markersize=6, zorder=3)
            span = verdict.intervals.get((row.name, AVERAGE)) if verdict else None
            if span:
                axes.vlines(trained[row.name][0], *span, color=colours[row.name], linewidth=1, zorder=2)
        elif row.name in points:
            axes.axhline(score, color=colours[row.name], linestyle=":", linewidth=1)
    groups = peers(board.rows)
    for (title, rows), dash in zip(groups.items(), itertools.cycle(DASHES)):
        # a score on other rows than the others' can stand neither on their front nor take a place from it
        ranked = [row for row in rows if row.comparable_score(AVERAGE, board.tasks) is not None]
        front = pareto_front([trained[row.name] for row in ranked if row.name in trained])
        if len(front) > 1:
            label = f"Pareto front{f' of {title}' if title else ''}"
            axes.step(*zip(*front, strict=True), where="post", color=GREY, linewidth=1, zorder=1, label=label,
                      linestyle=dash)  # fmt: skip
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower right", frameon=False, fontsize=8, ncols=len(groups))
    _scale(axes, [value for value, _ in trained.values()])
    label_axes(axes, cost.title, average_over(board.tasks))
    lines = {name: (axes.get_xlim()[0], point[1]) for name, point in points.items() if name not in trained}
    # a line has no point to stand beside, so its label starts at the left edge
    labelled = trained | lines
    place_labels(axes, list(labelled.values()), list(labelled), [colours[name] for name in labelled])
    return figure


def _scale(axes: Axes, costs: Sequence[float]) -> None:
    """Set the scale, and margins in which labels of points at the edge have room."""
    if costs and max(costs) > WIDE_SPAN * min(costs):
        axes.set_xscale("log")
    axes.margins(x=0.18, y=0.14)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (cost, score) for which no cheaper or equally cheap one scores as much, cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front
