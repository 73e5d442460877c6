"""Residual prompt tuning: the prompt passes a small network with a skip (Razdaibiedina et al., Findings of ACL 2023).

P' = P + LN(W2 relu(W1 P + b1) + b2) with P [P, H], W1 [M, H], W2 [H, M]; X = [P'; E(x)], in front of the encoder's
input only. P' does not depend on x, so inference keeps P' [P, H] alone. Source: the authors' code
(arazd/ResidualPrompts, prompt_tuner2.py: `ResMLP`, `init_new_prompt`), whose defaults are P = 10, M = 800, one network
for all vectors, layer norm on.

Choices made: `layer_norm: false`, `network: separate` (one network per vector) and `skip: false` are the other forms
of the paper; rows come from the whole vocabulary (`init`). The network learns at the prompt's lr, as in the code,
unless `network_lr` says otherwise; weight decay is 1e-5 for all tensors (the protocol's
`weight_decay.reparametrized`). The code cuts prompt and text together to 512 positions, so it loses the end of a long
text: `recipe.max_source_length: 502` repeats that.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.method import Backbone, Defaults, Method, Paper, require_positive, sweep, vocabulary_rows


class ResidualPromptTuning(Method):
    """Prompt and network train; the network is not needed after training."""

    name = "residual_prompt_tuning"
    paper = Paper("razdaibiedina-etal-2023-residual", "https://aclanthology.org/2023.findings-acl.421")
    defaults = Defaults(recipe={"lr": sweep(0.3, 0.4, 0.5)})

    @dataclass(frozen=True, kw_only=True)
    class HP:
        prompt_length: int = 10  # P
        bottleneck: int = 800  # M
        network: Literal["shared", "separate"] = "shared"
        layer_norm: bool = True
        skip: bool = True
        network_lr: float | None = None  # the recipe's lr unless set
        init: Literal["sample_vocab", "top5000", "first_m", "text_repeat", "uniform", "normal"] = "sample_vocab"

        def __post_init__(self) -> None:
            require_positive(self, "prompt_length", "bottleneck")
            if self.network_lr is not None and not 0 < self.network_lr < float("inf"):
                raise ValueError(f"network_lr must be positive, got {self.network_lr}")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        self.skip, self.network_lr = hp.skip, hp.network_lr
        self.vectors = nn.Parameter(vocabulary_rows(backbone, hp.prompt_length, hp.init))  # [P, H]
        count = 1 if hp.network == "shared" else hp.prompt_length
        self.networks = nn.ModuleList(_network(self.vectors, hp.bottleneck, hp.layer_norm) for _ in range(count))

    def prompt(self) -> Tensor:
        """P', [P, H]: each network changes its own rows, one for all rows or one for each."""
        groups = self.vectors.chunk(len(self.networks))
        moved = torch.cat([network(rows) for network, rows in zip(self.networks, groups, strict=True)])
        return self.vectors + moved if self.skip else moved

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        network = {"params": list(self.networks.parameters()), "lr": self.network_lr or lr}
        return [{"params": [self.vectors], "lr": lr}, network]

    def kept(self) -> dict[str, Tensor]:
        """P' alone, [P, H]."""
        return {"prompt": self.prompt()}


def _network(like: Tensor, bottleneck: int, layer_norm: bool) -> nn.Sequential:
    """Return a network [..., H] -> [..., H] through M units, which starts as PyTorch's linear layers do."""
    width = like.shape[1]
    make: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
    layers: list[nn.Module] = [nn.Linear(width, bottleneck, **make), nn.ReLU(), nn.Linear(bottleneck, width, **make)]
    return nn.Sequential(*layers, *([nn.LayerNorm(width, **make)] if layer_norm else []))
