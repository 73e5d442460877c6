"""What the command line adds to a suite file, and what it may not say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.errors import UserError, require_choice
from harness.suite.file_schema import MAX_SEED, SLUG, Recipe, SuiteFile
from harness.validation import field_names

BLOCKS = ("tuning", "execution", "measure")
"""Blocks of a suite file whose keys --set may set."""


@dataclass(frozen=True)
class Overrides:
    """What the command line adds to a suite file; None leaves the file's own list."""

    methods: Sequence[str] | None = None
    tasks: Sequence[str] | None = None
    backbones: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    protocol: str | None = None


def check_lists(overrides: Overrides) -> None:
    """Raise UserError for an axis that is empty, repeats itself or holds no seed."""
    for name in ("methods", "tasks", "backbones", "seeds"):
        values = getattr(overrides, name)
        if values is not None and not values:
            raise UserError("is empty; leave it out to take the suite's own list", field=f"--{name}")
        if name == "seeds" and any(not 0 <= seed < MAX_SEED for seed in values or ()):
            raise UserError(f"must be from 0 to {MAX_SEED - 1}, got {values}", field="--seeds")
        for method in values or () if name == "methods" else ():
            check_slug(method, "method", "--methods")
        repeated = [str(item) for item, count in Counter(values or ()).items() if count > 1]
        if repeated:
            raise UserError(f"lists {', '.join(repeated)} more than once", field=f"--{name}")


def check_setting_key(key: str) -> None:
    """Raise UserError unless --set knows the key."""
    parts, where = key.split("."), f"--set {key}"
    if parts[0] in ("methods", "tasks", "backbones", "seeds") and len(parts) == 1:
        raise UserError(f"use --{parts[0]} A,B,... instead", where=where)
    if parts[0] in field_names(Recipe) and len(parts) == 1:
        raise UserError(f"unknown key; did you mean recipe.{parts[0]}?", where=where)
    require_choice(parts[0], SuiteFile.model_fields, kind="key", where=where)
    if parts[0] == "protocol" and len(parts) > 1:
        return  # checked against the protocol's keys, whose names hold dots
    if parts[0] == "recipe" and len(parts) == 2:
        require_choice(parts[1], field_names(Recipe), kind="recipe key", where=where)
        return
    of_method = parts[0] == "methods" and len(parts) in (3, 4)
    of_block = parts[0] in BLOCKS and len(parts) == 2
    if not (of_method or of_block) or "" in parts:
        forms = "recipe.KEY, methods.NAME.KEY, methods.NAME.recipe.KEY, methods.NAME.config.KEY, protocol.KEY"
        forms += ", tuning.KEY, execution.KEY or measure.KEY"
        raise UserError(f"expected {forms}", where=where)


def assign(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a key of one of `BLOCKS`."""
    block, name = key.split(".")
    current = data.get(block) or {}
    if not isinstance(current, dict):
        raise UserError("expected a mapping", where=f"--set {key}", field=block)
    data[block] = {**current, name: value}


def check_slug(name: str, kind: str, where: str) -> None:
    """Raise UserError unless the name can be that of a folder."""
    if not re.fullmatch(SLUG, name):
        raise UserError(f"'{name}' cannot name a {kind}: letters, digits and _ . + - only, for it names a folder",
                        where=where)  # fmt: skip
