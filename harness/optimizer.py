"""AdamW for all cells of a bundle at once: each cell's own settings and clipping, a handful of operations in all."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.suite_file import Recipe


@dataclass
class _Slot:
    """One trainable tensor, its moments, and how it moves."""

    cell: int
    recipe: Recipe
    lr: float
    weight_decay: float
    parameter: Tensor
    first: Tensor
    second: Tensor
    num_updates: int = 0

    @property
    def is_torch(self) -> bool:
        """Whether it moves as torch.optim.AdamW would, not as the class that transformers had."""
        return self.recipe.adamw == "torch"

    @property
    def correction(self) -> float:
        """Root of the bias correction of the second moment."""
        return float((1 - self.recipe.beta2**self.num_updates) ** 0.5)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of the tensor only (a DTensor)."""
    return hasattr(tensor, "to_local")


@torch.no_grad()
def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory; any other tensor as it is."""
    to_local: Callable[[], Tensor] = getattr(tensor, "to_local", lambda: tensor)
    return to_local()


def whole(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that is divided as `like` is, put together; every process that holds parts must call this."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor

    sharded: Any = like
    made = DTensor.from_local(
        own_part(tensor), sharded.device_mesh, sharded.placements, shape=like.shape, stride=like.stride()
    )
    return made.full_tensor()


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of `like`, and divided as that is."""
    if not is_sharded(like):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = like
    made: Tensor = distribute_tensor(tensor, sharded.device_mesh, sharded.placements, src_data_rank=None)
    return made


class JointAdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) over the tensors of many cells, in one of two forms for each.

    With `recipe.adamw` torch it equals `clip_grad_norm_` and `torch.optim.AdamW` called for each cell, up to rounding.
    With transformers it equals the AdamW that transformers had up to 4.x (4.33.2, `optimization.py`): eps is added to
    the root of the second moment before the bias correction, and weights decay after the update. With v-hat the
    corrected second moment and c_t = sqrt(1 - beta2^t), torch divides by sqrt(v-hat) + eps, transformers by
    sqrt(v-hat) + eps / c_t: at the first step eps counts 32 times as much. Like both it passes over a tensor without a
    gradient, whose bias correction then lags behind. Of a sharded tensor each process moves its part, clipped by the
    norm of the whole.
    """

    def __init__(self, groups: Sequence[Sequence[Mapping[str, Any]]], recipes: Sequence[Recipe]) -> None:
        """Per cell: parameter groups of `params`, `lr` and perhaps `weight_decay`; the recipe for the rest."""
        self.recipes = list(recipes)
        self.slots = [
            _slot(cell, recipes[cell], group, p)
            for cell, own in enumerate(groups)
            for group in own
            for p in group["params"]
        ]
        self._layout: tuple[list[int], Tensor, Tensor] | None = None
        """For the clipping: the cell of each slot that has a gradient; `_positions` of them; the cells' limits."""

    @torch.no_grad()
    def step(self, factors: Mapping[int, float]) -> None:
        """Clip and move the cells that `factors` names, their learning rates times the factor; clear gradients."""
        slots = [slot for slot in self.slots if slot.cell in factors and slot.parameter.grad is not None]
        if not slots:
            return
        gradients = [own_part(slot.parameter.grad) for slot in slots if slot.parameter.grad is not None]
        self._clip(slots, gradients)
        for slot in slots:
            slot.num_updates += 1
        _move(slots, gradients, [slot.lr * factors[slot.cell] for slot in slots])
        for slot in slots:
            slot.parameter.grad = None

    def slots_of(self, cell: int) -> list[_Slot]:
        """The tensors of one cell with their moments, in the order of its groups; none once it is released."""
        return [slot for slot in self.slots if slot.cell == cell]

    def release(self, cells: Sequence[int]) -> None:
        """Let go of the moments of cells that have ended."""
        self.slots = [slot for slot in self.slots if slot.cell not in cells]

    def _clip(self, slots: Sequence[_Slot], gradients: list[Tensor]) -> None:
        """Scale each cell's gradients so that their common norm is at most its `clip_norm`."""
        owners = [slot.cell for slot in slots]
        norms = _whole_norms(slots, torch.stack(torch._foreach_norm(gradients)))
        if self._layout is None or self._layout[0] != owners:
            limits = [self.recipes[cell].clip_norm for cell in dict.fromkeys(owners)]
            self._layout = owners, _positions(owners).to(norms.device), norms.new_tensor(limits)
        _, positions, limit = self._layout
        # gathered cell by cell, so that one whose gradient is not finite harms no other
        totals = torch.linalg.vector_norm(torch.cat([norms, norms.new_zeros(1)])[positions], dim=1)
        scales = (limit / (totals + 1e-6)).clamp(max=1.0).unbind()
        for (_, own), scale in zip(itertools.groupby(zip(owners, gradients, strict=True), _first), scales, strict=True):
            torch._foreach_mul_([gradient for _, gradient in own], scale)


