"""Checks how many positions a network tells apart, and whether prompt, text and answer fit them."""

from __future__ import annotations

from typing import Any

from harness.backbone import Backbone, num_table_positions
from harness.data import Task, max_new_tokens
from harness.errors import UserError
from harness.suite import LabelTokens

NUM_DIGIT_TOKENS = 4
"""Tokens that a label digit and its end take at most, where there is no tokenizer to ask. One too many costs nothing
but a position; one too few would let an answer run over the last position."""


def max_positions(config: Any, side: str) -> int | None:
    """Return how many positions the `encoder` or `decoder` of a configuration tells apart, or None for no bound.

    There is none where positions are relative (T5's buckets, DeBERTa) or slopes over the distance (ALiBi).
    """
    nested = getattr(config, side, None)
    own = nested if hasattr(nested, "to_dict") else config.get_text_config()
    if getattr(own, "alibi", False) or getattr(own, "relative_attention_num_buckets", None):
        return None
    if getattr(own, "relative_attention", False):
        return None
    for name in (f"max_{side}_position_embeddings", "max_position_embeddings"):
        value = getattr(own, name, None)
        if value and value > 0:  # XLNet writes -1 for no bound
            return int(value)
    return None


def _limit(backbone: Backbone, side: str) -> int | None:
    """Return how many positions a side of the network tells apart, or None for no bound.

    An encoder's configuration may count rows of its table that no position takes, so the table itself is asked.
    """
    table = None if backbone.writes_text else num_table_positions(backbone.model)
    return max_positions(backbone.config, side) if table is None else table


def target_tokens(task: Task, backbone: Backbone, label_tokens: LabelTokens = "longest_label") -> int:
    """Return the most tokens of an answer that is trained on or written, its end included.

    For labels without a tokenizer that is NUM_DIGIT_TOKENS where labels are digits, else the task's own limit.
    """
    if task.parts:
        return max(target_tokens(part, backbone, label_tokens) for part in task.parts)
    if task.kind == "classification" and backbone.tokenizer is not None:
        return max_new_tokens(task, backbone, label_tokens)
    is_digit = task.kind == "classification" and task.target_style == "digits"
    least = max(NUM_DIGIT_TOKENS if is_digit else task.max_target_length, task.max_new_tokens or 0)
    if task.kind != "classification" or label_tokens == "longest_label":
        return least
    return max(least, label_tokens - 1)


def require_positions(
    backbone: Backbone, prompt: int, source: int, target: int, where: str | None = None, field: str | None = None
) -> None:
    """Raise UserError unless prompt, text and answer, in tokens, fit the positions of the network that reads them.

    Without the check a network would stop with an index error or, worse, go on with numbers that mean nothing.
    """
    lengths = {"prompt": prompt, "source": source, "target": target}
    sides: dict[str, dict[str, tuple[str, ...]]] = {
        "encoder-decoder": {"encoder": ("prompt", "source"), "decoder": ("target",)},
        "decoder": {"decoder": tuple(lengths)},
        "encoder": {"encoder": ("prompt", "source")},
    }
    for side, names in sides[backbone.kind.name].items():
        limit, needed = _limit(backbone, side), sum(lengths[name] for name in names)
        if limit is None or needed <= limit:
            continue
        tokens = " + ".join(f"{lengths[name]} {name}" for name in names)
        owner = f"backbone '{backbone.name}'"
        if backbone.is_encoder_decoder:
            owner = f"the {side} of {owner}"
        is_answer = "target" in names and target == max(lengths[name] for name in names)
        settings = "max_target_length or max_new_tokens" if is_answer else "prompt_length or recipe.max_source_length"
        problem = f"needs {needed} positions ({tokens}), {owner} has {limit}"
        raise UserError(problem, where=where, field=field, hint=f"Lower {settings}.")
