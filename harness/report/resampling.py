"""Scores of one run on drawn rows: a metric as a function of how often each row was drawn.

`weights` [D, N] holds D draws of the N rows of a split; a row that was drawn twice has weight 2. Accuracy, exact match
and token F1 are weighted means of what each row scores by itself; F1, Matthews and the correlations bring a scorer of
weighted rows, the one that their score of the whole split comes from. Any other metric is computed anew for each draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from harness.metrics import get_metric
from harness.scores import DIGITS
from harness.weighted import Array, Scorer

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
    parts = [_scorer(name, answers, labels) for name in metrics]

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
    return all(name in ROW_MEANS or get_metric(name).scorer is not None for name in metrics)


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


def _scorer(name: str, answers: Answers, labels: Sequence[str]) -> Scorer:
    if name in ROW_MEANS:
        values = _alone(name, answers, labels)
        return lambda weights: weights @ values / weights.sum(axis=1)
    make = get_metric(name).scorer
    if make is not None:
        return make(answers.predictions, [refs[0] for refs in answers.references], labels)
    return _anew(name, answers, labels)


def _anew(name: str, answers: Answers, labels: Sequence[str]) -> Scorer:
    """Any metric at all: the drawn rows are written out and scored."""
    metric = get_metric(name)

    def one(weights: Array) -> float:
        rows = np.repeat(np.arange(len(weights)), weights.astype(int)).tolist()
        texts, refs = [answers.predictions[i] for i in rows], [answers.references[i] for i in rows]
        return metric.score(texts, refs, labels)

    return lambda weights: np.array([one(row) for row in weights])


_CORRELATIONS = ("matthews", "pearson", "spearman")
