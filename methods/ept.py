"""EPT: decomposed prompt, attention fusion and gated projections into several spaces (Lan et al., AAAI 2025).

P [L, H] from the vocabulary; P_s [P, H] its first rows, trained; A [S, R], B [R, H] from the SVD of P brought to
S rows. W = softmax(P_s (A B)^T / sqrt H) [P, S]; P_f = P_s + fused; P_amend = sum_i G_i * E_i(P_s) over spaces
E_i: H -> S -> H with ReLU and per-token gates G = softmax_i(f_i(P_s)). X = [P_amend + P_f; E(x) + A B].

Stands taken, since no code is public: as printed, fused = einsum(W, P_s) over "p l, p d -> p d" sums softmax rows
and returns P_s itself (`fusion: literal`); the default reads the values as A B (`fusion: lowrank_values`).
P is tiled to S rows (`align: zero` pads instead); singular values go to both factors by their square roots.
The networks serve training only: P_amend + P_f does not depend on x, so inference keeps P_new, A and B.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.method import Backbone, Defaults, Method, Paper, require_positive, sweep, vocabulary_rows


class EPT(Method):
    """Short prompt and networks at the recipe's lr, the low-rank pair at `added_lr`."""

    name = "ept"
    paper = Paper("lan-etal-2025-ept", "https://arxiv.org/abs/2405.11464", params={"t5-base": 76_800})
    defaults = Defaults(recipe={"lr": sweep(0.3, 0.4, 0.5)}, hp={"added_lr": sweep(1e-4, 5e-4, 5e-3)})

    @dataclass(frozen=True, kw_only=True)
    class HP:
        prompt_length: int = 60
        budget_length: int = 100
        rank: int | None = None
        source_length: int | None = None
        spaces: int = 4
        bottleneck: int | None = None
        added_lr: float = 1e-4
        fusion: Literal["lowrank_values", "literal"] = "lowrank_values"
        align: Literal["tile", "zero"] = "tile"
        init: Literal["top5000", "text_repeat", "first_m", "sample_vocab"] = "top5000"

        def __post_init__(self) -> None:
            if not 0 < self.added_lr < math.inf:
                raise ValueError(f"added_lr must be positive, got {self.added_lr}")
            require_positive(self, "prompt_length", "budget_length", "rank", "source_length", "spaces", "bottleneck")
            if self.prompt_length > self.budget_length:
                raise ValueError("prompt_length cannot exceed budget_length, the rows of the original prompt")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        length, width = hp.source_length or 256, backbone.hidden
        # a matrix of S rows has no more than S singular values to keep
        rank = hp.rank or min(length, (hp.budget_length - hp.prompt_length) * width // (width + length))
        if rank < 1:
            raise ValueError("budget_length leaves no rank for the added table; raise it or lower prompt_length")
        original = vocabulary_rows(backbone, hp.budget_length, hp.init)  # [L, H]
        a, b = factorize(align_rows(original, length, hp.align), rank)
        self.added_lr, self.fusion = hp.added_lr, hp.fusion
        self.short = nn.Parameter(original[: hp.prompt_length].clone())  # [P, H]
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)  # [S, R], [R, H]
        inner = hp.bottleneck or length
        make: dict[str, Any] = {"dtype": original.dtype, "device": original.device}
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner, **make), nn.ReLU(), nn.Linear(inner, width, **make))
            for _ in range(hp.spaces)
        )
        self.gates = nn.ModuleList(nn.Linear(width, 1, **make) for _ in range(hp.spaces))

    def fused(self) -> Tensor:
        """P_f, [P, H]."""
        table = self.added()
        attention = torch.softmax(self.short @ table.T / math.sqrt(self.short.shape[1]), -1)  # [P, S]
        if self.fusion == "literal":
            return self.short + torch.einsum("ps,pd->pd", attention, self.short)
        return self.short + attention @ table

    def gate_weights(self) -> Tensor:
        """Share of each space in each prompt vector, [spaces, P, 1]."""
        return torch.softmax(torch.stack([gate(self.short) for gate in self.gates]), 0)

    def prompt(self) -> Tensor:
        projected = torch.stack([expert(self.short) for expert in self.experts])  # [spaces, P, H]
        return (self.gate_weights() * projected).sum(0) + self.fused()

    def added(self) -> Tensor:
        return self.a @ self.b

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        pair = [self.a, self.b]
        rest = [self.short, *self.experts.parameters(), *self.gates.parameters()]
        return [{"params": rest, "lr": lr}, {"params": pair, "lr": self.added_lr}]

    def kept(self) -> dict[str, Tensor]:
        return {"prompt": self.prompt(), "a": self.a, "b": self.b}


def align_rows(prompt: Tensor, length: int, rule: str) -> Tensor:
    """Bring [L, H] to [length, H] by repeating the rows or by zeros behind them."""
    if rule == "tile":
        return prompt.repeat(-(-length // len(prompt)), 1)[:length]
    padded = prompt.new_zeros(length, prompt.shape[1])
    padded[: len(prompt)] = prompt[:length]
    return padded


def factorize(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Best rank-`rank` factors A [n, R], B [R, H], singular values split evenly."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    if rank > len(s):
        raise ValueError(f"rank {rank} exceeds the {len(s)} singular values of a {tuple(matrix.shape)} prompt")
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]
