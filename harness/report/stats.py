"""What a difference between scores is worth: intervals, paired tests, Holm's correction, ranks.

The variance of a score has two parts. Rows: the bootstrap (Efron 1979) over test rows, where a drawn row brings the
answers of all runs with it, since runs with different seeds answer the same rows. Seeds: the variance between runs
divided by their number. Both are added, and the degrees of freedom follow Welch and Satterthwaite (1946), so that two
or three runs are not taken for many. The chance in a single answer is part of both terms: the intervals are a little
too wide rather than too narrow. With one run there is no second part, and what is said holds for that run alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import NDArray

from harness.report.resampling import (
    ROW_MEANS,
    Answers,
    bounds,
    draw_weights,
    is_vectorised,
    make_scorer,
    row_scores,
)
from harness.scores import mean_score, settled
from harness.weighted import Array

Seeds = tuple[int, ...]
"""The random seeds of a run: of training, and of its few-shot draw if it has one."""
LEVEL = 0.05
NUM_DRAWS = 1_000
SMALL = 100
"""Up to this many test rows a pair is also compared by swapping answers, which assumes no distribution."""
MAX_ENUMERATED = 13
NUM_SWAPS = 9_999


@dataclass(frozen=True)
class Estimate:
    """A number with the parts of its variance, each with its degrees of freedom."""

    value: float
    parts: tuple[tuple[float, float], ...]

    @property
    def variance(self) -> float:
        return math.fsum(variance for variance, _ in self.parts)

    @property
    def degrees(self) -> float:
        """Degrees of freedom of the summed variance (Satterthwaite 1946, eq. 17)."""
        spread = sum(variance**2 / degrees for variance, degrees in self.parts)
        return self.variance**2 / spread if spread else math.inf

    @property
    def half_width(self) -> float:
        """Half the width of the interval at 1 - LEVEL, in the unit of the value."""
        if not self.variance:
            return 0.0
        return float(scipy.special.stdtrit(self.degrees, 1 - LEVEL / 2)) * math.sqrt(self.variance)

    def interval(self, low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
        """Confidence interval at 1 - LEVEL, cut to what the metric can be."""
        return max(low, self.value - self.half_width), min(high, self.value + self.half_width)

    @property
    def p_value(self) -> float:
        """Two-sided p that the true value is 0; 1 for a value of 0, whatever its variance."""
        if self.value == 0:
            return 1.0
        if not self.variance:
            return 0.0
        return float(2 * scipy.special.stdtr(self.degrees, -abs(self.value) / math.sqrt(self.variance)))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, as an average over tasks is one."""
    count = len(estimates)
    parts = [(variance / count**2, degrees) for item in estimates for variance, degrees in item.parts]
    return Estimate(mean_score(item.value for item in estimates), tuple(parts))


@dataclass(frozen=True)
class Sample:
    """The runs of a method on a task, drawn."""

    seeds: tuple[Seeds, ...]
    """Of each run; several runs may have the same, such as those that a cell's start alone tells apart."""
    runs: tuple[Answers, ...]
    metrics: tuple[str, ...]
    labels: tuple[str, ...]
    scores: Array
    """[K], per run."""
    draws: Array
    """[D, K], per draw of rows and run."""
    rows: int
    """Which rows they are, see `Answers.rows`."""

    @classmethod
    def of(
        cls, runs: Sequence[tuple[Seeds, Answers]], metrics: Sequence[str], labels: Sequence[str],
        num_draws: int = NUM_DRAWS,
    ) -> Sample:  # fmt: skip
        """Score each run on all rows and on every draw. The draws are the same for all methods."""
        seeds, answers = zip(*sorted(runs, key=lambda run: run[0]), strict=True)
        num_rows = len(answers[0].predictions)
        weights = draw_weights(num_rows, num_draws)
        scorers = [make_scorer(metrics, item, labels) for item in answers]
        scores = np.array([scorer(np.ones((1, num_rows)))[0] for scorer in scorers])
        draws = np.stack([scorer(weights) for scorer in scorers], axis=1)
        return cls(seeds, answers, tuple(metrics), tuple(labels), scores, draws, answers[0].rows)

    @property
    def num_rows(self) -> int:
        return len(self.runs[0].predictions)

    def estimate(self) -> Estimate:
        """The mean score of the runs."""
        return _estimate(self.scores, self.draws, self.num_rows)

    def cautious(self) -> Estimate:
        """The mean score with a variance that is not 0 where all answers are right.

        For means over rows, two right and two wrong answers are added first (Agresti & Coull 1998): without them 28
        right answers out of 28 would have an interval without width.
        """
        made = self.estimate()
        if not set(self.metrics) <= set(ROW_MEANS):
            return made
        padded = self._padded
        return Estimate(made.value, ((float(padded.var(ddof=1)) / len(padded), len(padded) - 1.0), *made.parts[1:]))

    def interval(self) -> tuple[float, float]:
        """Confidence interval of the mean score, around the centre that the added answers give."""
        made = self.cautious()
        if set(self.metrics) <= set(ROW_MEANS):
            made = Estimate(float(self._padded.mean()), made.parts)
        return made.interval(*bounds(self.metrics))

    @cached_property
    def _padded(self) -> Array:
        rows = np.mean([row_scores(self.metrics, run, self.labels) for run in self.runs], axis=0)
        return np.concatenate([rows, [0.0, 0.0, 100.0, 100.0]])

    def comparable(self, other: Sample) -> bool:
        """Whether both answered the same rows, scored by the same metrics."""
        return self.metrics == other.metrics and self.rows == other.rows

    def pairs_with(self, other: Sample) -> bool:
        """Whether each run has its counterpart: the same seeds, and no two runs of them."""
        return self.seeds == other.seeds and len(set(self.seeds)) == len(self.seeds)


