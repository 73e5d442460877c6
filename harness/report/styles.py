"""How a method looks in every figure and page: one colour and one marker, safe for colour-blind readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

Dash = str | tuple[int, tuple[int, ...]]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5F4690")
"""Okabe and Ito's palette (2008) without black and yellow, and a violet."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
"""As matplotlib calls them."""
DASHES: tuple[Dash, ...] = (
    "-", "--", ":", "-.", (0, (8, 2)), (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2, 1, 2)),
)  # fmt: skip
"""As matplotlib calls them: what tells the lines of one method apart."""
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Line:
    """How one of several lines of a method is drawn: with a hollow marker once the dash patterns are used up."""

    dash: Dash
    is_hollow: bool


def lines_of(methods: Sequence[str]) -> list[Line]:
    """For the lines of a figure, by their methods: no two of one method look alike (of up to sixteen)."""
    seen: Counter[str] = Counter()
    made = []
    for method in methods:
        turn, place = divmod(seen[method], len(DASHES))
        made.append(Line(DASHES[place], turn % 2 == 1))
        seen[method] += 1
    return made


@dataclass(frozen=True)
class Look:
    """Colour as a hex code, marker as matplotlib calls it."""

    colour: str
    marker: str


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """The look of each method: by its place among all shipped methods, then by name for others."""
    folder = next(path for path in (_PACKAGE.parent / "methods", _PACKAGE / "_methods") if path.is_dir())
    shipped = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    names = [*shipped, *sorted(set(methods) - set(shipped))]
    return {name: _look(place) for place, name in enumerate(names)}


def _look(place: int) -> Look:
    """45 places have looks of their own; the two shifts let methods that are often drawn together differ in both."""
    colour, marker = place - place // 5, place + 4 * (place // len(MARKERS))
    return Look(COLOURS[colour % len(COLOURS)], MARKERS[marker % len(MARKERS)])
