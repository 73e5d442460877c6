"""Statistics of scores: confidence intervals, paired tests of differences, Holm's correction, average ranks.

The variance of a score is the sum of two terms.

- Rows: other test rows would give another score. The bootstrap (Efron 1979) draws test rows, and a drawn row brings the
  answers of all runs with it, since runs of different seeds answer the same rows.
- Seeds: other seeds would give another score. The term is the variance between runs divided by their number.

The degrees of freedom of the sum follow Welch and Satterthwaite (1946), so that two or three runs do not pass for many.
The chance in a single answer is in both terms, so intervals are a little too wide rather than too narrow. With one run
there is no term for seeds, and the interval holds for that run alone.

Shapes: D draws, K runs, N rows, S swaps, M rows on which two methods differ.
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

from harness.data import Array, mean_score, round_score
from harness.report.statistics.resampling import (
    ROW_MEANS,
    draw_weights,
    is_vectorised,
    make_scorer,
    metric_range,
    row_scores,
)
from harness.results import Answers

Seeds = tuple[int, ...]
"""The random seeds of a run: of training, and of its few-shot draw if it has one."""
LEVEL = 0.05
"""Chance of a false claim that tests allow; intervals are at 1 - LEVEL. The usual 5 %."""
NUM_DRAWS = 1_000
"""Bootstrap samples. They give a standard error that is itself known to 1 / sqrt(2 * 1,000) = 2.2 %; ten times as many
would give 0.7 % for ten times the time and memory."""
SMALL = 100
"""Up to this many test rows a pair is also compared by swapping answers, and the larger p counts. The swap test assumes
no distribution, whereas the p of the bootstrap takes the mean for normal, which needs many rows. A higher limit costs
time: the swaps of a pair are an array [S, M]."""
MAX_ENUMERATED = 13
"""Up to this many differing rows all swaps are tried: 2^13 = 8,192 are fewer than the random ones, and exact."""
NUM_SWAPS = 9_999
"""Random swaps. With the observed answers there are 10,000, so p is at least 0.0001, and a p of 0.05 is known to
sqrt(0.05 * 0.95 / 10,000) = 0.002."""


@dataclass(frozen=True)
class Estimate:
    """A number and the terms of its variance."""

    value: float
    terms: tuple[tuple[float, float], ...]
    """(variance, degrees of freedom) of each: rows first, then seeds if there are several runs."""

    @property
    def variance(self) -> float:
        """Sum of the terms."""
        return math.fsum(variance for variance, _ in self.terms)

    @property
    def degrees(self) -> float:
        """Degrees of freedom of the summed variance (Satterthwaite 1946, eq. 17)."""
        spread = sum(variance**2 / degrees for variance, degrees in self.terms)
        return self.variance**2 / spread if spread else math.inf

    @property
    def half_width(self) -> float:
        """Half the width of the confidence interval at 1 - LEVEL, in the unit of the value."""
        if not self.variance:
            return 0.0
        return float(scipy.special.stdtrit(self.degrees, 1 - LEVEL / 2)) * math.sqrt(self.variance)

    def interval(self, low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
        """Confidence interval at 1 - LEVEL, cut to the range `low` to `high` of the metric."""
        return max(low, self.value - self.half_width), min(high, self.value + self.half_width)

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the hypothesis that the true value is 0, by Student's t; 1 for a value of 0."""
        if self.value == 0:
            return 1.0
        if not self.variance:  # every draw and every run shows the same difference
            return 0.0
        return float(2 * scipy.special.stdtr(self.degrees, -abs(self.value) / math.sqrt(self.variance)))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, such as an average over tasks: variances divided by the squared count."""
    count = len(estimates)
    terms = [(variance / count**2, degrees) for item in estimates for variance, degrees in item.terms]
    return Estimate(mean_score(item.value for item in estimates), tuple(terms))


@dataclass(frozen=True)
class Sample:
    """The runs of a method on a task, with their scores on every bootstrap sample."""

    seeds: tuple[Seeds, ...]
    """[K]. Runs may share their seeds, such as two that start from different cells."""
    runs: tuple[Answers, ...]
    """[K], in the order of `seeds`."""
    metrics: tuple[str, ...]
    labels: tuple[str, ...]
    scores: Array
    """[K]: the score of each run on all rows."""
    draws: Array
    """[D, K]: the score of each run on each draw."""
    rows: int
    """Hash of the rows; see `Answers.rows`."""

    @classmethod
    def of(
        cls, runs: Sequence[tuple[Seeds, Answers]], metrics: Sequence[str], labels: Sequence[str],
        num_draws: int = NUM_DRAWS,
    ) -> Sample:  # fmt: skip
        """Score each run on all rows and on every draw. The draws are the same for all methods, which pairs them."""
        seeds, answers = zip(*sorted(runs, key=lambda run: run[0]), strict=True)
        num_rows = len(answers[0].predictions)
        weights = draw_weights(num_rows, num_draws)
        scorers = [make_scorer(metrics, item, labels) for item in answers]
        scores = np.array([scorer(np.ones((1, num_rows)))[0] for scorer in scorers])
        draws = np.stack([scorer(weights) for scorer in scorers], axis=1)
        return cls(seeds, answers, tuple(metrics), tuple(labels), scores, draws, answers[0].rows)

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.runs[0].predictions)

    def estimate(self) -> Estimate:
        """The mean score of the runs, with both terms of its variance."""
        return _estimate(self.scores, self.draws, self.num_rows)

    def cautious(self) -> Estimate:
        """The mean score with a variance that is not 0 if all answers are right.

        For means over rows, two right and two wrong answers are added first (Agresti & Coull 1998). Without them the
        interval of 28 right answers out of 28 would have no width.
        """
        made = self.estimate()
        if not set(self.metrics) <= set(ROW_MEANS):
            return made
        padded = self._padded
        return Estimate(made.value, ((float(padded.var(ddof=1)) / len(padded), len(padded) - 1.0), *made.terms[1:]))

    def interval(self) -> tuple[float, float]:
        """Confidence interval of the mean score; with added answers, around the mean of all answers with them."""
        made = self.cautious()
        if set(self.metrics) <= set(ROW_MEANS):
            made = Estimate(float(self._padded.mean()), made.terms)
        return made.interval(*metric_range(self.metrics))

    @cached_property
    def _padded(self) -> Array:
        """[N + 4]: the mean score of each row over runs, and two wrong and two right answers."""
        rows = np.mean([row_scores(self.metrics, run, self.labels) for run in self.runs], axis=0)
        return np.concatenate([rows, [0.0, 0.0, 100.0, 100.0]])

    def comparable(self, other: Sample) -> bool:
        """Whether both answered the same rows and are scored by the same metrics."""
        return self.metrics == other.metrics and self.rows == other.rows

    def pairs_with(self, other: Sample) -> bool:
        """Whether each run has one counterpart with the same seeds, so that differences can be taken run by run."""
        return self.seeds == other.seeds and len(set(self.seeds)) == len(self.seeds)


def _estimate(scores: Array, draws: Array, num_rows: int) -> Estimate:
    """Both terms of the variance, from scores [K] and draws [D, K].

    Rows: the variance of the runs' mean over draws, times N / (N - 1), since the bootstrap gives (N - 1) / N of it.
    Seeds: s^2 / K.
    """
    count = len(scores)
    rows = float(draws.mean(axis=1).var(ddof=1)) * num_rows / max(1, num_rows - 1)
    terms = [(rows, max(1.0, num_rows - 1.0))]
    if count > 1:
        terms.append((float(scores.var(ddof=1)) / count, count - 1.0))
    return Estimate(round_score(float(scores.mean())), tuple(terms))


def difference(one: Sample, other: Sample) -> Estimate:
    """The mean score of `one` minus that of `other`. Rows are paired, and runs too if their seeds are the same."""
    if one.pairs_with(other):
        return _estimate(one.scores - other.scores, one.draws - other.draws, one.num_rows)
    # without pairs of runs the seeds of both methods are independent, and their terms add up
    gap = one.draws.mean(axis=1, keepdims=True) - other.draws.mean(axis=1, keepdims=True)
    rows = _estimate(np.array([one.scores.mean() - other.scores.mean()]), gap, one.num_rows)
    return Estimate(rows.value, (*rows.terms, *one.estimate().terms[1:], *other.estimate().terms[1:]))


def compare_samples(one: Sample, other: Sample) -> tuple[Estimate, float]:
    """The difference of two methods on a task, and the two-sided p-value of the hypothesis that there is none.

    On splits of up to SMALL rows the bootstrap finds differences too often; there p is the larger of its p and that of
    the swap test.
    """
    gap = difference(one, other)
    if one.num_rows > SMALL or gap.value == 0 or not is_vectorised(one.metrics):
        return gap, gap.p_value
    return gap, max(gap.p_value, swap_test(one, other))


def swap_test(one: Sample, other: Sample) -> float:
    """Two-sided p-value of the paired permutation test on the difference of mean scores.

    If the methods do not differ, the answers to a row may be swapped between them; all runs are swapped together. Rows
    with equal answers do not matter. Of the others, all swaps are tried (an exact test), or NUM_SWAPS random ones if
    there are more than MAX_ENUMERATED. The k-th run of one is swapped with the k-th of the other; if one has more runs,
    the rest is left out.
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
    # the first choice swaps nothing; 1e-9 is far above the rounding of sums and far below the score of one row
    return float(np.mean(np.abs(gaps) >= abs(gaps[0]) - 1e-9))


