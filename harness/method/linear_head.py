"""The head: a class, or a number, is read off one hidden state of the text instead of being written as text.

A decoder-only network gives the state of the last token; an encoder that of the first, or the mean over the text. The
head is a linear layer, with a hidden layer below it where the recipe asks for one.

Shapes: N rows, L positions, H width of embeddings, W width of the states, C outputs of a head (its classes, or 1 for a
number), G cells of a bundle, of which P have rows in a pass, each at most M. All cells of a bundle have the same task
and the same kind of head, so their heads have the same shapes and are stacked, [G, C, W]; each row uses the head of its
own cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbone import Backbone, Pooling, RowPrefixes, on_device
from harness.data import Encoded, Example, Task
from harness.errors import UserError
from harness.method.low_rank import CellBlocks

Index = np.ndarray[Any, np.dtype[np.int64]]
STARTING_STD = 0.02
"""Standard deviation of the weights at the start: `initializer_range` of transformers' classifiers."""


DROPOUT_KEYS = ("classifier_dropout", "hidden_dropout_prob", "hidden_dropout")
"""Keys of a configuration that may hold the dropout of a head, the first first, as transformers' classifiers ask."""


class HiddenLayer(nn.Module):
    """tanh(A s + a) for a state s: weight A [W, W], bias a [W].

    It is `RobertaClassificationHead` of transformers without its output layer: one width throughout, dropout at both
    ends, A drawn from N(0, 0.02) and a zero (`_init_weights`). The head of Devlin et al. 2019 reads the first state
    through such a layer too, BERT's pooler.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        like, width = backbone.embedding.weight, backbone.state_width
        self.weight = nn.Parameter(torch.empty(width, width, dtype=like.dtype, device=like.device))
        nn.init.normal_(self.weight, std=STARTING_STD)
        self.bias = nn.Parameter(torch.zeros_like(self.weight[0]))


class LinearHead(nn.Module):
    """Trained weights [C, W], and a bias [C] where transformers' classifiers of this kind of network have one."""

    bias: nn.Parameter | None

    def __init__(self, num_outputs: int, backbone: Backbone, has_hidden: bool = False) -> None:
        super().__init__()
        like = backbone.embedding.weight
        self.weight = nn.Parameter(torch.empty(num_outputs, backbone.state_width, dtype=like.dtype, device=like.device))
        nn.init.normal_(self.weight, std=STARTING_STD)
        has_bias = backbone.kind.head_has_bias
        self.register_parameter("bias", nn.Parameter(torch.zeros_like(self.weight[:, 0])) if has_bias else None)
        self.hidden = HiddenLayer(backbone) if has_hidden else None
        """What the state goes through first."""


class HeadReader(Backbone):
    """A backbone that predicts one target "token", the class or the number: logits [N, 1, C] in place of [N, T, V].

    Losses are computed from `target_logits` and `cross_entropy` as before, also by methods with a loss of their own.
    For a number the loss is the squared error, as in transformers' classifiers with one output.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: Sequence[LinearHead],
        cells: Index,
        pooling: Pooling | None = None,
        prompts: Tensor | None = None,
    ) -> None:
        """`heads` holds one head per cell; `cells` [N] says which of them each row uses.

        `prompts` [N] are the positions that each row's prompt takes.
        """
        # Backbone.__init__ would freeze all weights of the model, among them those that a method has just put in
        vars(self).update(vars(backbone))
        # no modules: a method's own parameters hold the weights, and the backbone's list must not grow
        self.heads = heads
        self.cells = cells
        self.pooling = pooling
        self.prompts = prompts

    def target_logits(
        self, embeds: Tensor, mask: Tensor, labels: Tensor, prefixes: RowPrefixes | None = None
    ) -> Tensor:
        """[N, L, H], [N, L], labels [N, 1] -> [N, 1, C]."""
        return self.outputs(embeds, mask, prefixes)[:, None]

    def outputs(self, embeds: Tensor, mask: Tensor, prefixes: RowPrefixes | None = None) -> Tensor:
        """[N, L, H], [N, L] -> [N, C]."""
        cells = on_device(self.cells, embeds.device)
        weights = torch.stack([head.weight for head in self.heads])[cells]  # [N, C, W]
        states = self.text_states(embeds, mask, self.pooling or "first", self.prompts, prefixes)
        states = self._behind_hidden_layers(states.to(weights.dtype))  # bfloat16 under autocast
        found = torch.einsum("nh,nch->nc", states, weights)
        biases: list[Tensor] = [head.bias for head in self.heads if head.bias is not None]
        return found + torch.stack(biases)[cells] if biases else found

    def _behind_hidden_layers(self, states: Tensor) -> Tensor:
        """Send each row's state through the hidden layer of its cell, where heads have one: [N, W] -> [N, W]."""
        layers = [head.hidden for head in self.heads if head.hidden is not None]
        if not layers:
            return states
        dropped = self._drop(states)
        present, counts = np.unique(self.cells, return_counts=True)
        weights = torch.stack([layers[cell].weight for cell in present])  # [P, W, W]
        biases = torch.stack([layers[cell].bias for cell in present])  # [P, W]
        # a weight for every row would be [N, W, W], 340 MB for 144 rows of BERT-base; so rows stand cell by cell
        order = np.argsort(self.cells, kind="stable")
        blocks = CellBlocks(counts.tolist())
        block = blocks.gathered(dropped[on_device(order, states.device)]).view(len(present), -1, states.shape[1])
        found = torch.baddbmm(biases[:, None], block, weights.mT).tanh()  # [P, M, W]
        rows = blocks.scattered(found.flatten(0, 1))
        return self._drop(rows[on_device(np.argsort(order), states.device)])

    def _drop(self, states: Tensor) -> Tensor:
        """Drop as transformers' classifiers of this network do, [N, W] -> [N, W], where the backbone drops too."""
        return F.dropout(states, head_dropout(self.config), training=self.model.training)

    @staticmethod
    def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the loss of each row: logits [N, 1, C], labels [N, 1] -> [N, 1].

        Labels that are no whole numbers are to be met, by the squared error; smoothing has no meaning there.
        """
        if labels.is_floating_point():
            return (logits[..., 0] - labels.to(logits.dtype)).square()
        return Backbone.cross_entropy(logits, labels, label_smoothing)


def head_dropout(config: Any) -> float:
    """Return the share of a state that a head with a hidden layer drops in training; 0 where a network names none."""
    named = (getattr(config, key, None) for key in DROPOUT_KEYS)
    return next((float(share) for share in named if share is not None), 0.0)


def head_answers(outputs: Tensor, task: Task) -> list[str]:
    """Return what a head's outputs [N, C] say, as texts: the likeliest class of each row, or its number."""
    if task.kind == "regression":
        return [f"{value:.6g}" for value in outputs[:, 0].tolist()]
    return [task.targets[index] for index in outputs.argmax(-1).tolist()]


