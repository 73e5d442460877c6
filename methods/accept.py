"""ACCEPT: prompts and added embeddings as weighted codewords of learned codebooks (Lin et al., EMNLP 2024 Findings).

A codebook table CB(n, K, R) has weights W [n, K, R] and codebooks C [K, R, t] with K t = H (eq. 3, all terms
on codebook k): row i is the concatenation over k of sum_j W[i, k, j] C[k, j, :]. SCPP = CB(P, H/t, R) is put in
front, SCAP = CB(S, H/t', R') is added to the token embeddings: X = [SCPP; E(x) + SCAP].

Source: AI-Application-and-Integration-Lab/Accept, a patch of DePT's code: `kaiming_uniform_` with a = sqrt(5) of all
but SCAP's codebook, which has a = 0.

Choices made: tensors start kaiming-uniform as in the authors' code (`init: gaussian`, matched in standard
deviation, is the paper's word); SCAP is not scaled; the width t of a subvector is fixed, not K, since K = 24
divides no other backbone's H; R = floor(budget H / (H + n K)) per part, with budgets of P and
`budget_length - P` vectors, which reproduces all rows of the paper's Table 12.
Three ways to start: random, or both sides from runs in which each was trained alone, SCPP with `added_side: lowrank`
and SCAP with `prompt_side: free`, on an intermediate task or on the target task; `init_from` names the two.
`prompt_side: free` is the paper's SCAP-only, `added_side: lowrank` (DePT's table) its SCPP-only; with `none` a side is
left out (Table 4 and both ends of Figure 4), and the other has the whole budget. The code starts the
free prompt N(0, 1) unless asked for text (`free_init: normal`); the default here is DePT's own start, with which the
comparison was meant. Inference keeps codebooks and weights, 74,880 numbers, as the code stores them; an export writes
both tables worked out, [P, H] and [S, H], which is more numbers but no codebook.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.method import Backbone, Defaults, Method, Paper, copy_into, require_positive, sweep, vocabulary_rows


class Codebook(nn.Module):
    """CB(n, K, R): a table [n, H] of n rows, each put together from K subvectors of width t = H / K.

    `a` is the negative slope in the kaiming bound of the codebooks. Where `rank` is None, R is what `budget` vectors
    of width H pay for.
    """

    def __init__(self, n: int, t: int, rank: int | None, budget: int, a: float, init: str, like: Tensor) -> None:
        super().__init__()
        width = like.shape[1]
        if width % t:
            raise ValueError(f"a subvector width of {t} does not divide the backbone's width {width}")
        k = width // t
        # codebooks take R H numbers and weights n K R: together at most budget H
        rank = rank or budget * width // (width + n * k)
        if rank < 1:
            raise ValueError(f"a budget of {budget} vectors leaves no codeword for {n} rows in {k} subspaces")
        self.weights = nn.Parameter(torch.empty(n, k, rank, dtype=like.dtype, device=like.device))  # [n, K, R]
        self.codebooks = nn.Parameter(torch.empty(k, rank, t, dtype=like.dtype, device=like.device))  # [K, R, t]
        self._fill(self.weights, math.sqrt(5), init)
        self._fill(self.codebooks, a, init)

    @staticmethod
    def _fill(tensor: Tensor, a: float, init: str) -> None:
        """Fill a tensor of any shape from U(-b, b) with the kaiming bound b, or from a normal of the same deviation."""
        if init == "kaiming":
            nn.init.kaiming_uniform_(tensor, a=a)
        else:
            # the fan-in of a tensor with three dimensions is the size of all but the first
            bound = math.sqrt(6 / ((1 + a * a) * tensor[0].numel()))
            nn.init.normal_(tensor, std=bound / math.sqrt(3))

    def table(self) -> Tensor:
        """Return the table, [n, H]."""
        return torch.einsum("nkr,krt->nkt", self.weights, self.codebooks).flatten(1)


class LowRankTable(nn.Module):
    """DePT's added table s A B [n, H], with which the paper's ablations compare. `rank` and `budget` as in Codebook."""

    def __init__(self, n: int, rank: int | None, budget: int, like: Tensor) -> None:
        super().__init__()
        rank = rank or budget * like.shape[1] // (like.shape[1] + n)
        if rank < 1:
            raise ValueError(f"a budget of {budget} vectors leaves no rank for a table of {n} rows")
        self.scale = 8 / math.sqrt(rank)
        self.a = nn.Parameter(torch.empty(n, rank, dtype=like.dtype, device=like.device))  # [n, R]
        self.b = nn.Parameter(torch.zeros(rank, like.shape[1], dtype=like.dtype, device=like.device))  # [R, H]
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def table(self) -> Tensor:
        """Return the table, [n, H]."""
        return self.scale * self.a @ self.b


class FreePrompt(nn.Module):
    """Plain prompt vectors [P, H], with which the paper's ablations compare."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)

    def table(self) -> Tensor:
        """Return the table, [P, H]."""
        return self.vectors


