"""A second set of modules over the weights of a network, which a library may rebuild without the network noticing.

PEFT replaces modules in place, switches gradients off and on, exchanges weights and leaves notes. All of that happens
in a view: every module is a copy, every weight a tensor object of its own in the same memory. So nothing has to be put
back, and the network that all cells share is never touched.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
         "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_state_dict_pre_hooks")  # fmt: skip
"""Tables of a module that a copy may not share with it."""

DEPTH = 3
"""How deep tensors lie in a module's plain attributes: PEFT keeps `indices[adapter]`, and lists of such."""


class NetworkView:
    """A network of the same class, settings and weights as another, in the same memory; its modules are new.

    Weights that are tied stay tied. A write into a weight's memory would reach the network itself; with `private` the
    weights are copied first, and `settle` gives back the memory of those that were not changed.
    """

    def __init__(self, original: nn.Module, private: bool = False) -> None:
        memo: dict[int, Any] = {}
        self.original = original
        self.model: Any = _module(original, memo)
        self._kept_alive = list(self.model.modules())  # so that no later module gets the id of one of these
        self._copies = {id(module) for module in self._kept_alive}
        weights = {id(p): p for p in original.parameters()}
        self._weights = [(weight, memo[key]) for key, weight in weights.items() if key in memo]
        """Pairs of a weight of the network and that of the view."""
        tensors = [*original.parameters(), *original.buffers()]
        self._own = {id(tensor) for tensor in tensors} | {id(own) for _, own in self._weights}
        self._memory = {_address(tensor) for tensor in tensors if not tensor.is_meta}
        self._changed: set[int] = set()
        """Ids of the view's weights that are no longer those of the network."""
        for weight, own in self._weights if private else ():
            own.data = weight.detach().clone()

    def settle(self) -> None:
        """Note which weights were given other numbers, or train; those that train get memory of their own.

        Nothing may write to a weight of the view before this. Reads the weights that were copied.
        """
        for weight, own in self._weights:
            is_shared = weight.is_meta or own.data_ptr() == weight.data_ptr()
            if own.requires_grad and is_shared:
                own.data = weight.detach().clone()
            elif not own.requires_grad and (is_shared or (own.shape == weight.shape and torch.equal(own, weight))):
                own.data = weight.detach()
                continue
            self._changed.add(id(own))

    def is_new(self, module: nn.Module) -> bool:
        """Whether a module was put in since the view was made."""
        return id(module) not in self._copies

    def has_own_weights(self, module: nn.Module) -> bool:
        """Whether a module's weights, without those of its parts, are no longer the network's. Call `settle` before."""
        return any(id(weight) in self._changed for weight in module._parameters.values())

    def changed(self) -> list[tuple[str, nn.Module, nn.Module]]:
        """Return path, module of the network and module of the view wherever these compute something else.

        Of modules inside each other only the outermost counts. Call `settle` before.
        """
        return list(self._differing("", self.original, self.model, set()))

    def _differing(
        self, path: str, original: nn.Module, now: nn.Module, seen: set[int]
    ) -> Iterator[tuple[str, nn.Module, nn.Module]]:
        if id(original) in seen:
            return
        seen.add(id(original))
        if self.is_new(now) or self.has_own_weights(now) or set(now._modules) != set(original._modules):
            yield path, original, now
            return
        for name, child in original._modules.items():
            other = now._modules[name]
            if child is not None and other is not None:
                yield from self._differing(f"{path}.{name}" if path else name, child, other, seen)

    def added_tensors(self, root: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor in `root`, a module around the view, that is not the network's, once, with its name.

        Parameters, buffers and tensors in plain attributes count. Call `settle` before.
        """
        seen: set[int] = set()
        for path, module in root.named_modules():
            named: Iterable[tuple[str, Tensor | None]] = [*module._parameters.items(), *module._buffers.items()]
            if self.is_new(module):
                named = [*named, *_attributes(vars(module))]
            for name, tensor in named:
                if tensor is None or id(tensor) in seen or not self._is_added(tensor):
                    continue
                seen.add(id(tensor))
                yield f"{path}.{name}" if path else name, tensor

    def _is_added(self, tensor: Tensor) -> bool:
        """Whether a tensor is not one of the network's, nor a part of one."""
        if id(tensor) in self._changed:
            return True
        if id(tensor) in self._own or not tensor.numel():
            return False
        return tensor.is_meta or _address(tensor) not in self._memory

    def follow_modes(self) -> None:
        """Put the view's copies of the network's modules into the mode, training or evaluation, of their originals."""
        for original, now in zip(self.original.modules(), self._kept_alive, strict=True):
            now.training = original.training


def _attributes(found: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors in a module's plain attributes, with their names."""
    for name, value in found.items():
        if name not in ("_parameters", "_buffers", "_modules", *HOOKS):
            yield from _inside(name, value, DEPTH)


def _inside(name: str, value: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif depth and isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _inside(f"{name}.{key}", item, depth - 1)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return the copy of a module and of all below it; `memo` has what is copied already, by id."""
    if id(module) in memo:
        return memo[id(module)]  # type: ignore[no-any-return]
    made = copy.copy(module)
    memo[id(module)] = made
    own = vars(made)
    for name in HOOKS:
        if name in own:
            own[name] = OrderedDict(own[name])
    own["_parameters"] = {name: _weight(weight, memo) for name, weight in module._parameters.items()}
    own["_buffers"] = dict(module._buffers)
    own["_modules"] = {name: None if child is None else _module(child, memo) for name, child in module._modules.items()}
    config = own.get("config")
    if hasattr(config, "to_dict"):  # one configuration for all modules, as before
        if id(config) not in memo:
            memo[id(config)] = copy.deepcopy(config)
        own["config"] = memo[id(config)]
    return made


def _weight(weight: nn.Parameter | None, memo: dict[int, Any]) -> nn.Parameter | None:
    """Return a parameter of its own over the same memory; packed weights of bitsandbytes carry scales and stay."""
    if weight is None or type(weight) is not nn.Parameter:
        return weight
    if id(weight) not in memo:
        memo[id(weight)] = nn.Parameter(weight.detach(), requires_grad=False)
    found: nn.Parameter = memo[id(weight)]
    return found
