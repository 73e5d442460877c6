"""ATTEMPT: an attention net mixes a target prompt with those of source tasks for each text (Asai et al., EMNLP 2022).

With sources S_1 ... S_N [P, H] and the target prompt S_{N+1} = P: x = max over tokens of E(x), s_j = max over rows of
S_j, q = LN(W_up silu(W_down x)), a = softmax_j(q . s_j / T); the prompt of a text is P + sum_j a_j S_j. W_down [R, H],
W_up [H, R] N(0, 0.01) without biases, T = floor(e H) (2,087 on T5-base); P starts as the first source. Sources stay
frozen and have to be there at inference, so more is kept than is trained. On a mixture of tasks each has a P of its
own and all share the attention net.

Source: AkariAsai/ATTEMPT, attempt/third_party/models/t5/modeling_t5.py (`_init_weights`, `attn_W_down`, `attn_W_up`, a
LayerNorm with PyTorch's eps of 1e-5) and attempt/run_seq2seq.py (the groups of the optimiser, the first source as P).

Choices made: padding stays out of x, the norm trains, the net has its own rate 0.1, as the paper says.
`as_released: true` is what the authors' code does: texts shorter than `source_length` have the padding's embedding
among their tokens, the norm stays at its start (230,400 parameters), and everything trains at the prompt's rate.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.method import (
    Backbone,
    Defaults,
    Method,
    Paper,
    copy_into,
    max_over_tokens,
    require_positive,
    source_prompts,
    sweep,
    vocabulary_rows,
)


class ATTEMPT(Method):
    """Target prompt 76,800, attention net 153,600 and its norm 1,536 on T5-base."""

    name = "attempt"
    paper = Paper(
        "asai-etal-2022-attempt",
        "https://aclanthology.org/2022.emnlp-main.446",
        params={"t5-base": 232_000},
        params_note="The figure is rounded. Kept are also the frozen prompts of six source tasks.",
    )
    defaults = Defaults(recipe={"lr": sweep(0.3, 0.4, 0.5)})
    takes_sources = (1, None)

    @dataclass(frozen=True, kw_only=True)
    class HP:
        prompt_length: int = 100  # P
        bottleneck: int = 100  # R
        temperature: float | None = None  # T, floor(e H) unless set
        attention_lr: float = 0.1
        num_sources: int | None = None  # N, filled in by the harness; 6 where only parameters are counted
        num_tasks: int | None = None  # filled in by the harness on a mixture
        source_length: int | None = None  # filled in by the harness
        as_released: bool = False

        def __post_init__(self) -> None:
            require_positive(self, "prompt_length", "bottleneck", "num_sources", "num_tasks", "source_length")
            if self.temperature is not None and not self.temperature > 0:
                raise ValueError(f"temperature must be positive, got {self.temperature}")
            if not self.attention_lr > 0:
                raise ValueError(f"attention_lr must be positive, got {self.attention_lr}")

    sources: Tensor
    pad: Tensor

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        like, width = backbone.embedding.weight, backbone.hidden
        make: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        self.hp = hp
        self.num_tasks = hp.num_tasks or 1
        self.temperature = hp.temperature or math.floor(math.e * width)
        start = vocabulary_rows(backbone, hp.prompt_length, "top5000")
        self.vectors = nn.Parameter(start.repeat(self.num_tasks, 1, 1))  # [K, P, H]
        self.down = nn.Linear(width, hp.bottleneck, bias=False, **make)
        self.up = nn.Linear(hp.bottleneck, width, bias=False, **make)
        self.norm = nn.LayerNorm(width, **make).requires_grad_(not hp.as_released)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.01)
        self.register_buffer("sources", torch.zeros(hp.num_sources or 6, *start.shape, **make))  # [N, P, H]
        self.register_buffer("pad", backbone.token_vectors(torch.tensor(backbone.pad_id)), persistent=False)

    def start_from(self, sources: Sequence[Mapping[str, Tensor]]) -> None:
        """Take over the prompts of all sources, [N, P, H]; the target prompt starts as the first of them."""
        prompts = source_prompts(sources, *self.sources.shape[1:])
        copy_into(self.sources, prompts, "the prompts of all sources")
        copy_into(self.vectors, prompts[:1].expand_as(self.vectors), "the target prompt")

    @property
    def num_prompt_tokens(self) -> int:
        return self.hp.prompt_length

    def forward(self, embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, H], [B, T] -> [B, P+T, H], [B, P+T]."""
        own = self.vectors[self.tasks_of(embeds)]  # [B, P, H]
        weights = self.attention(self._pooled(embeds, mask), own)  # [B, N+1]
        mixed = torch.einsum("bn,nph->bph", weights[:, :-1], self.sources)
        front = own + mixed + weights[:, -1, None, None] * own
        return torch.cat([front, embeds], 1), torch.cat([mask.new_ones(front.shape[:2]), mask], 1)

    def attention(self, text: Tensor, own: Tensor) -> Tensor:
        """[B, H], [B, P, H] -> weights of the sources and, last, of the target prompt, [B, N+1]."""
        query = self.norm(self.up(nn.functional.silu(self.down(text))))
        keys = self.sources.amax(1).expand(len(text), -1, -1)
        keys = torch.cat([keys, own.amax(1, keepdim=True)], 1)
        return torch.einsum("bh,bnh->bn", query, keys).div(self.temperature).softmax(-1)

    def _pooled(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, H], [B, T] -> [B, H]. As released, the padding of texts shorter than S takes part."""
        pooled = max_over_tokens(embeds, mask)
        if not self.hp.as_released:
            return pooled
        is_padded = mask.sum(1, keepdim=True) < (self.hp.source_length or 256)
        return torch.where(is_padded, torch.maximum(pooled, self.pad.to(pooled)), pooled)

    def kept(self) -> dict[str, Tensor]:
        """All that trains, and the frozen prompts of the sources."""
        return {**dict(self.named_parameters()), "sources": self.sources}

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The target prompt at the recipe's lr, the attention net at `attention_lr` or, as released, at the same."""
        net = [p for name, p in self.named_parameters() if name != "vectors" and p.requires_grad]
        own_rate = lr if self.hp.as_released else self.hp.attention_lr
        return [{"params": [self.vectors], "lr": lr}, {"params": net, "lr": own_rate}]
