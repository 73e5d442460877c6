"""Statistics of scores: confidence intervals, differences of two methods, Holm's correction, average ranks.

The variance of a score is the sum of two terms.

- Rows: other test rows would give another score. Rows that belong together, such as the answers to one question, are
  drawn together, and a drawn row brings the answers of all runs with it, since runs of different seeds answer the same
  rows. Metrics that are means over rows have this term in closed form, others by the bootstrap (Efron 1979).
- Seeds: other seeds would give another score. The term is the variance between runs divided by their number; on a
  board it is the one that `pool_seeds` made of the runs of all entries.

Chance in single answers is in both, as it makes runs differ. It is counted once: with several runs it is taken off the
first term, so that what is left there is the part that all runs share.

Each term is known to some degrees of freedom. Half the width of an interval is sqrt(sum of t(degrees)^2 * variance)
over the terms: that holds its level whatever the true variances are (Banerjee 1960), whereas Welch and Satterthwaite's
degrees take two runs that happen to lie close together for many. With one run there is no term for seeds, and the
interval holds for that run alone.

Shapes: K runs, N rows, U units (rows, or groups of rows that belong together), P parts of a variance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import NDArray

from harness.data import Array, mean_score, round_score
from harness.report.statistics.resampling import (
    NUM_DRAWS,
    ROW_MEANS,
    draw_units,
    is_vectorised,
    make_scorer,
    metric_range,
    padded_draws,
    row_scores,
)
from harness.report.statistics.swaps import SMALL, scored_swaps, sign_test
from harness.results import Answers

Seeds = tuple[int, ...]
"""The random seeds of a run: of training, and of its few-shot draw if it has one."""
LEVEL = 0.05
"""Chance of a false claim that tests allow; intervals are at 1 - LEVEL. The usual 5 %."""


@dataclass(frozen=True)
class Term:
    """One part of a variance, and how well it is known."""

    variance: float
    degrees: float
    most: float = math.inf
    """Most degrees that a sum of such terms can have: terms made of one pool of runs know no more than the pool."""


def add_terms(terms: Sequence[Term], scale: float = 1.0) -> Term:
    """The sum of terms of one kind, times `scale`; its degrees are Satterthwaite's (1946, eq. 17)."""
    total = math.fsum(term.variance for term in terms)
    spread = sum(term.variance**2 / term.degrees for term in terms)
    most = min(term.most for term in terms)
    # nothing varied in any of them: then the sum is known as well as the best known
    degrees = total**2 / spread if spread else max(term.degrees for term in terms)
    return Term(scale * total, min(degrees, most), most)


