"""AdaMix: a mixture of adapters, routed at random in training, averaged for inference (Wang et al., EMNLP 2022).

y = x + Up(gelu(Down_i(x))) behind the feed-forward part of every layer: M experts Down_i [R, H], one shared Up [H, R],
with biases. In training each layer draws i uniformly, anew in each forward pass, for the whole batch; inference uses
one Down, the experts' mean. Loss: cross-entropy of a first pass + the symmetric KL divergence between its predictions
and those of a second, per target token, 1/2 (KL(p || q) + KL(q || p)) with the respective target held fixed.

Source: microsoft/AdaMix, src/transformers/models/expert_soup.py and bert/modeling_bert.py (BERT and RoBERTa; there is
none for T5). Its experts are made as copies of one, but then `init_weights` of the class above redraws every linear
module from N(0, 0.02), the BERT configuration's `initializer_range`, with zero biases: experts start different, the
shared Up likewise. Its script, bert_base_mnli_expert_soup.sh, has weight decay 0.1, of which biases are free.

Choices made: the second pass adds no cross-entropy of its own, as in the code. The released BERT file has no
consistency term: `consistency: 0`. R = 48 is BERT-base's; R for T5 is published nowhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import AdapterMethod, Backbone, Defaults, Paper, require_positive, sweep

STARTING_STD = 0.02  # BERT's `initializer_range`


class MixtureAdapter(nn.Module):
    """An adapter with M experts for the down-projection and one up-projection."""

    def __init__(self, rank: int, experts: int, like: Tensor) -> None:
        super().__init__()
        make: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        self.weights = nn.Parameter(torch.empty(experts, rank, like.shape[1], **make))  # [M, R, H]
        self.biases = nn.Parameter(torch.zeros(experts, rank, **make))  # [M, R]
        self.up = nn.Linear(rank, like.shape[1], **make)
        for weight in (self.weights, self.up.weight):
            nn.init.normal_(weight, std=STARTING_STD)
        nn.init.zeros_(self.up.bias)

    def merged(self) -> tuple[Tensor, Tensor]:
        """The mean expert: [R, H], [R]."""
        return self.weights.mean(0), self.biases.mean(0)

    def forward(self, states: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        if self.training:
            # drawn on the CPU, so that the host does not wait for a GPU in every layer
            expert = int(torch.randint(len(self.weights), ()))
            weight, bias = self.weights[expert], self.biases[expert]
        else:
            weight, bias = self.merged()
        changed: Tensor = states + self.up(F.gelu(F.linear(states, weight, bias)))
        return changed


class AdaMix(AdapterMethod):
    """On T5-base 4,446,720 parameters in training, 1,789,056 kept."""

    name = "adamix"
    paper = Paper(
        "wang-etal-2022-adamix", "https://aclanthology.org/2022.emnlp-main.388/", params={"bert-base": 900_000}
    )
    defaults = Defaults(recipe={"lr": sweep(1e-4, 4e-4, 1e-3)})
    is_positionwise = True

    @dataclass(frozen=True, kw_only=True)
    class HP:
        rank: int = 48  # R
        experts: int = 4  # M
        consistency: float = 1.0  # weight of the divergence in the loss

        def __post_init__(self) -> None:
            require_positive(self, "rank", "experts")
            if not 0 <= self.consistency < float("inf"):
                raise ValueError(f"consistency must be 0 or a positive weight, got {self.consistency}")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        make = partial(MixtureAdapter, hp.rank, hp.experts, backbone.embedding.weight)
        super().__init__(hp, backbone, make, ("ffn",), train_norms=False)
        self.consistency = hp.consistency

    def token_losses(self, backbone: Backbone, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of one pass plus its divergence from a second, routed anew: see the base class, -> [N, T]."""
        first = backbone.target_logits(embeds, mask, labels)
        losses = backbone.cross_entropy(first, labels)
        if not self.consistency:
            return losses
        second = backbone.target_logits(embeds, mask, labels)
        return losses + self.consistency * symmetric_kl(first, second).masked_fill(labels == -100, 0.0)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Weights with the recipe's weight decay, biases without any, as in the authors' script."""
        is_bias = {name: name.endswith(("bias", "biases")) for name, _ in self.named_parameters()}
        weights, biases = (
            [p for name, p in self.named_parameters() if is_bias[name] == which] for which in (False, True)
        )
        return [{"params": weights, "lr": lr}, {"params": biases, "lr": lr, "weight_decay": 0.0}]

    def kept(self) -> dict[str, Tensor]:
        """One ordinary adapter per layer: W_d [R, H] and b_d [R] are the experts' means, W_u [H, R], b_u [H]."""
        kept: dict[str, Tensor] = {}
        for key, mixture in self.inserted.items():
            assert isinstance(mixture, MixtureAdapter)
            weight, bias = mixture.merged()
            kept |= {f"{key}.down.weight": weight, f"{key}.down.bias": bias}
            kept |= {f"{key}.up.{name}": tensor for name, tensor in mixture.up.named_parameters()}
        return kept

    def export(self) -> dict[str, Tensor]:
        """The merged adapters."""
        return {name: tensor.detach().clone().contiguous() for name, tensor in self.kept().items()}

    def load_export(self, tensors: Mapping[str, Tensor]) -> None:
        """Make every expert the merged one."""
        with torch.no_grad():
            for key, mixture in self.inserted.items():
                assert isinstance(mixture, MixtureAdapter)
                for name, experts in (("weight", mixture.weights), ("bias", mixture.biases)):
                    experts.copy_(tensors[f"{key}.down.{name}"].expand_as(experts))
                for name, parameter in mixture.up.named_parameters():
                    parameter.copy_(tensors[f"{key}.up.{name}"])


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """Half of KL(p || q) + KL(q || p) per token: logits [N, T, V] twice -> [N, T].

    Each divergence moves one side only; the other is its fixed target.
    """
    dtype = torch.promote_types(first.dtype, torch.float32)
    p, q = (torch.log_softmax(logits, -1, dtype=dtype) for logits in (first, second))
    both = F.kl_div(p, q.detach(), reduction="none", log_target=True) + F.kl_div(
        q, p.detach(), reduction="none", log_target=True
    )
    return 0.5 * both.sum(-1)
