"""Finds changes of a network other than in its numbers: hooks, exchanged modules or weights, a `forward`, settings.

`harness.backbone.seal` checks the numbers. Here each module of a network is described once, before methods run, and
compared with its description afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

ModuleState = dict[str, Any]
"""Description of one module. A key names an aspect in words that an error message can use; a value holds objects that
must stay the same objects, or plain values that must stay equal."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
SWITCHED = {"training", "gradient_checkpointing"}
"""Settings that the harness itself switches, so they are no sign of a change; `Seal.glance` checks the first."""
_forwards: dict[type[Any], Any] = {}
"""The `forward` of each class of module when it was first met. To replace it changes every network of the process, also
one that is loaded anew, so it has to be put back by hand."""


def module_states(model: nn.Module) -> list[ModuleState]:
    """Describe every module of a network. The descriptions keep the objects alive, so no new one gets an old id."""
    return [_trace(module) for module in model.modules()]


def first_change(model: nn.Module, before: list[ModuleState]) -> str | None:
    """Compare a network with what `module_states` returned earlier; return the first change in words, or None."""
    named = list(model.named_modules())
    for (name, module), earlier in zip(named, before, strict=False):
        now = _trace(module)
        for aspect, value in now.items():
            if not _same(value, earlier[aspect]):
                return f"{aspect} of the {type(module).__name__} '{name}'"
    return None if len(named) == len(before) else f"the modules of the {type(model).__name__}"


def restore_class_forwards() -> None:
    """Give each class of module back the `forward` that it had when it was first met."""
    for cls, forward in _forwards.items():
        if cls.forward is not forward:
            cls.forward = forward


def rewrites_itself(module: nn.Module) -> bool:
    """Whether a network overwrites this module's buffers as it runs, so that other numbers there are no change.

    Rotary positions of the types `dynamic` and `longrope` do: their frequencies follow the length of the input.
    """
    kinds = getattr(module, "rope_type", None)  # Gemma 3 has one type for each kind of attention
    kinds = kinds.values() if isinstance(kinds, dict) else (kinds,)
    return any(isinstance(kind, str) and ("dynamic" in kind or kind == "longrope") for kind in kinds)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor that a network computes with, once, with its name.

    These are weights, buffers, plain attributes, and the scales of weights that bitsandbytes has packed.
    """
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
    """Return the scales that bitsandbytes keeps beside a 4-bit weight, and the scales of those scales.

    Double quantisation nests exactly once, so `depth` stops at 1.
    """
    state = getattr(weight, "quant_state", None) if depth == 0 else weight
    if state is None:
        return {}
    found = {name: value for name, value in vars(state).items() if isinstance(value, Tensor)}
    nested = getattr(state, "state2", None)
    if nested is not None and depth == 0:
        found |= {f"state2.{name}": tensor for name, tensor in _scales(nested, 1).items()}
    return found


def _trace(module: nn.Module) -> ModuleState:
    """Describe one module; see `ModuleState`."""
    own: dict[str, Any] = vars(module)
    # what a network overwrites as it runs differs without a fault
    steady = {} if rewrites_itself(module) else own
    cls: Any = type(module)
    weights = {**module._parameters, **({} if rewrites_itself(module) else module._buffers)}
    return {
        "the place": (module, cls),
        "the class's forward()": (_forwards.setdefault(cls, cls.forward) is cls.forward,),
        "a hook": tuple(hook for kind in HOOKS for hook in own.get(kind, {}).values()),
        "a tensor": tuple(weights.values()),
        "the names of tensors": tuple(weights),
        "requires_grad": tuple(weight.requires_grad for weight in weights.values() if weight is not None),
        # a `forward` or `compute_bias` on the module itself hides that of its class
        "a function": tuple((name, value) for name, value in own.items() if _is_function(value)),
        "a setting": tuple((name, value) for name, value in steady.items() if _is_setting(name, value)),
        "the configuration": _settings(own.get("config")),
    }


def _is_function(value: Any) -> bool:
    """Whether a value is a function, and not a module, a class or a configuration, which can be called too."""
    return callable(value) and not isinstance(value, (nn.Module, type)) and not hasattr(value, "to_dict")


def _is_setting(name: str, value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) and not name.startswith("_") and name not in SWITCHED


def _settings(config: Any) -> dict[str, Any] | None:
    """Return a configuration's public values as text, nested ones too, and the attention that it chose."""
    if config is None:
        return None
    public = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    found = {name: _settings(v) if hasattr(v, "to_dict") else repr(v) for name, v in public.items()}
    return {**found, "attention": getattr(config, "_attn_implementation", None)}


def _same(now: Any, before: Any) -> bool:
    """Whether plain values are equal and objects the same. Tensors compare by identity: `Seal` reads their numbers."""
    if isinstance(now, tuple) and isinstance(before, tuple):
        return len(now) == len(before) and all(map(_same, now, before))
    if isinstance(now, (bool, int, float, str, dict)) or now is None:
        return bool(now == before)
    # each access makes a new bound method; two of one object and function are equal
    return now is before or (_is_function(now) and bool(now == before))
