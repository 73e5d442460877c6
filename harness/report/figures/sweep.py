"""Figure of scores against a setting with several values: a line per method, a panel per task or mean of tasks."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.data import mean_score
from harness.report.boards import median_step_seconds
from harness.report.declared.find_entries import EntryIndex, FoundEntry, by_method, keep_comparable
from harness.report.figures.base import blank_figure, face, label_axes, legend_beside
from harness.report.figures.colours import Line, Look, lines_of
from harness.suite import DERIVED, Axis, FigureLayout, Panel, Where

MOST_COLUMNS = 4
"""Panels side by side. At 2.7 inches each that is 13 inches, which fits a screen."""
MOST_TICKS = 9
"""Values that each get a tick; with more, matplotlib chooses, since their numbers would run into each other."""


@dataclass(frozen=True)
class Point:
    """A line at one value of the setting."""

    x: float
    score: float
    std: float | None
    """Standard deviation over seeds; None for a mean of tasks or a single run."""
    seconds: float | None
    """Seconds of training per step, the mean over tasks."""


@dataclass(frozen=True)
class Drawn:
    """One line of a panel."""

    title: str
    method: str
    points: list[Point]


@dataclass(frozen=True)
class Content:
    """One panel: lines of scores, and the lines of times in the panel below."""

    panel: Panel
    scores: list[Drawn]
    times: list[Drawn]


def draw_sweep(
    layout: FigureLayout, pool: EntryIndex, where: Where, styles: Mapping[str, Look], timing: Where | None = None
) -> Figure | None:
    """Return the figure; None if no line has two points.

    `where` replaces conditions of the layout, `timing` those of its row of training times.
    """
    assert layout.x is not None
    asked = {**layout.where, **where}
    panels = layout.panels or _panels(pool.find(asked), layout.x)
    skipped: list[str] = []
    apart: list[str] = []
    made = []
    for panel in panels:
        scores, times = _lines(layout, layout.x, pool, asked, panel.tasks, skipped, apart), []
        if layout.time is not None:
            timed = {**asked, **layout.time.where, **(timing or {})}
            times = _lines(layout, layout.x, pool, timed, layout.time.tasks or panel.tasks, skipped, apart)
        made.append(Content(panel, scores, times))
    kept = [item for item in made if any(len(line.points) > 1 for line in item.scores)]
    if not kept:
        return None
    backbones = " and ".join(sorted({str(item.settings["backbone"]) for item in pool.find(asked)}))
    title = layout.title if layout.x.setting == DERIVED else f"{layout.title}, {backbones}"
    note = f"\nleft out where several results fit: {', '.join(dict.fromkeys(skipped))}" if skipped else ""
    other = f"\nleft out: {'; '.join(dict.fromkeys(apart))}" if apart else ""
    return _draw(title + note + other, layout.x, kept, styles)


def _panels(found: Sequence[FoundEntry], x: Axis) -> list[Panel]:
    """One panel per task, for a layout that declares none."""
    tasks = sorted({str(item.settings["task"]) for item in found if _position(item, x) is not None})
    return [Panel(title=task, tasks=[task]) for task in tasks]


def _lines(
    layout: FigureLayout, x: Axis, pool: EntryIndex, where: Where, tasks: Sequence[str], skipped: list[str],
    apart: list[str],
) -> list[Drawn]:  # fmt: skip
    """The lines of one panel. Titles of lines that lack a point since several entries fit it go to `skipped`, sentences
    on entries that are not comparable with the others of the panel to `apart`."""
    if layout.curves:
        groups = {c.title: pool.find({**where, **c.where, "task": list(tasks)}) for c in layout.curves}
    else:
        found = pool.find({**where, "task": list(tasks)})
        groups = by_method(found, at=lambda item: (item.settings["task"], _position(item, x)))
    groups, reasons = keep_comparable(groups)
    apart += reasons
    return [
        Drawn(title, str(items[0].settings["method"]), points)
        for title, items in groups.items()
        if (points := _points(items, x, tasks, title, skipped))
    ]


def _points(items: Sequence[FoundEntry], x: Axis, tasks: Sequence[str], title: str, skipped: list[str]) -> list[Point]:
    """Points in the order of the setting. A value is left out unless every task of the panel has one score there."""
    by_x: dict[float, dict[str, list[FoundEntry]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        position = _position(item, x)
        if position is not None and item.entry.mean is not None:
            by_x[position][str(item.settings["task"])].append(item)
    points = []
    for position, by_task in sorted(by_x.items()):
        if any(len(found) > 1 for found in by_task.values()):
            skipped.append(title)
        elif len(by_task) == len(tasks):
            points.append(_point(position, [found[0] for found in by_task.values()]))
    return points


def _point(position: float, items: Sequence[FoundEntry]) -> Point:
    seconds = [cost for item in items if (cost := median_step_seconds(item.entry.runs)) is not None]
    return Point(
        position,
        mean_score(item.entry.mean for item in items if item.entry.mean is not None),
        items[0].entry.std if len(items) == 1 else None,
        statistics.fmean(seconds) if len(seconds) == len(items) else None,
    )


def _position(item: FoundEntry, x: Axis) -> float | None:
    """The x of an entry; None if its cells do not have the setting, or no number there."""
    if x.setting == DERIVED:
        sizes = {run.backbone.num_params for run in item.entry.runs if run.backbone and run.backbone.num_params}
        return float(sizes.pop()) if len(sizes) == 1 else None
    value = item.settings.get(x.setting)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _draw(title: str, x: Axis, contents: Sequence[Content], styles: Mapping[str, Look]) -> Figure:
    columns = min(len(contents), MOST_COLUMNS)
    height = 2 if any(point.seconds for item in contents for line in item.times for point in line.points) else 1
    rows = math.ceil(len(contents) / MOST_COLUMNS) * height
    # 2.7 by 2.4 inches a panel; 2.2 inches for the legend at the right, 1.2 for titles
    figure = blank_figure(title, (2.2 + 2.7 * columns, 1.2 + 2.4 * rows))
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for i, item in enumerate(contents):
        row, column = divmod(i, columns)
        _draw_scores(grid[row * height][column], item.panel, item.scores, x, styles)
        if height == 2:
            grid[row * height][column].set_xlabel("")
            _draw_times(grid[row * height + 1][column], item.times, x, styles)
    for row_axes in grid:
        for axes in row_axes[1:]:
            axes.set_ylabel("")
    _legend(figure, grid)
    return figure


def _draw_scores(axes: Axes, panel: Panel, lines: Sequence[Drawn], x: Axis, styles: Mapping[str, Look]) -> None:
    axes.set_visible(True)
    axes.set_title(panel.title, fontsize=9)
    for line, style in _styled(lines):
        look = styles[line.method]
        spread = [point.std or 0.0 for point in line.points]
        axes.errorbar(
            [point.x for point in line.points], [point.score for point in line.points], spread if any(spread) else None,
            color=look.colour, marker=look.marker, markersize=5, linewidth=1.2, linestyle=style.dash, capsize=2,
            elinewidth=0.8, label=line.title, markerfacecolor=face(look, style),
        )  # fmt: skip
    _ticks(axes, lines, x)
    label_axes(axes, x.title, average_label(panel))


def _draw_times(axes: Axes, lines: Sequence[Drawn], x: Axis, styles: Mapping[str, Look]) -> None:
    """Seconds per step, divided by those at the largest value of the first line that has any."""
    axes.set_visible(True)
    timed = [[point for point in line.points if point.seconds] for line in lines]
    first = next(((line, points[-1]) for line, points in zip(lines, timed, strict=True) if points), None)
    reference = first[1].seconds if first else None
    named = f"{first[0].title} at {first[1].x:g}" if first else "nothing"
    for (line, style), points in zip(_styled(lines), timed, strict=True):
        look = styles[line.method]
        if reference and points:
            times = [(point.seconds or 0.0) / reference for point in points]
            axes.plot(
                [point.x for point in points], times, color=look.colour, marker=look.marker, markersize=5,
                linewidth=1.2, linestyle=style.dash, label=line.title, markerfacecolor=face(look, style),
            )  # fmt: skip
    axes.set_ylim(bottom=0)
    _ticks(axes, lines, x)
    label_axes(axes, x.title, f"training time per step,\nrelative to {named}")


def _styled(lines: Sequence[Drawn]) -> list[tuple[Drawn, Line]]:
    """Each line with the dash pattern and marker that tell it from other lines of its method."""
    return list(zip(lines, lines_of([line.method for line in lines]), strict=True))


def _ticks(axes: Axes, lines: Sequence[Drawn], x: Axis) -> None:
    if x.log:
        axes.set_xscale("log")
    values = sorted({point.x for line in lines for point in line.points})
    if len(values) <= MOST_TICKS:
        axes.set_xticks(values, [_size(value) if x.setting == DERIVED else f"{value:g}" for value in values])
        axes.minorticks_off()


def _size(count: float) -> str:
    """Parameters of a backbone on an axis: "223M", "2.85B"."""
    return f"{count / 1e9:,.3g}B" if count >= 1e9 else f"{count / 1e6:,.3g}M"


def average_label(panel: Panel) -> str:
    """Title of the score axis of a panel."""
    return "test score" if len(panel.tasks) == 1 else f"mean of {len(panel.tasks)} test scores"


def _legend(figure: Figure, grid: Any) -> None:
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        found, names = axes.get_legend_handles_labels()
        handles |= dict(zip(names, found, strict=True))
    legend_beside(figure, list(handles.values()), list(handles))
