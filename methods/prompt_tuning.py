"""Prompt tuning: P trainable vectors in front of the input (Lester et al., EMNLP 2021).

X = [P; E(x)] with P [P, H]; in front of the encoder's input only, as in the code of ATTEMPT, Compacter and DePT.

Source: google-research/prompt-tuning, prompts.py (`from_sample_of_embeddings`), configs/prompts/from_sampled_vocab.gin:
P of the first 5,000 ids, without repetition.

Choices made: the prompt starts from a random choice of frequent tokens (`init`; the field's code has seven other
ways). ATTEMPT's and Compacter's code means the same, but under the transformers 4.6 that it asks for it copies the rows
before the checkpoint is loaded, so what it copies is N(0, 1): `init: normal`. DePT's paper reprints better scores for
its own rerun of the same P vectors: set `init: text_repeat` and train as long. Nothing is put in front of the decoder
(PEFT's default allocates a second prompt there, unused).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from harness.method import Backbone, Defaults, Method, Paper, require_positive, sweep, vocabulary_rows


class PromptTuning(Method):
    """Only P trains."""

    name = "prompt_tuning"
    paper = Paper(
        "lester-etal-2021-power",
        "https://aclanthology.org/2021.emnlp-main.243",
        params={"t5-base": 76_800, "llama-2-7b": 417_792},
        params_note="The Llama-2-7B figure (DePT's paper, 417.8K) is for prompt_length 102.",
    )
    defaults = Defaults(recipe={"lr": sweep(0.3, 0.4, 0.5)})

    @dataclass(frozen=True, kw_only=True)
    class HP:
        prompt_length: int = 100  # P
        init: Literal[
            "top5000",
            "first_m",
            "text_repeat",
            "sample_vocab",
            "ids_100_to_599",
            "ids_100_to_999",
            "uniform",
            "normal",
        ] = "top5000"

        def __post_init__(self) -> None:
            require_positive(self, "prompt_length")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        self.vectors = nn.Parameter(vocabulary_rows(backbone, hp.prompt_length, hp.init))  # [P, H]

    def prompt(self) -> Tensor:
        """P, [P, H]."""
        return self.vectors
