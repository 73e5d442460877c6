"""AdapterDrop: adapters in the upper layers only (Rückle et al., EMNLP 2021).

The bottlenecks of Houlsby et al. in layers n, n+1, ... of each stack; the lower n have none and run as pretrained.
On T5-base n = 5 of 12: 28 bottlenecks, y = x + W_u gelu(W_d x + b_d) + b_u with R = H / 32. All norms train. lr 3e-4.

Source: rabeehk/compacter, as for `adapter`, and configs/adapters_drop.json: layers 5 to 11 of both stacks.

Choice made: the published T5 figures (Compacter's code) are the paper's "specialized" form, n fixed in training too.
`variant: robust` is the paper's other one: adapters in all layers are trained, each forward pass drops the lowest n'
of every stack with n' drawn uniformly from 0 to layers - 1, and inference keeps those from layer n on.
For other depths n is 5/12 of the layers, rounded down.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from harness.method import (
    AdapterMethod,
    Backbone,
    BottleneckAdapter,
    Defaults,
    Paper,
    Sublayer,
    require_positive,
    sublayers_of,
    sweep,
)


class AdapterDrop(AdapterMethod):
    """1,101,984 parameters on T5-base: 28 bottlenecks of 37,656, and 62 norms of 768."""

    name = "adapter_drop"
    paper = Paper(
        "ruckle-etal-2021-adapterdrop", "https://aclanthology.org/2021.emnlp-main.626/", params={"t5-base": 1_100_000}
    )
    defaults = Defaults(recipe={"lr": sweep(1e-4, 3e-4, 1e-3)})
    is_positionwise = True

    @dataclass(frozen=True, kw_only=True)
    class HP:
        dropped_layers: int | None = None  # n, 5/12 of the layers unless set
        reduction: int = 32  # H / R
        init_std: float = 0.01
        variant: Literal["specialized", "robust"] = "specialized"

        def __post_init__(self) -> None:
            require_positive(self, "reduction")
            if self.dropped_layers is not None and self.dropped_layers < 0:
                raise ValueError(f"dropped_layers must not be negative, got {self.dropped_layers}")
            if not self.init_std > 0:
                raise ValueError(f"init_std must be positive, got {self.init_std}")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        depth = max(sublayer.layer for sublayer in sublayers_of(backbone)) + 1
        dropped = depth * 5 // 12 if hp.dropped_layers is None else hp.dropped_layers
        if dropped >= depth:
            raise ValueError(f"dropped_layers is {dropped}, the backbone has {depth} layers a stack")
        width = max(1, backbone.hidden // hp.reduction)
        make = partial(BottleneckAdapter, width, backbone.embedding.weight, hp.init_std)
        robust = hp.variant == "robust"
        super().__init__(hp, backbone, make, first_layer=0 if robust else dropped)
        self.dropped, self.first_layer, self.depth, self.is_robust = dropped, dropped, depth, robust

    def change(self, sublayer: Sublayer, states: Tensor) -> Tensor:
        """[..., H] -> [..., H]; a dropped layer gives what it gives without the method."""
        if self.is_robust and self.training and sublayer is self.chosen[0]:
            # the first sub-layer of a forward pass draws how many layers this pass drops
            self.first_layer = int(torch.randint(self.depth, ()))
        return super().change(sublayer, states) if sublayer.layer >= self.first_layer else states

    def train(self, mode: bool = True) -> "AdapterDrop":
        """Forget the last draw, so that evaluation uses the layers from n on."""
        self.first_layer = self.dropped
        super().train(mode)
        return self

    def kept(self) -> dict[str, Tensor]:
        """The norms, and the bottlenecks from layer n on."""
        low = [key for key in self.inserted if int(key.split("/")[1]) < self.dropped]
        return {
            name: tensor
            for name, tensor in self.named_parameters()
            if not any(name.startswith(f"inserted.{key}.") for key in low)
        }
