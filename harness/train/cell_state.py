"""One cell in training: its method's tensors, learning rate schedule, order of rows, losses, and outcome."""

from __future__ import annotations

import math
import traceback
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.method import Method
from harness.results import AnsweringCost, DevScore, Failure, Forgetting, SplitScore
from harness.suite import Cell, Recipe
from harness.train.row_order import MixedOrder, RowOrder


class CellFailure(Exception):
    """One cell cannot be trained on; the others of its bundle can."""


def checked_groups(method: Method, lr: float, head_lr: float = 1e-3) -> list[dict[str, Any]]:
    """Return `method.param_groups(lr)` after checking it; a head gets a group of its own, at `head_lr`.

    A group may hold a `weight_decay` in place of the recipe's. Raises ValueError if a learning rate or a decay is out
    of bounds, or if a trainable tensor is in no group or in two.
    """
    parameters = [] if method.linear_head is None else method.linear_head.parameters()
    head = [weight for weight in parameters if weight.requires_grad]
    groups = [
        {**group, "params": [p for p in group["params"] if all(p is not weight for weight in head)]}
        for group in method.param_groups(lr)
    ]
    if head:
        groups.append({"params": head, "lr": head_lr})
    for group in groups:
        if not (isinstance(group["lr"], (int, float)) and 0 < group["lr"] < float("inf")):
            raise ValueError(f"a learning rate must be positive, got {group['lr']}")
        decay = group.get("weight_decay", 0.0)
        if not (isinstance(decay, (int, float)) and 0 <= decay < float("inf")):
            raise ValueError(f"a weight decay must be 0 or positive, got {decay}")
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = {id(p): name for name, p in method.named_parameters() if p.requires_grad}
    missing = [name for key, name in trainable.items() if grouped.count(key) != 1]
    if missing:
        raise ValueError(f"param_groups must hold every trainable tensor once; see {', '.join(missing[:3])}")
    return groups


def describe_failure(error: BaseException) -> Failure:
    """The record of an exception.

    Its traceback shows an exception that was given as the cause, but not one that was merely being handled.
    """
    trace = "".join(traceback.format_exception(error, chain=error.__cause__ is not None))
    return Failure(type=type(error).__name__, message=str(error), traceback=trace)


@dataclass
class Work:
    """Rows and positions that a cell has sent through the backbone in training, summed over its steps."""

    samples: int = 0
    """Rows; one that is drawn twice counts twice."""
    tokens: int = 0
    """Tokens of the texts."""
    prompt_tokens: int = 0
    """Positions that the method puts in front of the texts: of each row, or of each step where it is read apart."""
    target_tokens: int = 0
    """Tokens of the targets, each with its end token."""
    padding: int = 0
    """Positions that only fill a row up to the longest of its micro-batch."""

    @property
    def source_positions(self) -> int:
        """Positions of prompts and texts, without padding."""
        return self.tokens + self.prompt_tokens

    def add(self, samples: int, tokens: int, prompt_tokens: int, target_tokens: int, padding: int) -> None:
        """Add the work of one step."""
        self.samples += samples
        self.tokens += tokens
        self.prompt_tokens += prompt_tokens
        self.target_tokens += target_tokens
        self.padding += padding


@dataclass
class Outcome:
    """What training one cell has given so far; it becomes the cell's result."""

    cell: Cell
    method: Method
    """At the end with the selected tensors loaded."""
    history: list[DevScore] = field(default_factory=list)
    """Every dev score, by step."""
    selected_step: int | None = None
    """Step of the best dev score so far."""
    answers: dict[str, list[str]] = field(default_factory=dict)
    """Of dev (at the selected step) and test, by split."""
    scores: dict[str, SplitScore] = field(default_factory=dict)
    """Of the same."""
    forgetting: Forgetting | None = None
    """What it has forgotten of a general text, at the selected step."""
    answering: AnsweringCost | None = None
    """What its answers cost, if that was measured."""
    failure: Failure | None = None
    failed_at: int | None = None
    """Step at which it failed."""
    raced_out_at: int | None = None
    """Step at which it lost a race."""
    num_steps: int = 0
    """Steps done."""
    work: Work = field(default_factory=Work)
    train_s: float = 0.0
    """Its share of the bundle's seconds in training steps."""
    eval_s: float = 0.0
    """Its share of the bundle's seconds in evaluations."""
    eval_prompt_tokens: int = 0
    """Positions of prompts that it has sent through the backbone in evaluations."""
    micro_batch_tokens: int = 0
    """Token budget of the last step."""
    num_out_of_memory: int = 0
    """Times that the bundle ran out of memory so far and halved a budget."""


