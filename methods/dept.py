"""DePT: a shorter prompt and a low-rank table added to the token embeddings (Shi & Lipani, ICLR 2024).

X = [P; E(x) + s A B] with P [P, H], A [S, R], B [R, H]; row i of A B goes to the i-th token.

Source: ZhengxiangShi/DecomposedPromptTuning, peft/tuners/prompt_tuning_lora.py, peft/peft_model.py and train.py: A
kaiming-uniform with a = sqrt(5), B zero, P the tokens of one fixed sentence, transformers' AdamW without weight decay.

Choices made: the factor s = 8 / sqrt(R) is in the authors' code only (`scale: none` is the paper's reading);
R = floor((budget - P) H / (H + S)) keeps the parameters within `budget_length` vectors when the source
length changes (the released MultiRC run kept R = 30 instead: set `rank: 30`). `init_from` starts P, A and B from
another run, as `--peft_model_id` does in the authors' code, or from an adapter file of theirs. Inference keeps P, A
and B, as the authors' checkpoints do; an export writes the product s A B [S, H], which is larger than its factors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.method import Backbone, Defaults, Method, Paper, decomposed_into, require_positive, sweep, vocabulary_rows


class DePT(Method):
    """P learns at the recipe's lr, A and B at `added_lr`. B starts at zero, so training starts as prompt tuning."""

    name = "dept"
    paper = Paper(
        "shi-lipani-2024-dept",
        "https://arxiv.org/abs/2309.05173",
        params={"t5-base": 76_800, "llama-2-7b": 413_440},
        params_note="The Llama-2-7B figure (413.4K) is for prompt_length 40, rank 60, source_length 64.",
    )
    defaults = Defaults(recipe={"lr": sweep(0.3, 0.4, 0.5)}, hp={"added_lr": sweep(1e-4, 5e-4, 1e-3, 5e-3)})
    takes_sources = (0, 1)

    @dataclass(frozen=True, kw_only=True)
    class HP:
        prompt_length: int = 60  # P
        budget_length: int = 100  # vectors of width H that P, A and B may cost together
        rank: int | None = None  # R, from the budget unless set
        source_length: int | None = None  # S, filled in by the harness
        added_lr: float = 1e-4
        init: Literal["text_repeat", "top5000", "first_m", "sample_vocab"] = "text_repeat"
        scale: Literal["code", "none"] = "code"

        def __post_init__(self) -> None:
            if not 0 < self.added_lr < math.inf:
                raise ValueError(f"added_lr must be positive, got {self.added_lr}")
            require_positive(self, "prompt_length", "budget_length", "rank", "source_length")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        length, width = hp.source_length or 256, backbone.hidden
        rank = hp.rank or (hp.budget_length - hp.prompt_length) * width // (width + length)
        if rank < 1:
            raise ValueError("budget_length leaves no rank for the added table; raise it or lower prompt_length")
        self.added_lr = hp.added_lr
        self.scale = 8 / math.sqrt(rank) if hp.scale == "code" else 1.0
        weight = backbone.embedding.weight
        self.vectors = nn.Parameter(vocabulary_rows(backbone, hp.prompt_length, hp.init))  # [P, H]
        self.a = nn.Parameter(torch.empty(length, rank, dtype=weight.dtype, device=weight.device))  # [S, R]
        self.b = nn.Parameter(torch.zeros(rank, width, dtype=weight.dtype, device=weight.device))  # [R, H]
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def start_from(self, sources: Sequence[Mapping[str, Tensor]]) -> None:
        """P, A and B of one source; of a prompt alone P, with the pair's own start, whose product is zero."""
        decomposed_into(sources[0], self.vectors, (self.a, self.b), self.scale)

    def prompt(self) -> Tensor:
        """P, [P, H]."""
        return self.vectors

    def added(self) -> Tensor:
        """s A B, [S, H]."""
        return self.scale * self.a @ self.b

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        return [{"params": [self.vectors], "lr": lr}, {"params": [self.a, self.b], "lr": self.added_lr}]