class ACCEPT(Method):
    """SCPP learns at the recipe's lr, SCAP at `added_lr`."""

    name = "accept"
    paper = Paper(
        "lin-etal-2024-accept",
        "https://arxiv.org/abs/2410.12847",
        params={"t5-base": 74_880, "llama-2-7b": 405_000},
        params_note="The Llama-2-7B figure (405K) is 404,992 with a trained 4096 x 2 head, which is not here.",
    )
    defaults = Defaults(recipe={"lr": sweep(0.3, 0.4, 0.5)}, hp={"added_lr": sweep(1e-4, 5e-4, 1e-3, 5e-3)})

    takes_sources = (0, 2)

    @dataclass(frozen=True, kw_only=True)
    class HP:
        prompt_length: int = 60  # P
        budget_length: int = 100  # vectors of width H that both sides may cost together
        source_length: int | None = None  # S, filled in by the harness
        prompt_width: int = 32  # t
        added_width: int | None = None  # t', H / 2 unless set
        prompt_rank: int | None = None  # R, from the budget unless set
        added_rank: int | None = None  # R', from the budget unless set
        added_lr: float = 1e-4
        init: Literal["kaiming", "gaussian"] = "kaiming"
        prompt_side: Literal["scpp", "free", "none"] = "scpp"
        added_side: Literal["scap", "lowrank", "none"] = "scap"
        free_init: Literal["text_repeat", "top5000", "first_m", "sample_vocab", "normal"] = "text_repeat"

        def __post_init__(self) -> None:
            if not 0 < self.added_lr < math.inf:
                raise ValueError(f"added_lr must be positive, got {self.added_lr}")
            require_positive(self, "budget_length", "source_length", "prompt_width", "added_width")
            require_positive(self, "prompt_rank", "added_rank")
            if (self.prompt_length == 0) != (self.prompt_side == "none") or self.prompt_length < 0:
                raise ValueError("prompt_length is 0 exactly where prompt_side is none")
            if self.prompt_side == self.added_side:
                raise ValueError("prompt_side and added_side cannot both be none; nothing would train")
            if self.added_side == "none" and self.budget_length != self.prompt_length:
                raise ValueError("without an added table, prompt_length takes all of budget_length")
            if self.added_side != "none" and self.budget_length <= self.prompt_length:
                raise ValueError("budget_length must exceed prompt_length; the rest pays for the added table")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        like, length = backbone.embedding.weight, hp.source_length or 256
        added_budget, added_width = hp.budget_length - hp.prompt_length, hp.added_width or backbone.hidden // 2
        self.added_lr = hp.added_lr
        self.front: Codebook | FreePrompt | None = None
        self.offset: Codebook | LowRankTable | None = None
        rows = hp.prompt_length
        if hp.prompt_side == "scpp":
            self.front = Codebook(rows, hp.prompt_width, hp.prompt_rank, rows, math.sqrt(5), hp.init, like)
        elif hp.prompt_side == "free":
            self.front = FreePrompt(vocabulary_rows(backbone, rows, hp.free_init))
        if hp.added_side == "scap":
            self.offset = Codebook(length, added_width, hp.added_rank, added_budget, 0.0, hp.init, like)
        elif hp.added_side == "lowrank":
            self.offset = LowRankTable(length, hp.added_rank, added_budget, like)

    def start_from(self, sources: Sequence[Mapping[str, Tensor]]) -> None:
        """Copy each side from the one source that trained it: two runs, SCPP and SCAP alone, or one run of both."""
        for prefix, side in (("front", self.front), ("offset", self.offset)):
            if side is None:
                continue
            own = {f"{prefix}.{name}": tensor for name, tensor in side.state_dict().items()}
            holders = [source for source in sources if own.keys() <= source.keys()]
            if len(holders) != 1:
                raise ValueError(f"{', '.join(own)} must be in one of the sources, they are in {len(holders)}")
            for name, tensor in own.items():
                copy_into(tensor, holders[0][name], name)

    def prompt(self) -> Tensor | None:
        """SCPP, [P, H]."""
        return None if self.front is None else self.front.table()

    def added(self) -> Tensor | None:
        """SCAP, [S, H]."""
        return None if self.offset is None else self.offset.table()

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        sides = [(self.front, lr), (self.offset, self.added_lr)]
        return [{"params": list(side.parameters()), "lr": rate} for side, rate in sides if side is not None]
