"""The linear head: a class is read off the last token's hidden state instead of being written as text.

Shapes: N rows, L positions, H hidden width, C classes, G cells of a bundle. All cells of a bundle have the same task,
so their heads have the same shape and are stacked, [G, C, H]; each row uses the head of its own cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from harness.backbone import Backbone
from harness.data import Encoded, Example, Task
from harness.errors import UserError

STARTING_STD = 0.02
"""Standard deviation of the weights at the start: `initializer_range` of transformers' classifiers."""


class LinearHead(nn.Module):
    """Trained weights [C, H] without a bias, as in transformers' `LlamaForSequenceClassification`."""

    def __init__(self, num_classes: int, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, like.shape[1], dtype=like.dtype, device=like.device))
        nn.init.normal_(self.weight, std=STARTING_STD)


class Classifier(Backbone):
    """A backbone that predicts one target "token", the class: it gives logits [N, 1, C] in place of [N, T, V].

    Losses are computed from `target_logits` and `cross_entropy` as before, also by methods with a loss of their own.
    """

    def __init__(self, backbone: Backbone, heads: Sequence[LinearHead], cells: Tensor) -> None:
        """`heads` holds one head per cell; `cells` [N] says which of them each row uses."""
        # Backbone.__init__ would freeze all weights of the model, among them those that a method has just put in
        vars(self).update(vars(backbone))
        # no modules: a method's own parameters hold the weights, and the backbone's list must not grow
        self.heads = heads
        self.cells = cells

    def target_logits(self, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """[N, L, H], [N, L], labels [N, 1] -> [N, 1, C]."""
        return self.class_logits(embeds, mask)[:, None]

    def class_logits(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """[N, L, H], [N, L] -> [N, C]."""
        weights = torch.stack([head.weight for head in self.heads])[self.cells]  # [N, C, H]
        states = self.last_states(embeds, mask).to(weights.dtype)  # bfloat16 under autocast
        return torch.einsum("nh,nch->nc", states, weights)


def class_targets(encoded: Encoded, examples: Sequence[Example], task: Task) -> Encoded:
    """Return the same rows with the number of their class, 0 to C - 1, as the only target id."""
    number = {target: index for index, target in enumerate(task.targets)}
    classes = np.array([number[example.target] for example in examples], np.int64)
    return replace(encoded, target_ids=classes, target_offsets=np.arange(len(classes) + 1, dtype=np.int64))


def check_head(head: str, task: Task, backbone: Backbone, where: str) -> None:
    """Raise UserError for a linear head on a network with an encoder, or for a task without classes."""
    if head == "linear" and backbone.is_encoder_decoder:
        problem = f"linear needs a decoder-only backbone; '{backbone.name}' has an encoder"
        raise UserError(
            problem, where=where, field="recipe.head", hint="Bind it by exceptions: where: {backbones: [...]}."
        )
    if head == "linear" and task.kind != "classification":
        raise UserError(f"linear needs classes; task '{task.name}' has none", where=where, field="recipe.head")
