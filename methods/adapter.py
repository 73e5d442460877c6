"""Adapters: a bottleneck behind the attention and feed-forward part of every layer (Houlsby et al., ICML 2019).

y = x + W_u gelu(W_d x + b_d) + b_u, then h <- h + dropout(y): W_d [R, H], W_u [H, R], R = H / 32; 48 of them on
T5-base, and the scales of all norms train too. W N(0, 0.01), b zero. lr 3e-4.

Source: rabeehk/compacter, seq2seq/third_party/models/t5/modeling_t5.py (`_init_weights` redraws every linear module
from N(0, 0.01) with zero bias), adapters/adapter_modeling.py, configs/adapters.json.

Choices made, those of the code behind the published T5 figures (Compacter's, whose baselines others reuse): none
behind cross-attention (`cross_attention: true` adds them), no norm inside, gelu by tanh.
"""

from dataclasses import dataclass
from functools import partial

from harness.method import (
    AdapterMethod,
    Backbone,
    BottleneckAdapter,
    Defaults,
    Paper,
    SublayerKind,
    require_positive,
    sweep,
)


class Adapter(AdapterMethod):
    """1,855,104 parameters on T5-base: 48 bottlenecks of 37,656, and 62 norms of 768."""

    name = "adapter"
    paper = Paper(
        "houlsby-etal-2019-adapters", "https://proceedings.mlr.press/v97/houlsby19a.html", params={"t5-base": 1_900_000}
    )
    defaults = Defaults(recipe={"lr": sweep(1e-4, 3e-4, 1e-3)})
    is_positionwise = True

    @dataclass(frozen=True, kw_only=True)
    class HP:
        reduction: int = 32  # H / R
        init_std: float = 0.01
        cross_attention: bool = False
        train_norms: bool = True

        def __post_init__(self) -> None:
            require_positive(self, "reduction")
            if not self.init_std > 0:
                raise ValueError(f"init_std must be positive, got {self.init_std}")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        width = max(1, backbone.hidden // hp.reduction)  # R
        kinds: tuple[SublayerKind, ...] = ("attention", "ffn", "cross_attention")
        make = partial(BottleneckAdapter, width, backbone.embedding.weight, hp.init_std)
        super().__init__(hp, backbone, make, kinds[: 3 if hp.cross_attention else 2], train_norms=hp.train_norms)