def _swapped(a: Answers, b: Answers, sample: Sample, differing: NDArray[np.bool_], choices: Array) -> Array:
    """Score of run `a` minus that of run `b` after each swap, [S].

    `differing` [N] marks the M rows that matter; `choices` [S, M] are 1 where a row is swapped.
    """
    if set(sample.metrics) <= set(ROW_MEANS):
        # a swapped row changes the sign of its difference, so one product with [M] does for all swaps
        ahead = row_scores(sample.metrics, a, sample.labels) - row_scores(sample.metrics, b, sample.labels)
        return (1 - 2 * choices) @ ahead[differing] / len(ahead)
    # any other metric: score the rows of both runs side by side [S, 2 N], each row weighted 1 in one of the two
    swaps = np.zeros((len(choices), len(differing)))
    swaps[:, differing] = choices
    score = make_scorer(sample.metrics, a + b, sample.labels)
    return score(np.hstack([1 - swaps, swaps])) - score(np.hstack([swaps, 1 - swaps]))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: claiming all that are below LEVEL keeps the chance of any false claim at LEVEL (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for num_smaller, i in enumerate(order):
        # never below the one before, or a larger p could be claimed while a smaller one is not
        largest = max(largest, min(1.0, (len(p_values) - num_smaller) * p_values[i]))
        adjusted[i] = largest
    return adjusted


@dataclass(frozen=True)
class Ranking:
    """Average ranks of methods over tasks. Rank 1 is best; equal scores share the mean of their ranks."""

    ranks: dict[str, float]
    num_tasks: int
    friedman: float
    """Statistic of Friedman's test."""
    p_value: float
    """Of Friedman's test: the hypothesis that all methods rank the same."""
    critical_difference: float
    """Two average ranks that are closer than this are not separable (Nemenyi)."""


def rank_methods(scores: Mapping[str, Sequence[float]]) -> Ranking | None:
    """Friedman's test and Nemenyi's critical difference (Demsar 2006, section 3.2.2) from scores per task.

    `scores` is method -> score on each task. None if the test is not defined: for fewer than three methods, fewer than
    two tasks, or if all scores are equal.
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
