"""Metrics and scores: the texts that a model wrote, compared with the texts that count as right.

A metric takes the predictions of N rows and for each row a list of accepted references. It returns percent points:
0 to 100, correlations -100 to 100. It reads the decoded text, never class ids, so an output that is no label counts as
wrong (in T5's code for CB it counts as class 0). A score is a mean of metrics. Both are rounded once, where they are
computed, so that equal scores compare as equal.

A metric of the `evaluate` library can be named too, see `get_metric`.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any

import numpy as np

from harness.data.metric_formulas import (
    Scorer,
    as_numbers,
    f1_scorer,
    macro_f1_scorer,
    matthews_scorer,
    number,
    pearson_scorer,
    spearman_scorer,
)
from harness.errors import UserError, require_choice

Predictions = Sequence[str]
References = Sequence[Sequence[str]]
Score = Callable[[Predictions, References, Sequence[str]], float]
MakeScorer = Callable[[Predictions, Sequence[str], Sequence[str]], Scorer]
"""(predictions, first reference of each row, labels) -> a scorer of weighted rows, see `metric_formulas`."""

FOREIGN = "evaluate:"
"""Start of the name of a metric from the `evaluate` library."""
TRUST = "HARNESS_TRUST"
"""Environment variable with the `evaluate` metrics that may be loaded, as PATH,PATH. They are code, so a suite from a
stranger must not be able to run one by naming it."""
_SPELLING = re.compile(FOREIGN + r"([^#*]+)(?:#([^#*]+))?(?:\*(-?\d+(?:\.\d+)?))?")

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
    for one of another library."""


