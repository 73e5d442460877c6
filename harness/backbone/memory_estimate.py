"""Estimates the peak memory of a training step and of an evaluation by computing them on tensors without data.

Every operator runs for its shapes alone, and the bytes of all storages that are alive at once are added up. GPU kernels
keep other tensors for the backward pass than CPU ones do, so three operators are exchanged for stand-ins: attention
keeps queries, keys, values, mask, output and one number per query; dropout keeps a byte per element; products with 4-
and 8-bit weights keep what bitsandbytes keeps.

Shapes: N rows, L positions of a row, T target tokens, G prompts that are read apart from the rows, P positions of each,
H width of embeddings, V vocabulary, A heads, Q query and K key positions, D size of a head.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.backbone.network import Backbone
from harness.backbone.quantization import PACKED, Scheme, packed_matrices
from harness.backbone.shared_prefix import Prefixes, RowPrefixes, joined_prefixes
from harness.backbone.writing import Follow, Reader, Writing


class PromptPass(NamedTuple):
    """What stands in front of the rows of a decoder: prompts that it reads together, keys and values of methods."""

    number: int
    """Prompts that are read; with `given` they are G."""
    length: int
    """P."""
    given: int = 0
    """Prefixes of P positions that methods give as keys and values, which no pass reads."""


class MemoryTally(TorchDispatchMode):
    """Counts the bytes of storages that operators create, while they are alive. Those of `model` do not count."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        """Bytes at this moment."""
        self.peak = 0
        """The most bytes so far."""
        self._counted = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the operator, and count the storages that it created."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._counted:  # a view, or a tensor written in place
            return
        self._counted.add(key)
        weakref.finalize(storage, self._release, key, storage.nbytes())
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)

    def _release(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.live -= size


class _Attention(torch.autograd.Function):
    """Stands in for fused attention: keeps what its kernels keep and gives gradients of the right shapes.

    [N, A, Q, D], [N, A, K, D], [N, A, K, D], mask [N, 1 or A, Q, K] -> [N, A, Q, D].
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        # the logarithm of the softmax's denominator, which the kernels keep in place of all Q x K weights
        denominators = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, out, denominators)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


