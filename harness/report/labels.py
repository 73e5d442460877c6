"""Places for the labels of points, so that no label covers another, a point, or the edge of the axes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

MARKER_RADIUS = 3.5
"""Points around a marked place that no label may cover."""
DISTANCES = (4, 7, 12, 18, 26, 36, 48, 64)
"""Points from the marked place to the edge of its label; the nearest free place wins."""
NEAR = 7
"""Up to this distance a label needs no line to its place."""
PADDING = 1.0
"""Points of free room around a label."""
NUM_DIRECTIONS = 16
FONT_SIZE = 7.5


def place_labels(
    axes: Axes, places: Sequence[tuple[float, float]], texts: Sequence[str], colours: Sequence[str]
) -> list[Annotation]:
    """Write a label beside each place, with a thin line where it had to go far. Limits and scales must be set before.

    Places are in data coordinates. A label for which nothing is free stands right beside its place.
    """
    canvas: Any = axes.figure.canvas
    canvas.draw()  # settles the layout, which pixels depend on
    renderer, inside, scale = canvas.get_renderer(), axes.get_window_extent(), axes.figure.get_dpi() / 72
    radius = MARKER_RADIUS * scale
    centres = [(float(x), float(y)) for x, y in (axes.transData.transform(place) for place in places)]
    taken = [Bbox.from_extents(x - radius, y - radius, x + radius, y + radius) for x, y in centres]
    made = []
    for place, (x, y), text, colour in zip(places, centres, texts, colours, strict=True):
        label = axes.annotate(text, place, (0, 0), textcoords="offset points", fontsize=FONT_SIZE, color=colour)
        label.set_in_layout(False)
        # widened, since letters have other widths at another resolution
        size = label.get_window_extent(renderer).padded(PADDING * scale)
        beside = Bbox.from_bounds(x + DISTANCES[0] * scale, y - size.height / 2, size.width, size.height)
        box, distance = next(
            (
                (box, distance)
                for box, distance in _around(x, y, size.width, size.height, scale)
                if _is_inside(box, inside) and not any(box.overlaps(other) for other in taken)
            ),
            (beside, 0),
        )
        taken.append(box)
        label.set_position(((box.x0 - size.x0) / scale, (box.y0 - size.y0) / scale))
        label.set_bbox({"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5})
        if distance > NEAR:
            ends = ((x, y), (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)))
            (x0, y0), (x1, y1) = axes.transData.inverted().transform(ends)
            axes.plot([x0, x1], [y0, y1], color=colour, linewidth=0.5, zorder=1, scalex=False, scaley=False)
        made.append(label)
    return made


def _around(x: float, y: float, width: float, height: float, scale: float) -> Iterator[tuple[Bbox, int]]:
    """Boxes around a place, near ones first, and of these the one above, where front and grid lines are rare."""
    for distance in DISTANCES:
        for step in range(NUM_DIRECTIONS):
            angle = math.pi / 2 - 2 * math.pi * step / NUM_DIRECTIONS
            across = x + math.cos(angle) * (distance * scale + width / 2)
            up = y + math.sin(angle) * (distance * scale + height / 2)
            yield Bbox.from_bounds(across - width / 2, up - height / 2, width, height), distance


def _is_inside(box: Bbox, outer: Bbox) -> bool:
    return bool(box.x0 >= outer.x0 and box.x1 <= outer.x1 and box.y0 >= outer.y0 and box.y1 <= outer.y1)