class CellState:
    """A cell in training: its method, parameter groups, order of rows, best tensors and losses since an evaluation."""

    def __init__(self, cell: Cell, method: Method, order: RowOrder | MixedOrder) -> None:
        self.recipe = cell.recipe
        self.num_steps = cell.recipe.steps if method.trains else 0
        """Steps until its end."""
        self.outcome = Outcome(cell, method)
        self.order = order
        self.groups = checked_groups(method, cell.recipe.lr, cell.recipe.head_lr)
        self.parameters: list[Tensor] = [p for group in self.groups for p in group["params"]]
        self.best: dict[str, Tensor] = {}
        """A copy of the method's tensors at the selected step, by name."""
        # the four below are scalars; those that are tensors stay on the device, so that no step waits for it
        self.loss_sum: Tensor | None = None
        self.num_losses = 0
        self.sound_sum: Tensor | float = 0.0
        """Sum of the losses before the first that is not finite."""
        self.num_sound: Tensor | int = 0
        """Number of those."""

    def drop_gradients(self) -> None:
        """Drop the gradients of a step that is not finished."""
        for parameter in self.parameters:
            parameter.grad = None

    def record_loss(self, loss: Tensor) -> None:
        """Add a step's mean loss, a scalar on the device, without waiting for the device."""
        self.loss_sum = loss if self.loss_sum is None else self.loss_sum + loss
        self.num_losses += 1
        is_sound = self.loss_sum.isfinite()  # once it is not, it never is again, so the other two stop growing
        self.sound_sum = torch.where(is_sound, self.loss_sum, self.sound_sum)
        self.num_sound = is_sound + self.num_sound

    def mean_loss(self) -> float | None:
        """Mean training loss since `forget_losses`. Raises CellFailure, with the step, if it is not finite."""
        if self.loss_sum is None:
            return None
        value = float(self.loss_sum) / self.num_losses
        if not np.isfinite(value):
            raise CellFailure(self._divergence(value))
        return value

    def _divergence(self, value: float) -> str:
        """Say at which step the loss was not finite any more, what it was before, and what may have caused it."""
        num_sound = int(self.num_sound)
        step = self.outcome.num_steps - self.num_losses + num_sound + 1
        if step == 1:
            return (
                f"the training loss was {value} at step 1, before any update, so no learning rate caused it; "
                "look at the method's starting tensors, the rows, and the backbone's weights and precision"
            )
        if num_sound:
            before = f"its mean over the {num_sound} steps before was {float(self.sound_sum) / num_sound:.4g}"
        else:
            earlier = [score.train_loss for score in self.outcome.history if score.train_loss is not None]
            before = f"its mean before the evaluation at step {step - 1} was {earlier[-1]:.4g}"
        return f"the training loss became {value} at step {step}; {before}; a lower learning rate may help"

    def forget_losses(self) -> None:
        """Begin a new mean, after an evaluation."""
        self.loss_sum, self.num_losses = None, 0
        self.sound_sum, self.num_sound = 0.0, 0


def lr_factor(recipe: Recipe, step: int) -> float:
    """Factor of the learning rate for the update of `step` (0 for the first).

    Linear warm-up from 0, then constant, or decay to 0 at `steps` in a straight line or as half a cosine. These are
    transformers' `get_linear_schedule_with_warmup` and `get_cosine_schedule_with_warmup`: with a warm-up, the first
    update has factor 0 and moves nothing.
    """
    warmup = recipe.effective_warmup
    if step < warmup:
        return step / warmup
    if recipe.schedule == "constant":
        return 1.0
    left = max(0.0, (recipe.steps - step) / max(1, recipe.steps - warmup))
    return 0.5 * (1.0 - math.cos(math.pi * left)) if recipe.schedule == "cosine" else left
