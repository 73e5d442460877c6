"""Prefix tuning: trained keys and values in front of every self-attention (Li & Liang, ACL 2021; P-tuning v2).

Attention over [K_P; K(x)], [V_P; V(x)] with K_P, V_P [P, W] of their own in each of L layers: one tensor
[P, 2 L W], per layer keys, then values, as in PEFT. Inference keeps that tensor.

Source: for the vectors THUDM/P-tuning-v2, model/prefix_encoder.py, an embedding that its `BertPreTrainedModel` redraws
from N(0, 0.02), BERT's `initializer_range`; for the network XiangLi1999/PrefixTuning, gpt2/train_control.py, Z from
N(0, 1) and PyTorch's linear modules, which nothing redraws.

Choices made: as in PEFT, a T5 gets the prefix in the decoder's self-attentions only, 1,843,200 numbers on T5-base;
`places: all` adds the encoder's self-attentions (Li & Liang also have one in cross-attention). This is not PEFT's
own layer: PEFT 0.21 doubles the tensor for cross-attention and cuts it in the wrong order, so on a T5 its layer i
reads vectors 4i and 4i + 1 (modulo 2 L), layers i and i + L/2 share a prefix and half of the vectors never train;
with `num_transformer_submodules` 1 it would pour the prefix into cross-attention too. Here every layer has its own;
with PEFT's pairing copied in, both give the same logits (tested), and so they do on a decoder-only backbone.
`network: none` trains the vectors themselves (P-tuning v2), `network: mlp` makes them from rows Z [P, H] by
W2 tanh(W1 Z) as Li & Liang do. PEFT's vectors, which no model class redraws, start N(0, 1). Learning rates are 5e-5 in
Li & Liang (network, GPT-2) and near 5e-3 in P-tuning v2; the grid is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.method import (
    Backbone,
    Defaults,
    Method,
    Paper,
    PrefixAttention,
    key_head_shape,
    num_self_attentions,
    require_positive,
    sweep,
)

STARTING_STD = 0.02  # BERT's `initializer_range`


class PrefixTuning(Method):
    """While attached, the backbone's self-attentions see P more positions."""

    name = "prefix_tuning"
    paper = Paper("li-liang-2021-prefix", "https://aclanthology.org/2021.acl-long.353")
    defaults = Defaults(recipe={"lr": sweep(1e-3, 5e-3, 1e-2)})

    @dataclass(frozen=True, kw_only=True)
    class HP:
        prefix_length: int = 100  # P
        places: Literal["decoder", "all"] = "decoder"
        network: Literal["none", "mlp"] = "none"
        network_width: int | None = None  # units between W1 and W2, H unless set

        def __post_init__(self) -> None:
            require_positive(self, "prefix_length", "network_width")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        heads, size = key_head_shape(backbone)
        self.width = heads * size
        self.num_decoder = num_self_attentions(backbone, "decoder")
        everywhere = hp.places == "all" or not backbone.writes_text  # an encoder has no decoder to give it to
        num_encoder = num_self_attentions(backbone, "encoder") if everywhere else 0
        like = backbone.embedding.weight
        make: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        total = 2 * (self.num_decoder + num_encoder) * self.width
        inner = hp.network_width or backbone.hidden
        rows = total if hp.network == "none" else backbone.hidden
        std = STARTING_STD if hp.network == "none" else 1.0
        self.vectors = nn.Parameter(std * torch.randn(hp.prefix_length, rows, **make))  # [P, 2 L W] or [P, H]
        self.network: nn.Sequential | None = None
        if hp.network == "mlp":
            self.network = nn.Sequential(nn.Linear(rows, inner, **make), nn.Tanh(), nn.Linear(inner, total, **make))
        self._served: Tensor | None = None
        """An exported prefix, [P, 2 L W], which needs no network."""
        self._layers = PrefixAttention(backbone, self._of_decoder, self._of_encoder if num_encoder else None)

    def prefix(self) -> Tensor:
        """Return keys and values of every layer, the decoder's first, [P, 2 L W]."""
        if self._served is not None:
            return self._served
        return self.vectors if self.network is None else self.network(self.vectors)

    def _by_layer(self) -> Tensor:
        """Return the prefix as [P, L, 2, W]."""
        prefix = self.prefix()
        return prefix.reshape(len(prefix), -1, 2, self.width)

    def _of_decoder(self) -> Tensor:
        """Return the decoder's part of the prefix, [P, its layers, 2, W]."""
        return self._by_layer()[:, : self.num_decoder]

    def _of_encoder(self) -> Tensor:
        """Return the encoder's part of the prefix, [P, its layers, 2, W]."""
        return self._by_layer()[:, self.num_decoder :]

    def keys_and_values(self) -> Tensor:
        """Return the prefix as a decoder takes it, [layers, 2, heads, P, size], where no other part has one."""
        return self._layers.keys_and_values(self._of_decoder(), 1)[:, :, 0]

    def attach(self, backbone: Backbone) -> None:
        """Start to give the prefix to the self-attentions."""
        self._layers.attach()

    def detach(self, backbone: Backbone) -> None:
        """Stop it."""
        self._layers.detach()

    def keep_rows(self, rows: Tensor) -> bool:
        """Follow any rows: all have the same prefix, and it stands among the keys and values that leave with them."""
        return True

    def kept(self) -> dict[str, Tensor]:
        """The prefix, [P, 2 L W]; a network is not needed after training."""
        return {"prefix": self.prefix()}

    def export(self) -> dict[str, Tensor]:
        """The prefix, [P, 2 L W]."""
        return {"prefix": self.prefix().detach().clone()}

    def load_export(self, tensors: Mapping[str, Tensor]) -> None:
        """Use an exported prefix, [P, 2 L W], from now on."""
        self._served = tensors["prefix"].to(self.vectors)
