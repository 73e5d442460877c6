"""Keeps a network in float64 where its code steps down to float32, so that two ways of computing can be held together.

Norms, softmaxes and rotary positions of transformers compute in float32. Two equal results then differ by 1e-6, which
hides what a test wants to see. Only the functions that can step down are exchanged: a mode that watches every function
of torch took a third of the time of the tests that use it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Within this context nothing in float64 is brought down to float32."""
    with pytest.MonkeyPatch.context() as patch:
        functions: list[tuple[Any, str]] = [(Tensor, name) for name in ("float", "to", "softmax", "type")]
        functions += [(torch, name) for name in ("softmax", "sum", "mean")] + [(F, "softmax"), (F, "log_softmax")]
        for owner, name in functions:
            patch.setattr(owner, name, _staying(getattr(owner, name), name))
        yield


def _staying(func: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return `func`, which gives a first argument in float64 back in float64."""

    @functools.wraps(func)
    def call(*args: Any, **given: Any) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if name == "float":
                return args[0]
            if name in ("to", "type") and torch.float32 in (*args[1:], given.get("dtype")):
                return args[0]
            if given.get("dtype") == torch.float32:
                given["dtype"] = torch.float64
        return func(*args, **given)

    return call
