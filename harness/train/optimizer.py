"""AdamW for all cells of a bundle at once: each cell with its own settings and clipping.

PyTorch's `_foreach` functions run one operation over the tensors of all cells, so a step costs a dozen calls for thirty
cells as for one. Of a tensor that is divided among processes, each process updates its part.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.suite import Recipe


@dataclass
class _Slot:
    """One trainable tensor with its moments and settings."""

    cell: int
    """Position in the bundle."""
    recipe: Recipe
    lr: float
    weight_decay: float
    parameter: Tensor
    first: Tensor
    """First moment m, of the shape of this process's part of the tensor."""
    second: Tensor
    """Second moment v, of the same shape."""
    num_updates: int = 0
    """t of the bias correction: steps in which the tensor had a gradient."""

    @property
    def is_torch(self) -> bool:
        """Whether it follows torch.optim.AdamW, not the AdamW that transformers had up to 4.x."""
        return self.recipe.adamw == "torch"

    @property
    def correction(self) -> float:
        """sqrt(1 - beta2^t), the root of the bias correction of the second moment."""
        return float((1 - self.recipe.beta2**self.num_updates) ** 0.5)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of the tensor (a DTensor)."""
    return hasattr(tensor, "to_local")


@torch.no_grad()
def local_shard(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, in the same memory; any other tensor as it is."""
    to_local: Callable[[], Tensor] = getattr(tensor, "to_local", lambda: tensor)
    return to_local()


def joined_shards(tensor: Tensor, like: Tensor) -> Tensor:
    """Put together a tensor that is divided in the same way as `like`.

    `tensor` is this process's part. All processes must call it, as each sends its part to the others.
    """
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor

    sharded: Any = like
    made = DTensor.from_local(
        local_shard(tensor), sharded.device_mesh, sharded.placements, shape=like.shape, stride=like.stride()
    )
    return made.full_tensor()


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Move a whole tensor to the device of `like`, and divide it among the processes as `like` is."""
    if not is_sharded(like):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    made: Tensor = distribute_tensor(tensor, sharded.device_mesh, sharded.placements, src_data_rank=None)
    return made


class JointAdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) over the tensors of many cells, each in one of two forms.

    `recipe.adamw: torch` equals `clip_grad_norm_` and `torch.optim.AdamW` called for each cell, up to rounding.

    `recipe.adamw: transformers` equals the AdamW that transformers had up to 4.x (4.33.2, `optimization.py`). It adds
    eps to the root of the second moment before the bias correction, and decays weights after the update. With v-hat the
    corrected second moment and c_t = sqrt(1 - beta2^t), torch divides by sqrt(v-hat) + eps, and transformers by
    sqrt(v-hat) + eps / c_t. At the first step, with beta2 = 0.999, eps counts 32 times as much there.

    Like both, it skips a tensor without a gradient, whose bias correction then lags behind. A sharded tensor is clipped
    by the norm of the whole.
    """

    def __init__(self, groups: Sequence[Sequence[Mapping[str, Any]]], recipes: Sequence[Recipe]) -> None:
        """`groups` holds, by cell, parameter groups with `params`, `lr` and perhaps a `weight_decay`.

        Every other setting comes from the cell's recipe.
        """
        self.recipes = list(recipes)
        self.slots = [
            _slot(cell, recipes[cell], group, p)
            for cell, own in enumerate(groups)
            for group in own
            for p in group["params"]
        ]
        self._layout: tuple[list[int], Tensor, Tensor] | None = None
        """What clipping needs and rarely changes: the cell of each slot that has a gradient, their `_positions`, and
        each cell's `clip_norm`. It is kept so that no step sends it to the device again."""

    @torch.no_grad()
    def step(self, factors: Mapping[int, float]) -> None:
        """Clip the gradients of these cells and update their tensors; `clear` is to follow.

        `factors` holds, by cell, what its learning rates are multiplied by in this step.
        """
        slots = [slot for slot in self.slots if slot.cell in factors and slot.parameter.grad is not None]
        if not slots:
            return
        gradients = [local_shard(slot.parameter.grad) for slot in slots if slot.parameter.grad is not None]
        self._clip(slots, gradients)
        for slot in slots:
            slot.num_updates += 1
        _update(slots, gradients, [slot.lr * factors[slot.cell] for slot in slots])

    def clear(self) -> None:
        """Drop all gradients."""
        for slot in self.slots:
            slot.parameter.grad = None

    def slots_of(self, cell: int) -> list[_Slot]:
        """The tensors of one cell with their moments, in the order of its groups; none after `release`."""
        return [slot for slot in self.slots if slot.cell == cell]

    def release(self, cells: Sequence[int]) -> None:
        """Free the moments of cells that have ended."""
        self.slots = [slot for slot in self.slots if slot.cell not in cells]

    def _clip(self, slots: Sequence[_Slot], gradients: list[Tensor]) -> None:
        """Scale each cell's gradients so that their common norm is at most its `clip_norm`."""
        owners = [slot.cell for slot in slots]
        norms = _whole_norms(slots, torch.stack(torch._foreach_norm(gradients)))
        if self._layout is None or self._layout[0] != owners:
            limits = [self.recipes[cell].clip_norm for cell in dict.fromkeys(owners)]
            self._layout = owners, _positions(owners).to(norms.device), norms.new_tensor(limits)
        _, positions, limit = self._layout
        # each cell's norms are gathered into a row of their own: in one product over all cells, the NaN of one would
        # reach the others
        totals = torch.linalg.vector_norm(torch.cat([norms, norms.new_zeros(1)])[positions], dim=1)
        scales = (limit / (totals + 1e-6)).clamp(max=1.0).unbind()  # 1e-6 as in torch's clip_grad_norm_
        for (_, own), scale in zip(itertools.groupby(zip(owners, gradients, strict=True), _first), scales, strict=True):
            torch._foreach_mul_([gradient for _, gradient in own], scale)


