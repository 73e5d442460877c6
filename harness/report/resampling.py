"""Scores of one run on drawn rows: a metric as a function of how often each row was drawn.

`weights` [D, N] holds D draws of the N rows of a split; a row that was drawn twice has weight 2. Accuracy, exact match
and token F1 are weighted means of what each row scores by itself; F1, Matthews and the correlations are functions of
weighted sums, so that a thousand draws are a few matrix products. Any other metric is computed anew for each draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from harness.metrics import get_metric, numbers
from harness.scores import DIGITS

Array = NDArray[np.float64]
Scorer = Callable[[Array], Array]
"""weights [D, N] -> scores [D] in percent points."""

ROW_MEANS = ("accuracy", "exact_match", "token_f1")
"""Metrics that are the mean of what each row scores by itself."""


@dataclass(frozen=True)
class Answers:
    """What one run answered on one split, and what would have been right."""

    predictions: Sequence[str]
    references: Sequence[Sequence[str]]

    @property
    def rows(self) -> int:
        """Hash of the references: runs with the same were asked the same."""
        return hash(tuple(tuple(refs) for refs in self.references))

    def __add__(self, other: Answers) -> Answers:
        return Answers([*self.predictions, *other.predictions], [*self.references, *other.references])


def make_scorer(metrics: Sequence[str], answers: Answers, labels: Sequence[str]) -> Scorer:
    """The mean of `metrics`, as `harness.metrics` defines them and settled as there, as a function of weights."""
    parts = [_SCORERS.get(name, _anew(name))(answers, labels) for name in metrics]

    def score(weights: Array) -> Array:
        scores: Array = np.round(_mean([part(weights) for part in parts]), DIGITS) + 0.0  # as `scores.settled`
        return scores

    return score


def row_scores(metrics: Sequence[str], answers: Answers, labels: Sequence[str]) -> Array:
    """What each row scores by itself [N], 0-100, where all metrics are ROW_MEANS."""
    return _mean([_alone(name, answers, labels) for name in metrics])


def bounds(metrics: Sequence[str]) -> tuple[float, float]:
    """The least and the most that the mean of `metrics` can be; no limit is known for those of other libraries."""
    if not is_vectorised(metrics):
        return -math.inf, math.inf
    return float(np.mean([-100.0 if name in _CORRELATIONS else 0.0 for name in metrics])), 100.0


def is_vectorised(metrics: Sequence[str]) -> bool:
    """Whether thousands of draws cost little."""
    return all(name in _SCORERS for name in metrics)


@lru_cache(maxsize=1)  # a table goes task by task, and all rows of a task are on the same draws
def draw_weights(num_rows: int, num_draws: int, seed: int = 0) -> Array:
    """Weights [D, N] of `num_draws` bootstrap samples of all rows; the same for every run on as many rows."""
    generator = np.random.default_rng([seed, num_rows])
    drawn = generator.integers(num_rows, size=(num_draws, num_rows))
    places = drawn + num_rows * np.arange(num_draws)[:, None]
    counts = np.bincount(places.ravel(), minlength=num_draws * num_rows)
    weights = counts.reshape(num_draws, num_rows).astype(np.float64)
    weights.flags.writeable = False
    return weights


def _mean(parts: Sequence[Array]) -> Array:
    mean: Array = np.mean(parts, axis=0)
    return mean


def _alone(name: str, answers: Answers, labels: Sequence[str]) -> Array:
    """The metric of each row alone; equal rows are scored once."""
    score = get_metric(name).score
    keys = [(text, tuple(refs)) for text, refs in zip(answers.predictions, answers.references, strict=True)]
    known = {(text, refs): score([text], [refs], labels) for text, refs in set(keys)}
    return np.array([known[key] for key in keys])


def _mean_of_rows(name: str) -> Callable[[Answers, Sequence[str]], Scorer]:
    def make(answers: Answers, labels: Sequence[str]) -> Scorer:
        values = _alone(name, answers, labels)
        return lambda weights: weights @ values / weights.sum(axis=1)

    return make


def _f1(predicted: NDArray[np.bool_], actual: NDArray[np.bool_], weights: Array) -> Array:
    hits = weights @ (predicted & actual)
    total = weights @ (predicted.astype(float) + actual)
    scores: Array = np.divide(200 * hits, total, out=np.zeros(len(weights)), where=total > 0)
    return scores


def _binary_f1(answers: Answers, labels: Sequence[str]) -> Scorer:
    texts, truth = np.array(answers.predictions), _truth(answers)
    positive = labels[1]
    unreadable = ~np.isin(texts, labels)
    predicted = np.where(unreadable, truth != positive, texts == positive)
    return lambda weights: _f1(predicted, truth == positive, weights)


def _macro_f1(answers: Answers, labels: Sequence[str]) -> Scorer:
    texts, truth = np.array(answers.predictions), _truth(answers)
    pairs = [(texts == label, truth == label) for label in labels]
    return lambda weights: _mean([_f1(predicted, actual, weights) for predicted, actual in pairs])


def _matthews(answers: Answers, labels: Sequence[str]) -> Scorer:
    texts, truth = np.array(answers.predictions), _truth(answers)
    classes = sorted({*answers.predictions, *truth})
    is_answer = np.stack([texts == name for name in classes], axis=1).astype(float)
    is_truth = np.stack([truth == name for name in classes], axis=1).astype(float)

    def score(weights: Array) -> Array:
        total, correct = weights.sum(axis=1), weights @ (texts == truth)
        predicted, actual = weights @ is_answer, weights @ is_truth
        covariance = correct * total - (predicted * actual).sum(axis=1)
        spread = np.sqrt((total**2 - (predicted**2).sum(axis=1)) * (total**2 - (actual**2).sum(axis=1)))
        scores: Array = np.divide(100 * covariance, spread, out=np.zeros_like(spread), where=spread > 0)
        return scores

    return score


def _pearson(answers: Answers, labels: Sequence[str]) -> Scorer:
    got, want = _number_pair(answers)
    return lambda weights: _correlation(weights, np.broadcast_to(got, weights.shape), want)


def _spearman(answers: Answers, labels: Sequence[str]) -> Scorer:
    got, want = _number_pair(answers)
    return lambda weights: _correlation(weights, _ranks(weights, got), _ranks(weights, want))


def _number_pair(answers: Answers) -> tuple[Array, Array]:
    return np.array(numbers(answers.predictions)), _truth(answers).astype(float)


def _ranks(weights: Array, values: Array) -> Array:
    """Mid-ranks [D, N] of the values in each draw: a drawn row counts as often as it was drawn."""
    distinct, codes = np.unique(values, return_inverse=True)
    sizes = np.zeros((len(weights), len(distinct)))
    for code in range(len(distinct)):
        sizes[:, code] = weights[:, codes == code].sum(axis=1)
    middles = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
    ranks: Array = middles[:, codes]
    return ranks


def _correlation(weights: Array, got: Array, want: Array) -> Array:
    """Weighted Pearson correlation x100 per draw; 0 where one side does not vary."""
    share = weights / weights.sum(axis=1, keepdims=True)
    # values far from what scores of a task can be overflow; they correlate with nothing, as in harness.metrics
    with np.errstate(all="ignore"):
        got = got - (share * got).sum(axis=1, keepdims=True)
        want = want - (share * want).sum(axis=1, keepdims=True)
        spread = np.sqrt((share * got**2).sum(axis=1) * (share * want**2).sum(axis=1))
        value = 100 * (share * got * want).sum(axis=1) / np.where(spread > 1e-12, spread, np.inf)
    return np.where(np.isfinite(value), value, 0.0)


def _anew(name: str) -> Callable[[Answers, Sequence[str]], Scorer]:
    """Any metric at all: the drawn rows are written out and scored."""

    def make(answers: Answers, labels: Sequence[str]) -> Scorer:
        metric = get_metric(name)

        def one(weights: Array) -> float:
            rows = np.repeat(np.arange(len(weights)), weights.astype(int)).tolist()
            texts, refs = [answers.predictions[i] for i in rows], [answers.references[i] for i in rows]
            return metric.score(texts, refs, labels)

        return lambda weights: np.array([one(row) for row in weights])

    return make


def _truth(answers: Answers) -> NDArray[np.str_]:
    return np.array([refs[0] for refs in answers.references])


_SCORERS: dict[str, Callable[[Answers, Sequence[str]], Scorer]] = {
    **{name: _mean_of_rows(name) for name in ROW_MEANS},
    "f1": _binary_f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
_CORRELATIONS = ("matthews", "pearson", "spearman")
