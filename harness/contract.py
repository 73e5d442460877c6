"""The contract that every method file must meet, run on tiny random backbones in seconds."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import contract_checks as checks
from harness.blame import CellError
from harness.errors import UserError
from harness.method import Method, Rule, load_file

LOADS = "the file imports and defines one method of its own name"

RULES: dict[str, Callable[[type[Rule]], str]] = {
    "answers are texts, one per row": checks.rule_answers,
}
METHODS: dict[str, Callable[[type[Method]], str]] = {
    "the default settings and grid are ones that a suite takes": checks.default_settings,
    "the same seed gives the same tensors": checks.seed,
    "the backbone is frozen, and unchanged after training and detach": checks.backbone_unchanged,
    "every trainable tensor gets a gradient": checks.gradients,
    "a few steps lower the loss on a fixed batch": checks.loss_falls,
    "save and load give the same logits": checks.save_and_load,
    "the exported form gives the same logits": checks.export,
    "one row and rows of the shortest and longest text work": checks.extremes,
    "rows computed together equal rows computed alone": checks.rows_together,
    "cells in one bundle equal cells alone": checks.bundle,
    "answers written token by token equal one pass": checks.answers,
    "a decoder-only backbone works": checks.decoder,
    "bfloat16 works": checks.bfloat16,
    "parameters are counted without weights, and no more are kept than answer alone": checks.count,
    "published figures are the counts, or a note says why not": checks.published,
}


@dataclass(frozen=True)
class Finding:
    """One check of the contract and how it went."""

    check: str
    ok: bool
    detail: str = ""


def check_method_file(path: Path) -> list[Finding]:
    """Hold one file to the contract. Raises UserError when there is no such file."""
    if not path.is_file():
        raise UserError("no such file", where=str(path))
    registered = load_file(path)
    if registered.cls is None:
        return [Finding(LOADS, False, registered.problem)]
    applicable: dict[str, Callable[[Any], str]] = {**(RULES if issubclass(registered.cls, Rule) else METHODS)}
    findings = [_finding(name, check, registered.cls, path) for name, check in applicable.items()]
    return [Finding(LOADS, True, registered.spec.name), *findings]


def _finding(name: str, check: Callable[[Any], str], cls: type[Method] | type[Rule], path: Path) -> Finding:
    try:
        return Finding(name, True, check(cls))
    except AssertionError as error:
        return Finding(name, False, str(error) or _place(error, path))
    except Exception as error:  # anything a method raises is a finding
        cause = error.__cause__ if isinstance(error, CellError) and error.__cause__ else error
        return Finding(name, False, f"{type(cause).__name__}: {cause} ({_place(cause, path)})")


def _place(error: BaseException, path: Path) -> str:
    """The last line of the method's own file that the error came through, or else where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).name == path.name]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"
