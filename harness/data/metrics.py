"""Metrics and scores: the texts that a model wrote, compared with the texts that count as right.

A metric takes the predictions of N rows and for each row a list of accepted references. It returns percent points:
0 to 100, correlations -100 to 100. It reads the decoded text, never class ids, so an output that is no label counts as
wrong (in T5's code for CB it counts as class 0). A score is a mean of metrics. Both are rounded once, where they are
computed, so that equal scores compare as equal.

Metrics that are no mean over rows, such as F1 and correlations, are computed for rows with weights [D, N]: D ways to
count the N rows. A row that counts twice has weight 2. The score of a whole split has weights of 1. A bootstrap sample
has the number of times that each row was drawn, so the scores of a thousand samples are a few matrix products. Scores
and their intervals share this code and so cannot disagree.

Metrics of written texts by libraries: `text_metrics`. Any metric of the `evaluate` library: `foreign_metrics`.
"""

from __future__ import annotations

import math
import re
import statistics
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.data.foreign_metrics import FOREIGN, Predictions, References, Score, load_foreign
from harness.data.text_metrics import bleu_scorer, chrf_scorer, is_same_number, rouge
from harness.errors import UserError, require_choice

Array = NDArray[np.float64]
Scorer = Callable[[Array], Array]
"""weights [D, N] -> scores [D] in percent points."""
MakeScorer = Callable[[Predictions, References, Sequence[str]], Scorer]
"""(predictions, references, labels) -> a scorer of weighted rows."""
MakeLabelScorer = Callable[[Predictions, Sequence[str], Sequence[str]], Scorer]
"""The same for metrics that compare with the first reference of each row alone."""

LEAST_SPREAD = 1e-13
"""Numbers that differ by less than this share of the largest count as equal. float64 has 16 digits and a
mean over many rows errs in the last two or three: below this a difference from the mean is rounding, and a correlation
would be one of rounding errors."""

DIGITS = 9
"""Digits kept after the decimal point of a score in percent. Float arithmetic is wrong from about the 13th digit on
(100 * 0.28 = 28.000000000000004). Two different accuracies on a million rows differ in the fourth (100 / 1,000,000), so
nine digits remove the noise and keep every real difference."""


def round_score(value: float) -> float:
    """`value` rounded to DIGITS."""
    return round(value, DIGITS) + 0.0  # adding 0.0 turns -0.0 into 0.0, which prints without a sign


def mean_score(values: Iterable[float]) -> float:
    """Arithmetic mean of scores, rounded as a score: over metrics, tasks, runs or drawn rows.

    Raises statistics.StatisticsError if `values` is empty.
    """
    return round_score(statistics.fmean(values))


def sample_std(values: Sequence[float]) -> float | None:
    """Sample standard deviation (divided by n - 1) of scores; None for fewer than two."""
    return round_score(statistics.stdev(values)) if len(values) > 1 else None


@dataclass(frozen=True)
class Metric:
    """A metric's function, and how tables print it. Higher is better in every metric."""

    name: str
    label: str
    score: Score
    scorer: MakeScorer | None = None
    """Makes the scorer for weighted rows, which bootstrap samples need. None for a metric that is a mean over rows, and
    for one of the `evaluate` library."""
    is_row_mean: bool = False
    """Whether it is the mean of what each row scores alone."""


def compute_metrics(
    names: Sequence[str], predictions: Predictions, references: References, labels: Sequence[str]
) -> dict[str, float]:
    """Return each named metric of one split, rounded as all scores are.

    Raises UserError for an empty split or an unknown metric.
    """
    if not references:
        raise UserError("a split without rows cannot be scored")
    return {name: round_score(get_metric(name).score(predictions, references, labels)) for name in names}


def get_metric(name: str) -> Metric:
    """Return the metric called `name`, or the one of the `evaluate` library that it describes (`load_foreign`).

    Raises UserError if there is no such metric or it cannot be loaded.
    """
    if name.startswith(FOREIGN):
        return Metric(name, name, load_foreign(name, METRICS))
    return METRICS[require_choice(name, METRICS, kind="metric")]


def count_unreadable(
    predictions: Predictions, labels: Sequence[str], numeric: bool, references: References | None = None
) -> int:
    """Count the predictions that are no label of the task, or for a regression no number.

    Of a task with texts as answers, empty ones count. A row with an empty reference is left out: there it is right to
    say nothing.
    """
    if numeric:
        return sum(number(text) is None for text in predictions)
    if labels:
        return sum(text not in labels for text in predictions)
    if references is None:
        return sum(not text for text in predictions)
    return sum(not text and all(refs) for text, refs in zip(predictions, references, strict=True))


def normalize_answer(text: str) -> str:
    """Return the text as SQuAD's script normalises it: lower case, no ASCII punctuation, no articles, single blanks."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def accuracy(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Return the share of predictions that equal one of their references, in percent."""
    return 100 * _mean([float(p in refs) for p, refs in zip(predictions, references, strict=True)])


