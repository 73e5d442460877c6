"""A linear head: the class is read off the last token's hidden state instead of being written as text.

Shapes: N rows, L positions, H hidden width, C classes, G cells of a bundle. All cells of a bundle share the task,
so their heads are one stack of weights, and each row takes the slice of its own cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from harness.backbone import Backbone
from harness.data import Encoded
from harness.errors import UserError
from harness.examples import Example
from harness.tasks.record import Task

STARTING_STD = 0.02
"""Of the weights, as transformers starts the head of a classifier."""


class LinearHead(nn.Module):
    """Weights [C, H] without a bias, as in transformers' `LlamaForSequenceClassification`."""

    def __init__(self, num_classes: int, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, like.shape[1], dtype=like.dtype, device=like.device))
        nn.init.normal_(self.weight, std=STARTING_STD)


class Classifier(Backbone):
    """A backbone whose one target "token" is the class: logits [N, 1, C] where there were [N, T, V].

    A method that makes its own loss of `target_logits` and `cross_entropy` works as before.
    """

    def __init__(self, backbone: Backbone, heads: Sequence[LinearHead], cells: Tensor) -> None:
        """`cells` [N] says which head is each row's."""
        # shares everything; the usual way would freeze the weights that a layer-side method has put in
        vars(self).update(vars(backbone))
        self.heads = heads
        self.cells = cells

    def target_logits(self, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """[N, 1, C]."""
        return self.class_logits(embeds, mask)[:, None]

    def class_logits(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """[N, L, H], [N, L] -> [N, C]."""
        weights = torch.stack([head.weight for head in self.heads])[self.cells]
        states = self.last_states(embeds, mask).to(weights.dtype)
        return torch.einsum("nh,nch->nc", states, weights)


def class_targets(encoded: Encoded, examples: Sequence[Example], task: Task) -> Encoded:
    """The same rows with the number of their class as the one target."""
    number = {target: index for index, target in enumerate(task.targets)}
    classes = np.array([number[example.target] for example in examples], np.int64)
    return replace(encoded, target_ids=classes, target_offsets=np.arange(len(classes) + 1, dtype=np.int64))


def check_head(head: str, task: Task, backbone: Backbone, where: str) -> None:
    """Raise UserError where a linear head has no last token or no classes."""
    if head == "linear" and backbone.is_encoder_decoder:
        problem = f"linear needs a decoder-only backbone; '{backbone.name}' has an encoder"
        raise UserError(
            problem, where=where, field="recipe.head", hint="Bind it by exceptions: where: {backbones: [...]}."
        )
    if head == "linear" and task.kind != "classification":
        raise UserError(f"linear needs classes; task '{task.name}' has none", where=where, field="recipe.head")
