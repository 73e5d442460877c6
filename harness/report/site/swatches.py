"""The marker of a method as a small SVG drawing, in the colour and shape that it has in figures."""

from __future__ import annotations

from markupsafe import Markup

from harness.report.figures.colours import Look

SHAPES = {
    "o": '<circle cx="6" cy="6" r="4.5"/>',
    "s": '<path d="M2 2h8v8h-8z"/>',
    "^": '<path d="M6 1l5 9.5h-10z"/>',
    "v": '<path d="M6 11l5-9.5h-10z"/>',
    "<": '<path d="M1 6l9.5-5v10z"/>',
    ">": '<path d="M11 6l-9.5-5v10z"/>',
    "D": '<path d="M6 .5l5.5 5.5-5.5 5.5-5.5-5.5z"/>',
    "P": '<path d="M4 1h4v3h3v4h-3v3h-4v-3h-3v-4h3z"/>',
    "X": '<path d="M3.2.8l2.8 2.8 2.8-2.8 2.4 2.4-2.8 2.8 2.8 2.8-2.4 2.4-2.8-2.8-2.8 2.8-2.4-2.4 2.8-2.8-2.8-2.8z"/>',
}
"""Matplotlib's name of a marker -> SVG shape in a square of 12 by 12."""


def swatch(look: Look) -> Markup:
    """The drawing as inline SVG. Screen readers skip it, since the name of the method stands beside it."""
    text = '<svg class="swatch" viewBox="0 0 12 12" aria-hidden="true" fill="{}">{}</svg>'
    return Markup(text).format(look.colour, Markup(SHAPES[look.marker]))
