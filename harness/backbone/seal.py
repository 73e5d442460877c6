"""Checks that the code of methods has not changed the backbone, which all cells share.

There are three checks, from cheap to complete:

- `moved` adds up the versions of all tensors, which every write in place raises. It takes 5 us for 63 tensors, so it
  can follow each call of a method and tell whose call wrote.
- `glance` also checks the modules' modes and which tensors take gradients: 20 us.
- `difference` reads every number, since a write through `.data` raises no version.

What `difference` costs: it reads each weight once, on its device, and never copies all of them. On a CPU XXH3 reads
9 GB a second with one core: 0.1 s for T5-base, 5 s for 11B weights in float32, where a forward pass takes over a
minute. On another device it reads in pieces, and needs memory for one piece in 64 bits (32 MiB on a GPU); it moves five
times the bytes of the weights, by arithmetic a tenth of a second for those 44 GB at 3 TB/s.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from xxhash import xxh3_64_intdigest

from harness.backbone.module_states import changed_class, first_change, module_states, named_tensors

PIECE = 1 << 22
"""Numbers in a piece: 32 MiB in 64 bits, enough to keep a GPU busy."""
GUARDED_ATTRIBUTES = ("name", "model", "tokenizer", "record", "precision", "quantization", "kind", "recomputes",
                      "_layers")  # fmt: skip
"""Attributes of a Backbone that a method must leave as they are."""
GUARDED_SETTINGS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "padding_side", "truncation_side",
                    "model_max_length")  # fmt: skip
"""Attributes of its tokenizer that a method must leave as they are, beside the tokens that were added to it."""
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer type by bytes per number; bits are compared, so NaN equals itself and -0.0 differs from 0.0."""


class BackboneChanged(Exception):
    """The code of a method has changed the backbone.

    `cell` is the position in the bundle of the cell whose code it was, or None where that is not known.
    """

    def __init__(self, what: str, cell: int | None = None) -> None:
        self.what = what
        self.cell = cell
        super().__init__(
            f"the backbone is no longer what it was: {what}. A method may read the backbone; what attach() changes in "
            "it, detach() has to undo; harness check FILE tries this"
        )


class Seal:
    """A record of what a backbone is at the moment of creation, to compare it with later."""

    def __init__(self, backbone: Any) -> None:
        """`backbone` is any object with a `model`. Reads all weights once."""
        self._backbone = backbone
        self._beside = _beside(backbone)
        changed_class([type(backbone)])  # meets it
        self._traces = module_states(backbone.model)
        self._modules = list(backbone.model.modules())
        # tensors on the meta device have no numbers
        named = [(name, tensor) for name, tensor in named_tensors(backbone.model) if not tensor.is_meta]
        self._names = [name for name, _ in named]
        self._tensors = [tensor for _, tensor in named]
        self._sums = checksums(self._tensors)
        self._accept_versions()

    def moved(self) -> bool:
        """Whether any tensor has been written to in place since its version was last accepted."""
        return sum([tensor._version for tensor in self._tensors]) != self._version

    def written(self) -> str | None:
        """Return what has other numbers, in words, where a version says that something was written; else None.

        A write that leaves the same numbers, or puts them back, is no change; its version is accepted.
        """
        if not self.moved():
            return None
        found = self._other_numbers()
        if found is None:
            self._accept_versions()
        return found

    def glance(self, training: bool) -> str | None:
        """Return the first sign of a change in words, or None: a write, a gradient, a module in the wrong mode.

        `training` is the mode in which every module of the backbone has to be.
        """
        found = self.written()
        if found is not None:
            return found
        for name, tensor in zip(self._names, self._tensors, strict=True):
            if tensor.requires_grad:
                return f"'{name}' takes gradients"
        for module in self._modules:
            if module.training != training:
                return f"a {type(module).__name__} is in {'training' if module.training else 'evaluation'} mode"
        return None

    def set_mode(self, training: bool) -> None:
        """Put the backbone's own modules into training or evaluation mode, and not those that methods have put in."""
        for module in self._modules:
            module.training = training

    def structure(self) -> str | None:
        """Return the first change of modules, hooks or settings in words, or None. Methods must be detached."""
        now = _beside(self._backbone)
        for name in {**self._beside, **now}:
            value, before = now.get(name), self._beside.get(name)
            if value is not before and value != before:
                return f"`{name}` of the backbone"
        return changed_class([type(self._backbone)]) or first_change(self._backbone.model, self._traces)

    def difference(self) -> str | None:
        """Return the first change of any kind in words, or None. Methods must be detached."""
        return self.structure() or self._other_numbers()

    def holds(self, tensors: Iterable[Tensor]) -> bool:
        """Whether any of these tensors has its numbers where the backbone has its own, as a view or `.data` does."""
        own = {tensor.untyped_storage().data_ptr() for tensor in self._tensors}
        return any(tensor.untyped_storage().data_ptr() in own for tensor in tensors)

    def _other_numbers(self) -> str | None:
        """Return the first tensor whose checksum differs, in words, or None."""
        for name, now, before in zip(self._names, checksums(self._tensors), self._sums, strict=True):
            if now != before:
                return f"the numbers of '{name}'"
        return None

    def _accept_versions(self) -> None:
        self._version = sum([tensor._version for tensor in self._tensors])


