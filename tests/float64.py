"""Keeps a network in float64 where its code steps down to float32, so that two ways of computing can be held together.

Norms, softmaxes and rotary positions of transformers compute in float32. Two equal results then differ by 1e-6, which
hides what a test wants to see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class in_float64(TorchFunctionMode):
    """Within this context nothing in float64 is brought down to float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[Any], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        given = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            if func is Tensor.to and torch.float32 in (*args[1:], given.get("dtype")):
                return args[0]
            if given.get("dtype") == torch.float32:  # softmax
                given["dtype"] = torch.float64
        return func(*args, **given)