@dataclass(frozen=True)
class Estimate:
    """A number and the terms of its variance."""

    value: float
    terms: tuple[Term, ...]
    """Rows first, then seeds if there are several runs."""

    @property
    def variance(self) -> float:
        """Sum of the terms."""
        return math.fsum(term.variance for term in self.terms)

    @property
    def half_width(self) -> float:
        """Half the width of the confidence interval at 1 - LEVEL, in the unit of the value (Banerjee 1960)."""
        quantiles = [float(scipy.special.stdtrit(term.degrees, 1 - LEVEL / 2)) for term in self.terms]
        return math.sqrt(math.fsum(t**2 * term.variance for t, term in zip(quantiles, self.terms, strict=True)))

    @property
    def degrees(self) -> float:
        """Degrees of freedom at which Student's t has this half-width: at most Satterthwaite's."""
        if not self.variance:
            return math.inf
        quantile = self.half_width / math.sqrt(self.variance)
        low, high = math.log(min(term.degrees for term in self.terms)), math.log(1e6)
        if scipy.special.stdtrit(1e6, 1 - LEVEL / 2) >= quantile:
            return math.inf
        for _ in range(40):  # halves a span of 14 to 1e-11
            middle = (low + high) / 2
            low, high = (
                (middle, high) if scipy.special.stdtrit(math.exp(middle), 1 - LEVEL / 2) > quantile else (low, middle)
            )
        return math.exp(high)

    def interval(self, low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
        """Confidence interval at 1 - LEVEL, cut to the range `low` to `high` of the metric."""
        return max(low, self.value - self.half_width), min(high, self.value + self.half_width)

    @property
    def ratio(self) -> float:
        """The value in standard errors: 0 for a value of 0, infinite where nothing varies."""
        if self.value == 0:
            return 0.0
        return abs(self.value) / math.sqrt(self.variance) if self.variance else math.inf

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the hypothesis that the true value is 0, by Student's t; 1 for a value of 0."""
        return float(2 * scipy.special.stdtr(self.degrees, -self.ratio))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, such as an average over tasks: variances divided by the squared count."""
    scale = 1 / len(estimates) ** 2
    rows = [item.terms[0] for item in estimates if item.terms]
    seeds = [term for item in estimates for term in item.terms[1:]]
    terms = tuple(add_terms(found, scale) for found in (rows, seeds) if found)
    return Estimate(mean_score(item.value for item in estimates), terms)


@dataclass(frozen=True)
class Sample:
    """The runs of a method on a task, and how their scores vary with the rows."""

    seeds: tuple[Seeds, ...]
    """[K]. Runs may share their seeds, such as two that start from different cells."""
    runs: tuple[Answers, ...]
    """[K], in the order of `seeds`; empty for a sample made of numbers."""
    metrics: tuple[str, ...]
    labels: tuple[str, ...]
    scores: Array
    """[K]: the score of each run on all rows."""
    parts: Array
    """[P, K]: the variance over rows of a weighted sum w of the runs' scores is the sum of squares of parts @ w."""
    values: Array | None
    """[K, N]: what each row scores, for metrics that are means over rows."""
    units: NDArray[np.int64]
    """[N]: the unit of each row, from 0."""
    cautious_rows: tuple[float, float]
    """(centre, variance over rows) of the mean of the runs, with some right and wrong answers added."""
    rows: int
    """Hash of the rows; see `Answers.rows`."""

    @classmethod
    def of(
        cls, runs: Sequence[tuple[Seeds, Answers]], metrics: Sequence[str], labels: Sequence[str],
        num_draws: int = NUM_DRAWS,
    ) -> Sample:  # fmt: skip
        """Score each run on all rows and on every draw. The draws are the same for all methods, which pairs them."""
        seeds, answers = zip(*sorted(runs, key=lambda run: run[0]), strict=True)
        units = answers[0].units
        if set(metrics) <= set(ROW_MEANS):
            values = np.array([row_scores(metrics, item, labels) for item in answers])
            made = cls.of_values(seeds, values, units)
            scores = np.array([make_scorer(metrics, item, labels)(np.ones((1, len(units))))[0] for item in answers])
            return replace(made, runs=answers, metrics=tuple(metrics), labels=tuple(labels), scores=scores,
                           rows=answers[0].rows)  # fmt: skip
        num_units = int(units.max()) + 1
        weights = draw_units(units, num_draws)
        scorers = [make_scorer(metrics, item, labels) for item in answers]
        scores = np.array([scorer(np.ones((1, len(units))))[0] for scorer in scorers])
        draws = np.stack([scorer(weights) for scorer in scorers], axis=1)
        # of the variance over units the bootstrap gives (U - 1) / U
        factor = math.sqrt(num_units / max(1, num_units - 1) / (num_draws - 1))
        padded = padded_draws(answers, metrics, labels, weights)
        centre, spread = (float(scores.mean()), float(draws.mean(axis=1).var(ddof=1))) if padded is None else padded
        cautious = (centre, spread * num_units / max(1, num_units - 1))
        parts = factor * (draws - draws.mean(axis=0))
        return cls(seeds, answers, tuple(metrics), tuple(labels), scores, parts, None, units, cautious, answers[0].rows)

    @classmethod
    def of_values(cls, seeds: Sequence[Seeds], values: Array, units: NDArray[np.int64]) -> Sample:
        """A sample of what each row scores alone [K, N], 0-100, for metrics that are means over rows."""
        num_units, scores = int(units.max()) + 1, values.mean(axis=1)
        off = values - scores[:, None]
        sums = off if num_units == len(units) else np.array([np.bincount(units, item) for item in off])
        # a unit's part in the score is the sum of its rows' distances from the mean, over N (Cochran 1977, section 6.3)
        parts = sums.T * math.sqrt(num_units / max(1, num_units - 1)) / len(units)
        # two right and two wrong answers are added (Agresti & Coull 1998), or 28 right of 28 had no width
        padded = np.concatenate([values.mean(axis=0), [0.0, 0.0, 100.0, 100.0]])
        spread = float(padded.var(ddof=1)) / len(padded)
        if num_units < len(units):
            alone = float((off.mean(axis=0) ** 2).sum()) / (len(units) * (len(units) - 1))
            spread *= max(1.0, float((parts.mean(axis=1) ** 2).sum()) / alone) if alone else 1.0
        cautious = (float(padded.mean()), spread)
        return cls(tuple(seeds), (), ("accuracy",), (), scores, parts, values, units, cautious, 0)

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.units)

    @property
    def num_units(self) -> int:
        """U."""
        return int(self.units.max()) + 1

    @property
    def seeds_term(self) -> Term:
        """The variance between the runs, s^2; not known, and so 0 to no degrees, for one run."""
        count = len(self.scores)
        return Term(float(self.scores.var(ddof=1)), count - 1.0) if count > 1 else Term(0.0, 0.0)

    @property
    def noise(self) -> float:
        """The part of s^2 that is expected from chance in single answers, which the variance over rows has too."""
        count = len(self.scores)
        apart = self.parts - self.parts.mean(axis=1, keepdims=True)
        return float((apart**2).sum()) / max(1, count - 1)

    def estimate(self, seeds: Term | None = None) -> Estimate:
        """The mean score of the runs, with both terms of its variance; `seeds` is that of one run, instead of s^2."""
        rows = self._rows(self._mean_part, self._mean_noise)
        return Estimate(round_score(float(self.scores.mean())), self._terms(rows, seeds))

    def cautious(self, seeds: Term | None = None) -> Estimate:
        """The mean score with a variance that is not 0 if all answers are right."""
        made = self.estimate(seeds)
        rows = replace(made.terms[0], variance=max(0.0, self.cautious_rows[1] - self._mean_noise))
        return replace(made, terms=(rows, *made.terms[1:]))

    def interval(self, seeds: Term | None = None) -> tuple[float, float]:
        """Confidence interval of the mean score; with added answers, around the mean of all answers with them."""
        made = replace(self.cautious(seeds), value=self.cautious_rows[0])
        return made.interval(*metric_range(self.metrics))

    @property
    def _mean_part(self) -> Array:
        part: Array = self.parts.mean(axis=1)
        return part

    @property
    def _mean_noise(self) -> float:
        return self.noise / len(self.scores)

    def _rows(self, part: Array, noise: float) -> Term:
        return Term(max(0.0, float((part**2).sum()) - noise), max(1.0, self.num_units - 1.0))

    def _terms(self, rows: Term, seeds: Term | None) -> tuple[Term, ...]:
        found = self.seeds_term if seeds is None else seeds
        return (rows, add_terms([found], 1 / len(self.scores))) if len(self.scores) > 1 else (rows,)

    def comparable(self, other: Sample) -> bool:
        """Whether both answered the same rows, grouped alike, and are scored by the same metrics."""
        same = self.metrics == other.metrics and self.rows == other.rows
        return same and self.num_rows == other.num_rows and bool((self.units == other.units).all())

    def pairs_with(self, other: Sample) -> bool:
        """Whether the runs of both trained on the same drawn rows, one run each, so that luck of a draw is shared.

        A training seed alone pairs nothing: it gives two methods other starts.
        """
        distinct = len(set(self.seeds)) == len(self.seeds) > 1
        return distinct and self.seeds == other.seeds and all(len(item) > 1 for item in self.seeds)


