"""Proof that a backbone is the one that it was, whatever the code of methods has done to it.

Three looks, by price. `moved` adds up the versions of tensors, which every write in place raises (5 us for 63), so that
it can follow each call of a method and say whose it was. `glance` also looks at modes and who takes gradients (20 us).
`difference` is the proof: it reads every number, since a write through `.data` raises no version.

What the proof costs: each weight is read once, on its device, in pieces; beside them it takes one piece in 64 bits
(32 MiB on a GPU, half a MiB on a CPU), never a copy of the weights. One busy core got through 0.6 GB a second, which is
a second and a half for T5-base and over a minute for 11B in float32, where a forward pass takes as long. On a GPU it is
bound by memory: by arithmetic five times the bytes of the weights, a tenth of a second for those 44 GB at 3 TB/s.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.traces import left_on, named_tensors, traces

PIECE = {"cpu": 1 << 16, "cuda": 1 << 22}
"""Numbers in a piece: as many as a processor's cache holds, as many as keep a GPU busy."""
BESIDE = ("name", "model", "tokenizer", "record", "precision", "quantization", "recomputes", "_layers")
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class BackboneChanged(Exception):
    """The code of a method has changed what all cells share.

    `cell` is whose code it was, by its position in the bundle, where that is known.
    """

    def __init__(self, what: str, cell: int | None = None) -> None:
        self.what = what
        self.cell = cell
        super().__init__(
            f"the backbone is no longer what it was: {what}. A method may read the backbone; what attach() changes in "
            "it, detach() has to undo; harness check FILE tries this"
        )


class Seal:
    """What a backbone is at this moment; any object with a `model`."""

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone
        self._beside = _beside(backbone)
        self._traces = traces(backbone.model)
        self._modules = list(backbone.model.modules())
        named = [(name, tensor) for name, tensor in named_tensors(backbone.model) if not tensor.is_meta]
        self._names = [name for name, _ in named]
        self._tensors = [tensor for _, tensor in named]
        self._sums = checksums(self._tensors)
        self._accept_versions()

    def moved(self) -> bool:
        """Whether anything has been written to a tensor in place since the last look, by its version."""
        return sum([tensor._version for tensor in self._tensors]) != self._version

    def written(self) -> str | None:
        """What has other numbers, where a version says that it was written to; the same numbers are no change."""
        if not self.moved():
            return None
        found = self._other_numbers()
        if found is None:
            self._accept_versions()
        return found

    def glance(self, training: bool) -> str | None:
        """What was written to, takes gradients, or is not in training mode as the network is said to be."""
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
        """Put the backbone's own modules, not those that methods have put in, into training or evaluation mode."""
        for module in self._modules:
            module.training = training

    def structure(self) -> str | None:
        """What is not as it was beside the numbers of tensors: modules, hooks, settings. Methods must be detached."""
        now = _beside(self._backbone)
        for name in {**self._beside, **now}:
            value, before = now.get(name), self._beside.get(name)
            if value is not before and value != before:
                return f"`{name}` of the backbone"
        return left_on(self._backbone.model, self._traces)

    def difference(self) -> str | None:
        """What is not as it was, in words; None if all is. Methods must be detached."""
        return self.structure() or self._other_numbers()

    def holds(self, tensors: Iterable[Tensor]) -> bool:
        """Whether any of these is a tensor of the backbone."""
        own = {id(tensor) for tensor in self._tensors}
        return any(id(tensor) in own for tensor in tensors)

    def _other_numbers(self) -> str | None:
        for name, now, before in zip(self._names, checksums(self._tensors), self._sums, strict=True):
            if now != before:
                return f"the numbers of '{name}'"
        return None

    def _accept_versions(self) -> None:
        self._version = sum([tensor._version for tensor in self._tensors])


def _beside(backbone: Any) -> dict[str, Any]:
    """What stands on the backbone around its network, and functions put in the place of its own.

    Which form of the network trains, compiled or not, is the bundle's choice.
    """
    cls, own = type(backbone), vars(backbone)
    return {name: value for name, value in own.items() if name in BESIDE or callable(getattr(cls, name, None))}


@torch.no_grad()
def checksums(tensors: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    """Of each tensor its shape, type, and a sum over its bits that depends on where they stand.

    Bits are read as integers x_i; the sum is that of x_i w_i modulo 2**64, with fixed random odd w_i: any change of one
    number shows, and one of several escapes with a chance of about 2**-63.
    """
    sums = [_checksum(tensor) for tensor in tensors]
    found: dict[int, int] = {}
    for device in {tensor.device for tensor in sums}:  # one read of each device, not one of each tensor
        own = [index for index, tensor in enumerate(sums) if tensor.device == device]
        found |= dict(zip(own, torch.stack([sums[index] for index in own]).tolist(), strict=True))
    return [(tuple(tensor.shape), tensor.dtype, found[index]) for index, tensor in enumerate(tensors)]


def _checksum(tensor: Tensor) -> Tensor:
    if tensor.numel() == 0:
        return torch.zeros((), dtype=torch.int64, device=tensor.device)
    bits = tensor.detach().reshape(-1).view(INTEGERS[tensor.element_size()])  # copied only where it is not contiguous
    weights = _weights(tensor.device)
    parts = torch.stack([(part * weights[: len(part)]).sum() for part in torch.split(bits, len(weights))])
    return parts[0] if len(parts) == 1 else _checksum(parts)


@functools.cache
def _weights(device: torch.device) -> Tensor:
    """Random odd numbers, the same each time."""
    generator = torch.Generator().manual_seed(0)
    count = PIECE.get(device.type, PIECE["cpu"])
    return (torch.randint(-(1 << 63), (1 << 63) - 1, (count,), generator=generator) | 1).to(device)
