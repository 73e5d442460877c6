"""Metrics of the `evaluate` library, which a suite names as `evaluate:PATH[#KEY][*FACTOR]`.

They are code, so each is loaded only if the user has allowed it by name.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from numbers import Real
from typing import Any

from harness.errors import UserError, require_choice

Predictions = Sequence[str]
"""[N], what a model wrote for each row."""
References = Sequence[Sequence[str]]
"""[N], the accepted answers of each row."""
Score = Callable[[Predictions, References, Sequence[str]], float]
"""(predictions, references, labels) -> a metric of N rows."""

FOREIGN = "evaluate:"
"""Start of the name of a metric from the `evaluate` library."""
TRUST = "HARNESS_TRUST"
"""Environment variable with the `evaluate` metrics that may be loaded, as PATH,PATH. They are code, so a suite from a
stranger must not be able to run one by naming it."""
_SPELLING = re.compile(FOREIGN + r"([^#*]+)(?:#([^#*]+))?(?:\*(-?\d+(?:\.\d+)?))?")


def load_foreign(name: str, own: Iterable[str]) -> Score:
    """Load the metric of the `evaluate` library that `name` describes; `own` are the names to suggest instead.

    `evaluate:PATH[#KEY][*FACTOR]`: PATH is what `evaluate.load` takes (a hub name or a script on this machine).
    KEY picks one number out of the returned dict. It may be left out where there is only one. The number is multiplied
    by FACTOR: our own metrics are percent points and higher is better, so a share wants `*100`, an error rate `*-100`.
    Example: `evaluate:rouge#rougeL*100`. An undefined value counts as 0.

    Raises UserError if there is no such metric or it cannot be loaded.
    """
    parts = _SPELLING.fullmatch(name)
    if parts is None:
        raise UserError(f"expected {FOREIGN}PATH[#KEY][*FACTOR], got '{name}'", field="metric")
    path, key, factor = parts.groups()
    module = _load_module(path, tuple(own))
    scale = 1.0 if factor is None else float(factor)  # also turns "lower is better" round, with *-1

    def score(predictions: Predictions, references: References, labels: Sequence[str]) -> float:
        inputs = _module_inputs(name, module, predictions, references, labels)
        value = scale * _pick(name, key, module.compute(**inputs))
        return value if math.isfinite(value) else 0.0  # NaN is neither more nor less than any dev score

    return score


def is_trusted(name: str) -> bool:
    """Return whether a metric is one of our own, or one that the user has named in HARNESS_TRUST."""
    parts = _SPELLING.fullmatch(name)
    return parts is None or parts[1] in os.environ.get(TRUST, "").split(",")


def _load_module(path: str, own: tuple[str, ...]) -> Any:
    """Load a metric of the `evaluate` library. Raises UserError if that fails, or if the user has not allowed it."""
    if not is_trusted(FOREIGN + path):
        problem = f"'{path}' is code of the evaluate library, or a script, and nobody has allowed it by name"
        raise UserError(problem, field="metric", hint=f"If you trust it, set {TRUST}={path} (several: A,B).")
    return _load_trusted(path, own)


@lru_cache  # loading one runs a script and may ask the hub; every evaluation of every cell needs it
def _load_trusted(path: str, own: tuple[str, ...]) -> Any:
    try:
        import evaluate
    except ImportError:
        raise UserError(f"{FOREIGN}{path} needs the package evaluate", hint="pip install evaluate") from None
    try:
        return evaluate.load(path, keep_in_memory=True)
    except Exception as error:  # no network, no such name, or whatever a broken script raises
        problem = f"the evaluate library cannot load '{path}': {type(error).__name__}: {error}"
        raise UserError(problem, field="metric", value=path, choices=own) from error


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
                return {
                    "predictions": [_finite(text) for text in predictions],
                    "references": [float(refs[0]) for refs in references],
                }
    raise UserError(f"{name} asks for {features}, which answers of this task cannot fill", field="metric")


def _finite(text: str) -> float:
    """Return the finite number that an output spells; -1.0 for any other output (no score of a task is negative)."""
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if math.isfinite(value) else -1.0


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
