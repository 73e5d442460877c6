"""Metrics over strings: what a model wrote against what it should have written.

Every metric takes predictions and lists of accepted references and returns percent points
(0-100, correlations -100-100). They are computed from decoded text, never from class ids,
so an unreadable output counts as wrong instead of as some class.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.errors import UserError

Predictions = Sequence[str]
References = Sequence[Sequence[str]]
Score = Callable[[Predictions, References, Sequence[str]], float]


@dataclass(frozen=True)
class Metric:
    """A metric's function and how tables print it; higher is better in all of them."""

    name: str
    label: str
    score: Score


def accuracy(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Share of outputs equal to the reference string, in percent."""
    return 100 * _mean([float(p == r[0]) for p, r in zip(predictions, references, strict=True)])


def binary_f1(predictions: Predictions, references: References, labels: Sequence[str] = ("0", "1")) -> float:
    """F1 of the second label in percent; an unreadable output becomes the opposite of its target."""
    negative, positive = labels[0], labels[1]
    opposite = {negative: positive, positive: negative}
    truth = [r[0] for r in references]
    answers = [p if p in opposite else opposite[t] for p, t in zip(predictions, truth, strict=True)]
    return 100 * _f1_of_class(answers, truth, positive)


def macro_f1(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Unweighted mean over `labels` of each class's F1, in percent; unreadable outputs match no class."""
    truth = [r[0] for r in references]
    return 100 * _mean([_f1_of_class(predictions, truth, label) for label in labels])


def matthews(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Multi-class Matthews correlation (Gorodkin 2004), in percent; an unreadable output is a class of its own."""
    truth = [r[0] for r in references]
    predicted, actual = Counter(predictions), Counter(truth)
    total = len(truth)
    correct = sum(p == t for p, t in zip(predictions, truth, strict=True))
    covariance = correct * total - sum(predicted[c] * actual[c] for c in actual)
    spread = math.sqrt(
        (total**2 - sum(n**2 for n in predicted.values())) * (total**2 - sum(n**2 for n in actual.values()))
    )
    return 100 * covariance / spread if spread else 0.0


def pearson(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Pearson correlation x100; an unreadable output counts as -1.0, an undefined correlation as 0."""
    return _correlation("pearsonr", predictions, references)


def spearman(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Spearman rank correlation x100; unreadable and undefined as in `pearson`."""
    return _correlation("spearmanr", predictions, references)


def token_f1(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """SQuAD token F1 in percent, best over the references (Rajpurkar et al. 2016)."""
    return 100 * _mean([max(_overlap(p, r) for r in refs) for p, refs in zip(predictions, references, strict=True)])


def exact_match(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """SQuAD exact match after normalisation, in percent, best over the references."""
    hits = [
        float(any(normalize_answer(p) == normalize_answer(r) for r in refs))
        for p, refs in zip(predictions, references, strict=True)
    ]
    return 100 * _mean(hits)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "Acc.", accuracy),
        Metric("f1", "F1", binary_f1),
        Metric("macro_f1", "Macro-F1", macro_f1),
        Metric("matthews", "Matthews", matthews),
        Metric("pearson", "Pearson", pearson),
        Metric("spearman", "Spearman", spearman),
        Metric("token_f1", "F1", token_f1),
        Metric("exact_match", "EM", exact_match),
    )
}


def compute(
    names: Sequence[str], predictions: Predictions, references: References, labels: Sequence[str]
) -> dict[str, float]:
    """Return each named metric of one split. Raises UserError on an empty split."""
    if not references:
        raise UserError("a split without rows cannot be scored")
    return {name: METRICS[name].score(predictions, references, labels) for name in names}


def count_unreadable(predictions: Predictions, labels: Sequence[str], numeric: bool) -> int:
    """Outputs that are no label of the task (or no number, for a regression)."""
    if numeric:
        return sum(_number(text) is None for text in predictions)
    return sum(text not in labels for text in predictions) if labels else sum(not text for text in predictions)


def normalize_answer(text: str) -> str:
    """SQuAD normalisation: lower case, no ASCII punctuation, no articles, single blanks."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _f1_of_class(answers: Sequence[str], truth: Sequence[str], label: str) -> float:
    hits = sum(a == label and t == label for a, t in zip(answers, truth, strict=True))
    total = sum(a == label for a in answers) + sum(t == label for t in truth)
    return 2 * hits / total if total else 0.0


def _overlap(prediction: str, reference: str) -> float:
    got, want = normalize_answer(prediction).split(), normalize_answer(reference).split()
    common = sum((Counter(got) & Counter(want)).values())
    return 2 * common / (len(got) + len(want)) if common else 0.0


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _correlation(function: str, predictions: Predictions, references: References) -> float:
    import scipy.stats

    numbers = [_number(text) for text in predictions]
    got = [-1.0 if number is None else number for number in numbers]
    want = [float(refs[0]) for refs in references]
    if len(got) < 2 or len(set(got)) == 1 or len(set(want)) == 1:
        return 0.0
    value = float(getattr(scipy.stats, function)(got, want).statistic)
    return 100 * value if math.isfinite(value) else 0.0
