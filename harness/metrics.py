"""Metrics over strings: what a model wrote against what it should have written.

Every metric takes predictions and lists of accepted references and returns percent points
(0-100, correlations -100-100). They are computed from decoded text, never from class ids,
so an unreadable output counts as wrong instead of as some class.

A metric that is not here may be named from the `evaluate` library, see `get_metric`.
"""

from __future__ import annotations

import math
import os
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any

from harness.errors import UserError, require_choice
from harness.scores import settled
from harness.weighted import (
    Scorer,
    f1_scorer,
    macro_f1_scorer,
    matthews_scorer,
    number,
    numbers,
    pearson_scorer,
    spearman_scorer,
)

Predictions = Sequence[str]
References = Sequence[Sequence[str]]
Score = Callable[[Predictions, References, Sequence[str]], float]
MakeScorer = Callable[[Predictions, Sequence[str], Sequence[str]], Scorer]
"""(predictions, first references, labels) -> scorer of `harness.weighted`."""

FOREIGN = "evaluate:"
TRUST = "HARNESS_TRUST"
"""Environment variable with the metrics of the `evaluate` library, which are code, that may be loaded: PATH,PATH."""
_SPELLING = re.compile(FOREIGN + r"([^#*]+)(?:#([^#*]+))?(?:\*(-?\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Metric:
    """A metric's function and how tables print it; higher is better in all of them."""

    name: str
    label: str
    score: Score
    scorer: MakeScorer | None = None
    """Makes a scorer of weighted rows; None for a mean over rows, and for a metric of another library."""


def accuracy(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Share of outputs equal to one of the reference strings, in percent."""
    return 100 * _mean([float(p in refs) for p, refs in zip(predictions, references, strict=True)])


def binary_f1(predictions: Predictions, references: References, labels: Sequence[str] = ("0", "1")) -> float:
    """F1 of the second label in percent; an unreadable output becomes the opposite of its target.

    Raises UserError unless there are two labels.
    """
    if len(labels) != 2:
        raise UserError(f"the metric f1 is for tasks with two labels, this one has {len(labels)}")
    return _whole(f1_scorer, predictions, references, labels)


def macro_f1(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Unweighted mean over `labels` of each class's F1, in percent; unreadable outputs match no class."""
    return _whole(macro_f1_scorer, predictions, references, labels)


def matthews(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """Multi-class Matthews correlation (Gorodkin 2004, eq. 8), in percent.

    An unreadable output is a class of its own; where answers or targets are all alike the value is 0.
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
    """SQuAD token F1 in percent, best over the references (Rajpurkar et al. 2016).

    Where answer or reference has no words, as for a question without an answer, it is their exact match (SQuAD 2.0).
    """
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
        Metric("f1", "F1", binary_f1, f1_scorer),
        Metric("macro_f1", "Macro-F1", macro_f1, macro_f1_scorer),
        Metric("matthews", "Matthews", matthews, matthews_scorer),
        Metric("pearson", "Pearson", pearson, pearson_scorer),
        Metric("spearman", "Spearman", spearman, spearman_scorer),
        Metric("token_f1", "F1", token_f1),
        Metric("exact_match", "EM", exact_match),
    )
}


def compute(
    names: Sequence[str], predictions: Predictions, references: References, labels: Sequence[str]
) -> dict[str, float]:
    """Return each named metric of one split, settled. Raises UserError on an empty split or an unknown metric."""
    if not references:
        raise UserError("a split without rows cannot be scored")
    return {name: settled(get_metric(name).score(predictions, references, labels)) for name in names}


def get_metric(name: str) -> Metric:
    """Return the metric called `name`, or the one of the `evaluate` library that `name` spells out.

    `evaluate:PATH[#KEY][*FACTOR]`: PATH is what `evaluate.load` takes (a hub name or a script on this machine).
    KEY picks one number out of the returned dict and may be left out where there is only one. The number is
    multiplied by FACTOR and otherwise left as it is: own metrics are percent points and higher is better, so a
    share wants `*100`, an error rate `*-100`. Example: `evaluate:rouge#rougeL*100`. An undefined value counts 0.

    Raises UserError if there is no such metric or it cannot be loaded.
    """
    if not name.startswith(FOREIGN):
        return METRICS[require_choice(name, METRICS, kind="metric")]
    parts = _SPELLING.fullmatch(name)
    if parts is None:
        raise UserError(f"expected {FOREIGN}PATH[#KEY][*FACTOR], got '{name}'", field="metric")
    path, key, factor = parts.groups()
    module = _load_module(path)
    scale = 1.0 if factor is None else float(factor)

    def score(predictions: Predictions, references: References, labels: Sequence[str]) -> float:
        inputs = _module_inputs(name, module, predictions, references, labels)
        value = scale * _pick(name, key, module.compute(**inputs))
        return value if math.isfinite(value) else 0.0

    return Metric(name, name, score)


def count_unreadable(
    predictions: Predictions, labels: Sequence[str], numeric: bool, references: References | None = None
) -> int:
    """Outputs that are no label of the task (or no number, for a regression).

    Of a text task those that are empty, except where a reference is: there it is right to say nothing.
    """
    if numeric:
        return sum(number(text) is None for text in predictions)
    if labels:
        return sum(text not in labels for text in predictions)
    if references is None:
        return sum(not text for text in predictions)
    return sum(not text and all(refs) for text, refs in zip(predictions, references, strict=True))


def normalize_answer(text: str) -> str:
    """SQuAD normalisation: lower case, no ASCII punctuation, no articles, single blanks."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _whole(make: MakeScorer, predictions: Predictions, references: References, labels: Sequence[str]) -> float:
    """The score in which every row counts once."""
    import numpy as np

    truth = [refs[0] for refs in references]
    return float(make(predictions, truth, labels)(np.ones((1, len(truth))))[0])


def _overlap(prediction: str, reference: str) -> float:
    got, want = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not got or not want:
        return float(got == want)
    common = sum((Counter(got) & Counter(want)).values())
    return 2 * common / (len(got) + len(want)) if common else 0.0


def is_trusted(name: str) -> bool:
    """Whether a metric is one of our own, or of those that the user has named in HARNESS_TRUST."""
    parts = _SPELLING.fullmatch(name)
    return parts is None or parts[1] in os.environ.get(TRUST, "").split(",")


def _load_module(path: str) -> Any:
    """Load a metric of the `evaluate` library once per process. Raises UserError if that fails, or is not allowed."""
    if not is_trusted(FOREIGN + path):
        problem = f"'{path}' is code of the evaluate library, or a script, and nobody has allowed it by name"
        raise UserError(problem, field="metric", hint=f"If you trust it, set {TRUST}={path} (several: A,B).")
    return _load_trusted(path)


@lru_cache
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
    """Predictions and references in the form that the metric's features ask for.

    Text features get texts: all references where a list is asked for, otherwise the first. Number features get
    class ids in label order, or the numbers themselves in a regression. An unreadable class becomes the one
    behind its target (of two, the opposite), an unreadable number -1.0. Raises UserError on any other features.
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
                return {"predictions": numbers(predictions), "references": [float(refs[0]) for refs in references]}
    raise UserError(f"{name} asks for {features}, which answers of this task cannot fill", field="metric")


def _class_ids(predictions: Predictions, references: References, labels: Sequence[str]) -> dict[str, list[Any]]:
    ids = {label: index for index, label in enumerate(labels)}
    truth = [ids[refs[0]] for refs in references]
    answers = [ids.get(text, (right + 1) % len(ids)) for text, right in zip(predictions, truth, strict=True)]
    return {"predictions": answers, "references": truth}


def _pick(name: str, key: str | None, values: dict[str, Any]) -> float:
    """One number out of what a metric returned. Raises UserError if it is not there or there are several."""
    numbers = {k: float(v) for k, v in values.items() if isinstance(v, Real)}
    if key is not None:
        return numbers[require_choice(key, numbers, kind="number", where=name)]
    if len(numbers) != 1:
        raise UserError(f"{name} returns {len(numbers)} numbers; name one as #KEY", field="metric", choices=numbers)
    return next(iter(numbers.values()))
