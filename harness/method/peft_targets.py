"""Which modules of a network an adapter of PEFT goes to: PEFT's own choice by architecture, or names that exist."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.errors import nearest
from harness.method.layers import is_norm

ALL_LINEAR = "all-linear"
MOST_NAMES = 12
"""Names that a message lists; a layer of a mixture of experts has dozens."""


def set_targets(config: PeftConfig, model: nn.Module) -> None:
    """Fill in `target_modules` where nothing is said and PEFT has no choice of its own, and check what is said.

    PEFT's choices go by the type of network. For one that they do not list, the first of them is taken whose names all
    exist here: so a new network with `q_proj` and `v_proj` gets what Llama gets. Raises ValueError for a name that no
    module has, and for a layer that there is not: PEFT itself goes on as long as one of them exists, and would train
    half of what was asked for.
    """
    said = getattr(config, "target_modules", None)
    if said is None and not getattr(config, "target_parameters", None):
        config.target_modules = default_targets(config, model)
    _require_layers(config, model)
    for field in ("target_modules", "exclude_modules", "modules_to_save", "feedforward_modules"):
        names = said if field == "target_modules" else getattr(config, field, None)
        if isinstance(names, str):
            _require_match(field, names, model)
        elif names:
            _require_names(field, sorted(names), model)


def default_targets(config: PeftConfig, model: nn.Module) -> str | list[str] | None:
    """Return PEFT's choice of modules for a network, or None where PEFT's own code has to choose.

    Raises ValueError where PEFT has a choice for other networks only, and no names of these exist here.
    """
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)
    choices: dict[str, Any] = getattr(tuner, "target_module_mapping", None) or {}
    kind = getattr(getattr(model, "config", None), "model_type", None)
    listed = choices.get(str(kind))
    if isinstance(listed, list):
        # a type stands for several networks: T5 1.1 has wi_0 and wi_1 where T5 has wi
        found = [name for name in listed if _has(name, model)]
        if found:
            return found
    elif isinstance(listed, str) and _matches(listed, model):
        return listed
    for names in (value for value in choices.values() if isinstance(value, list)):
        if all(_has(name, model) for name in names):
            return list(names)
    if config.peft_type == "LN_TUNING":
        return _last_parts(name for name, module in model.named_modules() if is_norm(module))
    if not choices or "_prepare_adapter_config" in vars(tuner):
        return None
    raise ValueError(
        f"PEFT names no modules of a {type(model).__name__}: set target_modules to {ALL_LINEAR} or to some of "
        f"{_listed(linear_names(model))}"
    )


def linear_names(model: nn.Module) -> list[str]:
    """Return the last parts of the names of all linear modules, in order of first use."""
    return _last_parts(name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)))


def _last_parts(paths: Iterable[str]) -> list[str]:
    parts = (path.rpartition(".")[2] for path in paths)
    return list(dict.fromkeys(part for part in parts if part and not part.isdigit()))


def _has(name: str, model: nn.Module) -> bool:
    return any(path == name or path.endswith(f".{name}") for path, _ in model.named_modules())


def _matches(pattern: str, model: nn.Module) -> bool:
    return any(re.fullmatch(pattern, path) for path, _ in model.named_modules())


def _require_names(field: str, names: Sequence[str], model: nn.Module) -> None:
    missing = [name for name in names if not _has(name, model)]
    if not missing:
        return
    every = _last_parts(path for path, _ in model.named_modules())
    near = next((match for name in missing if (match := nearest(name.rpartition(".")[2], every))), None)
    offer = f"; did you mean {near}?" if near else ""
    raise ValueError(
        f"{field}: no module of {type(model).__name__} is called {' or '.join(missing)}{offer} (linear modules: "
        f"{_listed(linear_names(model))})"
    )


def _require_layers(config: PeftConfig, model: nn.Module) -> None:
    """Raise ValueError for the number of a layer that the network does not have."""
    said = getattr(config, "layers_to_transform", None)
    wanted = [said] if isinstance(said, int) else said or []
    holders = getattr(config, "layers_pattern", None) or []
    holder = "|".join([holders] if isinstance(holders, str) else holders)
    # as PEFT reads a path: by default the first number in it is that of the layer
    pattern = rf"(?:^|.*?\.)(?:{holder})\.(\d+)\." if holder else r".*?\.[^.]*\.(\d+)\."
    try:
        found = [re.match(pattern, path) for path, _ in model.named_modules()]
    except re.error as error:
        raise ValueError(f"layers_pattern: '{holder}' is no regular expression: {error}") from None
    layers = {int(match[1]) for match in found if match}
    missing = [number for number in wanted if number not in layers]
    if missing and holders and not layers:
        raise ValueError(f"layers_pattern: no numbered modules of {type(model).__name__} are called {holder}")
    if missing:
        has = f"has layers {min(layers)} to {max(layers)}" if layers else "has no numbered layers"
        raise ValueError(
            f"layers_to_transform: {type(model).__name__} {has}, and not {_listed([str(number) for number in missing])}"
        )


def _require_match(field: str, pattern: str, model: nn.Module) -> None:
    if pattern.lower() == ALL_LINEAR:
        return
    try:
        is_met = _matches(pattern, model)
    except re.error as error:
        raise ValueError(f"{field}: '{pattern}' is no regular expression: {error}") from None
    if not is_met:
        near = nearest(pattern, [ALL_LINEAR]) if field == "target_modules" else None
        offer = f"did you mean {near}? For " if near else "for "
        raise ValueError(
            f"{field}: the pattern '{pattern}' matches the whole name of no module of {type(model).__name__}; {offer}"
            f"names write a list (linear modules: {_listed(linear_names(model))})"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
