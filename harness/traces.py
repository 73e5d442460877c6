"""What a method may leave on a network beside other numbers: hooks, other modules or weights, a `forward`, settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

Trace = dict[str, Any]
"""By what it is about: objects that must be the same ones, or values that must be equal."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# the harness itself switches these; `Seal.glance` looks after the first
SWITCHED = {"training", "gradient_checkpointing"}
_forwards: dict[type[Any], Any] = {}
"""The `forward` of each class of module when it was first met: replacing it changes every network of the process."""


def traces(model: nn.Module) -> list[Trace]:
    """What each module is made of, to be held against what it is later; the objects are kept alive with it."""
    return [_trace(module) for module in model.modules()]


def left_on(model: nn.Module, before: list[Trace]) -> str | None:
    """What of a network is not as it was at `traces`, in words; None if all is."""
    named = list(model.named_modules())
    for (name, module), was in zip(named, before, strict=False):
        now = _trace(module)
        for kind, value in now.items():
            if not _same(value, was[kind]):
                return f"{kind} of the {type(module).__name__} '{name}'"
    return None if len(named) == len(before) else f"the modules of the {type(model).__name__}"


def put_back_classes() -> None:
    """Give each class of module the `forward` that it had when it was first met."""
    for cls, forward in _forwards.items():
        if cls.forward is not forward:
            cls.forward = forward


def rewrites_itself(module: nn.Module) -> bool:
    """Whether a network computes this module's buffers anew as it runs: rotary positions that follow the length."""
    kinds = getattr(module, "rope_type", None)
    kinds = kinds.values() if isinstance(kinds, dict) else (kinds,)
    return any(isinstance(kind, str) and ("dynamic" in kind or kind == "longrope") for kind in kinds)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a network computes with, once: weights, buffers, plain attributes, scales of packed weights."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        if rewrites_itself(module):
            continue
        own = {**vars(module), **module._parameters, **module._buffers}
        packed = {f"{name}.{key}": tensor for name, weight in module._parameters.items()
                  for key, tensor in _scales(weight).items()}  # fmt: skip
        for name, tensor in {**own, **packed}.items():
            if isinstance(tensor, Tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{path}.{name}" if path else name, tensor


def _scales(weight: Any, depth: int = 0) -> dict[str, Tensor]:
    """Scales of a weight in 4 bits, which bitsandbytes keeps beside it, and their own."""
    state = getattr(weight, "quant_state", None) if depth == 0 else weight
    if state is None:
        return {}
    found = {name: value for name, value in vars(state).items() if isinstance(value, Tensor)}
    nested = getattr(state, "state2", None)
    if nested is not None and depth == 0:
        found |= {f"state2.{name}": tensor for name, tensor in _scales(nested, 1).items()}
    return found


def _trace(module: nn.Module) -> Trace:
    own: dict[str, Any] = vars(module)
    # what a network rewrites as it runs cannot be held against what it was
    kept = {} if rewrites_itself(module) else own
    cls: Any = type(module)
    weights = {**module._parameters, **({} if rewrites_itself(module) else module._buffers)}
    return {
        "the place": (module, cls),
        "the class's forward()": (_forwards.setdefault(cls, cls.forward) is cls.forward,),
        "a hook": tuple(hook for kind in HOOKS for hook in own.get(kind, {}).values()),
        "a tensor": tuple(weights.values()),
        "the names of tensors": tuple(weights),
        "requires_grad": tuple(weight.requires_grad for weight in weights.values() if weight is not None),
        "a function": tuple((name, value) for name, value in own.items() if _is_function(value)),
        "a setting": tuple((name, value) for name, value in kept.items() if _is_setting(name, value)),
        "the configuration": _settings(own.get("config")),
    }


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, (nn.Module, type)) and not hasattr(value, "to_dict")


def _is_setting(name: str, value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) and not name.startswith("_") and name not in SWITCHED


def _settings(config: Any) -> dict[str, Any] | None:
    """A configuration's public values as text, and which attention it chose."""
    if config is None:
        return None
    public = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    found = {name: _settings(v) if hasattr(v, "to_dict") else repr(v) for name, v in public.items()}
    return {**found, "attention": getattr(config, "_attn_implementation", None)}


def _same(now: Any, before: Any) -> bool:
    """Equal values, or the same objects: tensors are not compared by what they hold."""
    if isinstance(now, tuple) and isinstance(before, tuple):
        return len(now) == len(before) and all(map(_same, now, before))
    if isinstance(now, (bool, int, float, str, dict)) or now is None:
        return bool(now == before)
    return now is before or (_is_function(now) and bool(now == before))
