"""What all figures share: style, titles, legends, and files in three formats."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness.errors import UserError
from harness.report.figures.colours import Line, Look

FORMATS = ("svg", "pdf", "png")
DPI = 150
"""Pixels per inch of the PNG: 960 x 630 for a figure with one panel."""
LETTERS = 12.5
"""Letters of a title per inch, before it is broken. At 10 points the default font has 13.8 letters per inch on
average; a tenth is left for titles of wide letters."""
LINE_HEIGHT, COLUMN_WIDTH = 0.19, 2.2
"""Inches of an entry of a legend at 8 points. The height is 13.7 points (72 to the inch): a line and the
space between two. The width is the line sample and about 30 letters."""
MOST_ENTRIES = 36
"""Entries in one column of a legend; at 0.19 inches they are 6.8 inches high. More make another column."""
GREY = "#6b6b6b"
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6",
    "axes.axisbelow": True, "figure.dpi": DPI, "svg.hashsalt": "harness", "svg.fonttype": "none", "pdf.fonttype": 42,
}  # fmt: skip


def blank_figure(title: str, size: tuple[float, float]) -> Figure:
    """A figure without axes, of `size` (width, height) in inches, with a title that is broken to fit.

    It is made without pyplot, which would keep every figure in memory and may look for a screen.
    """
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    most = int(size[0] * LETTERS)
    figure.suptitle("\n".join(textwrap.fill(line, most) for line in title.splitlines()), fontsize=10)
    return figure


def new_figure(title: str, columns: int = 1) -> tuple[Figure, Any]:
    """A figure with one panel, or with an array of panels side by side. It is 4.2 inches high, 6.4 or 9.6 wide."""
    figure = blank_figure(title, (6.4 if columns == 1 else 9.6, 4.2))
    return figure, figure.subplots(1, columns)


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Set the titles of both axes."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def average_over(tasks: Sequence[str]) -> str:
    """Title of an axis of average scores."""
    return f"average test score over {len(tasks)} tasks" if len(tasks) != 1 else f"test score on {tasks[0]}"


def face(look: Look, line: Line) -> str:
    """The colour that fills the markers of a line."""
    return "white" if line.is_hollow else look.colour


def slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")


def legend_beside(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Put a legend to the right of all panels; the figure grows if the legend is higher than the panels."""
    columns = max(1, math.ceil(len(names) / MOST_ENTRIES))
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=8, ncols=columns)
    width, height = figure.get_size_inches()
    # four lines more than the legend has: the title and the margins
    needed = LINE_HEIGHT * (math.ceil(len(names) / columns) + 4)
    figure.set_size_inches(width + COLUMN_WIDTH * (columns - 1), max(height, needed))


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure in every format; return the files. Raises UserError if they cannot be written."""
    paths = [folder / f"{name}.{suffix}" for suffix in FORMATS]
    with _writing(folder):
        for path in paths:
            # no date inside, so that the same results make the same bytes
            dates: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(path.suffix[1:], {})
            figure.savefig(path, dpi=DPI, metadata=dates)
    return paths


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(folder), field="--out") from None