class _Dropout(torch.autograd.Function):
    """Stands in for dropout on a GPU, [...] -> [...]: keeps a mask of one byte per element."""

    @staticmethod
    def forward(ctx: Any, states: Tensor) -> Tensor:
        ctx.save_for_backward(torch.empty_like(states, dtype=torch.bool))
        return torch.empty_like(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return torch.empty_like(gradients[0])


class _PackedProduct(torch.autograd.Function):
    """Stands in for x W^T with packed weights, [..., in], [out, in] -> [..., out].

    The weights are unpacked anew for each product, hence the clones. The 8-bit form also keeps its input.
    """

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
    """Within this context, attention and dropout keep what they would keep on a GPU."""

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call what is in place of `func`. PyTorch switches the mode off meanwhile, so there is no recursion."""
        replaced = {F.scaled_dot_product_attention: _attention, F.dropout: _dropout}
        return replaced.get(func, func)(*args, **(kwargs or {}))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *settings: Any, **options: Any
) -> Tensor:
    """Called in place of `F.scaled_dot_product_attention`; shapes as in `_Attention`."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    # a mask, be it of truth values or with T5's bias in it, is converted to the same type, and is kept
    mask = None if attn_mask is None else attn_mask.to(dtype)
    inputs = (query.to(dtype), key.to(dtype), value.to(dtype), mask)
    attended: Tensor = _Attention.apply(*inputs)  # type: ignore[no-untyped-call]
    return attended


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0.0:
        return input
    return _Dropout.apply(input)  # type: ignore[no-any-return, no-untyped-call]


@contextlib.contextmanager
def shapes_only_backbone(build: Callable[[], Backbone], scheme: Scheme) -> Iterator[Backbone]:
    """Give a backbone whose tensors have shapes and no data, stored under a scheme. It is valid inside the context."""
    from transformers.initialization import no_init_weights

    with FakeTensorMode(allow_non_fake_inputs=True):
        with no_init_weights():  # ModernBERT looks at the numbers that it draws, and here are none
            backbone = build()
        backbone.model.tie_weights()
        vars(backbone)["_dropout"] = contextlib.nullcontext  # its dropout for CPUs keeps other tensors
        vars(backbone)["greedy"] = _two_tokens
        packed = packed_matrices(backbone.model) if scheme in PACKED else set()
        for module in backbone.model.modules():
            if isinstance(module, nn.Linear) and scheme != "none" and module.weight is not backbone.embedding.weight:
                module.weight.data = module.weight.data.to(torch.bfloat16)
            if isinstance(module, nn.Linear) and id(module) in packed:
                vars(module)["forward"] = _packed_forward(module, scheme)
        yield backbone


def _packed_forward(module: nn.Linear, scheme: Scheme) -> Callable[[Tensor], Tensor]:
    """Return a `forward` for a linear module whose weights bitsandbytes would pack: [..., in] -> [..., out]."""

    def forward(states: Tensor) -> Tensor:
        product: Tensor = _PackedProduct.apply(states, module.weight, scheme)  # type: ignore[no-untyped-call]
        return product.to(states.dtype)

    return forward


def _two_tokens(read: Reader, logits: Tensor, writing: Writing, follow: Follow | None) -> Tensor:
    """Stand in for `Backbone.greedy`, which looks whether all rows have ended; [N, V] -> [N, 2]."""
    token = logits.argmax(-1)[:, None]
    return torch.cat([token, read(token).argmax(-1)[:, None]], 1)


def training_bytes(
    backbone: Backbone,
    rows: int,
    length: int,
    targets: int,
    trains_weights: bool = False,
    prompts: PromptPass | None = None,
    dropout: bool = True,
) -> int:
    """Return the peak bytes of a forward and backward pass, the weights themselves left out.

    `rows`, `length` and `targets` are N, L and T. With `trains_weights` the gradients of all weights count too. With
    `prompts` a decoder reads these first, and the rows, whose L positions are those of texts alone, stand behind them.
    `dropout` says whether what the network drops in training is dropped.
    """
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(trains_weights)
    backbone.model.train(dropout)
    given = [] if prompts is None else _given(backbone, prompts, grad=True)
    tally = MemoryTally(backbone.model)
    with tally, _GpuKernels():
        if prompts is None:
            _micro_batch(backbone, rows, length, targets, None)
        else:
            prefixes = _read(backbone, rows, prompts, given, grad=True)
            for leaf in (*prefixes.prefixes.keys, *prefixes.prefixes.values):
                leaf.grad = torch.zeros_like(leaf)  # from the group's first micro-batch on
            _micro_batch(backbone, rows, length, targets, prefixes)
            prefixes.prefixes.backward()
    return tally.peak


def _micro_batch(backbone: Backbone, rows: int, length: int, targets: int, prefixes: RowPrefixes | None) -> None:
    """Forward and backward pass of N rows of L positions with T target tokens."""
    embeds, mask, labels = _batch(backbone, rows, length, targets)
    if backbone.writes_text:
        loss = backbone.token_losses(embeds, mask, labels, prefixes).sum()
    else:  # a head of a few classes is small beside all else
        loss = backbone.text_states(embeds, mask).sum()
    loss.backward()


def evaluation_bytes(backbone: Backbone, rows: int, length: int, prompts: PromptPass | None = None) -> int:
    """Return the peak bytes of reading N texts of L positions and writing two tokens, weights left out.

    Keys and values of all positions are included. Further tokens add one position each, which is little beside L.
    `prompts` as in `training_bytes`.
    """
    backbone.model.eval()
    given = [] if prompts is None else _given(backbone, prompts, grad=False)
    tally = MemoryTally(backbone.model)
    with tally, _GpuKernels(), torch.no_grad():
        prefixes = None if prompts is None else _read(backbone, rows, prompts, given, grad=False)
        embeds, mask, _ = _batch(backbone, rows, length, 1)
        if backbone.writes_text:
            backbone.write(embeds, mask, Writing(2, ()), prefixes)
        else:
            backbone.text_states(embeds, mask)
    return tally.peak


def _given(backbone: Backbone, prompts: PromptPass, grad: bool) -> list[Tensor]:
    """Keys and values of methods, [layers, 2, A, P, D] each. They are what cells train, so the caller counts them."""
    if not prompts.given:
        return []
    keys = _read_prompts(backbone, 1, 1, grad=False).keys  # by layer, [1, A, 1, D]
    shape = len(keys), 2, keys[0].shape[1], prompts.length, keys[0].shape[3]
    return [torch.zeros(shape, requires_grad=grad) for _ in range(prompts.given)]


def _read(backbone: Backbone, rows: int, prompts: PromptPass, given: Sequence[Tensor], grad: bool) -> RowPrefixes:
    """Read prompts of P vectors, as one table has them, and put `given` behind; N rows stand behind all in turn."""
    read = _read_prompts(backbone, prompts.number, prompts.length, grad) if prompts.number else None
    prefixes = joined_prefixes(read, given) if given else read
    assert prefixes is not None, "neither a prompt nor a prefix"
    return RowPrefixes(prefixes, torch.arange(rows) % (prompts.number + len(given)))


def _read_prompts(backbone: Backbone, number: int, length: int, grad: bool) -> Prefixes:
    places = torch.arange(number * length).view(number, length)
    table = torch.zeros(number * length, backbone.hidden, requires_grad=grad)
    return backbone.read_prompts(F.embedding(places, table), torch.ones_like(places), grad)


def _batch(backbone: Backbone, rows: int, length: int, targets: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings [N, L, H], mask [N, L] and labels [N, T], with a gradient as the trainer's input has one."""
    ids = torch.zeros(rows, length, dtype=torch.long)
    # the trainer adds rows of a table of prompts; 100 vectors, the usual length, are small beside all else
    table = torch.zeros(100, backbone.hidden, requires_grad=True)
    embeds = backbone.embedding(ids) + F.embedding(ids, table)
    return embeds, torch.ones(rows, length, dtype=torch.long), torch.zeros(rows, targets, dtype=torch.long)
