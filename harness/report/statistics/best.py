"""Which methods can be told from the best of a column, at one chance of error for the whole column.

A claim "this method is not the best" is false where it is one of the best. All that a table claims is of this kind, so
it needs fewer corrections than all pairs do. Take M methods, ordered by score. Any set I of k of them may be the best
ones; what tests it is the largest difference between any of the M and the lowest of I. Closing over all sets (Marcus,
Peritz & Gabriel 1976) gives steps: the lowest is told from the best at the critical value of k = M, which is Tukey's;
if it is, the next at k = M - 1, and so on; k = 1 would be Dunnett's, one-sided. Dunnett's for all would be wrong, since
the best is chosen after looking: `tests/report/test_best.py` has how often that errs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import scipy.special

from harness.data import Array

NODES = 64
"""Points of each quadrature. The chance agrees with scipy's studentized range to 1e-6."""


def chance_of_gap(ratio: float, num_all: int, num_low: int, degrees: float) -> float:
    """The chance that, of M equal methods, one lies `ratio` standard errors above the lowest of k of them.

    `ratio` is the difference of two over the standard error of a difference, known to `degrees`. For k = M this is the
    chance of Tukey's studentized range, for M = k = 2 that of the two-sided t test.
    """
    if not math.isfinite(ratio):
        return 0.0
    scales, weights = _scales(round(degrees, 3))
    # the lowest of k at x, the k - 1 others of them within the gap above, the M - k others anywhere below its end
    points, mass = _points()
    top = scipy.special.ndtr(points + math.sqrt(2) * ratio * scales[:, None])
    inside = np.clip(top - scipy.special.ndtr(points), 0, 1) ** (num_low - 1) * top ** (num_all - num_low)
    held = float(weights @ (inside @ mass)) * num_low
    return min(1.0, max(0.0, 1 - held))


def cannot_be_best(ratios: Sequence[float], degrees: Sequence[float], other: Sequence[float]) -> list[float]:
    """Adjusted p-values of the claim of each method but the best that it is not the best.

    All are in order of score, lowest first: `ratios` of the differences from the best in standard errors, their degrees
    of freedom, and the two-sided p-values of a further test of each pair, which is corrected by Bonferroni's rule; the
    larger p counts. Claiming all with p below a level keeps the chance of any false claim there.
    """
    num_all, adjusted, largest = len(ratios) + 1, [], 0.0
    for lower, (ratio, known, further) in enumerate(zip(ratios, degrees, other, strict=True)):
        num_low = num_all - lower
        p_value = chance_of_gap(ratio, num_all, num_low, known)
        # each of the k may be below each of the M - 1 others: so many one-sided tests
        largest = max(largest, p_value, min(1.0, further / 2 * num_low * (num_all - 1)))
        adjusted.append(largest)
    return adjusted


@lru_cache(maxsize=1)
def _points() -> tuple[Array, Array]:
    """Points of the normal distribution, and the mass at each."""
    points, weights = _legendre()
    return 8 * points, 8 * weights * np.exp(-((8 * points) ** 2) / 2) / math.sqrt(2 * math.pi)


@lru_cache(maxsize=1)
def _legendre() -> tuple[Array, Array]:
    """Gauss and Legendre's points and weights on -1 to 1."""
    points, weights = np.polynomial.legendre.leggauss(NODES)
    return points, weights


@lru_cache(maxsize=512)
def _scales(degrees: float) -> tuple[Array, Array]:
    """Points of the square root of chi^2 / degrees, and the mass at each; closer to each other near 0."""
    if not math.isfinite(degrees):
        return np.ones(1), np.ones(1)
    points, weights = _legendre()
    share = (points + 1) / 2
    quantiles = scipy.special.gammaincinv(degrees / 2, share**3)
    return np.sqrt(2 * quantiles / degrees), weights / 2 * 3 * share**2
