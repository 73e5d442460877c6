"""Metrics that are not a mean over rows, such as F1 and correlations, computed for rows with weights.

`weights` is [D, N]: D ways to count the N rows of a split, where a row that counts twice has weight 2. The score of the
whole split has weights of 1. A bootstrap sample has the number of times that each row was drawn, so the scores of a
thousand samples are a few matrix products. Scores and statistics share this code and so cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Scorer = Callable[[Array], Array]
"""weights [D, N] -> scores [D] in percent points."""

LEAST_SPREAD = 1e-13
"""Numbers that differ by less than this share of the largest count as equal. float64 has 16 digits and a
mean over many rows errs in the last two or three: below this a difference from the mean is rounding, and a correlation
would be one of rounding errors."""


def f1_scorer(predictions: Sequence[str], truth: Sequence[str], labels: Sequence[str]) -> Scorer:
    """Make the scorer for the F1 of the second of two labels; an output that is no label counts as the wrong one."""
    positive = labels[1]
    actual = _equal(truth, positive)
    readable = np.array([text in labels for text in predictions], bool)
    predicted = np.where(readable, _equal(predictions, positive), ~actual)
    return lambda weights: 100 * _f1(predicted, actual, weights)


def macro_f1_scorer(predictions: Sequence[str], truth: Sequence[str], labels: Sequence[str]) -> Scorer:
    """Make the scorer for the unweighted mean of the classes' F1.

    A class that no answer and no target has counts 0, as in T5's code.
    """
    pairs = [(_equal(predictions, label), _equal(truth, label)) for label in labels]
    return lambda weights: 100 * np.mean([_f1(predicted, actual, weights) for predicted, actual in pairs], axis=0)


def matthews_scorer(predictions: Sequence[str], truth: Sequence[str], labels: Sequence[str]) -> Scorer:
    """Make the scorer for the multi-class Matthews correlation (Gorodkin 2004, eq. 8).

    It is 0 if all answers or all targets are alike.
    """
    codes = {text: code for code, text in enumerate(dict.fromkeys([*predictions, *truth]))}
    answered, wanted = (np.array([codes[text] for text in texts]) for texts in (predictions, truth))
    hits = (answered == wanted).astype(float)
    # `_sums` orders by code, and either side may lack codes: columns of the classes that both sides have
    _, in_answers, in_truth = np.intersect1d(np.unique(answered), np.unique(wanted), return_indices=True)

    def score(weights: Array) -> Array:
        total, correct = weights.sum(axis=1), weights @ hits
        predicted, actual = _sums(weights, answered), _sums(weights, wanted)
        covariance = correct * total - (predicted[:, in_answers] * actual[:, in_truth]).sum(axis=1)
        spread = np.sqrt((total**2 - (predicted**2).sum(axis=1)) * (total**2 - (actual**2).sum(axis=1)))
        scores: Array = np.divide(100 * covariance, spread, out=np.zeros_like(spread), where=spread > 0)
        return scores

    return score


def pearson_scorer(predictions: Sequence[str], truth: Sequence[str], labels: Sequence[str]) -> Scorer:
    """Pearson correlation x100; an unreadable output counts as -1.0, an undefined correlation as 0.

    It is undefined where either side does not vary, and where an answer that counts is `nan` or without bound.
    """
    got, want = _number_pair(predictions, truth)
    return lambda weights: _correlation(weights, np.broadcast_to(got, weights.shape), want)


def spearman_scorer(predictions: Sequence[str], truth: Sequence[str], labels: Sequence[str]) -> Scorer:
    """Spearman rank correlation x100, of mid-ranks; as `pearson_scorer`, but `inf` has a rank like any number."""
    got, want = _number_pair(predictions, truth)

    def score(weights: Array) -> Array:
        ranks = np.where(np.isnan(got), np.nan, _ranks(weights, got))
        return _correlation(weights, ranks, _ranks(weights, want))

    return score


def number(text: str) -> float | None:
    """Return the finite number that a text spells, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def as_numbers(predictions: Sequence[str]) -> list[float]:
    """Outputs as finite numbers, -1.0 for an unreadable one (no score of a task is negative)."""
    found = [number(text) for text in predictions]
    return [-1.0 if value is None else value for value in found]


