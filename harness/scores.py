"""How scores are rounded: once, where they are computed, so that equal scores compare as equal."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

DIGITS = 9
"""Digits kept after the decimal point of a score in percent. Float arithmetic is wrong from about the 13th digit on
(100 * 0.28 = 28.000000000000004). Two different accuracies on a million rows differ in the fourth (100 / 1,000,000), so
nine digits remove the noise and keep every real difference."""


def round_score(value: float) -> float:
    """`value` rounded to DIGITS."""
    return round(value, DIGITS) + 0.0  # adding 0.0 turns -0.0 into 0.0, which prints without a sign


def mean_score(values: Iterable[float]) -> float:
    """Arithmetic mean of scores, rounded as a score: over metrics, tasks, runs or drawn rows.

    Raises statistics.StatisticsError if `values` is empty.
    """
    return round_score(statistics.fmean(values))


def sample_std(values: Sequence[float]) -> float | None:
    """Sample standard deviation (divided by n - 1) of scores; None for fewer than two."""
    return round_score(statistics.stdev(values)) if len(values) > 1 else None
