"""Peak memory of a training step and an evaluation, found by computing them on tensors without data.

Every operator runs for its shapes alone, and the bytes of all storages alive at once are added up. What GPU kernels do
differently from CPU ones is put in their place: attention keeps queries, keys, values, mask, output and one number per
row, dropout keeps a byte per element, products with 4- and 8-bit weights keep what bitsandbytes keeps.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.backbone import Backbone
from harness.quantization import PACKED, Scheme, packed_matrices


class Tally(TorchDispatchMode):
    """Adds up the storages that operators make while they live; those of `model` are there already."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._held = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the operator, and count what it made."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._held:
            return
        self._held.add(key)
        weakref.finalize(storage, self._release, key, storage.nbytes())
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)

    def _release(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.live -= size


class _Attention(torch.autograd.Function):
    """Fused attention: what its kernels keep, and gradients of the right shapes."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        per_row = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, out, per_row)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


class _Dropout(torch.autograd.Function):
    """Dropout that keeps a byte per element."""

    @staticmethod
    def forward(ctx: Any, states: Tensor) -> Tensor:
        ctx.save_for_backward(torch.empty_like(states, dtype=torch.bool))
        return torch.empty_like(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return torch.empty_like(gradients[0])


class _PackedProduct(torch.autograd.Function):
    """x W^T with weights that are unpacked for each product; the 8-bit form holds on to its input."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, scheme: Scheme) -> Tensor:
        ctx.save_for_backward(weight, *([states] if scheme == "int8" else []))
        ctx.dtype = states.dtype
        return states.to(weight.dtype) @ weight.clone().T

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        weight = ctx.saved_tensors[0]
        return (gradients[0].to(weight.dtype) @ weight.clone()).to(ctx.dtype), None, None


class _GpuKernels(TorchFunctionMode):
    """Attention and dropout as on a GPU."""

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call what stands for `func`; the mode is off meanwhile."""
        replaced = {F.scaled_dot_product_attention: _attention, F.dropout: _dropout}
        return replaced.get(func, func)(*args, **(kwargs or {}))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *settings: Any, **options: Any
) -> Tensor:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    # a mask, of truth values or with T5's bias in it, becomes numbers of the same type, and is kept
    mask = None if attn_mask is None else attn_mask.to(dtype)
    inputs = (query.to(dtype), key.to(dtype), value.to(dtype), mask)
    attended: Tensor = _Attention.apply(*inputs)  # type: ignore[no-untyped-call]
    return attended


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0.0:
        return input
    return _Dropout.apply(input)  # type: ignore[no-any-return, no-untyped-call]


@contextlib.contextmanager
def weightless(build: Callable[[], Backbone], scheme: Scheme) -> Iterator[Backbone]:
    """A backbone of shapes whose operators can be run, stored under a scheme; valid inside the context."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        backbone = build()
        vars(backbone)["_dropout"] = contextlib.nullcontext  # what a CPU would do instead
        packed = packed_matrices(backbone.model) if scheme in PACKED else set()
        for module in backbone.model.modules():
            if isinstance(module, nn.Linear) and scheme != "none" and not _is_embedding(module.weight, backbone):
                module.weight.data = module.weight.data.to(torch.bfloat16)
            if isinstance(module, nn.Linear) and id(module) in packed:
                vars(module)["forward"] = _packed_forward(module, scheme)
        yield backbone


def _is_embedding(weight: Tensor, backbone: Backbone) -> bool:
    return weight is backbone.embedding.weight


def _packed_forward(module: nn.Linear, scheme: Scheme) -> Callable[[Tensor], Tensor]:
    def forward(states: Tensor) -> Tensor:
        product: Tensor = _PackedProduct.apply(states, module.weight, scheme)  # type: ignore[no-untyped-call]
        return product.to(states.dtype)

    return forward


def training_bytes(backbone: Backbone, rows: int, length: int, targets: int, trains_weights: bool = False) -> int:
    """Peak of forward and backward pass beside the weights; with `trains_weights`, their gradients too.

    `length` counts prompt and text; the prompt takes a gradient.
    """
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(trains_weights)
    backbone.model.train()
    tally = Tally(backbone.model)
    with tally, _GpuKernels():
        embeds, mask, labels = _batch(backbone, rows, length, targets)
        backbone.token_losses(embeds, mask, labels).sum().backward()
    return tally.peak


def evaluation_bytes(backbone: Backbone, rows: int, length: int) -> int:
    """Peak of reading the texts and writing the first token, keys and values of all positions included."""
    backbone.model.eval()
    tally = Tally(backbone.model)
    with tally, _GpuKernels(), torch.no_grad():
        embeds, mask, _ = _batch(backbone, rows, length, 1)
        backbone.decode(embeds, mask, 1)
    return tally.peak


def _batch(backbone: Backbone, rows: int, length: int, targets: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings as the trainer makes them: tokens plus the vectors of a table that takes the gradient."""
    ids = torch.zeros(rows, length, dtype=torch.long)
    table = torch.zeros(100, backbone.hidden, requires_grad=True)
    embeds = backbone.embedding(ids) + F.embedding(ids, table)
    return embeds, torch.ones(rows, length, dtype=torch.long), torch.zeros(rows, targets, dtype=torch.long)