def _estimate(scores: Array, draws: Array, num_rows: int) -> Estimate:
    """Rows: the bootstrap variance of the runs' mean, N/(N-1) against its bias. Seeds: s^2/K."""
    count = len(scores)
    rows = float(draws.mean(axis=1).var(ddof=1)) * num_rows / max(1, num_rows - 1)
    parts = [(rows, max(1.0, num_rows - 1.0))]
    if count > 1:
        parts.append((float(scores.var(ddof=1)) / count, count - 1.0))
    return Estimate(settled(float(scores.mean())), tuple(parts))


def difference(one: Sample, other: Sample) -> Estimate:
    """The mean score of `one` less that of `other`, rows paired, and runs too where the seeds are the same."""
    if one.pairs_with(other):
        return _estimate(one.scores - other.scores, one.draws - other.draws, one.num_rows)
    gap = one.draws.mean(axis=1, keepdims=True) - other.draws.mean(axis=1, keepdims=True)
    rows = _estimate(np.array([one.scores.mean() - other.scores.mean()]), gap, one.num_rows)
    return Estimate(rows.value, (*rows.parts, *one.estimate().parts[1:], *other.estimate().parts[1:]))


def compare(one: Sample, other: Sample) -> tuple[Estimate, float]:
    """The difference of two methods on a task, and the two-sided p that there is none.

    On small splits, where a bootstrap is too sure of itself, p is the larger of that and the swap test's.
    """
    gap = difference(one, other)
    if one.num_rows > SMALL or gap.value == 0 or not is_vectorised(one.metrics):
        return gap, gap.p_value
    return gap, max(gap.p_value, swap_test(one, other))


def swap_test(one: Sample, other: Sample) -> float:
    """Two-sided p of the paired permutation test on the difference of mean scores.

    If the methods do not differ, a row's answers of all runs (a block) may be those of either. Rows with equal answers
    do not matter; all swaps of the others are tried (exact), or NUM_SWAPS random ones where there are too many.
    The k-th runs of both are swapped with each other; further runs of one are left out.
    """
    pairs = list(zip(one.runs, other.runs, strict=False))
    differing = np.array(
        [any(a.predictions[row] != b.predictions[row] for a, b in pairs) for row in range(one.num_rows)]
    )
    count = int(differing.sum())
    if count <= MAX_ENUMERATED:
        choices = np.array(list(itertools.product((0.0, 1.0), repeat=count)))
    else:
        choices = np.random.default_rng(count).integers(0, 2, (NUM_SWAPS, count)).astype(float)
        choices = np.concatenate([np.zeros((1, count)), choices])  # counts the observed answers as one of the swaps
    gaps = np.sum([_swapped(a, b, one, differing, choices) for a, b in pairs], axis=0)
    # the first swap is none at all; rounding must not make equal differences unequal
    return float(np.mean(np.abs(gaps) >= abs(gaps[0]) - 1e-9))


def _swapped(a: Answers, b: Answers, sample: Sample, differing: NDArray[np.bool_], choices: Array) -> Array:
    """Score of run `a` less that of run `b` after each swap; `choices` [S, M] are 1 where a row is swapped."""
    if set(sample.metrics) <= set(ROW_MEANS):
        ahead = row_scores(sample.metrics, a, sample.labels) - row_scores(sample.metrics, b, sample.labels)
        return (1 - 2 * choices) @ ahead[differing] / len(ahead)
    swaps = np.zeros((len(choices), len(differing)))
    swaps[:, differing] = choices
    score = make_scorer(sample.metrics, a + b, sample.labels)
    return score(np.hstack([1 - swaps, swaps])) - score(np.hstack([swaps, 1 - swaps]))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that keep the chance of any false claim among all at LEVEL (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


@dataclass(frozen=True)
class Ranking:
    """Average ranks of methods over tasks; 1 is best, equal scores share the mean of their ranks."""

    ranks: dict[str, float]
    num_tasks: int
    friedman: float
    p_value: float
    critical_difference: float
    """Average ranks that lie closer are not separable (Nemenyi)."""


def rank_methods(scores: Mapping[str, Sequence[float]]) -> Ranking | None:
    """Friedman's test and Nemenyi's critical difference (Demsar 2006, section 3.2.2) from scores per task.

    None for fewer than three methods or two tasks, where the test is not defined, and where all scores are equal.
    """
    names, table = list(scores), np.array(list(scores.values()))
    if len(names) < 3 or table.shape[1] < 2 or (table == table[0]).all():
        return None
    ranks = scipy.stats.rankdata(-table, axis=0).mean(axis=1)
    test = scipy.stats.friedmanchisquare(*table)
    count, tasks = table.shape
    quantile = scipy.stats.studentized_range.ppf(1 - LEVEL, count, math.inf) / math.sqrt(2)
    distance = float(quantile * math.sqrt(count * (count + 1) / (6 * tasks)))
    return Ranking(
        dict(zip(names, map(float, ranks), strict=True)), tasks, float(test.statistic), float(test.pvalue), distance
    )
