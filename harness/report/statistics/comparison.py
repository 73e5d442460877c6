"""Compares the entries of a table with each other: intervals, differences, and who can be told from the best.

It takes samples, task by task, and keeps of each what the comparison needs, which is little: the variance of seeds is
learnt from all of them before any interval or test is made.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal

from harness.report.statistics.best import cannot_be_best, chance_of_gap
from harness.report.statistics.intervals import (
    LEVEL,
    Estimate,
    Sample,
    Term,
    add_terms,
    least_p,
    mean_of,
    p_of_swaps,
    rows_gap,
)
from harness.report.statistics.resampling import metric_range
from harness.report.statistics.seeds import Spread, pool_seeds, spread_of

AVERAGE = "average"
"""Name of the column with the average over tasks."""
EntryKey = tuple[str, str]
"""(name of the row, task or AVERAGE)"""
FEW_SEEDS = "too few seeds"
"""Why an entry cannot be told that could be, were the variance of seeds known."""


@dataclass(frozen=True)
class Verdict:
    """What the statistics say of an entry beside the best of its column, among rows of one k."""

    kind: Literal["best", "tied", "differs", "cannot tell"]
    """`best` has the highest score; `tied` was tested and cannot be told from it; `differs` is not the best."""
    reason: str = ""
    """Why it cannot be told; empty otherwise."""
    p_value: float | None = None
    """Of the claim that the entry is not the best, corrected over the table; None where it was not tested."""


@dataclass(frozen=True)
class Gap:
    """The difference of two entries of a column."""

    estimate: Estimate
    p_swaps: float = 0.0
    """Of the swap test; where there are rows enough without it, and for an average, the least that it could be."""

    @property
    def p_value(self) -> float:
        """Two-sided, of the hypothesis that there is none: the larger of Student's and the swap test's."""
        return max(self.estimate.p_value, self.p_swaps)


Gaps = dict[tuple[str, str], Gap]
"""(one, other) -> the score of `one` minus that of `other`."""


@dataclass(frozen=True)
class _Difference:
    """What is known of a difference before the variance of seeds is."""

    value: float
    rows: Term
    p_swaps: float
    shares_draws: bool
    num_units: int


@dataclass
class Comparison:
    """The entries of rows that may be ranked against each other."""

    intervals: dict[EntryKey, tuple[float, float]] = field(default_factory=dict)
    gaps: dict[str, Gaps] = field(default_factory=dict)
    """Column -> the differences of all entries that have several runs on the same rows."""
    _estimates: dict[EntryKey, tuple[float, Estimate, tuple[float, float], int]] = field(default_factory=dict)
    """Middle of the interval, estimate without seeds, limits of the metric, and number of runs of each entry."""
    _spreads: dict[EntryKey, Spread] = field(default_factory=dict)
    _matched: dict[EntryKey, Spread] = field(default_factory=dict)
    """Spreads without the luck of drawn training rows, of entries that share their draws with others."""
    _differences: dict[tuple[str, str, str], _Difference] = field(default_factory=dict)

    def add_task(self, task: str, samples: Mapping[str, Sample]) -> None:
        """Take what is needed of the samples of a task, row name -> sample."""
        several = {name: sample for name, sample in samples.items() if len(sample.scores) > 1}
        for name, sample in samples.items():
            estimate = sample.cautious()
            estimate = replace(estimate, terms=estimate.terms[:1])
            limits = metric_range(sample.metrics)
            self._estimates[name, task] = sample.cautious_rows[0], estimate, limits, len(sample.scores)
        for name, sample in several.items():
            shared = [other for other in several.values() if other is sample or sample.pairs_with(other)]
            spread = spread_of(sample)
            self._spreads[name, task] = replace(spread, counted=spread.degrees / len(shared))
            if len(shared) > 1:
                self._matched[name, task] = spread_of(sample, shared)
        for (one, first), (other, second) in itertools.combinations(several.items(), 2):
            if first.comparable(second):
                value, rows = rows_gap(first, second)
                p_swaps, shares = p_of_swaps(first, second), first.pairs_with(second)
                self._differences[task, one, other] = _Difference(value, rows, p_swaps, shares, first.num_units)

    def finish(self, tasks: Sequence[str]) -> None:
        """Learn the variance of seeds from all entries, then make intervals and differences of tasks and averages."""
        seeds = _pooled(self._spreads)
        matched = _pooled(self._spreads | self._matched) if self._matched else seeds
        self._add_intervals(tasks, seeds)
        columns: dict[str, Gaps] = defaultdict(dict)
        for (task, one, other), item in self._differences.items():
            known = matched if item.shares_draws else seeds
            each = [add_terms([known[name, task]], 1 / self._estimates[name, task][3]) for name in (one, other)]
            columns[task][one, other] = Gap(Estimate(item.value, (item.rows, add_terms(each))), item.p_swaps)
        for pair in list(columns[tasks[0]]) if len(tasks) > 1 else ():
            found = [columns[task][pair].estimate for task in tasks if pair in columns[task]]
            if len(found) == len(tasks):
                num_units = sum(self._differences[task, *pair].num_units for task in tasks)
                columns[AVERAGE][pair] = Gap(mean_of(found), least_p(num_units))
        self.gaps = {column: gaps for column, gaps in columns.items() if gaps}

    def _add_intervals(self, tasks: Sequence[str], seeds: Mapping[EntryKey, Term]) -> None:
        whole = {}
        for key, (centre, estimate, limits, count) in self._estimates.items():
            several = [add_terms([seeds[key]], 1 / count)] if key in seeds else []
            whole[key] = replace(estimate, terms=(*estimate.terms, *several))
            self.intervals[key] = replace(whole[key], value=centre).interval(*limits)
        for name in dict.fromkeys(name for name, _ in self._estimates) if len(tasks) > 1 else ():
            keys = [(name, task) for task in tasks]
            if all(key in whole for key in keys):  # else the row has no average either
                low, high = (fmean(ends) for ends in zip(*(self._estimates[key][2] for key in keys), strict=True))
                self.intervals[name, AVERAGE] = mean_of([whole[key] for key in keys]).interval(low, high)


def _pooled(spreads: Mapping[EntryKey, Spread]) -> dict[EntryKey, Term]:
    return dict(zip(spreads, pool_seeds(list(spreads.values())), strict=True))


def judge(means: Mapping[str, float], gaps: Gaps, num_families: int) -> dict[str, Verdict]:
    """The verdict of each entry of a column that could be tested against the best of those that could.

    `means` is entry -> score, for at least all entries in `gaps`; `num_families` is the number of columns over which
    the chance of a false claim is divided.
    """
    top = max((name for pair in gaps for name in pair), key=lambda name: means[name])
    beside = {other if one == top else one: gap for (one, other), gap in gaps.items() if top in (one, other)}
    order = sorted(beside, key=lambda name: means[name])
    ratios = [beside[name].estimate.ratio for name in order]
    degrees = [beside[name].estimate.degrees for name in order]
    p_values = cannot_be_best(ratios, degrees, [beside[name].p_swaps for name in order])
    made = {top: Verdict("best")}
    for lower, name in enumerate(order):
        adjusted = min(1.0, num_families * p_values[lower])
        if adjusted < LEVEL:
            made[name] = Verdict("differs", p_value=adjusted)
            continue
        # if it were told apart with the variance of seeds known exactly, few runs leave it open: that is no tie
        num_low = len(order) + 1 - lower
        known = max(
            chance_of_gap(ratios[lower], len(order) + 1, num_low, math.inf),
            beside[name].p_swaps / 2 * num_low * len(order),
        )
        few = num_families * known < LEVEL
        made[name] = Verdict("cannot tell" if few else "tied", FEW_SEEDS if few else "", adjusted)
    return made
