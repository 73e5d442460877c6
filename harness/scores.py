"""Scores as numbers: rounded once where they are made, so that equal scores compare as equal."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

DIGITS = 9
"""After the point of a score in percent. Float arithmetic errs in the 13th (100 * 0.28 = 28.000000000000004); two
different means over a million rows differ in the fourth."""


def settled(value: float) -> float:
    """`value` without the noise of float arithmetic; never -0.0."""
    return round(value, DIGITS) + 0.0


def mean_score(values: Iterable[float]) -> float:
    """Arithmetic mean of scores, itself a score: over metrics, tasks, runs or drawn rows.

    Raises statistics.StatisticsError where there are none.
    """
    return settled(statistics.fmean(values))


def spread_of(values: Sequence[float]) -> float | None:
    """Sample standard deviation of scores; None for fewer than two."""
    return settled(statistics.stdev(values)) if len(values) > 1 else None
