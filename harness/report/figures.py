"""Figures of boards as SVG, PDF and PNG: score against parameters, curves of training, score by model size."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness.errors import UserError
from harness.metrics import METRICS
from harness.report.aggregate import Board, BoardRow, Entry
from harness.report.labels import place_labels
from harness.report.significance import AVERAGE, Significance
from harness.report.stats import Ranking
from harness.report.styles import Look, looks

FORMATS = ("svg", "pdf", "png")
DPI = 150
GREY = "#6b6b6b"
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6",
    "axes.axisbelow": True, "figure.dpi": DPI, "svg.hashsalt": "harness", "svg.fonttype": "none", "pdf.fonttype": 42,
}  # fmt: skip


def draw_all(boards: Sequence[Board], verdicts: Sequence[Significance | None], folder: Path) -> list[Path]:
    """Draw every figure for which there are results; return the files. Raises UserError if they cannot be written."""
    styles = looks({_method(row) for board in boards for row in board.rows})
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figures = dict(_figures(boards, verdicts or [None] * len(boards), styles))
        return [path for name, figure in figures.items() for path in _save(figure, folder, name)]


def _figures(
    boards: Sequence[Board], verdicts: Sequence[Significance | None], styles: Mapping[str, Look]
) -> Iterator[tuple[str, Figure]]:
    for board, verdict in zip(boards, verdicts, strict=True):
        place = _slug(f"{board.suite}-{board.backbone}")
        if any(row.average(board.tasks) is not None for row in board.rows):
            yield f"parameters-{place}", draw_parameters(board, verdict, styles)
        if verdict and verdict.ranking:
            yield f"ranks-{place}", draw_ranks(board, verdict.ranking, styles)
        for task in board.tasks:
            if any(run.dev_history for row in board.rows for run in _runs(row, task)):
                yield f"curves-{place}-{_slug(task)}", draw_curves(board, task, styles)
    by_suite: dict[str, list[Board]] = defaultdict(list)
    for board in boards:
        by_suite[board.suite].append(board)
    for suite, group in by_suite.items():
        if len({size for board in group if (size := _model_size(board))}) > 1:
            yield f"sizes-{_slug(suite)}", draw_sizes(group, styles)


def draw_parameters(board: Board, verdict: Significance | None, styles: Mapping[str, Look]) -> Figure:
    """Average score against trained parameters, with the Pareto front; rows that train nothing are lines."""
    figure, axes = _new(f"{board.suite} on {board.backbone}")
    scored = [(row, score) for row in board.rows if (score := row.average(board.tasks)) is not None]
    points = {row.name: (_trained(row), score) for row, score in scored}
    trained = {name: point for name, point in points.items() if point[0] > 0}
    for row, score in scored:
        look = styles[_method(row)]
        if row.name not in trained:
            axes.axhline(score, color=look.colour, linestyle=":", linewidth=1)
            continue
        axes.plot(*points[row.name], look.marker, color=look.colour, markersize=6, zorder=3)
        span = verdict.intervals.get((row.name, AVERAGE)) if verdict else None
        if span:
            axes.vlines(points[row.name][0], *span, color=look.colour, linewidth=1, zorder=2)
    front = pareto_front(list(trained.values()))
    if len(front) > 1:
        axes.step(*zip(*front, strict=True), where="post", color=GREY, linewidth=1, zorder=1, label="Pareto front")
        figure.legend(loc="outside lower right", frameon=False, fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.18, y=0.14)
    _label_axes(axes, "trained parameters", _average_over(board.tasks))
    untrained = [(axes.get_xlim()[0], points[row.name][1]) for row, _ in scored if row.name not in trained]
    rows = [row for row, _ in scored if row.name in trained] + [row for row, _ in scored if row.name not in trained]
    places = [*trained.values(), *untrained]
    place_labels(axes, places, [row.name for row in rows], [styles[_method(row)].colour for row in rows])
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (cost, score) that no other beats with a lower or equal cost, cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


def draw_ranks(board: Board, ranking: Ranking, styles: Mapping[str, Look]) -> Figure:
    """Average ranks, the best at the top, with the band of what Nemenyi's test cannot tell from the best."""
    figure, axes = _new(f"{board.suite} on {board.backbone}")
    figure.set_figheight(1.5 + 0.22 * len(ranking.ranks))
    method = {row.name: _method(row) for row in board.rows}
    order = sorted(ranking.ranks, key=lambda name: ranking.ranks[name])
    for height, name in enumerate(order):
        look = styles[method[name]]
        axes.plot(ranking.ranks[name], height, look.marker, color=look.colour, markersize=6)
    best = ranking.ranks[order[0]]
    axes.axvspan(best, best + ranking.critical_difference, color=GREY, alpha=0.12, linewidth=0)
    axes.set_yticks(range(len(order)), order)
    axes.invert_yaxis()
    text = f"average rank over {ranking.num_tasks} tasks\nshaded: not separable from the best (Nemenyi, "
    _label_axes(axes, f"{text}CD = {ranking.critical_difference:.1f})", "")
    return figure


