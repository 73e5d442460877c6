"""DPT: a prompt as the product of two thin matrices (Xiao et al., Findings of EMNLP 2023).

X = [A B; E(x)] with A [P, R], B [R, H], no nonlinearity; in front of the encoder's input only. Source: the
authors' code (XYaoooo/DPT: modeling_t5.py, main_ddp.py, options.py), whose README trains R = 10.

Choices made: A and B start U(-0.5, 0.5) as in the code, so prompt entries have standard deviation sqrt(R) / 12,
about 0.26; `init: kaiming` starts both as a codebook table with one subspace does. The product is not stored:
inference keeps A and B, 8,680 numbers on T5-base. The code's weight decay of 1e-5 is the protocol's
`weight_decay.reparametrized`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from harness.method import Backbone, Defaults, Method, Paper, require_positive, sweep


class DPT(Method):
    """Both factors learn at the recipe's lr; the authors' run uses 0.3."""

    name = "dpt"
    paper = Paper("xiao-etal-2023-decomposed", "https://aclanthology.org/2023.findings-emnlp.890")
    defaults = Defaults(recipe={"lr": sweep(0.3, 0.4, 0.5)})

    @dataclass(frozen=True, kw_only=True)
    class HP:
        prompt_length: int = 100  # P
        rank: int = 10  # R
        init: Literal["uniform", "kaiming"] = "uniform"

        def __post_init__(self) -> None:
            require_positive(self, "prompt_length", "rank")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        like = backbone.embedding.weight
        self.a = nn.Parameter(torch.empty(hp.prompt_length, hp.rank, dtype=like.dtype, device=like.device))  # [P, R]
        self.b = nn.Parameter(torch.empty(hp.rank, backbone.hidden, dtype=like.dtype, device=like.device))  # [R, H]
        for factor in (self.a, self.b):
            if hp.init == "uniform":
                nn.init.uniform_(factor, -0.5, 0.5)
            else:
                nn.init.kaiming_uniform_(factor, a=math.sqrt(5))

    def prompt(self) -> Tensor:
        """A B, [P, H]."""
        return self.a @ self.b
