"""EPT: decomposed prompt, attention fusion and gated projections into several spaces (Lan et al., AAAI 2025).

P [L, H] from the vocabulary; P_s [P, H] its first rows, trained; A [S, R], B [R, H] from the SVD of P brought to
S rows. W = softmax(P_s (A B)^T / sqrt H) [P, S]; P_f = P_s + fused; P_amend = sum_i G_i * E_i(P_s) over spaces
E_i: H -> S -> H with ReLU and per-token gates G = softmax_i(f_i(P_s)). X = [P_amend + P_f; E(x) + A B].

Source: the paper, sections 3.2 and 3.3, alone.

Choices made, since no code is public: as printed, fused = einsum(W, P_s) over "p l, p d -> p d" sums softmax rows
and returns P_s itself (`fusion: literal`); the default reads the values as A B (`fusion: lowrank_values`).
P is tiled to S rows (`align: zero` pads instead, `align: linear` resamples); singular values go to both factors by
their square roots. Networks learn at P_s's lr unless `network_lr` says otherwise. P_new = P_amend + P_f does not
depend on x, so inference keeps P_new, A and B; the networks train to the end. `discard_at: 0.5` is the other reading
of "discarded": after half of the steps P_new itself trains on, without networks. An export writes P_new and A B.
`init_from` starts everything from another EPT run; P_s, A and B from a run or file that holds these three (of a run
whose networks were discarded, P_new as P_s); and from a prompt alone, [L, H], as if that were the P of the vocabulary.
The paper's few-shot runs start from the prompt of one of five source tasks and do not say which of these is meant.
For the paper's ablations, `fusion: none` and `spaces: 0` leave out a module each: P_f = P_s, and no P_amend.
`prompt_length: 0` leaves only A B, `prompt_length` equal to `budget_length` (or `rank: 0`) leaves only P_amend + P_s.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    Backbone,
    Defaults,
    Method,
    Paper,
    copy_into,
    decomposed_into,
    require_positive,
    source_prompt,
    sweep,
    vocabulary_rows,
)


class EPT(Method):
    """The short prompt learns at the recipe's lr, networks too or at `network_lr`, the low-rank pair at `added_lr`."""

    name = "ept"
    paper = Paper(
        "lan-etal-2025-ept",
        "https://arxiv.org/abs/2405.11464",
        params={"t5-base": 76_800},
        params_note="The networks that train beside them are not counted by the paper.",
    )
    defaults = Defaults(recipe={"lr": sweep(0.3, 0.4, 0.5)}, hp={"added_lr": sweep(1e-4, 5e-4, 5e-3)})
    takes_sources = (0, 1)

    @dataclass(frozen=True, kw_only=True)
    class HP:
        prompt_length: int = 60  # P
        budget_length: int = 100  # L
        rank: int | None = None  # R, from the budget unless set
        source_length: int | None = None  # S, filled in by the harness
        spaces: int = 4
        bottleneck: int | None = None  # units inside each E_i, S unless set
        added_lr: float = 1e-4
        network_lr: float | None = None  # the recipe's lr unless set
        discard_at: float | None = None  # share of the steps after which the networks go; never unless set
        fusion: Literal["lowrank_values", "literal", "none"] = "lowrank_values"
        align: Literal["tile", "zero", "linear"] = "tile"
        init: Literal["top5000", "text_repeat", "first_m", "sample_vocab"] = "top5000"

        def __post_init__(self) -> None:
            for name, value in (("added_lr", self.added_lr), ("network_lr", self.network_lr)):
                if value is not None and not 0 < value < math.inf:
                    raise ValueError(f"{name} must be positive, got {value}")
            if self.discard_at is not None and not 0 < self.discard_at < 1:
                raise ValueError(f"discard_at must be a share of the steps in (0, 1), got {self.discard_at}")
            require_positive(self, "budget_length", "source_length", "bottleneck")
            if min(self.prompt_length, self.rank or 0, self.spaces) < 0:
                raise ValueError("prompt_length, rank and spaces cannot be negative")
            if self.prompt_length > self.budget_length:
                raise ValueError("prompt_length cannot exceed budget_length, the rows of the original prompt")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        length = hp.source_length or 256
        self.hp = hp
        original = vocabulary_rows(backbone, hp.budget_length, hp.init)  # [L, H]
        self.added_lr, self.network_lr, self.fusion = hp.added_lr, hp.network_lr, hp.fusion
        self.short = nn.Parameter(original[: hp.prompt_length].clone()) if hp.prompt_length else None  # [P, H]
        rank = chosen_rank(hp, length, backbone.hidden)
        self.a, self.b = None, None
        if rank:
            a, b = factorize(align_rows(original, length, hp.align), rank)
            self.a, self.b = nn.Parameter(a), nn.Parameter(b)  # [S, R], [R, H]
        inner, width, spaces = hp.bottleneck or length, backbone.hidden, hp.spaces if hp.prompt_length else 0
        make: dict[str, Any] = {"dtype": original.dtype, "device": original.device}
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner, **make), nn.ReLU(), nn.Linear(inner, width, **make))
            for _ in range(spaces)
        )
        self.gates = nn.ModuleList(nn.Linear(width, 1, **make) for _ in range(spaces))
        self.discard_at = hp.discard_at if hp.prompt_length else None
        if self.discard_at is not None:
            self.collapsed = nn.Parameter(torch.zeros_like(original[: hp.prompt_length]))  # P_new once it trains
            # a buffer, so that a checkpoint knows on which side of the switch it was taken
            self.register_buffer("is_discarded", torch.zeros((), dtype=torch.bool))

    is_discarded: Tensor

    @torch.no_grad()
    def start_from(self, sources: Sequence[Mapping[str, Tensor]]) -> None:
        """Everything of an EPT run; or prompt and pair of one that has both; or a prompt [L, H] brought to both."""
        source = sources[0]
        if "short" in source and "is_discarded" not in source:
            self._start_from_run(source)
        elif self.short is None or self.a is None or self.b is None:
            raise ValueError(
                "a source has a prompt and a pair; prompt_length or rank 0 leaves no place for one of them"
            )
        elif "added" in source:
            decomposed_into(source, self.short, (self.a, self.b), 1.0)
        else:
            original = source_prompt(source, self.hp.budget_length, self.short.shape[1])
            copy_into(self.short, original[: self.hp.prompt_length], "the prompt")
            pair = factorize(align_rows(original, len(self.a), self.hp.align), self.a.shape[1])
            for own, learnt, name in zip((self.a, self.b), pair, "ab", strict=True):
                copy_into(own, learnt, f"the pair's {name}")

    def _start_from_run(self, source: Mapping[str, Tensor]) -> None:
        own = {name: tensor for name, tensor in self.named_parameters() if name != "collapsed"}
        learnt = {name: tensor for name, tensor in source.items() if name not in ("prompt", "added")}
        if own.keys() != learnt.keys():
            odd = sorted(own.keys() ^ learnt.keys())
            raise ValueError(f"the source and this method do not have the same parts: {', '.join(odd[:3])}")
        for name, tensor in own.items():
            copy_into(tensor, learnt[name], name)

    def fused(self) -> Tensor:
        """P_f, [P, H]; without a low-rank pair there is nothing to fuse."""
        assert self.short is not None
        table = self.added()
        if table is None or self.fusion == "none":
            return self.short
        attention = torch.softmax(self.short @ table.T / math.sqrt(self.short.shape[1]), -1)  # [P, S]
        if self.fusion == "literal":
            return self.short + torch.einsum("ps,pd->pd", attention, self.short)
        return self.short + attention @ table

    def gate_weights(self) -> Tensor:
        """Share of each space in each prompt vector, [spaces, P, 1]."""
        return torch.softmax(torch.stack([gate(self.short) for gate in self.gates]), 0)

    def constructed(self) -> Tensor:
        """P_new as the networks give it, [P, H]."""
        if not self.experts:
            return self.fused()
        projected = torch.stack([expert(self.short) for expert in self.experts])  # [spaces, P, H]
        return (self.gate_weights() * projected).sum(0) + self.fused()

    def prompt(self) -> Tensor | None:
        """P_new, [P, H]; once the networks are discarded, the vectors that train in its place."""
        if self.short is None:
            return None
        return self.collapsed if self.discard_at is not None and self.is_discarded else self.constructed()

    def added(self) -> Tensor | None:
        """A B, [S, H]."""
        return None if self.a is None or self.b is None else self.a @ self.b

    @torch.no_grad()
    def on_step(self, step: int, num_steps: int) -> None:
        """Discard the networks when their share of the steps is over: P_new as it is then trains on."""
        if self.discard_at is not None and not self.is_discarded and step >= self.discard_at * num_steps:
            self.collapsed.copy_(self.constructed())
            self.is_discarded.fill_(True)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        networks = [*self.experts.parameters(), *self.gates.parameters()]
        vectors = [p for name, p in self.named_parameters() if name in ("short", "collapsed")]
        pair = [p for name, p in self.named_parameters() if name in ("a", "b")]
        groups = [(vectors, lr), (networks, self.network_lr or lr), (pair, self.added_lr)]
        return [{"params": params, "lr": rate} for params, rate in groups if params]

    def kept(self) -> dict[str, Tensor]:
        """P_new [P, H], A [S, R] and B [R, H]; the networks are not needed any more."""
        tensors = {"prompt": self.prompt(), "a": self.a, "b": self.b}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def chosen_rank(hp: EPT.HP, length: int, width: int) -> int:
    """Return R as set, or the largest that the budget left by P_s pays for. A matrix of S rows has rank S at most.

    Raises ValueError where the budget pays for no rank, or nothing would train.
    """
    if hp.rank is not None:
        rank = hp.rank
    else:
        # A and B together have R (S + H) numbers
        rank = min(length, (hp.budget_length - hp.prompt_length) * width // (width + length))
        if rank < 1 and hp.prompt_length < hp.budget_length:
            raise ValueError("budget_length leaves no rank for the added table; raise it or lower prompt_length")
    if not rank and not hp.prompt_length:
        raise ValueError("prompt_length and rank cannot both be 0; nothing would train")
    return rank


def align_rows(prompt: Tensor, length: int, rule: str) -> Tensor:
    """Bring a prompt [L, H] to S = `length` rows, [S, H]: repeat rows, add rows of zeros, or resample linearly."""
    if rule == "tile":
        return prompt.repeat(-(-length // len(prompt)), 1)[:length]
    if rule == "linear":
        return F.interpolate(prompt.T[None], size=length, mode="linear", align_corners=True)[0].T
    padded = prompt.new_zeros(length, prompt.shape[1])
    padded[: len(prompt)] = prompt[:length]
    return padded


def factorize(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors A [S, R], B [R, H] closest to a matrix [S, H]; each gets the roots of the singular values.

    Raises ValueError where the matrix has fewer than R singular values.
    """
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    if rank > len(s):
        raise ValueError(f"rank {rank} exceeds the {len(s)} singular values of a {tuple(matrix.shape)} prompt")
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]
