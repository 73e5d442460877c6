"""Finds changes of a network other than in its numbers: hooks, exchanged modules or weights, a `forward`, settings.

`harness.backbone.seal` checks the numbers. Here each module of a network is described once, before methods run, and
compared with its description afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import is_, itemgetter
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

ModuleState = dict[str, Any]
"""Description of one module. A key names an aspect in words that an error message can use; a value holds objects that
must stay the same objects, or plain values that must stay equal."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PLAIN = (bool, int, float, str)
"""Types of settings."""
SWITCHED = {"training", "gradient_checkpointing"}
"""Settings that the harness itself switches, so they are no sign of a change; `Seal.glance` checks the first."""
GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks",
                "_global_backward_pre_hooks")  # fmt: skip
"""Hooks that PyTorch calls at every module of the process."""
GLANCE = "all attributes"
"""Not an aspect of its own, but what tells at a glance that several are as they were."""
_classes: dict[type[Any], dict[str, Any]] = {}
"""Functions and properties of each class when it was first met. To replace one changes every network of the process,
also one that is loaded anew, so it has to be put back by hand."""
_members: dict[type[Any], tuple[tuple[str, ...], tuple[Any, ...]]] = {}
"""All that each class held, by name, when its functions were last looked through and found as in `_classes`."""
_hooks: dict[str, dict[int, Any]] = {}
"""What stood in each of GLOBAL_HOOKS when the first network was described, which has to be put back too."""


def module_states(model: nn.Module) -> list[ModuleState]:
    """Describe every module of a network. The descriptions keep the objects alive, so no new one gets an old id."""
    for name in GLOBAL_HOOKS:
        _hooks.setdefault(name, dict(getattr(torch_module, name)))
    changed_class(map(type, model.modules()))  # meets them
    return [{**_trace(module), GLANCE: _Glance(module)} for module in model.modules()]


def first_change(model: nn.Module, before: list[ModuleState]) -> str | None:
    """Compare a network with what `module_states` returned earlier; return the first change in words, or None."""
    if any(getattr(torch_module, name) != hooks for name, hooks in _hooks.items()):
        return "a hook on the modules of every network"
    if (function := changed_class(map(type, model.modules()))) is not None:
        return function
    named = list(model.named_modules())
    configurations: dict[int, dict[str, Any] | None] = {}
    for (name, module), earlier in zip(named, before, strict=False):
        if _is_as_it_was(module, earlier, configurations):
            continue
        now = _trace(module)
        for aspect, value in now.items():
            if not _same(value, earlier[aspect]):
                return f"{aspect} of the {type(module).__name__} '{name}'"
    return None if len(named) == len(before) else f"the modules of the {type(model).__name__}"


def changed_class(classes: Iterable[type[Any]]) -> str | None:
    """Return the first function or property of these classes that somebody has replaced, in words, or None.

    Classes that they inherit from count too, but for PyTorch's own `Module`.
    """
    own_and_inherited = dict.fromkeys(base for cls in dict.fromkeys(classes) for base in cls.__mro__)
    for cls in (base for base in own_and_inherited if base not in (object, nn.Module)):
        members = (*vars(cls),), (*vars(cls).values(),)
        if _are_the_same(members, _members.get(cls)):
            continue
        own = _functions(cls)
        before = _classes.setdefault(cls, own)
        for name in {**before, **own}:
            if own.get(name) is not before.get(name):
                return f"`{name}` of the class {cls.__name__}"
        _members[cls] = members
    return None


def _are_the_same(
    now: tuple[tuple[str, ...], tuple[Any, ...]], before: tuple[tuple[str, ...], tuple[Any, ...]] | None
) -> bool:
    """Whether names are equal and the objects under them the same ones."""
    return before is not None and now[0] == before[0] and all(map(is_, now[1], before[1]))


def restore_process() -> None:
    """Undo what outlives a network: give classes back their functions, and take off hooks on every module."""
    for cls, before in _classes.items():
        own = _functions(cls)
        for name in own.keys() - before.keys():
            delattr(cls, name)
        for name, function in before.items():
            if own.get(name) is not function:
                setattr(cls, name, function)
    for name, hooks in _hooks.items():
        now = getattr(torch_module, name)
        for key in now.keys() - hooks.keys():
            del now[key]


