"""Writes labels beside points so that no label covers another, a point, or the edge of the axes.

A point is 1/72 inch; pixels depend on the resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

Boxes = np.ndarray[Any, np.dtype[np.float64]]
"""[candidates, 5]: left, lower, right and upper edge in pixels, and the distance from the labelled point in points."""
MARKER_RADIUS = 3.5
"""Points around a labelled point that no label may cover: markers have 6 points across."""
DISTANCES = (4, 7, 12, 18, 26, 36, 48, 64)
"""Distances in points at which a label is tried; the nearest free one is taken. Each is a third or more larger than
the one before: finer steps far away would cost time and gain little."""
NEAR = 7
"""Up to this distance in points a label needs no line to its point."""
PADDING = 1.0
"""Points of free room around a label."""
NUM_DIRECTIONS = 16
"""Directions in which a label is tried at each distance, 22.5 degrees apart."""
FONT_SIZE = 7.5
GROWTH = 1.2
"""Factor by which width and height of a figure grow if there is no room for its labels."""
LARGE = 12
"""Inches of width up to which a figure grows before labels may stand far from their points. From 6.4 inches four steps
of 1.2 pass it (13.3)."""


def place_labels(
    axes: Axes, places: Sequence[tuple[float, float]], texts: Sequence[str], colours: Sequence[str]
) -> list[Annotation]:
    """Write a label beside each of `places`, with a thin line to it if it is far. Limits and scales must be set before.

    `places` are in data coordinates. No label covers another or a place; the figure grows if there is no room.
    """
    figure: Any = axes.figure
    while True:
        is_large = figure.get_size_inches()[0] > LARGE
        made = _placed(axes, places, texts, colours, or_far=is_large)
        if made is not None:
            return made
        figure.set_size_inches(figure.get_size_inches() * GROWTH)


def _placed(
    axes: Axes, places: Sequence[tuple[float, float]], texts: Sequence[str], colours: Sequence[str], or_far: bool
) -> list[Annotation] | None:
    """Write each label at its nearest free box; return None, with nothing written, if one has none.

    With `or_far` a label may be anywhere in the axes.
    """
    canvas: Any = axes.figure.canvas
    canvas.draw()  # settles the layout, which pixels depend on
    renderer, inside, scale = canvas.get_renderer(), axes.get_window_extent(), axes.figure.get_dpi() / 72
    radius = MARKER_RADIUS * scale
    centres = [(float(x), float(y)) for x, y in (axes.transData.transform(place) for place in places)]
    taken: list[tuple[float, ...]] = [(x - radius, y - radius, x + radius, y + radius) for x, y in centres]
    made: list[Annotation] = []
    lines: list[Line2D] = []
    for place, (x, y), text, colour in zip(places, centres, texts, colours, strict=True):
        label = axes.annotate(text, place, (0, 0), textcoords="offset points", fontsize=FONT_SIZE, color=colour)
        label.set_in_layout(False)
        made.append(label)
        # some room around it, since letters have slightly other widths at another resolution
        size = label.get_window_extent(renderer).padded(PADDING * scale)
        found = _nearest_free(_around(x, y, size.width, size.height, scale), inside, taken)
        if found is None and or_far:
            found = _nearest_free(_anywhere(x, y, size.width, size.height, inside), inside, taken)
        if found is None:
            for artist in (*made, *lines):
                artist.remove()
            return None
        box, distance = found
        taken.append((box.x0, box.y0, box.x1, box.y1))
        label.set_position(((box.x0 - size.x0) / scale, (box.y0 - size.y0) / scale))
        label.set_bbox({"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5})
        if distance > NEAR:
            ends = ((x, y), (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)))
            (x0, y0), (x1, y1) = axes.transData.inverted().transform(ends)
            lines += axes.plot(
                [x0, x1], [y0, y1], color=colour, linewidth=0.5, zorder=1, scalex=False, scaley=False
            )  # fmt: skip
    return made


def _around(x: float, y: float, width: float, height: float, scale: float) -> Boxes:
    """Boxes around a point, near ones first; at one distance the box above comes first, where lines are rare."""
    distances = np.repeat(DISTANCES, NUM_DIRECTIONS)
    angles = np.tile(np.pi / 2 - 2 * np.pi * np.arange(NUM_DIRECTIONS) / NUM_DIRECTIONS, len(DISTANCES))
    across = x + np.cos(angles) * (distances * scale + width / 2) - width / 2
    up = y + np.sin(angles) * (distances * scale + height / 2) - height / 2
    return np.stack([across, up, across + width, up + height, distances], axis=1)


def _anywhere(x: float, y: float, width: float, height: float, inside: Bbox) -> Boxes:
    """Boxes all over the axes, near ones first, for a point around which everything is taken."""
    across, up = np.meshgrid(
        np.arange(inside.x0, inside.x1 - width, width / 2), np.arange(inside.y0, inside.y1 - height, height / 2)
    )
    left, low = across.ravel(), up.ravel()
    order = np.argsort(np.hypot(left + width / 2 - x, low + height / 2 - y), kind="stable")
    boxes = np.stack([left, low, left + width, low + height, np.full(len(left), np.inf)], axis=1)
    return boxes[order]


def _nearest_free(boxes: Boxes, inside: Bbox, taken: Sequence[tuple[float, ...]]) -> tuple[Bbox, float] | None:
    """The first box inside the axes that overlaps none of `taken`, and its distance; None if there is none."""
    x0, y0, x1, y1 = boxes[:, :4].T
    is_free = (x0 >= inside.x0) & (x1 <= inside.x1) & (y0 >= inside.y0) & (y1 <= inside.y1)
    other = np.array(taken)
    meets = (x0[:, None] < other[:, 2]) & (other[:, 0] < x1[:, None])
    meets &= (y0[:, None] < other[:, 3]) & (other[:, 1] < y1[:, None])
    is_free &= ~meets.any(axis=1)
    if not is_free.any():
        return None
    box = boxes[int(is_free.argmax())]
    return Bbox.from_extents(*box[:4]), float(box[4])
