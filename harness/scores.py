"""Scores as numbers: each is rounded once, where it is made, so that equal scores compare as equal.

Without that the earliest of equal grid points would not win, and a tie in a table would be decided by the 14th digit.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

DIGITS = 9
"""Digits after the point of a score in percent. Float arithmetic errs in the 13th or later (100 * 0.28 =
28.000000000000004); two different means over a million rows differ in the fourth. Nine lies between the two."""


def settled(value: float) -> float:
    """Return `value` without the noise of float arithmetic; never -0.0, which would print with a sign."""
    return round(value, DIGITS) + 0.0


def mean_score(values: Iterable[float]) -> float:
    """Return the mean of scores, itself a score: over metrics, tasks, runs or drawn rows.

    Raises statistics.StatisticsError if there are none.
    """
    return settled(statistics.fmean(values))


def spread_of(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation of scores; None for fewer than two."""
    return settled(statistics.stdev(values)) if len(values) > 1 else None