def _slot(cell: int, recipe: Recipe, group: Mapping[str, Any], parameter: Tensor) -> _Slot:
    moments = torch.zeros_like(own_part(parameter)), torch.zeros_like(own_part(parameter))
    return _Slot(cell, recipe, group["lr"], group.get("weight_decay", recipe.weight_decay), parameter, *moments)


_first = operator.itemgetter(0)


def _positions(owners: Sequence[int]) -> Tensor:
    """[cells, most slots of one]: where the slots of each cell stand, filled up with the position behind the last."""
    own = [
        [position for position, _ in group] for _, group in itertools.groupby(enumerate(owners), lambda item: item[1])
    ]
    width = max(map(len, own))
    return torch.tensor([positions + [len(owners)] * (width - len(positions)) for positions in own])


def _whole_norms(slots: Sequence[_Slot], norms: Tensor) -> Tensor:
    """Norms of whole gradients from those of the parts; every process that holds parts must call this."""
    divided = [is_sharded(slot.parameter) for slot in slots]
    if not any(divided):
        return norms
    squares = norms.square()
    dist.all_reduce(squares)
    return torch.where(torch.tensor(divided, device=norms.device), squares.sqrt(), norms)


def _move(slots: Sequence[_Slot], gradients: list[Tensor], rates: Sequence[float]) -> None:
    parameters = [own_part(slot.parameter) for slot in slots]
    first, second = [slot.first for slot in slots], [slot.second for slot in slots]
    recipes = [slot.recipe for slot in slots]
    _decay(slots, parameters, rates, before_update=True)
    torch._foreach_mul_(first, [recipe.beta1 for recipe in recipes])
    torch._foreach_add_(first, torch._foreach_mul(gradients, [1 - recipe.beta1 for recipe in recipes]))
    torch._foreach_mul_(second, [recipe.beta2 for recipe in recipes])
    torch._foreach_addcmul_(second, gradients, gradients, [1 - recipe.beta2 for recipe in recipes])
    scale = torch._foreach_sqrt(second)
    # both forms as m / (sqrt(v) + e): torch corrects v before it adds eps, so there e is eps times the correction
    torch._foreach_add_(scale, [s.recipe.eps * (s.correction if s.is_torch else 1.0) for s in slots])
    corrected = [-r * s.correction / (1 - s.recipe.beta1**s.num_updates) for r, s in zip(rates, slots, strict=True)]
    torch._foreach_addcdiv_(parameters, first, scale, corrected)
    _decay(slots, parameters, rates, before_update=False)


def _decay(slots: Sequence[_Slot], parameters: list[Tensor], rates: Sequence[float], before_update: bool) -> None:
    """Shrink the weights whose form does it at this point; rates times decay, the learning rate's factor included."""
    factors = [
        1 - rate * slot.weight_decay if slot.is_torch == before_update else 1.0
        for rate, slot in zip(rates, slots, strict=True)
    ]
    if any(factor != 1.0 for factor in factors):
        torch._foreach_mul_(parameters, factors)
