"""How the best dev score of a search rises with its number of trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from harness.data import mean_score
from harness.report.boards import Entry
from harness.report.tuning import expected_best, trial_scores
from harness.report.yardstick import kinds_apart

BAND = (0.1, 0.9)
"""Shares of draws below and above which the band ends: eight of ten searches of that length lie inside."""


@dataclass(frozen=True)
class SearchCurve:
    """Best dev score after 1, 2, ... trials; the mean over searches."""

    best: list[float]
    low: list[float]
    high: list[float]
    """Ends of the band, which is empty where a search was guided: its trials have one order only."""
    is_guided: bool


def search_curve(entry: Entry) -> SearchCurve | None:
    """The curve of an entry; None without a search, where points left early, and where every point failed.

    Searches whose points were scored with different rows or metrics are left out, as in the table of searches.

    The points of a grid and of `random` might have come in any order: the curve is the expectation over orders, with
    the band of order statistics. Those of `tpe` follow from each other: the curve is the best score so far. A failed
    trial was spent too: its score is 0.
    """
    known = [
        trial_scores(search)
        for search in entry.searches
        if not kinds_apart(search)
        and not any(r.raced_out_at is not None for r in search)
        and any(r.status == "done" for r in search)  # not by its scores: a correlation of 0 is one
    ]
    if not known or max(map(len, known)) < 2:
        return None
    is_guided = any(run.cell.study.startswith("tpe-") for search in entry.searches for run in search)
    curves = [list(accumulate(scores, max)) if is_guided else expected_best(scores) for scores in known]
    bands = [
        (curve, curve) if is_guided else best_of_draws(scores) for curve, scores in zip(curves, known, strict=True)
    ]
    lows, highs = zip(*bands, strict=True)
    return SearchCurve(_means(curves), _means(lows), _means(highs), is_guided)


def best_of_draws(scores: Sequence[float]) -> tuple[list[float], list[float]]:
    """Lower and upper quantile (`BAND`) of the best of n scores drawn without replacement, for n = 1 ... B.

    The best of n of B scores is at most the i-th smallest with the probability C(i, n) / C(B, n) (David and Nagaraja
    2003, "Order Statistics", section 3.7).
    """
    ordered, total = sorted(scores), len(scores)
    ends: tuple[list[float], list[float]] = ([], [])
    for count in range(1, total + 1):
        reached = [math.comb(i, count) / math.comb(total, count) for i in range(1, total + 1)]
        for end, share in zip(ends, BAND, strict=True):
            end.append(next(score for score, part in zip(ordered, reached, strict=True) if part >= share - 1e-12))
    return ends


def _means(curves: Sequence[Sequence[float]]) -> list[float]:
    """The mean of several curves, as far as the shortest goes."""
    return [mean_score(values) for values in zip(*curves, strict=False)]
