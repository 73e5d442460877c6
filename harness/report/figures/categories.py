"""Figure of scores by category, such as the task: the values of a setting side by side, a point per method at each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.declared.find_entries import EntryIndex, FoundEntry, by_method, keep_comparable
from harness.report.figures.base import blank_figure, label_axes
from harness.report.figures.colours import Look
from harness.suite import Categories, Curve, FigureLayout, Where

SPREAD = 0.6
"""Share of the distance between two values that the points of one value take up; the rest keeps values apart."""


def draw_categories(layout: FigureLayout, pool: EntryIndex, where: Where, styles: Mapping[str, Look]) -> Figure | None:
    """Return the figure without the panels that have no score; None if no panel is left.

    `where` replaces conditions of the layout. A method with several entries at one value has a point per row label.
    """
    assert layout.categories is not None
    declared = layout.categories.panels or [Curve(title="")]
    asked = [(panel.title, {**layout.where, **panel.where, **where}) for panel in declared]
    apart: list[str] = []
    panels = []
    for title, conditions in asked:
        by_label: dict[str, list[FoundEntry]] = defaultdict(list)
        for item in _scored(pool.find(conditions)):
            by_label[str(item.settings["label"])].append(item)
        kept, reasons = keep_comparable(by_label)
        apart += reasons
        panels.append((title, [item for items in kept.values() for item in items]))
    panels = [(title, found) for title, found in panels if found]
    other = f"\nleft out: {'; '.join(dict.fromkeys(apart))}" if apart else ""
    return _draw(layout.title + other, layout.categories, panels, styles) if panels else None


def _scored(found: Sequence[FoundEntry]) -> list[FoundEntry]:
    return [item for item in found if item.entry.mean is not None]


def _draw(
    title: str, axis: Categories, panels: Sequence[tuple[str, list[FoundEntry]]], styles: Mapping[str, Look]
) -> Figure:
    # 0.9 inches a value hold its title at 9 points; 3.6 inches is the height of a panel with titles
    widths = [1.0 + 0.9 * len(_values(axis, found)) for _, found in panels]
    figure = blank_figure(title, (max(6.4, 2.4 + sum(widths)), 3.6))
    grid: Any = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)
    named: dict[str, Any] = {}
    for axes, (name, found) in zip(grid.flat, panels, strict=True):
        _draw_panel(axes, axis, found, styles)
        axes.set_title(name, fontsize=9)
        handles, names = axes.get_legend_handles_labels()
        named |= dict(zip(names, handles, strict=True))
    for axes in grid.flat[1:]:
        axes.set_ylabel("")
    figure.legend(list(named.values()), list(named), loc="outside right center", frameon=False, fontsize=8)
    return figure


def _draw_panel(axes: Axes, axis: Categories, found: Sequence[FoundEntry], styles: Mapping[str, Look]) -> None:
    values = _values(axis, found)
    placed = [item for item in found if axis.setting in item.settings]
    lines = by_method(placed, at=lambda item: str(item.settings[axis.setting]))
    for i, (name, items) in enumerate(lines.items()):
        look = styles[str(items[0].settings["method"])]
        offset = SPREAD * ((i + 0.5) / len(lines) - 0.5)
        positions = [values.index(str(item.settings[axis.setting])) + offset for item in items]
        axes.errorbar(
            positions, [item.entry.mean or 0.0 for item in items], [item.entry.std or 0.0 for item in items],
            color=look.colour, marker=look.marker, markersize=6, linestyle="none", capsize=2, elinewidth=0.8,
            label=name,
        )  # fmt: skip
    axes.set_xticks(range(len(values)), values)
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.grid(False, axis="x")
    label_axes(axes, axis.title, "test score")


def _values(axis: Categories, found: Sequence[FoundEntry]) -> list[str]:
    return sorted({str(item.settings[axis.setting]) for item in found if axis.setting in item.settings})
