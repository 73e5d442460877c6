"""The paired permutation test: if two methods do not differ, the answers to a row may be swapped between them.

All runs of a row are swapped together, and all rows of a unit. It assumes no distribution, and knows nothing of seeds.

Shapes: K pairs of runs, N rows, U units, T kinds of units, S swaps.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.data import Array
from harness.report.statistics.resampling import make_scorer
from harness.results import Answers

Content = tuple[tuple[str, ...], tuple[tuple[str, str], ...]]
"""The references of a row, and the answers of each pair of runs to it."""
SMALL = 100
"""Up to this many units a pair is also compared by swapping answers, and the larger p counts. Student's t takes a mean
for normal, which needs many rows."""
MAX_LISTED = 20_000
"""Up to this many outcomes of swaps are listed, with their chances; the p-value is then exact."""
BATCH = 10_000
"""Random swaps scored at once: at 100 rows an array of 16 MB."""
MOST_SWAPS = 1_000_000
"""Most random swaps. The smallest p is then 1e-6: below 0.05 over 210 pairs in ten columns, 2.4e-5."""
ENOUGH = 20
"""Swaps at least as far apart as the observed that end the drawing: p is then known to 1 / sqrt(20) = 22 % of itself,
and those that need to be known better, near 0.05, are: 10,000 swaps have 500 of them there."""
STEPS = 1_000
"""Steps of the grid on which the sums of other than whole differences are added up, for the largest difference."""
ROUNDING = 1e-9
"""Far above the rounding of sums, far below the score of one row."""


def sign_test(ahead: Array) -> float:
    """Exact two-sided p-value of the sum of `ahead` [U] when the sign of each number is a fair coin's.

    The distribution of the sum is added up on a grid, one number at a time. Where the numbers are multiples of one
    step, as with right and wrong answers, that is exact; else each is rounded to STEPS steps of the largest, and p
    counts what rounding could have moved, so it is too large rather than too small.
    """
    sizes = np.abs(ahead[np.abs(ahead) > ROUNDING])
    if not len(sizes):
        return 1.0
    step = float(sizes.min())
    for parts in range(1, 13):  # halves and thirds of the smallest: two and three runs
        steps = np.rint(sizes * parts / step)
        if (np.abs(steps * step / parts - sizes) < ROUNDING).all() and steps.max() <= STEPS:
            step, slack = step / parts, 0.0
            break
    else:
        step = float(sizes.max()) / STEPS
        steps, slack = np.rint(sizes / step), len(sizes) / 2
    whole = steps.astype(int)
    chances = np.zeros(int(whole.sum()) + 1)
    chances[0] = 1.0
    for size in whole:  # the chance that the numbers with a plus add up to each value
        if size:
            shifted = np.concatenate([np.zeros(size), chances[:-size]])
            chances = (chances + shifted) / 2
    sums = np.abs(2 * np.arange(len(chances)) - len(chances) + 1)
    observed = abs(float(ahead.sum())) / step
    return min(1.0, float(chances[sums >= observed - 2 * slack - 1e-6].sum()))


def scored_swaps(
    pairs: Sequence[tuple[Answers, Answers]], units: NDArray[np.int64], metrics: Sequence[str], labels: Sequence[str]
) -> float:
    """Two-sided p-value for metrics that are no means over rows: each outcome of swaps is scored.

    `pairs` [K] are the runs of the two methods, `units` [N] the unit of each row. Exact where there are few outcomes;
    else from 10,000 random swaps, and up to MOST_SWAPS while p looks small. Units in which both methods answer alike do
    not matter. Others are of a kind if their references and all answers are the same: then it matters only how many of
    them are swapped, which has a binomial distribution.
    """
    members: dict[int, list[Content]] = {}
    for row, unit in enumerate(units.tolist()):
        answers = tuple((a.predictions[row], b.predictions[row]) for a, b in pairs)
        members.setdefault(unit, []).append((tuple(pairs[0][0].references[row]), answers))
    kinds = Counter(tuple(rows) for rows in members.values())
    counts = np.array(list(kinds.values()))
    gap = _SwappedGap(list(kinds), counts, metrics, labels)
    observed = abs(float(gap(np.zeros((1, len(counts))))[0])) - ROUNDING
    differs = [any(a != b for _, answers in kind for a, b in answers) for kind in kinds]
    most = np.where(differs, counts, 0)
    if math.prod((most + 1).tolist()) <= MAX_LISTED:
        swaps = np.array(list(itertools.product(*(range(count + 1) for count in most))), float)
        binomials = [[math.comb(count, k) / 2**count for k in range(count + 1)] for count in most.tolist()]
        chances = np.array([math.prod(item) for item in itertools.product(*binomials)])
        return min(1.0, float(chances[np.abs(gap(swaps)) >= observed].sum()))
    generator, found, drawn = np.random.default_rng(int(most.sum())), 1, 1  # the observed answers are one of the swaps
    for limit in (BATCH, 10 * BATCH, MOST_SWAPS):
        while drawn < limit:
            swaps = generator.binomial(most, 0.5, (min(BATCH, limit - drawn), len(most))).astype(float)
            found += int((np.abs(gap(swaps)) >= observed).sum())
            drawn += len(swaps)
        if found >= ENOUGH:
            break
    return found / drawn


class _SwappedGap:
    """Difference of the mean scores after swaps [S, T], which say how many units of each kind are swapped."""

    def __init__(
        self,
        kinds: Sequence[tuple[Content, ...]],
        counts: NDArray[np.int64],
        metrics: Sequence[str],
        labels: Sequence[str],
    ) -> None:
        rows = [(index, *content) for index, kind in enumerate(kinds) for content in kind]
        self.kind_of, self.counts = np.array([index for index, *_ in rows]), counts
        references = [list(accepted) for _, accepted, _ in rows]
        self.scorers = []
        for k in range(len(rows[0][2])):
            both = Answers([answers[k][side] for side in (0, 1) for *_, answers in rows], references * 2)
            self.scorers.append(make_scorer(metrics, both, labels))

    def __call__(self, swaps: Array) -> Array:
        """[S], in points. The rows of both runs stand side by side, each weighted by how often a side holds it."""
        moved, kept = swaps[:, self.kind_of], (self.counts - swaps)[:, self.kind_of]
        ahead, behind = np.hstack([kept, moved]), np.hstack([moved, kept])
        gaps: Array = np.mean([score(ahead) - score(behind) for score in self.scorers], axis=0)
        return gaps