def _slot(cell: int, recipe: Recipe, group: Mapping[str, Any], parameter: Tensor) -> _Slot:
    """One tensor of a parameter group with moments of zero."""
    moments = torch.zeros_like(local_shard(parameter)), torch.zeros_like(local_shard(parameter))
    return _Slot(cell, recipe, group["lr"], group.get("weight_decay", recipe.weight_decay), parameter, *moments)


_first = operator.itemgetter(0)


def _positions(owners: Sequence[int]) -> Tensor:
    """Positions of each cell's slots, [cells, most slots of a cell]; shorter rows end with the position after the last.

    `owners` is the cell of each slot, cell after cell.
    """
    by_cell = [
        [position for position, _ in group] for _, group in itertools.groupby(enumerate(owners), lambda item: item[1])
    ]
    width = max(map(len, by_cell))
    return torch.tensor([positions + [len(owners)] * (width - len(positions)) for positions in by_cell])


def _whole_norms(slots: Sequence[_Slot], norms: Tensor) -> Tensor:
    """Norms of whole gradients, [slots], from the norms of this process's parts; all processes must call it."""
    divided = [is_sharded(slot.parameter) for slot in slots]
    if not any(divided):
        return norms
    squares = norms.square()
    dist.all_reduce(squares)
    return torch.where(torch.tensor(divided, device=norms.device), squares.sqrt(), norms)


def _update(slots: Sequence[_Slot], gradients: list[Tensor], rates: Sequence[float]) -> None:
    """One update of every slot from its clipped gradient; `rates` are learning rates with the schedule's factor."""
    parameters = [local_shard(slot.parameter) for slot in slots]
    first, second = [slot.first for slot in slots], [slot.second for slot in slots]
    recipes = [slot.recipe for slot in slots]
    _decay(slots, parameters, rates, before_update=True)
    torch._foreach_mul_(first, [recipe.beta1 for recipe in recipes])
    torch._foreach_add_(first, torch._foreach_mul(gradients, [1 - recipe.beta1 for recipe in recipes]))
    torch._foreach_mul_(second, [recipe.beta2 for recipe in recipes])
    torch._foreach_addcmul_(second, gradients, gradients, [1 - recipe.beta2 for recipe in recipes])
    scale = torch._foreach_sqrt(second)
    # both forms divide m by sqrt(v) + e. Torch corrects v before it adds eps, so its e is eps times the correction
    torch._foreach_add_(scale, [s.recipe.eps * (s.correction if s.is_torch else 1.0) for s in slots])
    corrected = [-r * s.correction / (1 - s.recipe.beta1**s.num_updates) for r, s in zip(rates, slots, strict=True)]
    torch._foreach_addcdiv_(parameters, first, scale, corrected)
    _decay(slots, parameters, rates, before_update=False)


def _decay(slots: Sequence[_Slot], parameters: list[Tensor], rates: Sequence[float], before_update: bool) -> None:
    """Shrink the weights by rate x decay: those of the torch form before the update, the others after it."""
    factors = [
        1 - rate * slot.weight_decay if slot.is_torch == before_update else 1.0
        for rate, slot in zip(rates, slots, strict=True)
    ]
    if any(factor != 1.0 for factor in factors):
        torch._foreach_mul_(parameters, factors)
