"""What a network can take in: positions that it can tell apart, and token ids that it has vectors for."""

from __future__ import annotations

from typing import Any

from harness.backbone import Backbone
from harness.data import Encoded, max_new_tokens
from harness.errors import UserError
from harness.suite_file import LabelTokens
from harness.tasks.record import Task

NUM_DIGIT_TOKENS = 4
"""Tokens of a label digit and its end at most, where there is no tokenizer to ask."""


def max_positions(config: Any, side: str) -> int | None:
    """Positions that the `encoder` or `decoder` of a configuration tells apart; None where it puts no bound on them.

    Positions may be relative (T5's buckets) or slopes of the distance (ALiBi) instead; neither has a last one.
    """
    nested = getattr(config, side, None)
    own = nested if hasattr(nested, "to_dict") else config.get_text_config()
    if getattr(own, "alibi", False) or getattr(own, "relative_attention_num_buckets", None):
        return None
    for name in (f"max_{side}_position_embeddings", "max_position_embeddings"):
        value = getattr(own, name, None)
        if value and value > 0:  # XLNet's -1 stands for no bound
            return int(value)
    return None


def target_tokens(task: Task, backbone: Backbone, label_tokens: LabelTokens = "longest_label") -> int:
    """Most tokens of an answer with its end. Of labels, without a tokenizer: what digits take, or the task's limit."""
    if task.parts:
        return max(target_tokens(part, backbone, label_tokens) for part in task.parts)
    if task.kind == "classification" and backbone.tokenizer is not None:
        return max_new_tokens(task, backbone, label_tokens)
    is_digit = task.kind == "classification" and task.target_style == "digits"
    least = NUM_DIGIT_TOKENS if is_digit else task.max_target_length
    if task.kind != "classification" or label_tokens == "longest_label":
        return least
    return max(least, label_tokens - 1)


def check_positions(
    backbone: Backbone, prompt: int, source: int, target: int, where: str | None = None, field: str | None = None
) -> None:
    """Raise UserError unless prompt, text and answer, in tokens, fit the positions of the network that reads them.

    A network may run on past its positions, to an index error or to numbers that mean nothing.
    """
    parts = {"prompt": prompt, "source": source, "target": target}
    reads = {"encoder": ("prompt", "source"), "decoder": ("target",)}
    if not backbone.is_encoder_decoder:
        reads = {"decoder": tuple(parts)}
    for side, names in reads.items():
        limit, needed = max_positions(backbone.config, side), sum(parts[name] for name in names)
        if limit is None or needed <= limit:
            continue
        tokens = " + ".join(f"{parts[name]} {name}" for name in names)
        owner = f"backbone '{backbone.name}'"
        if backbone.is_encoder_decoder:
            owner = f"the {side} of {owner}"
        settings = "max_target_length" if names == ("target",) else "prompt_length or recipe.max_source_length"
        problem = f"needs {needed} positions ({tokens}), {owner} has {limit}"
        raise UserError(problem, where=where, field=field, hint=f"Lower {settings}.")


def check_ids(encoded: Encoded, backbone: Backbone, what: str) -> None:
    """Raise UserError where rows hold a token that the network has no vector for; `what` names them."""
    rows = backbone.embedding.num_embeddings
    for kind, ids in (("source", encoded.source_ids), ("target", encoded.target_ids)):
        largest = int(ids.max(initial=0))
        if largest >= rows:
            token = backbone.tokenizer.decode([largest])
            raise UserError(
                f"a {kind} of {what} holds '{token}', id {largest}, backbone '{backbone.name}' has {rows} embeddings",
                hint="The token was added to the tokenizer and not to the network: resize its embedding, or drop it.",
            )
