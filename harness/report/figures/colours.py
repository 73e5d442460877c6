"""Colour and marker of each method, the same in every figure and page, and safe for colour-blind readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.shipped import shipped_methods

Dash = str | tuple[int, tuple[int, ...]]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5F4690")
"""The palette of Okabe and Ito (2008), which colour-blind readers can tell apart. Black is for text and yellow
too pale for lines on white, so both are left out; a violet is added."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
"""Names of matplotlib's markers. 7 colours and 9 markers have no common factor."""
DASHES: tuple[Dash, ...] = (
    "-", "--", ":", "-.", (0, (8, 2)), (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2, 1, 2)),
)  # fmt: skip
"""Dash patterns as matplotlib takes them. They tell lines of one method apart."""


@dataclass(frozen=True)
class Line:
    """How one of several lines of a method is drawn. Markers are hollow once the dash patterns are used up."""

    dash: Dash
    is_hollow: bool


def lines_of(methods: Sequence[str]) -> list[Line]:
    """The line style for each of a figure's lines, given their methods. Up to 16 lines of one method differ."""
    seen: Counter[str] = Counter()
    made = []
    for method in methods:
        turn, dash = divmod(seen[method], len(DASHES))
        made.append(Line(DASHES[dash], turn % 2 == 1))
        seen[method] += 1
    return made


@dataclass(frozen=True)
class Look:
    """Colour as a hex code, marker as matplotlib calls it."""

    colour: str
    marker: str


def method_looks(methods: Iterable[str]) -> dict[str, Look]:
    """Method -> look. Shipped methods have one each, by their place in the alphabet; others follow, by name.

    So a method looks the same whichever methods a suite has.
    """
    shipped = sorted(path.stem for path in shipped_methods().glob("*.py") if not path.stem.startswith("_"))
    names = [*shipped, *sorted(set(methods) - set(shipped))]
    return {name: _look(index) for index, name in enumerate(names)}


def _look(index: int) -> Look:
    """The first 45 looks are distinct. The two shifts let methods that are often drawn together differ in both."""
    colour, marker = index - index // 5, index + 4 * (index // len(MARKERS))
    return Look(COLOURS[colour % len(COLOURS)], MARKERS[marker % len(MARKERS)])
