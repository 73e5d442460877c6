"""HyperDecoder: the encoder's reading of a text writes the decoder's adapters (Ivison and Peters, EMNLP 2022 Findings).

Adapters stand beside each feed-forward part: h <- h + dropout(FFN(LN h)) + W_u relu(W_d LN h + b_d) + b_u, R = 64.
Those of the encoder are plain. Those of the decoder are written for each text and layer l: with e the mean of the
encoder's output over the text, z = relu(W [e; layer_l] + b), 778 -> 128, and linear heads on z give W_d, b_d, W_u, b_u.
Plain weights start xavier with gain 1e-4; heads by hyper fan-in (Chang et al., ICLR 2020, uniform), times 1e-3.
Nothing depends on the task, so a mixture changes only what it learns from.

Source: allenai/hyperdecoders, hyperdecoder/modeling (adapter_layer.py, adapter_generators.py), third_party/trainers/
t5_trainer.py and configs/experiments/glue_t5_base.json. W and b of the first layer start as PyTorch's Linear, the
layers' embeddings N(0, 1). Label smoothing is 0.1 (`label_smoothing`), the loss summed over a batch's target tokens.

Choices made: no network between e and z (`pool_network: true` is the code's default H -> H -> H, which the published
count leaves out); adapters read LN h; the decoder's unused plain adapters, which the code leaves trainable, are
not made. The published count is for 8 tasks: `num_tasks` follows the mixture and is 8 where none is named.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.method import Backbone, Defaults, Method, Paper, layers_of, require_positive, sweep


class ParallelAdapter(nn.Module):
    """W_u relu(W_d x + b_d) + b_u with weights of its own: W_d [R, H], W_u [H, R]. `make`: dtype and device."""

    def __init__(self, width: int, hidden: int, make: dict[str, Any]) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(hidden, width, **make), nn.Linear(width, hidden, **make)
        for linear in (self.down, self.up):
            nn.init.xavier_uniform_(linear.weight, gain=1e-4)
            nn.init.zeros_(linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """[B, L, H] -> [B, L, H]."""
        changed: Tensor = self.up(torch.relu(self.down(states)))
        return changed


class AdapterWriter(nn.Module):
    """Writes an adapter for each text and decoder layer from e, the mean of the encoder's output.

    `size` is the width of a layer's embedding, `middle` that of z.
    """

    def __init__(self, width: int, hidden: int, num_layers: int, size: int, middle: int, make: dict[str, Any]) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        self.layer = nn.Embedding(num_layers, size, **make)
        self.first = nn.Linear(hidden + size, middle, **make)
        self.heads = nn.ModuleDict(
            {
                "down": nn.Linear(middle, width * hidden, **make),
                "down_bias": nn.Linear(middle, width, **make),
                "up": nn.Linear(middle, hidden * width, **make),
                "up_bias": nn.Linear(middle, hidden, **make),
            }
        )
        # hyper fan-in: a head's weights have variance 1 / (middle * fan-in of what it writes), 1 for biases
        fan_in = {"down": hidden, "up": width}
        for name, head in self.heads.items():
            bound = 1e-3 * math.sqrt(3 / (fan_in.get(name, 1) * middle))
            for kind, tensor in head.named_parameters():
                nn.init.uniform_(tensor, -bound, bound) if kind == "weight" else nn.init.zeros_(tensor)

    def forward(self, states: Tensor, pooled: Tensor, layer: int) -> Tensor:
        """[B, L, H], [B, H] -> what the adapter of each text adds, [B, L, H]."""
        layer_embedding = self.layer.weight[layer].expand(len(pooled), -1)
        z = torch.relu(self.first(torch.cat([pooled, layer_embedding], 1)))  # [B, middle]
        written = {name: head(z) for name, head in self.heads.items()}
        down = written["down"].view(-1, self.width, self.hidden)  # [B, R, H]
        up = written["up"].view(-1, self.hidden, self.width)  # [B, H, R]
        inner = torch.relu(torch.einsum("blh,brh->blr", states, down) + written["down_bias"][:, None])
        added: Tensor = torch.einsum("blr,bhr->blh", inner, up) + written["up_bias"][:, None]
        return added


class HyperDecoder(Method):
    """1,189,632 in the encoder and 12,888,376 for the decoder on T5-base: 1,759,751 per task of 8."""

    name = "hyperdecoder"
    paper = Paper(
        "ivison-peters-2022-hyperdecoders",
        "https://aclanthology.org/2022.findings-emnlp.124",
        params={"t5-base": 1_800_000},
        params_note="The figure is 1,759,751, all parameters over 8 tasks, rounded.",
    )
    defaults = Defaults(recipe={"lr": sweep(1e-4, 3e-4, 1e-3)})
    sums_losses = True

    @dataclass(frozen=True, kw_only=True)
    class HP:
        width: int = 64  # R
        layer_embedding: int = 10
        middle: int = 128  # width of z
        pool_network: bool = False
        label_smoothing: float = 0.1
        num_tasks: int | None = None  # filled in by the harness on a mixture

        def __post_init__(self) -> None:
            require_positive(self, "width", "layer_embedding", "middle", "num_tasks")
            if not 0 <= self.label_smoothing < 1:
                raise ValueError(f"label_smoothing must be at least 0 and less than 1, got {self.label_smoothing}")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        if not backbone.is_encoder_decoder or backbone.config.model_type != "t5":
            raise ValueError("HyperDecoder reads the output of an encoder, and only T5's parts are known to it")
        like, hidden = backbone.embedding.weight, backbone.hidden
        make: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        self.num_tasks = hp.num_tasks or 8
        self.smoothing = hp.label_smoothing
        encoder, decoder = (layers_of(stack) for stack in (backbone.model.encoder, backbone.model.decoder))
        self.plain = nn.ModuleList(ParallelAdapter(hp.width, hidden, make) for _ in encoder)
        self.pool = (
            nn.Sequential(nn.Linear(hidden, hidden, **make), nn.ReLU(), nn.Linear(hidden, hidden, **make))
            if hp.pool_network
            else nn.Identity()
        )
        self.writer = AdapterWriter(hp.width, hidden, len(decoder), hp.layer_embedding, hp.middle, make)
        self.pooled = torch.empty(0)
        """e, [B, H], of the texts that the encoder read last."""
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self, backbone: Backbone) -> None:
        """Hook adapters to all feed-forward parts, and the reading of e to the encoder."""
        model = backbone.model
        encoder: list[Any] = list(layers_of(model.encoder))
        decoder: list[Any] = list(layers_of(model.decoder))
        for index, layer in enumerate(encoder):
            self._handles.append(layer.layer[-1].register_forward_hook(partial(self._beside, self.plain[index])))
        self._handles.append(model.encoder.register_forward_hook(self._read, with_kwargs=True))
        for index, layer in enumerate(decoder):
            write = partial(self._written, index)
            self._handles.append(layer.layer[-1].register_forward_hook(partial(self._beside, write)))

    def detach(self, backbone: Backbone) -> None:
        """Take all hooks out."""
        while self._handles:
            self._handles.pop().remove()
        self.pooled = torch.empty(0)

    def keep_rows(self, rows: Tensor) -> bool:
        """Keep e of these rows."""
        if len(self.pooled):  # of a method that has read nothing it is empty
            self.pooled = self.pooled[rows]
        return True

    def token_losses(self, backbone: Backbone, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with smoothed labels, -> [N, T]."""
        return backbone.cross_entropy(backbone.target_logits(embeds, mask, labels), labels, self.smoothing)

    @staticmethod
    def _beside(adapter: Any, part: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Hook: add what an adapter gives for LN h to a feed-forward part, whose output [B, L, H] has its residual."""
        normed = part.layer_norm(args[0])  # type: ignore[operator]
        added: Tensor = adapter(normed)
        return output + added.to(output.dtype)

    def _written(self, layer: int, states: Tensor) -> Tensor:
        """[B, L, H] -> what the adapters written for this decoder layer add, [B, L, H]."""
        added: Tensor = self.writer(states, self.pooled.to(states.dtype), layer)
        return added

    def _read(self, encoder: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Hook: keep the mean of the encoder's output over each text, padding left out."""
        states, mask = output.last_hidden_state, kwargs["attention_mask"][..., None].to(output.last_hidden_state.dtype)
        self.pooled = self.pool((states * mask).sum(1) / mask.sum(1))
