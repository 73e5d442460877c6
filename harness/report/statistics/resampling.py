"""Scores of one run on bootstrap samples: a metric as a function of how often each row was drawn.

Shapes: D draws, N rows of a split. `weights` [D, N] says how often a draw holds each row: 0, 1, 2, ...

Three kinds of metric are computed in three ways. Accuracy, exact match, token F1 and ROUGE are weighted means of what
each row scores alone. F1, Matthews, the correlations, BLEU and chrF have a scorer of weighted rows in `harness.data`,
which also makes their score of the whole split. Any other metric is computed from scratch on the rows of each draw,
which is slow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from harness.data import DIGITS, METRICS, Array, Scorer, get_metric
from harness.results import Answers

NUM_DRAWS = 1_000
"""Bootstrap samples. They give a standard error that is itself known to 1 / sqrt(2 * 1,000) = 2.2 %; ten times as many
would give 0.7 % for ten times the time and memory."""
ADDED = 2.0
"""Right answers added for caution, and as many wrong ones, as Agresti and Coull (1998) add to a share."""
COUNTED = ("accuracy", "f1", "macro_f1", "matthews")
"""Metrics of labels: functions of how often each label was answered where each was right."""
ROW_MEANS = tuple(name for name, metric in METRICS.items() if metric.is_row_mean)
"""Metrics that are the mean of what each row scores alone."""


def make_scorer(metrics: Sequence[str], answers: Answers, labels: Sequence[str]) -> Scorer:
    """A function from weights [D, N] to scores [D], 0-100: the mean of `metrics`, as `harness.data` defines them."""
    scorers = [_scorer(name, answers, labels) for name in metrics]

    def score(weights: Array) -> Array:
        # rounded as `round_score` does, so that a draw of all rows once gives the very score of the table
        scores: Array = np.round(_mean([scorer(weights) for scorer in scorers]), DIGITS) + 0.0
        return scores

    return score


def row_scores(metrics: Sequence[str], answers: Answers, labels: Sequence[str]) -> Array:
    """What each row scores alone [N], 0-100. All `metrics` must be ROW_MEANS."""
    return _mean([_alone(name, answers, labels) for name in metrics])


def metric_range(metrics: Sequence[str]) -> tuple[float, float]:
    """The lowest and highest value of the mean of `metrics`; infinite for metrics whose range is not known here."""
    if not is_vectorised(metrics):
        return -math.inf, math.inf
    return float(np.mean([-100.0 if name in _CORRELATIONS else 0.0 for name in metrics])), 100.0


def is_vectorised(metrics: Sequence[str]) -> bool:
    """Whether all metrics have a fast way to score many draws at once."""
    return all(name in ROW_MEANS or get_metric(name).scorer is not None for name in metrics)


# One array is kept: a table goes task by task, and all its rows use the same draws. At 1,000 draws of 40,000 rows one
# takes 320 MB.
@lru_cache(maxsize=1)
def draw_weights(num_rows: int, num_draws: int, seed: int = 0) -> Array:
    """Weights [D, N] of D = `num_draws` bootstrap samples of N = `num_rows` rows.

    The seed is fixed, so all runs with as many rows get the same draws: that pairs the rows of two methods.
    """
    generator = np.random.default_rng([seed, num_rows])
    drawn = generator.integers(num_rows, size=(num_draws, num_rows))
    # one count over all draws at once: row r of draw d has the number d * N + r
    numbers = drawn + num_rows * np.arange(num_draws)[:, None]
    counts = np.bincount(numbers.ravel(), minlength=num_draws * num_rows)
    weights = counts.reshape(num_draws, num_rows).astype(np.float64)
    weights.flags.writeable = False  # the cached array is shared by all callers
    return weights


def draw_units(units: NDArray[np.int64], num_draws: int) -> Array:
    """Weights [D, N] of bootstrap samples of whole units; `units` [N] is the unit of each row, from 0."""
    num_units = int(units.max()) + 1
    drawn = draw_weights(num_units, num_draws)
    return drawn if num_units == len(units) else drawn[:, units]


def padded_draws(
    runs: Sequence[Answers], metrics: Sequence[str], labels: Sequence[str], weights: Array
) -> tuple[float, float] | None:
    """Centre and variance over draws of the mean score of `runs`, with right and wrong answers added to each.

    Where all answers are right every draw scores 100, and an interval made of the draws would have no width. So ADDED
    right and ADDED wrong answers are spread evenly over the labels and over what they are taken for. A draw holds each
    a Poisson number of times. None for metrics that are not all COUNTED.
    """
    if not set(metrics) <= set(COUNTED) or len(labels) < 2:
        return None
    pairs = [(truth, answer) for truth in labels for answer in labels]
    count = len(labels)
    shares = [ADDED / count if truth == answer else ADDED / (count * (count - 1)) for truth, answer in pairs]
    added = Answers([answer for _, answer in pairs], [[truth] for truth, _ in pairs])
    scorers = [make_scorer(metrics, run + added, labels) for run in runs]
    extra = np.random.default_rng(len(weights)).poisson(shares, (len(weights), len(shares)))
    draws = _mean([scorer(np.hstack([weights, extra])) for scorer in scorers])
    whole = np.concatenate([np.ones(weights.shape[1]), shares])[None]
    return float(np.mean([scorer(whole)[0] for scorer in scorers])), float(draws.var(ddof=1))


def _mean(values: Sequence[Array]) -> Array:
    """Mean over metrics, elementwise."""
    mean: Array = np.mean(values, axis=0)
    return mean


def _alone(name: str, answers: Answers, labels: Sequence[str]) -> Array:
    """The metric of each row alone [N], 0-100."""
    # labels repeat: 3,000 answers of two labels are four distinct pairs, and token F1 is slow
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
        return make(answers.predictions, answers.references, labels)
    return _from_scratch(name, answers, labels)


def _from_scratch(name: str, answers: Answers, labels: Sequence[str]) -> Scorer:
    """For any metric: writes the drawn rows out and scores them, one draw at a time."""
    metric = get_metric(name)

    def one(weights: Array) -> float:
        rows = np.repeat(np.arange(len(weights)), weights.astype(int)).tolist()
        texts, refs = [answers.predictions[i] for i in rows], [answers.references[i] for i in rows]
        return metric.score(texts, refs, labels)

    return lambda weights: np.array([one(row) for row in weights])


_CORRELATIONS = ("matthews", "pearson", "spearman")
