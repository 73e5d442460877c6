"""MPT: one prompt shared by all tasks, times a rank-one matrix per task (Wang et al., ICLR 2023).

P_k = P* o (u_k v_k^T), o element by element: P* [P, H], u_k [P], v_k [H]. In the first stage a mixture of source tasks
trains P* and all u_k, v_k under teachers, prompts that were each trained on one task:
    loss = CE + lambda (KL(teacher || student) + MSE(hidden states)), lambda = 0.9 (sections 3.2 and 3.3).
In the second stage a target task starts from P* and the mean of the sources' u and v. The stages are cells:
`init_from` a list of prompts, one for each task of the mixture in its order, makes them teachers; `init_from` a cell of
this method continues with what it learnt; one prompt on a single task becomes P*.

Source: huggingface/peft, tuners/multitask_prompt_tuning/model.py, for the second stage; the authors' own code was not
found, and the first stage follows the paper.

Choices made: u = v = 1 at the start, so that P_k is P* (PEFT's N(0, 0.02) makes it almost zero); KL over the
vocabulary and the mean square over H of what the decoder's last norm gives, both at each target token; teachers answer
without dropout and are not kept. P* trains at lr 0.3, u and v at `factor_lr`. Inference needs the products P_k alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    Backbone,
    Defaults,
    Method,
    Paper,
    copy_into,
    require_positive,
    source_prompt,
    source_prompts,
    sweep,
    vocabulary_rows,
)


class MPT(Method):
    """76,800 shared and 868 per task on T5-base."""

    name = "mpt"
    paper = Paper(
        "wang-etal-2023-multitask",
        "https://openreview.net/forum?id=Nk2pDtuhTq",
        params={"t5-base": 77_600},
        params_note="The figure is 77,668 cut off, not rounded.",
    )
    defaults = Defaults(recipe={"lr": sweep(0.3, 0.4, 0.5)})
    takes_sources = (0, None)

    @dataclass(frozen=True, kw_only=True)
    class HP:
        prompt_length: int = 100  # P
        distillation: float = 0.9  # lambda
        factor_lr: float = 0.4
        num_tasks: int | None = None  # K, filled in by the harness on a mixture

        def __post_init__(self) -> None:
            require_positive(self, "prompt_length", "num_tasks")
            if not self.distillation >= 0:
                raise ValueError(f"distillation must not be negative, got {self.distillation}")
            if not 0 < self.factor_lr < float("inf"):
                raise ValueError(f"factor_lr must be positive, got {self.factor_lr}")

    teachers: Tensor | None

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        self.hp = hp
        self.num_tasks = hp.num_tasks or 1
        self.shared = nn.Parameter(vocabulary_rows(backbone, hp.prompt_length, "top5000"))  # [P, H]
        self.u = nn.Parameter(torch.ones_like(self.shared[:, 0]).repeat(self.num_tasks, 1))  # [K, P]
        self.v = nn.Parameter(torch.ones_like(self.shared[0]).repeat(self.num_tasks, 1))  # [K, H]
        self.register_buffer("teachers", None, persistent=False)  # [K, P, H]

    def start_from(self, sources: Sequence[Mapping[str, Tensor]]) -> None:
        """Continue from a cell of this method, take teachers for all tasks of a mixture, or a prompt as P*."""
        if len(sources) == 1 and {"shared", "u", "v"} <= sources[0].keys():
            copy_into(self.shared, sources[0]["shared"], "the shared prompt")
            for own, learnt in ((self.u, sources[0]["u"]), (self.v, sources[0]["v"])):
                copy_into(own, learnt.mean(0, keepdim=True).expand(len(own), -1), "a factor")
        elif len(sources) == self.num_tasks > 1:
            self.teachers = source_prompts(sources, *self.shared.shape).to(self.shared)
        elif len(sources) == 1:
            copy_into(self.shared, source_prompt(sources[0], *self.shared.shape), "the shared prompt")
        else:
            raise ValueError(f"wanted is a cell of this method, or a prompt for each of {self.num_tasks} tasks, "
                             f"got {len(sources)} sources")  # fmt: skip

    def prompt(self) -> Tensor:
        """P_k: [P, H], or [K, P, H] on a mixture of tasks."""
        products = self.shared * self.u[:, :, None] * self.v[:, None, :]
        return products[0] if self.num_tasks == 1 else products

    def token_losses(self, backbone: Backbone, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy and, under teachers, lambda times the distance to theirs, -> [N, T]."""
        if self.teachers is None:
            return super().token_losses(backbone, embeds, mask, labels)
        student, student_hidden = _logits_and_hidden(backbone, embeds, mask, labels)
        with torch.no_grad(), _without_dropout(backbone):
            front = self.teachers[self.tasks_of(embeds)].to(embeds.dtype)  # [N, P, H]
            # the same text behind the teacher's prompt
            teacher_embeds = torch.cat([front, embeds[:, self.num_prompt_tokens :]], 1)
            teacher, teacher_hidden = _logits_and_hidden(backbone, teacher_embeds, mask, labels)
        apart = distance(teacher, student, teacher_hidden, student_hidden).masked_fill(labels == -100, 0.0)
        return backbone.cross_entropy(student, labels) + self.hp.distillation * apart

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """P* at the recipe's lr, u and v at `factor_lr`."""
        return [{"params": [self.shared], "lr": lr}, {"params": [self.u, self.v], "lr": self.hp.factor_lr}]

    def kept(self) -> dict[str, Tensor]:
        """The factors; with one task the product alone, which is fewer numbers."""
        return {"prompt": self.prompt()} if self.num_tasks == 1 else dict(self.named_parameters())


def distance(teacher: Tensor, student: Tensor, teacher_hidden: Tensor, student_hidden: Tensor) -> Tensor:
    """KL(teacher || student) of logits [N, T, V] plus the mean square of hidden states [N, T, H] apart: -> [N, T]."""
    target, got = (F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
                   for logits in (teacher, student))  # fmt: skip
    divergence = (target.exp() * (target - got)).sum(-1)
    return divergence + (student_hidden - teacher_hidden).pow(2).mean(-1).to(divergence.dtype)


def _logits_and_hidden(backbone: Backbone, embeds: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [N, T, V] and the output of the decoder's last norm, [N, T, H], at each target token."""
    model, outputs = backbone.model, list[Tensor]()
    norm = model.decoder.final_layer_norm if backbone.is_encoder_decoder else model.model.norm
    handle = norm.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        logits = backbone.target_logits(embeds, mask, labels)
    finally:
        handle.remove()
    return logits, outputs[-1][:, -labels.shape[1] :]  # a decoder-only network has the text's positions before these


@contextmanager
def _without_dropout(backbone: Backbone) -> Iterator[None]:
    """Keep the backbone in evaluation mode within this context."""
    training = backbone.model.training
    backbone.model.eval()
    try:
        yield
    finally:
        backbone.model.train(training)
