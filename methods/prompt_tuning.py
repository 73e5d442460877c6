"""Prompt tuning: P trainable vectors in front of the input (Lester et al., EMNLP 2021)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from harness.method import Backbone, Defaults, Method, Paper, require_positive, sweep, vocabulary_rows


class PromptTuning(Method):
    """X = [P; E(x)] with P [P, H]; only P trains."""

    name = "prompt_tuning"
    paper = Paper("lester-etal-2021-power", "https://aclanthology.org/2021.emnlp-main.243", params={"t5-base": 76_800})
    defaults = Defaults(recipe={"lr": sweep(0.3, 0.4, 0.5)})

    @dataclass(frozen=True, kw_only=True)
    class HP:
        prompt_length: int = 100
        init: Literal["top5000", "first_m", "text_repeat", "sample_vocab"] = "top5000"

        def __post_init__(self) -> None:
            require_positive(self, "prompt_length")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        self.vectors = nn.Parameter(vocabulary_rows(backbone, hp.prompt_length, hp.init))  # [P, H]

    def prompt(self) -> Tensor:
        return self.vectors