def draw_curves(board: Board, task: str, styles: Mapping[str, Look]) -> Figure:
    """Training loss and dev score by step: the mean over seeds, and from the lowest to the highest."""
    figure, (left, right) = _new(f"{board.suite} on {board.backbone}: {task}", panels=2)
    selection = ""
    for row in board.rows:
        runs = [run for run in _runs(row, task) if run.dev_history]
        look = styles[_method(row)] if runs else None
        for axes, kind in ((left, "train_loss"), (right, "selection")):
            for run in runs:
                selection = run.metrics.selection if run.metrics else selection
            curve = _mean_curve([{item.step: getattr(item, kind) for item in run.dev_history} for run in runs])
            if look is None or not curve:
                continue
            steps, lows, means, highs = zip(*curve, strict=True)
            axes.fill_between(steps, lows, highs, color=look.colour, alpha=0.15, linewidth=0)
            axes.plot(
                steps, means, color=look.colour, marker=look.marker, markersize=4, linewidth=1.2, label=row.name,
                markevery=max(1, len(steps) // 8),
            )  # fmt: skip
    _label_axes(left, "step", "training loss")
    _label_axes(right, "step", f"dev {METRICS[selection].label if selection in METRICS else selection}")
    handles, names = right.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=8)
    return figure


def draw_sizes(boards: Sequence[Board], styles: Mapping[str, Look]) -> Figure:
    """Average score by the size of the backbone, over the tasks that all backbones have."""
    figure, axes = _new(boards[0].suite)
    tasks = sorted(set.intersection(*(set(board.tasks) for board in boards)))
    lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    method = {row.name: _method(row) for board in boards for row in board.rows}
    for board in boards:
        size = _model_size(board)
        for row in board.rows:
            score = row.average(tasks) if tasks else None
            if size is not None and score is not None:
                lines[row.name].append((size, score))
    for name, points in sorted(lines.items()):
        look = styles[method[name]]
        axes.plot(*zip(*sorted(points), strict=True), color=look.colour, marker=look.marker, label=name, linewidth=1.2)
    axes.set_xscale("log")
    sizes = sorted({size for points in lines.values() for size, _ in points})
    axes.set_xticks(sizes, [f"{size / 1e6:,.3g}M" for size in sizes])
    axes.minorticks_off()
    _label_axes(axes, "parameters of the backbone", _average_over(tasks))
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def _average_over(tasks: Sequence[str]) -> str:
    return f"average test score over {len(tasks)} tasks" if len(tasks) != 1 else f"test score on {tasks[0]}"


def _mean_curve(runs: Sequence[Mapping[int, float | None]]) -> list[tuple[int, float, float, float]]:
    """(step, lowest, mean, highest) over the runs that have a value at a step."""
    values: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        for step, value in run.items():
            if value is not None:
                values[step].append(value)
    return [(step, min(v), statistics.fmean(v), max(v)) for step, v in sorted(values.items())]


def _new(title: str, panels: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4 if panels == 1 else 9.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    return figure, figure.subplots(1, panels)


def _label_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _method(row: BoardRow) -> str:
    return next((run.cell.method for entry in row.entries.values() for run in (*entry.runs, *entry.failed)), row.label)


def _runs(row: BoardRow, task: str) -> list[Any]:
    return row.entries.get(task, Entry()).runs


def _trained(row: BoardRow) -> float:
    """Trained parameters, the median over tasks where they differ."""
    return float(statistics.median(row.params("num_trained") or [0]))


def _model_size(board: Board) -> int | None:
    runs = [run for row in board.rows for entry in row.entries.values() for run in entry.runs]
    return next((run.backbone.num_params for run in runs if run.backbone and run.backbone.num_params), None)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(folder), field="--figures") from None


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}.{suffix}" for suffix in FORMATS]
    with _writing(folder):
        for path in paths:
            # no date, so that the same results make the same files
            dates: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(path.suffix[1:], {})
            figure.savefig(path, dpi=DPI, metadata=dates)
    return paths