def rewrites_itself(module: nn.Module) -> bool:
    """Whether a network overwrites this module's buffers as it runs, so that other numbers there are no change.

    Rotary positions of the types `dynamic` and `longrope` do: their frequencies follow the length of the input.
    """
    if "rope_type" not in vars(module) and not hasattr(type(module), "rope_type"):
        return False  # PyTorch's own way to say so raises, which takes longer than all else here
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
    rewrites = rewrites_itself(module)
    steady = {} if rewrites else own
    weights = {**module._parameters, **({} if rewrites else module._buffers)}
    return {
        "the place": (module, type(module)),
        "a hook": tuple([hook for kind in HOOKS if own.get(kind) for hook in own[kind].values()]),
        "a tensor": tuple(weights.values()),
        "the names of tensors": tuple(weights),
        "requires_grad": tuple([weight.requires_grad for weight in weights.values() if weight is not None]),
        # a `forward` or `compute_bias` on the module itself hides that of its class
        "a function": tuple([(name, value) for name, value in own.items() if callable(value) and _is_function(value)]),
        "a setting": tuple(
            [
                (name, value)
                for name, value in steady.items()
                if isinstance(value, PLAIN) and not name.startswith("_") and name not in SWITCHED
            ]
        ),
        "the configuration": _settings(own.get("config")),
    }


class _Glance:
    """All attributes of a module, to see in a tenth of the time of `_trace` that it is as it was."""

    def __init__(self, module: nn.Module) -> None:
        own = vars(module)
        self._names = (*own,)
        self._values_of: Callable[[dict[str, Any]], tuple[Any, ...]] = itemgetter(*own.keys() - SWITCHED)
        self._values = self._values_of(own)
        self._hooks = [own[kind] for kind in HOOKS if kind in own]
        # rotary positions may rewrite themselves, and a module with hooks is looked through each time
        self._is_plain = not any(self._hooks) and not hasattr(module, "rope_type")

    def shows_the_same(self, own: dict[str, Any]) -> bool:
        """Whether the attributes `own` are the same objects as then, and there is no hook. What stands in weights and
        in a configuration is not looked at."""
        if not self._is_plain or any(self._hooks) or (*own,) != self._names:
            return False
        return all(map(is_, self._values_of(own), self._values))


def _is_as_it_was(module: nn.Module, earlier: ModuleState, configurations: dict[int, dict[str, Any] | None]) -> bool:
    """Whether nothing that `_trace` describes can have changed. `configurations` keeps their values for one look."""
    own = vars(module)
    if earlier["the place"] != (module, type(module)) or not earlier[GLANCE].shows_the_same(own):
        return False
    weights = {**module._parameters, **module._buffers}
    if (*weights,) != earlier["the names of tensors"] or not all(map(is_, weights.values(), earlier["a tensor"])):
        return False
    if tuple(w.requires_grad for w in weights.values() if w is not None) != earlier["requires_grad"]:
        return False
    config = own.get("config")
    if id(config) not in configurations:
        configurations[id(config)] = _settings(config)
    return _same(configurations[id(config)], earlier["the configuration"])


def _functions(cls: type[Any]) -> dict[str, Any]:
    """Return what a class itself defines of functions, properties and other descriptors."""
    return {name: value for name, value in vars(cls).items() if hasattr(type(value), "__get__")}


def _is_function(value: Any) -> bool:
    """Whether a value is a function, and not a module, a class or a configuration, which can be called too."""
    return callable(value) and not isinstance(value, (nn.Module, type)) and not hasattr(value, "to_dict")


def _settings(config: Any) -> dict[str, Any] | None:
    """Return a configuration's public values as text, nested ones too, and the attention that it chose."""
    if config is None:
        return None
    public = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    found = {name: _settings(v) if hasattr(v, "to_dict") else repr(v) for name, v in public.items()}
    return {**found, "attention": getattr(config, "_attn_implementation", None)}


def _same(now: Any, before: Any) -> bool:
    """Whether plain values are equal and objects the same. Tensors compare by identity: `Seal` reads their numbers."""
    if now is before:
        return True
    if isinstance(now, tuple) and isinstance(before, tuple):
        return len(now) == len(before) and all(map(_same, now, before))
    if isinstance(now, (bool, int, float, str, dict)):
        return bool(now == before)
    # each access makes a new bound method; two of one object and function are equal
    return _is_function(now) and bool(now == before)
