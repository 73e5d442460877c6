"""How far runs of different seeds lie apart, learnt from all entries of a board together.

Two or three runs of one entry say little: the variance between two has one degree of freedom. The entries of a board
say more together, as far as they are alike. The variance of each is taken as drawn around a common one, with d0 degrees
of freedom, and moderated towards it (Smyth 2004, eq. 3):

    s~^2 = (d0 s0^2 + d s^2) / (d0 + d), with d0 + d degrees of freedom.

d0 is learnt too: it is large where the variances of all entries lie no further apart than chance puts them, and small,
so that each entry speaks for itself, where some method is less stable than others. That is the test of whether
variances may be pooled, without a threshold.

What is common is not the variance in points, since scores near 100 vary less, but tau^2 in

    s0^2 = tau^2 p (1 - p) range^2 + noise,

with p the place of the score in the range of its metric: the scale on which the arcsine of a share, and Fisher's z of a
correlation, have a constant variance. `noise` is what chance in single answers adds, which a small test split has more
of; it is known from the answers themselves.

Shapes: G entries, A values of tau^2, B values of d0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special
from numpy.typing import NDArray

from harness.data import Array
from harness.report.statistics.intervals import Sample, Term
from harness.report.statistics.resampling import metric_range

SPREADS = np.geomspace(1e-6, 1.0, 49)
"""Values of tau^2 that are tried. At a score of 50 they stand for deviations of 0.05 to 50 points, 15 % apart."""
PRIOR_DEGREES = 2.0 ** np.arange(7)
"""Values of d0 that are tried, 1 to 64. Runs of benchmarks do not resolve anything finer or larger."""


@dataclass(frozen=True)
class Spread:
    """The variance between the runs of one entry."""

    variance: float
    """s^2, in points squared."""
    degrees: float
    """d."""
    noise: float
    """The part of s^2 that chance in single answers is expected to have."""
    level: float
    """p (1 - p) times the squared range of the metric; 1 where the range is not known."""
    least: float
    """The smallest s^2 other than 0: runs that differ in one row. Below it s^2 says no more than "small"."""
    counted: float
    """Degrees that the entry brings to a pool: fewer than d where entries share the luck of their draws, and so vary
    together."""
    alike: bool = False
    """Whether all runs gave the same answers, as a rule does: then there is no chance whose size could be learnt."""


def spread_of(sample: Sample, shared: Sequence[Sample] = ()) -> Spread:
    """The spread of a sample of several runs.

    `shared` are the samples, itself included, whose runs trained on the same drawn rows. The luck of each draw, which
    is the mean over these samples, is then taken out: it falls out of their differences.
    """
    count = len(sample.scores)
    off = sample.scores - sample.scores.mean()
    degrees = count - 1.0
    if len(shared) > 1:
        luck = np.mean([item.scores - item.scores.mean() for item in shared], axis=0)
        off, degrees = off - luck, degrees * (1 - 1 / len(shared))
    low, high = metric_range(sample.metrics)
    level = 1.0
    if math.isfinite(high - low):
        place = (float(sample.scores.mean()) - low) / (high - low)
        place = (place * sample.num_units + 2) / (sample.num_units + 4)  # as Agresti and Coull: never at an end
        level = place * (1 - place) * (high - low) ** 2
    least = (100 / sample.num_rows) ** 2 / count
    alike = not sample.parts.size or bool(np.ptp(sample.parts, axis=1).max() < 1e-9 and np.ptp(sample.scores) < 1e-9)
    return Spread(float((off**2).sum()) / degrees, degrees, sample.noise, level, least, degrees, alike)


def pool_seeds(spreads: Sequence[Spread]) -> list[Term]:
    """The moderated variance of one run of each entry, with its degrees of freedom.

    No entry is taken for stabler than its own runs show: moderation only raises its variance. That costs power (of
    methods 10 points behind on 300 rows 81 % are told from the best with three runs, not 96 %), and keeps what is
    promised (four equal methods with two runs on 1,635 rows: 4 % of boards with a false claim, not 8 %;
    `tools.simulate_statistics`). An entry without another to compare it with keeps its own. No variance is known to
    more degrees than all entries have together.
    """
    varying = [item for item in spreads if not item.alike and math.isfinite(item.variance)]
    total = sum(item.counted for item in varying)
    if len(varying) < 2:
        return [Term(item.variance, item.degrees) for item in spreads]
    common, prior = _fit(varying)
    made = []
    for item in spreads:
        expected = common * item.level + item.noise
        moderated = (prior * expected + item.degrees * item.variance) / (prior + item.degrees)
        made.append(Term(max(moderated, item.variance), min(prior + item.degrees, total), total))
    return made


def _fit(spreads: Sequence[Spread]) -> tuple[float, float]:
    """tau^2, as if all entries were alike, and d0.

    tau^2 is the mean of its logarithm over its likelihood, under which s^2 / s0^2 has the chi^2 distribution over d.
    That is the mean of the variances rather than their middle, so an unstable entry raises it. d0 is one over the mean
    of 1 / d0 over its likelihood, under which s^2 / s0^2 has the F distribution with d and d0 degrees of freedom (Smyth
    2004, section 4): where few entries say little it is small. Entries below `least` count as that and no more, or a
    variance of 0 would outweigh all others.
    """
    level, noise, degrees, least, variance = (
        np.array([getattr(item, name) for item in spreads])[:, None, None]
        for name in ("level", "noise", "degrees", "least", "variance")
    )
    scale = SPREADS[None, :, None] * level + noise  # [G, A, 1]
    alike = _weights((-degrees / 2 * (np.log(scale) + variance / scale)).sum(axis=0))
    common = math.exp(float((alike[:, 0] * np.log(SPREADS)).sum()))
    prior = PRIOR_DEGREES[None, None, :]
    small = variance < 0.99 * least
    log_density = _log_f(np.where(small, least, variance) / scale, degrees, prior) - np.log(scale)
    support: Array = np.where(small, 0.0, log_density).sum(axis=0)  # [A, B]
    hidden = small[:, 0, 0]
    support += np.log(scipy.special.fdtr(degrees[hidden], prior, least[hidden] / scale[hidden])).sum(axis=0)
    return common, 1 / float((_weights(support).sum(axis=0) / PRIOR_DEGREES).sum())


def _weights(support: Array) -> Array:
    """Likelihoods that add up to 1, from their logarithms."""
    made: Array = np.exp(support - support.max())
    whole: Array = made / made.sum()
    return whole


def _log_f(ratio: Array, one: Array, other: NDArray[np.floating[Any]]) -> Array:
    """Logarithm of the density of the F distribution with `one` and `other` degrees of freedom."""
    share = one / other
    made: Array = (
        one / 2 * np.log(share)
        + (one / 2 - 1) * np.log(ratio)
        - (one + other) / 2 * np.log1p(share * ratio)
        - scipy.special.betaln(one / 2, other / 2)
    )
    return made