def token_f1(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Return SQuAD's token F1 in percent, of each row's best reference (Rajpurkar et al. 2016).

    Where the answer or the reference has no words, as for a question without answer, it is 100 if both have none, else
    0 (SQuAD 2.0).
    """
    return 100 * _mean([max(_overlap(p, r) for r in refs) for p, refs in zip(predictions, references, strict=True)])


def exact_match(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Return the share of predictions that equal a reference after SQuAD's normalisation, in percent."""
    hits = [
        float(any(normalize_answer(p) == normalize_answer(r) for r in refs))
        for p, refs in zip(predictions, references, strict=True)
    ]
    return 100 * _mean(hits)


def numeric_match(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Return the share of answers with the number of one of their references (`is_same_number`), in percent.

    A reference without a number is compared as `exact_match` does.
    """

    def is_right(answer: str, reference: str) -> bool:
        same = is_same_number(answer, reference)
        return normalize_answer(answer) == normalize_answer(reference) if same is None else same

    return 100 * _mean(
        [float(any(is_right(p, r) for r in refs)) for p, refs in zip(predictions, references, strict=True)]
    )


def f1_scorer(predictions: Sequence[str], truth: Sequence[str], labels: Sequence[str]) -> Scorer:
    """Make the scorer for the F1 of the second of two labels; an output that is no label counts as the wrong one."""
    positive = labels[1]
    actual = _equal(truth, positive)
    readable = np.array([text in labels for text in predictions], bool)
    predicted = np.where(readable, _equal(predictions, positive), ~actual)
    return lambda weights: 100 * _f1(predicted, actual, weights)


def macro_f1_scorer(predictions: Sequence[str], truth: Sequence[str], labels: Sequence[str]) -> Scorer:
    """Make the scorer for the unweighted mean of the classes' F1; an output that is no label matches no class.

    A class that no answer and no target has counts 0, as in T5's code.
    """
    pairs = [(_equal(predictions, label), _equal(truth, label)) for label in labels]
    return lambda weights: 100 * np.mean([_f1(predicted, actual, weights) for predicted, actual in pairs], axis=0)


def matthews_scorer(predictions: Sequence[str], truth: Sequence[str], labels: Sequence[str]) -> Scorer:
    """Make the scorer for the multi-class Matthews correlation (Gorodkin 2004, eq. 8).

    An output that is no label is a class of its own. The value is 0 if all answers or all targets are alike.
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
    """Make the scorer for the Pearson correlation x100; an unreadable output counts as -1.0.

    The correlation counts as 0 where it is undefined: where either side does not vary, as with a single row, and where
    an answer that counts is `nan` or `inf` (as in DePT's code, src/metrics.py, which raises an error for a single row).
    """
    got, want = _number_pair(predictions, truth)
    return lambda weights: _correlation(weights, np.broadcast_to(got, weights.shape), want)


def spearman_scorer(predictions: Sequence[str], truth: Sequence[str], labels: Sequence[str]) -> Scorer:
    """Make the scorer for the Spearman correlation x100, of mid-ranks; as `pearson_scorer`, but `inf` has a rank."""
    got, want = _number_pair(predictions, truth)

    def score(weights: Array) -> Array:
        ranks = np.where(np.isnan(got), np.nan, _ranks(weights, got))
        return _correlation(weights, ranks, _ranks(weights, want))

    return score


def _by_first(make: MakeLabelScorer) -> MakeScorer:
    """Return a scorer that compares with the first reference of each row."""
    return lambda predictions, references, labels: make(predictions, [refs[0] for refs in references], labels)


def _whole(make: MakeScorer) -> Score:
    """Return the metric of a whole split: every row counts once, with weights of 1, [1, N]."""
    return lambda predictions, references, labels: float(
        make(predictions, references, labels)(np.ones((1, len(references))))[0]
    )


def _binary_f1(predictions: Predictions, references: References, labels: Sequence[str]) -> Scorer:
    if len(labels) != 2:  # of three labels there is no second one to be found
        raise UserError(f"the metric f1 is for tasks with two labels, this one has {len(labels)}")
    return _by_first(f1_scorer)(predictions, references, labels)


def _of_rows(name: str, label: str, score: Score) -> Metric:
    return Metric(name, label, score, is_row_mean=True)


def _of_corpus(name: str, label: str, make: MakeScorer) -> Metric:
    return Metric(name, label, _whole(make), make)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _of_rows("accuracy", "Acc.", accuracy),
        _of_corpus("f1", "F1", _binary_f1),
        _of_corpus("macro_f1", "Macro-F1", _by_first(macro_f1_scorer)),
        _of_corpus("matthews", "Matthews", _by_first(matthews_scorer)),
        _of_corpus("pearson", "Pearson", _by_first(pearson_scorer)),
        _of_corpus("spearman", "Spearman", _by_first(spearman_scorer)),
        _of_rows("token_f1", "F1", token_f1),
        _of_rows("exact_match", "EM", exact_match),
        _of_rows("numeric_match", "Num. match", numeric_match),
        _of_rows("rouge1", "ROUGE-1", rouge("rouge1")),
        _of_rows("rouge2", "ROUGE-2", rouge("rouge2")),
        _of_rows("rougeL", "ROUGE-L", rouge("rougeL")),
        _of_rows("rougeLsum", "ROUGE-Lsum", rouge("rougeLsum")),
        _of_corpus("bleu", "BLEU", bleu_scorer),
        _of_corpus("chrf", "chrF", chrf_scorer),
    )
}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _overlap(prediction: str, reference: str) -> float:
    """Return the F1 of two texts as bags of words, 0 to 1."""
    got, want = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not got or not want:  # the F1 of no words is 0/0
        return float(got == want)
    common = sum((Counter(got) & Counter(want)).values())
    return 2 * common / (len(got) + len(want)) if common else 0.0


def number(text: str) -> float | None:
    """Return the finite number that a text spells, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


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