def _float_of(text: str) -> float:
    """What the authors' `string_to_float` makes of an answer: `nan` and `inf` are floats, what is none is -1.0."""
    try:
        return float(text)
    except ValueError:
        return -1.0


def _equal(texts: Sequence[str], label: str) -> NDArray[np.bool_]:
    # compared in Python: a NumPy array of texts drops zero characters at their ends, so "1\0" would equal "1"
    return np.array([text == label for text in texts], bool)


def _f1(predicted: NDArray[np.bool_], actual: NDArray[np.bool_], weights: Array) -> Array:
    """Return the F1 of one class in each draw, 0 to 1: [N], [N], [D, N] -> [D]. It is 0 where the class is nowhere."""
    hits = weights @ (predicted & actual)
    total = weights @ (predicted.astype(float) + actual)
    scores: Array = np.divide(2 * hits, total, out=np.zeros(len(weights)), where=total > 0)
    return scores


def _sums(weights: Array, codes: NDArray[np.int64]) -> Array:
    """Return the weight of each code in each draw: [D, N], [N] -> [D, C], C codes in ascending order.

    Sums over sorted columns need no [N, C] matrix: a run may answer as many different texts as it has rows.
    """
    order = np.argsort(codes, kind="stable")
    _, starts = np.unique(codes[order], return_index=True)
    sums: Array = np.add.reduceat(weights[:, order], starts, axis=1)
    return sums


def _number_pair(predictions: Sequence[str], truth: Sequence[str]) -> tuple[Array, Array]:
    return np.array([_float_of(text) for text in predictions]), np.array([float(text) for text in truth])


def _ranks(weights: Array, values: Array) -> Array:
    """Return the ranks of the values in each draw, equal values sharing their mean rank: [D, N], [N] -> [D, N].

    A row that was drawn twice takes two ranks.
    """
    _, codes = np.unique(values, return_inverse=True)
    sizes = _sums(weights, codes)
    middles = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
    ranks: Array = middles[:, codes]
    return ranks


def _correlation(weights: Array, got: Array, want: Array) -> Array:
    """Weighted Pearson correlation x100 per draw; 0 where one side does not vary, or a counted `got` is not finite."""
    counted = weights > 0
    is_defined = ~(counted & ~np.isfinite(got)).any(axis=1)
    got = np.where(np.isfinite(got), got, 0.0)
    share = weights / weights.sum(axis=1, keepdims=True)
    got, want = _centred(got, share, counted), _centred(want, share, counted)
    spread = np.sqrt((share * got**2).sum(axis=1) * (share * want**2).sum(axis=1))
    value: Array = np.divide(
        100 * (share * got * want).sum(axis=1), spread, out=np.zeros_like(spread), where=is_defined & (spread > 0)
    )
    return np.clip(value, -100, 100)


def _centred(values: Array, share: Array, counted: NDArray[np.bool_]) -> Array:
    """Return values less their weighted mean, scaled so that the largest is 1, [D, N].

    A correlation does not change by scaling, and without it squares of 1e308 would overflow and those of 1e-308 vanish.
    All is 0 in a draw whose values are alike, and for rows that have no weight in it.
    """
    values = _scaled(np.where(counted, values, 0.0))
    lowest = np.where(counted, values, np.inf).min(axis=1, keepdims=True)
    highest = np.where(counted, values, -np.inf).max(axis=1, keepdims=True)
    centred = np.where(counted, values - (share * values).sum(axis=1, keepdims=True), 0.0)
    return _scaled(np.where(highest - lowest > LEAST_SPREAD, centred, 0.0))


def _scaled(values: Array) -> Array:
    """Return each draw's values divided by the largest of their sizes, [D, N]."""
    largest = np.abs(values).max(axis=1, keepdims=True)
    return values / np.where(largest > 0, largest, 1.0)
