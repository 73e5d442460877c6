"""What a method may leave on a network that it has changed: hooks, a `forward` of its own, other modules or weights."""

from __future__ import annotations

from typing import Any

from torch import nn

Trace = tuple[int, int, bool, tuple[int, ...]]


def traces(model: nn.Module) -> list[Trace]:
    """What each module is made of, to be held against what it is later."""
    return [_trace(module) for module in model.modules()]


def left_on(model: nn.Module, before: list[Trace]) -> str | None:
    """Class of the first module that is not as it was at `traces`; None if all are."""
    for index, module in enumerate(model.modules()):
        if index >= len(before) or _trace(module) != before[index]:
            return type(module).__name__
    return None if len(list(model.modules())) == len(before) else type(model).__name__


def _trace(module: Any) -> Trace:
    hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
    weights = tuple(id(weight) for weight in module._parameters.values())
    return id(module), hooks, "forward" in vars(module), weights
