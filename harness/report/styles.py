"""How a method looks in every figure and page: one colour and one marker, safe for colour-blind readers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5F4690")
"""Okabe and Ito's palette (2008) without black and yellow, and a violet."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
"""As matplotlib calls them."""
_PACKAGE = Path(__file__).resolve().parent.parent


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