def accuracy(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Return the share of predictions that equal one of their references, in percent."""
    return 100 * _mean([float(p in refs) for p, refs in zip(predictions, references, strict=True)])


def binary_f1(predictions: Predictions, references: References, labels: Sequence[str] = ("0", "1")) -> float:
    """Return the F1 of the second of two labels, in percent.

    An output that is neither label counts as the wrong one. Raises UserError unless there are two labels.
    """
    if len(labels) != 2:  # of three labels there is no second one to be found
        raise UserError(f"the metric f1 is for tasks with two labels, this one has {len(labels)}")
    return _whole(f1_scorer, predictions, references, labels)


def macro_f1(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Return the unweighted mean of the classes' F1, in percent; an output that is no label matches no class."""
    return _whole(macro_f1_scorer, predictions, references, labels)


def matthews(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Return the multi-class Matthews correlation (Gorodkin 2004, eq. 8), in percent.

    An output that is no label is a class of its own. The value is 0 if all predictions or all references are alike.
    """
    return _whole(matthews_scorer, predictions, references, labels)


def pearson(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Pearson correlation x100; an unreadable output counts as -1.0, an undefined correlation as 0.

    As in DePT's code (src/metrics.py), one answer `nan` or `inf` leaves it undefined. A single row does too, for which
    that code raises an error.
    """
    return _whole(pearson_scorer, predictions, references, labels)


def spearman(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Spearman rank correlation x100; unreadable and undefined as in `pearson`, but `inf` has a rank."""
    return _whole(spearman_scorer, predictions, references, labels)


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


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "Acc.", accuracy),
        Metric("f1", "F1", binary_f1, f1_scorer),
        Metric("macro_f1", "Macro-F1", macro_f1, macro_f1_scorer),
        Metric("matthews", "Matthews", matthews, matthews_scorer),
        Metric("pearson", "Pearson", pearson, pearson_scorer),
        Metric("spearman", "Spearman", spearman, spearman_scorer),
        Metric("token_f1", "F1", token_f1),
        Metric("exact_match", "EM", exact_match),
    )
}


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
    """Return the metric called `name`, or the one of the `evaluate` library that `name` describes.

    `evaluate:PATH[#KEY][*FACTOR]`: PATH is what `evaluate.load` takes (a hub name or a script on this machine).
    KEY picks one number out of the returned dict. It may be left out where there is only one. The number is multiplied
    by FACTOR: our own metrics are percent points and higher is better, so a share wants `*100`, an error rate `*-100`.
    Example: `evaluate:rouge#rougeL*100`. An undefined value counts as 0.

    Raises UserError if there is no such metric or it cannot be loaded.
    """
    if not name.startswith(FOREIGN):
        return METRICS[require_choice(name, METRICS, kind="metric")]
    parts = _SPELLING.fullmatch(name)
    if parts is None:
        raise UserError(f"expected {FOREIGN}PATH[#KEY][*FACTOR], got '{name}'", field="metric")
    path, key, factor = parts.groups()
    module = _load_module(path)
    scale = 1.0 if factor is None else float(factor)  # also turns "lower is better" round, with *-1

    def score(predictions: Predictions, references: References, labels: Sequence[str]) -> float:
        inputs = _module_inputs(name, module, predictions, references, labels)
        value = scale * _pick(name, key, module.compute(**inputs))
        return value if math.isfinite(value) else 0.0  # NaN is neither more nor less than any dev score

    return Metric(name, name, score)


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


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _whole(make: MakeScorer, predictions: Predictions, references: References, labels: Sequence[str]) -> float:
    """Return the score in which every row counts once: weights of 1, [1, N]."""
    truth = [refs[0] for refs in references]
    return float(make(predictions, truth, labels)(np.ones((1, len(truth))))[0])


def _overlap(prediction: str, reference: str) -> float:
    """Return the F1 of two texts as bags of words, 0 to 1."""
    got, want = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not got or not want:  # the F1 of no words is 0/0
        return float(got == want)
    common = sum((Counter(got) & Counter(want)).values())
    return 2 * common / (len(got) + len(want)) if common else 0.0


def is_trusted(name: str) -> bool:
    """Return whether a metric is one of our own, or one that the user has named in HARNESS_TRUST."""
    parts = _SPELLING.fullmatch(name)
    return parts is None or parts[1] in os.environ.get(TRUST, "").split(",")


def _load_module(path: str) -> Any:
    """Load a metric of the `evaluate` library. Raises UserError if that fails, or if the user has not allowed it."""
    if not is_trusted(FOREIGN + path):
        problem = f"'{path}' is code of the evaluate library, or a script, and nobody has allowed it by name"
        raise UserError(problem, field="metric", hint=f"If you trust it, set {TRUST}={path} (several: A,B).")
    return _load_trusted(path)


@lru_cache  # loading one runs a script and may ask the hub; every evaluation of every cell needs it
def _load_trusted(path: str) -> Any:
    try:
        import evaluate
    except ImportError:
        raise UserError(f"{FOREIGN}{path} needs the package evaluate", hint="pip install evaluate") from None
    try:
        return evaluate.load(path, keep_in_memory=True)
    except Exception as error:  # no network, no such name, or whatever a broken script raises
        problem = f"the evaluate library cannot load '{path}': {type(error).__name__}: {error}"
        raise UserError(problem, field="metric", value=path, choices=METRICS) from error


def _module_inputs(
    name: str, module: Any, predictions: Predictions, references: References, labels: Sequence[str]
) -> dict[str, list[Any]]:
    """Return predictions and references in the form that the metric's features ask for.

    Text features get texts: all references if a list is asked for, otherwise the first. Number features get class ids
    in label order, or in a regression the numbers. An output that is no label becomes the class after the right one,
    which is surely wrong. An output that is no number becomes -1.0. Raises UserError for any other features.
    """
    features = module.features[0] if isinstance(module.features, list) else module.features
    answer, wanted = features.get("predictions"), features.get("references")
    several = getattr(wanted, "feature", None)
    kinds = {getattr(item, "dtype", "") for item in (answer, several or wanted)}
    if set(features) == {"predictions", "references"} and len(kinds) == 1:
        kind = kinds.pop()
        if kind in ("string", "large_string"):
            texts = [list(refs) if several else refs[0] for refs in references]
            return {"predictions": list(predictions), "references": texts}
        if not several and kind.startswith(("int", "uint", "float")):
            if labels:
                return _class_ids(predictions, references, labels)
            if kind.startswith("float"):
                return {"predictions": as_numbers(predictions), "references": [float(refs[0]) for refs in references]}
    raise UserError(f"{name} asks for {features}, which answers of this task cannot fill", field="metric")


def _class_ids(predictions: Predictions, references: References, labels: Sequence[str]) -> dict[str, list[Any]]:
    ids = {label: index for index, label in enumerate(labels)}
    truth = [ids[refs[0]] for refs in references]
    # a class that is surely wrong, since these metrics have no id for "no answer"
    answers = [ids.get(text, (right + 1) % len(ids)) for text, right in zip(predictions, truth, strict=True)]
    return {"predictions": answers, "references": truth}


def _pick(name: str, key: str | None, values: dict[str, Any]) -> float:
    """Return one number of what a metric returned. Raises UserError if it is not there or there are several."""
    as_numbers = {k: float(v) for k, v in values.items() if isinstance(v, Real)}
    if key is not None:
        return as_numbers[require_choice(key, as_numbers, kind="number", where=name)]
    if len(as_numbers) != 1:
        raise UserError(
            f"{name} returns {len(as_numbers)} numbers; name one as #KEY", field="metric", choices=as_numbers
        )
    return next(iter(as_numbers.values()))
