"""P-tuning: prompt vectors that come out of a small encoder (Liu et al., "GPT Understands, Too").

Z [P, H] trainable; P' = MLP(Z) with three linear layers of M units and ReLU between them (`encoder: mlp`), or a
two-layer MLP over a two-layer bidirectional LSTM along the prompt (`encoder: lstm`). X = [P'; E(x)]. P' does not
depend on x, so inference keeps P' [P, H] alone. Source: huggingface/peft,
tuners/p_tuning/model.py, which has the same tensors.

Choices made: the paper describes the LSTM, PEFT's default and most reported uses are the MLP (`encoder`). The paper
scatters its vectors over a template; here all stand in front, in front of the encoder's input only. Z starts
N(0, 1). No source prescribes a learning rate for a frozen T5; the grid, lower than that of plain prompts because
network weights train, is ours.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.method import Backbone, Defaults, Method, Paper, require_positive, sweep


class PTuning(Method):
    """Z and the encoder train; neither is needed after training."""

    name = "p_tuning"
    paper = Paper("liu-etal-2021-gpt-understands", "https://arxiv.org/abs/2103.10385")
    defaults = Defaults(recipe={"lr": sweep(1e-3, 3e-3, 1e-2)})

    @dataclass(frozen=True, kw_only=True)
    class HP:
        prompt_length: int = 100  # P
        encoder: Literal["mlp", "lstm"] = "mlp"
        encoder_width: int | None = None  # M, the backbone's H unless set

        def __post_init__(self) -> None:
            require_positive(self, "prompt_length", "encoder_width")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        like, width = backbone.embedding.weight, backbone.hidden
        inner = hp.encoder_width or width
        make: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        self.vectors = nn.Parameter(torch.randn(hp.prompt_length, width, **make))  # [P, H]
        self.lstm: nn.LSTM | None = None
        if hp.encoder == "lstm":
            self.lstm = nn.LSTM(width, inner, num_layers=2, bidirectional=True, **make)
            self.head = _stack(2 * inner, 2 * inner, width, **make)
        else:
            self.head = _stack(width, inner, inner, width, **make)

    def prompt(self) -> Tensor:
        """P', [P, H]."""
        return self.head(self.vectors if self.lstm is None else self.lstm(self.vectors)[0])  # type: ignore[no-any-return]

    def kept(self) -> dict[str, Tensor]:
        """P' alone, [P, H]."""
        return {"prompt": self.prompt()}


def _stack(*widths: int, **make: Any) -> nn.Sequential:
    """Return linear layers of these widths with ReLU between them: [..., first width] -> [..., last width]."""
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        layers += [nn.Linear(inner, outer, **make), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
