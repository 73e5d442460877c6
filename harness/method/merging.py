"""A method merged into the backbone: the weights that its modules have then.

Merged, a method costs nothing in answering. Only changes that are a matrix in the place of another can be merged.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from harness.method.layer_change import LayerChange
from harness.method.low_rank import LowRank

Merged = dict[nn.Parameter, Tensor]
"""A weight of the backbone -> what it is with the method in it, of the same shape and type."""


class CannotMerge(Exception):
    """A method cannot be merged; the text says why, in a part of a sentence."""


@torch.no_grad()
def merged_weights(changes: Sequence[LayerChange]) -> Merged:
    """Return the weights that make `changes` needless. Raises CannotMerge."""
    found: Merged = {}
    for change in changes:
        module = change.module
        if change.after is not None or change.position_bias is not None:
            raise CannotMerge("it adds something behind modules")
        weight: Any = getattr(module, "weight", None)
        if type(weight) is not nn.Parameter:
            raise CannotMerge(f"the weights of a {type(module).__name__} are packed")
        if weight in found:
            raise CannotMerge("it changes a module twice")
        if change.low_rank is not None and change.instead is None:
            found[weight] = weight + _update(change.low_rank, module).to(weight.dtype)
        else:
            found.update(_merged_layer(module, change.instead))
    if not found:
        raise CannotMerge("it changes no module")
    return found


def _update(low_rank: LowRank, module: nn.Module) -> Tensor:
    """Scale * B A in the layout of the module's weight: [out, in], and [in, out] of a Conv1D."""
    product = low_rank.up.weight.float() @ low_rank.down.weight.float() * low_rank.scale
    return product.T if isinstance(module, Conv1D) else product


def _merged_layer(module: nn.Module, layer: object) -> Merged:
    """The weight, and where it changes the bias, of PEFT's layer once merged. Raises CannotMerge."""
    # not at the top: PEFT imports bitsandbytes where it is there, and that torch's compiler: a quarter of a start
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(layer, BaseTunerLayer):
        raise CannotMerge("it puts something in a module's place that PEFT cannot merge")
    # a copy: PEFT merges in place, and the weight's memory is the backbone's
    merged = copy.deepcopy(layer)
    try:
        merged.merge()
    except Exception as error:  # types of PEFT say in many ways that they have no matrix to merge
        raise CannotMerge(f"PEFT does not merge it ({type(error).__name__})") from None
    base = merged.get_base_layer()
    found: Merged = {}
    for name in ("weight", "bias"):
        own, now = getattr(module, name, None), getattr(base, name, None)
        if (own is None) != (now is None):
            raise CannotMerge(f"it has a {name} that the network has not")
        if own is not None and now is not None and not torch.equal(own, now):
            found[own] = now.detach().to(own.dtype)
    return found