def rows_gap(one: Sample, other: Sample) -> tuple[float, Term]:
    """The mean score of `one` minus that of `other`, and the variance of that over rows, which are paired.

    Without chance in single answers, which the variance between runs holds.
    """
    value = round_score(float(one.scores.mean() - other.scores.mean()))
    return value, one._rows(one._mean_part - other._mean_part, one._mean_noise + other._mean_noise)


def difference(one: Sample, other: Sample) -> Estimate:
    """The mean score of `one` minus that of `other`, from their runs alone. Rows are paired, and draws if they are."""
    value, rows = rows_gap(one, other)
    if one.pairs_with(other):
        gaps = one.scores - other.scores
        return Estimate(value, (rows, Term(float(gaps.var(ddof=1)) / len(gaps), len(gaps) - 1.0)))
    known = [item.estimate().terms[1] for item in (one, other) if len(item.scores) > 1]
    return Estimate(value, (rows, add_terms(known)) if known else (rows,))


def swap_test(one: Sample, other: Sample) -> float:
    """Two-sided p-value of the paired permutation test on the difference of mean scores.

    The k-th run of one is swapped with the k-th of the other; if one has more runs, the rest is left out.
    """
    if one.values is not None and other.values is not None:
        count = min(len(one.values), len(other.values))
        ahead = one.values[:count].mean(axis=0) - other.values[:count].mean(axis=0)
        return sign_test(np.bincount(one.units, ahead).astype(float))
    return scored_swaps(list(zip(one.runs, other.runs, strict=False)), one.units, one.metrics, one.labels)


def p_of_swaps(one: Sample, other: Sample) -> float:
    """The p-value of the swap test where it counts too, beside Student's t; else the least that it could be.

    A metric that has no fast way to score many draws would take minutes. On few units the least still counts: all draws
    of one row are that row, and a difference on it has no variance that Student's t could see.
    """
    same = one.scores.mean() == other.scores.mean()
    counts = one.num_units <= SMALL and is_vectorised(one.metrics) and not same
    return swap_test(one, other) if counts else least_p(one.num_units)


def least_p(num_units: int) -> float:
    """The smallest two-sided p-value that any swap test of so many units can have: 2 of the 2^U outcomes."""
    return 2.0 ** (1 - num_units)


def compare_samples(one: Sample, other: Sample) -> tuple[Estimate, float]:
    """The difference of two methods on a task, from their runs alone, and the p-value that there is none."""
    gap = difference(one, other)
    return gap, max(gap.p_value, p_of_swaps(one, other))


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
