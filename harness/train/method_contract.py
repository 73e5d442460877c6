"""The contract that every method file must meet, run on tiny random backbones in seconds."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.method import CellError, Method, Rule, load_file
from harness.train import method_contract_checks as checks
from harness.train import method_contract_tensors as tensors

LOADS = "the file imports and defines one method of its own name"
RUNS = "it can be built, and a loss be computed"
FROZEN = "the backbone is frozen, and unchanged by whatever the method does"
SEEN = "every trained tensor is a parameter of the method"
REPEATS = "evaluation gives the same answers twice"

RULES: dict[str, Callable[[type[Rule]], str]] = {
    "answers are texts, one per row": checks.rule_answers,
}
METHODS: dict[str, Callable[[type[Method]], str]] = {
    "the default settings and grid are ones that a suite takes": checks.default_settings,
    RUNS: checks.runs,
    "the same seed gives the same tensors": checks.seed,
    FROZEN: checks.backbone_unchanged,
    SEEN: tensors.registered,
    REPEATS: tensors.repeats,
    "every trainable tensor gets a gradient": checks.gradients,
    "a few steps lower the loss on a fixed batch": checks.loss_falls,
    "save and load give the same logits": checks.save_and_load,
    "the exported form gives the same logits": checks.export,
    "one row and rows of the shortest and longest text work": checks.extremes,
    "rows computed together equal rows computed alone": checks.rows_together,
    "cells in one bundle equal cells alone": checks.bundle,
    "answers written token by token equal one pass": checks.answers,
    "a decoder-only backbone works": checks.decoder,
    "packed rows give what padded rows give": checks.packed_rows,
    "an encoder works under a linear head": checks.encoder,
    "bfloat16 works": checks.bfloat16,
    "parameters are counted without weights, and no more are kept than answer alone": tensors.count,
    "what kept() counts is enough to answer the same": tensors.kept_suffices,
    "published figures are the counts, or a note says why not": tensors.published,
}


# what a check takes for granted; where that fails, what the check would say is no news
COMPARING = (
    "save and load give the same logits",
    "the exported form gives the same logits",
    "rows computed together equal rows computed alone",
    "cells in one bundle equal cells alone",
    "answers written token by token equal one pass",
    "what kept() counts is enough to answer the same",
)
NEEDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(COMPARING, (RUNS, FROZEN, SEEN, REPEATS)),
    FROZEN: (RUNS,),
    SEEN: (RUNS,),
    REPEATS: (RUNS, FROZEN),
    "every trainable tensor gets a gradient": (RUNS, SEEN),
    "a few steps lower the loss on a fixed batch": (RUNS, SEEN, REPEATS),
    "one row and rows of the shortest and longest text work": (RUNS,),
    "a decoder-only backbone works": (RUNS, SEEN, REPEATS),
    "packed rows give what padded rows give": (RUNS, FROZEN, SEEN, REPEATS),
    "an encoder works under a linear head": (RUNS, SEEN, REPEATS),
    "bfloat16 works": (RUNS,),
    "parameters are counted without weights, and no more are kept than answer alone": (RUNS,),
}


@dataclass(frozen=True)
class Finding:
    """One check of the contract and how it went."""

    check: str
    ok: bool
    detail: str = ""
    cause: str = ""
    """The check that has failed for the same reason before, so that this one says nothing new."""


def check_method_file(path: Path) -> list[Finding]:
    """Hold one file to the contract. Raises UserError when there is no such file."""
    if not path.is_file():
        raise UserError("no such file", where=str(path))
    registered = load_file(path)
    if registered.cls is None:
        return [Finding(LOADS, False, registered.problem)]
    applicable: dict[str, Callable[[Any], str]] = {**(RULES if issubclass(registered.cls, Rule) else METHODS)}
    findings = {LOADS: Finding(LOADS, True, registered.spec.name)}
    reasons: dict[tuple[str, ...], str] = {}
    for name, check in applicable.items():
        root = _root(name, findings)
        if root is not None:
            findings[name] = Finding(name, False, cause=root)
            continue
        finding, reason = _judged(name, check, registered.cls, path)
        if not finding.ok:
            first = reasons.setdefault(reason, name)
            finding = finding if first == name else Finding(name, False, cause=first)
        findings[name] = finding
    checks.MOVED.clear()
    return list(findings.values())


def _root(name: str, findings: Mapping[str, Finding]) -> str | None:
    """The failed check that `name` takes for granted, or that one's own cause."""
    failed = (findings[need] for need in NEEDS.get(name, ()) if need in findings and not findings[need].ok)
    return next((finding.cause or finding.check for finding in failed), None)


def _judged(
    name: str, check: Callable[[Any], str], cls: type[Method] | type[Rule], path: Path
) -> tuple[Finding, tuple[str, ...]]:
    """What a check finds, and what two findings of one reason have in common."""
    try:
        return Finding(name, True, check(cls)), ()
    except AssertionError as error:
        detail = str(error) or _line_in_file(error, path)
        return Finding(name, False, detail), (detail,)
    except Exception as error:  # anything a method raises is a finding
        cause = error.__cause__ if isinstance(error, CellError) and error.__cause__ else error
        kind, place = type(cause).__name__, _line_in_file(cause, path)
        # the sizes in a message differ from check to check, the line does not
        words = () if place.startswith(f"{path.name}:") else (re.sub(r"[\d.]+", "", str(cause)),)
        return Finding(name, False, f"{kind}: {cause} ({place})"), (kind, place, *words)


def _line_in_file(error: BaseException, path: Path) -> str:
    """The last line of the method's own file that the error came through, or else where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).name == path.name]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"
