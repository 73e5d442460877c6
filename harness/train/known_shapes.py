"""Shapes of results that are known already, so that a network runs faster on tensors without values.

PyTorch works out in Python what shape, strides and type an operator gives on the meta device: 0.1 to 0.3 ms for an
addition. A trial of a method asks the same of all layers, and the trial of the next method asks most of it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

MOST_KNOWN = 20_000
"""Results that are kept, about 1 KB each; a network of 30 layers has some hundred different ones."""

Known = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Shape, strides and type of a result."""

_known: dict[Any, Known] = {}
_is_plain: dict[OpOverload, bool] = {}


class _Unknown(Exception):
    """An argument has no value that could be part of a key."""


class KnownShapes(TorchDispatchMode):
    """Inside, an operator that makes one new tensor of tensors on the meta device is worked out once for their shapes.

    Operators that write into a tensor or give a view of one always run.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch wraps each call for its compiler: it takes longer than a known shape, and nothing compiles."""
        return False

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        plain = _is_plain.get(func)
        if plain is None:
            plain = _is_plain[func] = _makes_one_tensor(func)
        if not plain:
            return func(*args, **kwargs)
        try:
            key = (func, torch.get_default_dtype(), _key(args), _key(kwargs) if kwargs else None)
            known = _known.get(key)
        except (_Unknown, TypeError):  # an argument of a kind that no key can hold
            return func(*args, **kwargs)
        if known is not None:
            return torch.empty_strided(known[0], known[1], dtype=known[2], device="meta")
        result = func(*args, **kwargs)
        if type(result) is Tensor and result.is_meta and result.layout == torch.strided and not result.is_conj():
            if len(_known) >= MOST_KNOWN:
                _known.clear()
            _known[key] = (result.shape, result.stride(), result.dtype)
        return result


def _makes_one_tensor(func: OpOverload) -> bool:
    """Whether an operator gives one tensor of its own and writes into none."""
    schema = func._schema
    returns = schema.returns
    is_tensor = len(returns) == 1 and str(returns[0].type) == "Tensor"
    return is_tensor and not any(item.alias_info is not None for item in (*schema.arguments, *returns))


def _key(value: Any) -> Any:
    """All of an argument that counts for the shape of a result. Raises _Unknown for a tensor that may have values."""
    kind = type(value)
    if kind in (Tensor, torch.nn.Parameter):
        tensor = cast(Tensor, value)
        if not tensor.is_meta or tensor.layout != torch.strided or tensor.is_conj() or tensor.is_neg():
            raise _Unknown
        return tensor.shape, tensor.stride(), tensor.dtype
    if kind in (tuple, list, torch.Size):
        return kind, tuple(map(_key, value))
    if isinstance(value, Mapping):
        return tuple((name, _key(item)) for name, item in value.items())
    if isinstance(value, Tensor):  # of a class of its own, which may do otherwise
        raise _Unknown
    return kind, value  # 1, 1.0 and True are equal, and do not give the same type