def _beside(backbone: Any) -> dict[str, Any]:
    """Return the attributes in GUARDED_ATTRIBUTES, functions that somebody has put in place of the class's own, and
    what of the tokenizer decides the ids of a text.

    Others may change: the bundle chooses, for one, whether `_forward` is compiled.
    """
    cls, own = type(backbone), vars(backbone)
    found = {
        name: value for name, value in own.items() if name in GUARDED_ATTRIBUTES or callable(getattr(cls, name, None))
    }
    tokenizer = own.get("tokenizer")
    found |= {f"tokenizer.{name}": getattr(tokenizer, name, None) for name in GUARDED_SETTINGS}
    if hasattr(tokenizer, "get_added_vocab"):
        found["added tokens"] = tokenizer.get_added_vocab()
    return found


@torch.no_grad()
def checksums(tensors: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    """Return shape, type and checksum of the bits of each tensor, which may have any shape.

    On a CPU it is XXH3 in 64 bits, which a change escapes with a chance of 2**-64; elsewhere `weighted_checksum`.
    """
    found: dict[int, int] = {}
    for device in {tensor.device for tensor in tensors}:
        own = [index for index, tensor in enumerate(tensors) if tensor.device == device]
        if device.type == "cpu":
            found |= {index: _host_checksum(tensors[index]) for index in own}
        else:  # the host waits once for each device, not once for each tensor
            sums = torch.stack([weighted_checksum(tensors[index]) for index in own])
            found |= dict(zip(own, sums.tolist(), strict=True))
    return [(tuple(tensor.shape), tensor.dtype, found[index]) for index, tensor in enumerate(tensors)]


def _host_checksum(tensor: Tensor) -> int:
    """[...] on a CPU -> XXH3 of its bytes in the order of its indices."""
    # copied only where it is not contiguous
    return xxh3_64_intdigest(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)


def weighted_checksum(tensor: Tensor) -> Tensor:
    """[...] -> a checksum that any device computes, a 64-bit integer [] on the tensor's.

    It reads a tensor's bits as integers x_i and is the sum of x_i w_i modulo 2**64, with fixed random odd w_i. A change
    of one number always shows, since an odd w_i has an inverse modulo 2**64. A change of several escapes with a chance
    of about 2**-30 or less.
    """
    if tensor.numel() == 0:
        return torch.zeros((), dtype=torch.int64, device=tensor.device)
    bits = tensor.detach().reshape(-1).view(INTEGERS[tensor.element_size()])  # copied only where it is not contiguous
    sums = _weighted_sums(bits, mixes=tensor.element_size() == 8)
    # all pieces have the same weights; further rounds over their sums make two swapped pieces show
    while len(sums) > 1:
        sums = _weighted_sums(sums, mixes=False)
    return sums[0]


def _weighted_sums(bits: Tensor, mixes: bool) -> Tensor:
    """[n] integers -> the weighted sum of each piece, [number of pieces].

    With `mixes` the upper half of each number is laid over the lower one, and no two numbers come out alike. The
    whole numbers in float64 have bits at the upper end alone, where products modulo 2**64 lose all but the last bits of
    a weight: 0 and 2 changed places unseen with every second pair of weights.
    """
    weights = _weights(bits.device)
    if len(bits) <= len(weights):  # most tensors of a small network: cutting and joining would take a quarter
        return ((_mixed(bits) if mixes else bits) * weights[: len(bits)]).sum(dim=0, keepdim=True)
    pieces = [_mixed(piece) if mixes else piece for piece in torch.split(bits, len(weights))]
    return torch.stack([(piece * weights[: len(piece)]).sum() for piece in pieces])


def _mixed(bits: Tensor) -> Tensor:
    """[n] 64-bit integers -> the same with the upper half of each laid over the lower one."""
    return bits ^ (bits >> 32 & 0xFFFFFFFF)


@functools.cache
def _weights(device: torch.device) -> Tensor:
    """Return random odd 64-bit integers, one for each number of a piece, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(-(1 << 63), (1 << 63) - 1, (PIECE,), generator=generator) | 1).to(device)
