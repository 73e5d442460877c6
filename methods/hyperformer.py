"""HyperFormer++: one small network writes the adapters of all layers for each task (Karimi Mahabadi et al., ACL 2021).

For task k and place p (layer, block): z = LN(W_2 relu(W_1 [task_k; layer_p; block_p])), embeddings of 64, widths 192,
128, 64; linear heads on z give W_d [R, H], b_d, W_u [H, R], b_u, scale and shift [H] of the adapter
    y = x + LN(W_u gelu(W_d x + b_d) + b_u) o scale + shift
behind the self-attention and the feed-forward part of every layer. Each stack has a network of its own, task embeddings
are shared. Linear weights N(0, 0.01), biases zero, task embeddings N(0, 1); the norms of the backbone train too.
A mixture has an embedding per task; `num_tasks` follows it, and is 8 where none is named, as in the published count.

Source: rabeehk/hyperformer, hyperformer/adapters (adapter_modeling.py, adapter_utils.py), third_party/trainers/
t5_trainer.py, third_party/utils/utils.py, configs/hyperformer++.json. The norm on z has eps 1e-6, the one in the
adapter 1e-5. Smoothing 0.1 gives 0.9 of a target's weight to it and spreads 0.1 over all V tokens. The loss is summed
over a batch's target tokens, not averaged, so clipping at norm 1 acts in nearly every step.

Choices made, those of the authors' code: gelu by tanh, label smoothing 0.1, R = H / 32, one rate for all. The paper's
run (2^16 steps, a mixture sampled with temperature 10, batches of 32, texts of 128 tokens) is a matter of the suite.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    Backbone,
    Defaults,
    LayerChange,
    Method,
    Paper,
    Sublayer,
    TrainedNorms,
    require_one_width,
    require_positive,
    stacks_of,
    sublayers_of,
    sweep,
)


class AdapterGenerator(nn.Module):
    """Writes the adapters of one stack from embeddings of task, layer and block.

    `width` is R, `size` the width E of embeddings and of z, `middle` that of W_1's output.
    """

    def __init__(self, num_layers: int, width: int, size: int, middle: int, like: Tensor) -> None:
        super().__init__()
        hidden = like.shape[1]
        self.shape = (width, hidden)
        self.layer = nn.Embedding(num_layers, size)
        self.block = nn.Embedding(2, size)  # 0 attention, 1 feed-forward
        self.mlp = nn.Sequential(nn.Linear(3 * size, middle), nn.ReLU(), nn.Linear(middle, size))
        self.norm = nn.LayerNorm(size, eps=1e-6)
        sizes = {"down": width * hidden, "down_bias": width, "up": hidden * width, "up_bias": hidden}
        self.heads = nn.ModuleDict(
            {name: nn.Linear(size, count) for name, count in {**sizes, "scale": hidden, "shift": hidden}.items()}
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        self.to(like)

    def forward(self, tasks: Tensor, layer: int, block: int) -> dict[str, Tensor]:
        """Task embeddings [K, E] -> the adapter's tensors for each of K tasks.

        These are down [K, R, H], down_bias [K, R], up [K, H, R], and up_bias, scale and shift [K, H].
        """
        position = torch.cat([self.layer.weight[layer], self.block.weight[block]]).expand(len(tasks), -1)  # [K, 2 E]
        z = self.norm(self.mlp(torch.cat([tasks, position], 1)))  # [K, E]
        written: dict[str, Tensor] = {name: head(z) for name, head in self.heads.items()}
        width, hidden = self.shape
        return {**written, "down": written["down"].view(-1, width, hidden), "up": written["up"].view(-1, hidden, width)}


class HyperFormer(Method):
    """5,163,440 of both networks with 8 task embeddings, and 47,616 of the norms, on T5-base: 651,382 per task."""

    name = "hyperformer"
    paper = Paper(
        "karimi-mahabadi-etal-2021-parameter",
        "https://aclanthology.org/2021.acl-long.47",
        params={"t5-base": 638_000},
        params_note="The figure is the paper's 0.29% of 220M, no count: all parameters over 8 tasks are 651,382.",
    )
    defaults = Defaults(recipe={"lr": sweep(1e-4, 3e-4, 1e-3)})
    sums_losses = True

    @dataclass(frozen=True, kw_only=True)
    class HP:
        reduction: int = 32  # H / R
        embedding: int = 64  # E
        middle: int = 128
        label_smoothing: float = 0.1
        train_norms: bool = True
        num_tasks: int | None = None  # K, filled in by the harness on a mixture

        def __post_init__(self) -> None:
            require_positive(self, "reduction", "embedding", "middle", "num_tasks")
            if not 0 <= self.label_smoothing < 1:
                raise ValueError(f"label_smoothing must be at least 0 and less than 1, got {self.label_smoothing}")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        require_one_width(backbone)
        like, width = backbone.embedding.weight, max(1, backbone.hidden // hp.reduction)
        self.smoothing = hp.label_smoothing
        self.num_tasks = hp.num_tasks or 8
        chosen = [s for s in sublayers_of(backbone) if s.kind in ("attention", "ffn")]
        counts = {name: 1 + max(s.layer for s in chosen if s.stack == name) for name in stacks_of(backbone)}
        self.task = nn.Embedding(self.num_tasks, hp.embedding).to(like)
        self.generators = nn.ModuleDict(
            {name: AdapterGenerator(count, width, hp.embedding, hp.middle, like) for name, count in counts.items()}
        )
        self.norms = TrainedNorms(backbone) if hp.train_norms else None
        self._chosen = chosen

    def _change(self, sublayer: Sublayer, states: Tensor) -> Tensor:
        """[B, L, H] -> [B, L, H], by the adapter of each row's task. Raises ValueError for vectors without rows."""
        if states.dim() != 3:  # OPT joins the rows of a batch in front of its feed-forward parts
            raise ValueError("each row has an adapter of its own, and this network joins the rows of a batch")
        written = self.generators[sublayer.stack](self.task.weight, sublayer.layer, int(sublayer.kind == "ffn"))
        own = {name: tensor[self.tasks_of(states)] for name, tensor in written.items()}  # first dimension B
        down = torch.einsum("blh,brh->blr", states.to(own["down"]), own["down"]) + own["down_bias"][:, None]
        up = torch.einsum("blr,bhr->blh", F.gelu(down, approximate="tanh"), own["up"]) + own["up_bias"][:, None]
        normed: Tensor = F.layer_norm(up, up.shape[-1:])  # scale and shift are written, so the norm has none
        changed: Tensor = states + normed * own["scale"][:, None] + own["shift"][:, None]
        return changed

    def token_losses(self, backbone: Backbone, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with smoothed labels, -> [N, T]."""
        return backbone.cross_entropy(backbone.target_logits(embeds, mask, labels), labels, self.smoothing)

    def layer_changes(self) -> Sequence[LayerChange]:
        """The adapters behind their sub-layers, and the trained norms."""
        changes = [LayerChange(sublayer.output, after=partial(self._change, sublayer)) for sublayer in self._chosen]
        return [*changes, *(self.norms.changes() if self.norms is not None else ())]