def num_outputs(task: Task) -> int:
    """Return C: the number of classes, or 1 where the answer is a number."""
    return 1 if task.kind == "regression" else len(task.targets)


def head_targets(encoded: Encoded, examples: Sequence[Example], task: Task) -> Encoded:
    """Return the same rows with one target each: the number of the class, 0 to C - 1, or the number that is asked for.

    A number is what a text would be trained on too, so it is rounded as the task says.
    """
    if task.kind == "regression":
        targets: Any = np.array([float(example.target) for example in examples], np.float32)
    else:
        number = {target: index for index, target in enumerate(task.targets)}
        targets = np.array([number[example.target] for example in examples], np.int64)
    return replace(encoded, target_ids=targets, target_offsets=np.arange(len(targets) + 1, dtype=np.int64))


def check_head(head: str, pooling: Pooling | None, task: Task, backbone: Backbone, where: str) -> None:
    """Raise UserError for a head that the network or the task has no use for, and for none where one is needed."""
    name, what, is_read_off = backbone.name, None, head != "label"
    if task.parts and (is_read_off or not backbone.writes_text):
        shown = head if is_read_off else "linear"
        problem = f"{shown} serves one task; '{task.name}' is a mixture of {len(task.parts)}"
        raise UserError(problem, where=where, field="recipe.head")
    if not backbone.writes_text:
        if task.kind == "text":
            what = f"'{name}' is an encoder and writes no text, which task '{task.name}' asks for"
        elif task.is_ranked:
            what = f"'{name}' is an encoder and gives no likelihood of texts, which task '{task.name}' ranks"
        elif not is_read_off:
            what = f"'{name}' is an encoder and writes no text; its head must be linear or hidden"
    if what is not None:
        hint = "Bind rows to networks by exceptions: where: {backbones: [...]}, or leave the task out."
        raise UserError(what, where=where, field="recipe.head", hint=hint)
    if pooling is not None and (backbone.writes_text or not is_read_off):
        problem = f"{pooling} is for heads of encoders; '{name}' is a network of the kind {backbone.kind.name}"
        raise UserError(problem, where=where, field="recipe.pooling")
    if not is_read_off:
        return
    if not backbone.kind.has_text_states:
        problem = f"{head} needs an encoder or a decoder-only backbone; '{name}' is both"
        raise UserError(
            problem, where=where, field="recipe.head", hint="Bind it by exceptions: where: {backbones: [...]}."
        )
    if task.kind in ("text", "choice"):
        raise UserError(
            f"{head} needs classes or numbers; task '{task.name}' has neither", where=where, field="recipe.head"
        )
    if task.is_ranked:
        problem = f"{head} reads the class off; task '{task.name}' is answered by the likelihood of its labels"
        raise UserError(problem, where=where, field="recipe.head", hint="Say head: label, or answered_by: writing.")
