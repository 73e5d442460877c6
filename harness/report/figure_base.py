"""What all figures share: style, titles, files in three formats."""

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
from harness.report.styles import Line, Look

FORMATS = ("svg", "pdf", "png")
DPI = 150
LETTERS = 12.5
"""Of a title, per inch."""
LINE_HEIGHT, COLUMN_WIDTH = 0.19, 2.2
"""Inches of an entry of a legend."""
MOST_ENTRIES = 36
"""Of a column of a legend."""
GREY = "#6b6b6b"
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6",
    "axes.axisbelow": True, "figure.dpi": DPI, "svg.hashsalt": "harness", "svg.fonttype": "none", "pdf.fonttype": 42,
}  # fmt: skip


def blank_figure(title: str, size: tuple[float, float]) -> Figure:
    """A figure of `size` inches without axes."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    most = int(size[0] * LETTERS)
    figure.suptitle("\n".join(textwrap.fill(line, most) for line in title.splitlines()), fontsize=10)
    return figure


def new_figure(title: str, columns: int = 1) -> tuple[Figure, Any]:
    """A figure with one panel, or an array of several side by side."""
    figure = blank_figure(title, (6.4 if columns == 1 else 9.6, 4.2))
    return figure, figure.subplots(1, columns)


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Titles of both axes."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def average_over(tasks: Sequence[str]) -> str:
    """What an axis of average scores is called."""
    return f"average test score over {len(tasks)} tasks" if len(tasks) != 1 else f"test score on {tasks[0]}"


def face(look: Look, line: Line) -> str:
    """What fills the markers of a line."""
    return "white" if line.is_hollow else look.colour


def slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")


def legend_beside(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """A legend to the right of all panels; the figure grows where it would be higher than these."""
    columns = max(1, math.ceil(len(names) / MOST_ENTRIES))
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=8, ncols=columns)
    width, height = figure.get_size_inches()
    needed = LINE_HEIGHT * (math.ceil(len(names) / columns) + 4)
    figure.set_size_inches(width + COLUMN_WIDTH * (columns - 1), max(height, needed))


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure in every format; return the files. Raises UserError if they cannot be written."""
    paths = [folder / f"{name}.{suffix}" for suffix in FORMATS]
    with _writing(folder):
        for path in paths:
            # no date, so that the same results make the same files
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
