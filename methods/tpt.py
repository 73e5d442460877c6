"""TPT: each text retrieves its own prompt vectors from a bank (Wu et al., EMNLP 2023 Findings).

With a bank C [M, H] and a task prompt P [P, H]: q = max over tokens of E(x), C_x = the `top_k` rows of C with the
largest c . q, in the order of the bank and unweighted; X = [C_x; P; E(x)]. The choice has no gradient, the rows chosen
have. On a mixture of tasks each has a P of its own and all share the bank. A source that holds a `bank` gives
it; those that hold a prompt give P: one for all tasks, or one for each in the order of the mixture. The paper's stages
are cells: prompts, a bank from a mixture that starts with them, then bank and prompt on the target.

Source: mlwu22/TPT, models.py and TPT.py.

Choices made: the bank starts from embeddings of ids 100-999 and P from those of ids 100-599, as in the code; its
inputs have hand-written templates, which are not here. Padding is masked, as everywhere here. `as_released: true` is
what the authors' code does: it passes no mask, so every text is filled up to `source_length` with padding that takes
part in q and in attention. All train in every stage, at one rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


class TPT(Method):
    """Bank 460,800 and task prompt 76,800 on T5-base."""

    name = "tpt"
    paper = Paper(
        "wu-etal-2023-parameter",
        "https://github.com/mlwu22/TPT",
        params={"t5-base": 538_000},
        params_note="The figure is 537,600 rounded; 539K in one table of the ACCEPT paper is a misprint.",
    )
    defaults = Defaults(recipe={"lr": sweep(0.3, 0.4, 0.5)})
    takes_sources = (0, None)

    @dataclass(frozen=True, kw_only=True)
    class HP:
        bank_size: int = 600  # M
        prompt_length: int = 100  # P
        top_k: int = 100
        num_tasks: int | None = None  # filled in by the harness on a mixture
        source_length: int | None = None  # filled in by the harness
        as_released: bool = False

        def __post_init__(self) -> None:
            require_positive(self, "bank_size", "prompt_length", "top_k", "num_tasks", "source_length")
            if self.top_k > self.bank_size:
                raise ValueError(f"top_k must be at most bank_size, {self.bank_size}, got {self.top_k}")

    pad: Tensor

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        self.hp = hp
        self.num_tasks = hp.num_tasks or 1
        self.bank = nn.Parameter(vocabulary_rows(backbone, hp.bank_size, "ids_100_to_999"))  # [M, H]
        start = vocabulary_rows(backbone, hp.prompt_length, "ids_100_to_599")
        self.vectors = nn.Parameter(start.repeat(self.num_tasks, 1, 1))  # [K, P, H]
        pad = backbone.token_vectors(torch.tensor(backbone.pad_id))
        self.register_buffer("pad", pad, persistent=False)

    def start_from(self, sources: Sequence[Mapping[str, Tensor]]) -> None:
        """Take over a bank [M, H], prompts [P, H], or both, from the sources that have them."""
        banks = [source["bank"] for source in sources if "bank" in source]
        prompts = [source for source in sources if "prompt" in source]
        if len(banks) > 1 or len(prompts) not in (0, 1, self.num_tasks) or len(banks) + len(prompts) < len(sources):
            raise ValueError(f"wanted are a bank, prompts for {self.num_tasks} tasks, or both; "
                             f"there are {len(banks)} banks and {len(prompts)} prompts")  # fmt: skip
        if banks:
            copy_into(self.bank, banks[0], "the bank")
        if prompts:
            found = source_prompts(prompts, *self.vectors.shape[1:])
            copy_into(self.vectors, found.expand_as(self.vectors), "the task prompt")

    @property
    def num_prompt_tokens(self) -> int:
        return self.hp.top_k + self.hp.prompt_length

    def forward(self, embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, H], [B, T] -> [B, top_k+P+T, H], [B, top_k+P+T]; as released, T is `source_length`."""
        if self.hp.as_released:
            embeds, mask = self._filled(embeds)
        chosen = self.bank[self.retrieve(embeds, mask)]  # [B, top_k, H]
        front = torch.cat([chosen, self.vectors[self.tasks_of(embeds)]], 1)
        return torch.cat([front, embeds], 1), torch.cat([mask.new_ones(front.shape[:2]), mask], 1)

    def retrieve(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """Return the rows of the bank for each text in ascending order: [B, T, H], [B, T] -> [B, top_k]."""
        scores = max_over_tokens(embeds, mask) @ self.bank.detach().to(embeds).T
        return scores.topk(self.hp.top_k).indices.sort().values

    def _filled(self, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Fill every text up to S with padding that is not masked: [B, T, H] -> [B, S, H], [B, S]."""
        missing = max(0, (self.hp.source_length or 256) - embeds.shape[1])
        padding = self.pad.to(embeds).expand(len(embeds), missing, -1)
        full = torch.cat([embeds, padding], 1)
        return full, torch.ones(full.shape[:2], dtype=torch.long, device=full.device)
