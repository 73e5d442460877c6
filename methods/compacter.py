"""Compacter: adapters whose matrices are sums of Kronecker products (Karimi Mahabadi et al., NeurIPS 2021).

y = x + U(gelu(D(x))) with D(x) = x W_d + b_d, U(z) = z W_u + b_u and W = sum_i A_i (x) (s_i t_i): the n rules A_i,
[n, n], are shared by all matrices of all layers, s_i [in/n, k] and t_i [k, out/n] belong to one matrix, k = 1.
Bottleneck R = H / 32, n = 4. Rules N(0, 1e-4), factors glorot-uniform with gain sqrt(2), biases zero. All norms train.
lr 3e-3.
Behind the attention and the feed-forward part of every layer; `sublayers: ffn` is the paper's Compacter++.

Source: rabeehk/compacter, seq2seq/hypercomplex (layers.py, inits.py: the gain) and configs/compacter.json.

Choices made, those of the authors' code: one set of rules for down and up, gelu by tanh, nothing behind
cross-attention. R is rounded up to a multiple of n, which changes nothing on T5-base (R = 24).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import AdapterMethod, Backbone, Defaults, Paper, Sublayer, SublayerKind, require_positive, sweep


class KroneckerLinear(nn.Module):
    """x [..., in] -> x W + b [..., out], W = sum_i A_i (x) (s_i t_i) with the A_i [n, n, n] given at each call."""

    def __init__(self, inputs: int, outputs: int, n: int, rank: int, like: Tensor) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(n, inputs // n, rank, dtype=like.dtype, device=like.device))
        self.right = nn.Parameter(torch.empty(n, rank, outputs // n, dtype=like.dtype, device=like.device))
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=like.dtype, device=like.device))
        # factor by factor, since glorot's bound counts the dimensions of one matrix
        for factor in (*self.left, *self.right):
            nn.init.xavier_uniform_(factor, gain=math.sqrt(2))

    def weight(self, rules: Tensor) -> Tensor:
        """The sum of Kronecker products, [in, out]: entry (a p, b q) is sum_i A_i[a, b] (s_i t_i)[p, q]."""
        products = torch.einsum("iab,ipk,ikq->apbq", rules, self.left, self.right)
        return products.reshape(self.left.shape[1] * len(rules), len(self.bias))

    def forward(self, states: Tensor, rules: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(states, self.weight(rules).T, self.bias)


class KroneckerBottleneck(nn.Module):
    """One adapter. The rules come with each call, since all adapters share them."""

    def __init__(self, width: int, n: int, rank: int, like: Tensor) -> None:
        super().__init__()
        self.down = KroneckerLinear(like.shape[1], width, n, rank, like)
        self.up = KroneckerLinear(width, like.shape[1], n, rank, like)

    def forward(self, states: Tensor, rules: Tensor) -> Tensor:
        """[..., H], [n, n, n] -> [..., H]."""
        changed: Tensor = states + self.up(F.gelu(self.down(states, rules), approximate="tanh"), rules)
        return changed


class Compacter(AdapterMethod):
    """161,728 parameters on T5-base: 48 adapters of 2,376, the rules' 64, and 62 norms of 768."""

    name = "compacter"
    paper = Paper("karimi-mahabadi-etal-2021-compacter", "https://arxiv.org/abs/2106.04647")
    defaults = Defaults(recipe={"lr": sweep(1e-3, 3e-3, 1e-2)})
    is_positionwise = True

    @dataclass(frozen=True, kw_only=True)
    class HP:
        n: int = 4
        rank: int = 1  # k
        reduction: int = 32  # H / R
        init_std: float = 1e-4  # of the rules
        sublayers: Literal["both", "ffn"] = "both"

        def __post_init__(self) -> None:
            require_positive(self, "n", "rank", "reduction")
            if not self.init_std > 0:
                raise ValueError(f"init_std must be positive, got {self.init_std}")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        like = backbone.embedding.weight
        if backbone.hidden % hp.n:
            raise ValueError(f"n must divide the backbone's width {backbone.hidden}, got {hp.n}")
        width = math.ceil(max(1, backbone.hidden // hp.reduction) / hp.n) * hp.n
        kinds: tuple[SublayerKind, ...] = ("ffn",) if hp.sublayers == "ffn" else ("attention", "ffn")
        super().__init__(hp, backbone, partial(KroneckerBottleneck, width, hp.n, hp.rank, like), kinds)
        self.rules = nn.Parameter(torch.empty(hp.n, hp.n, hp.n, dtype=like.dtype, device=like.device))  # [n, n, n]
        nn.init.normal_(self.rules, std=hp.init_std)

    def change(self, sublayer: Sublayer, states: Tensor) -> Tensor:
        """[..., H] -> [..., H], with the rules that all adapters share."""
        changed: Tensor = self.inserted[sublayer.key](states, self.rules)
        return changed
