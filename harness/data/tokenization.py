"""Token ids of a split: sources and targets as arrays, references cut at the same limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from harness.backbone import Backbone
from harness.data.examples import Example
from harness.data.splits import TaskData
from harness.data.tasks.task import Task
from harness.errors import UserError
from harness.suite import LabelTokens

Ids = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a split of N rows, without padding: row i is `ids[offsets[i]:offsets[i + 1]]`.

    Rows differ much in length, so one padded array would be several times as large.
    """

    source_ids: Ids
    """[number of source tokens in all]"""
    source_offsets: Ids
    """[N + 1], the first is 0"""
    target_ids: Ids
    """[number of target tokens in all]"""
    target_offsets: Ids
    """[N + 1], the first is 0"""
    tasks: Ids | None = None
    """[N], the index of the row's task in a mixture; None for a single task."""
    num_cut_sources: int = 0
    """Number of rows whose source was longer than the limit and was cut."""
    num_cut_targets: int = 0
    """Number of rows whose target was cut."""

    def __len__(self) -> int:
        return len(self.source_offsets) - 1

    def source_lengths(self, rows: Ids) -> Ids:
        """Return the number of source tokens of each of `rows`, [len(rows)]."""
        lengths: Ids = self.source_offsets[rows + 1] - self.source_offsets[rows]
        return lengths

    def target_lengths(self, rows: Ids) -> Ids:
        """Return the number of target tokens of each of `rows`, [len(rows)]."""
        lengths: Ids = self.target_offsets[rows + 1] - self.target_offsets[rows]
        return lengths

    def sources(self, rows: Ids, pad: int) -> Ids:
        """Return the source ids of `rows`, padded on the right with `pad`, [len(rows), T]."""
        return _padded(self.source_ids, self.source_offsets, rows, pad)

    def targets(self, rows: Ids) -> Ids:
        """Return the target ids of `rows`, padded on the right with -100, [len(rows), T]; the loss ignores -100."""
        return _padded(self.target_ids, self.target_offsets, rows, -100)


def encode(examples: Sequence[Example], backbone: Backbone, task: Task, max_source_length: int) -> Encoded:
    """Tokenise a split for a backbone. Sources are cut on the right, targets end with the end token."""
    sources, num_cut = _source_ids([example.source for example in examples], backbone, max_source_length)
    # a label is never cut: two labels could become the same tokens
    limit = task.max_target_length if task.kind != "classification" else None
    # many rows share a target, so each text is tokenised once
    whole = {text: target_ids(text, backbone, None) for text in {example.target for example in examples}}
    long = {text for text, ids in whole.items() if limit is not None and len(ids) > limit}
    known = whole | {text: target_ids(text, backbone, limit) for text in long}
    targets = [known[example.target] for example in examples]
    num_long = sum(example.target in long for example in examples)
    return Encoded(*_ragged(sources), *_ragged(targets), num_cut_sources=num_cut, num_cut_targets=num_long)


def target_ids(text: str, backbone: Backbone, limit: int | None) -> list[int]:
    """Return the token ids of an answer with exactly one end token, as the last; at most `limit` ids."""
    marks = _boundary_tokens(backbone)
    ids = [i for i in backbone.tokenizer(text, add_special_tokens=False)["input_ids"] if i not in marks]
    return [*ids[: None if limit is None else limit - 1], backbone.eos_id]


def has_cut_references(task: Task) -> bool:
    """Return whether references are cut like the targets of training, as DePT's code does for its text tasks."""
    return any(map(has_cut_references, task.parts)) or (task.kind == "text" and task.references == "first")


def cut_references(data: TaskData, tokenizer: Any) -> TaskData:
    """Cut the references of dev and test to the target limit, where the task is scored so (`has_cut_references`).

    This holds for rules as well, with the tokenizer of the backbone whose table they stand in: all rows of a table
    column must have the same references.
    """
    if data.parts:
        parts = tuple(cut_references(part, tokenizer) for part in data.parts)
        dev, test = ([row for part in parts for row in part.split(name)] for name in ("dev", "test"))
        return replace(data, parts=parts, dev=dev, test=test)
    task = data.task
    if not has_cut_references(task):
        return data
    limit = task.max_target_length - 1  # the end token takes one

    def cut(example: Example) -> Example:
        ids = list(tokenizer(example.target, add_special_tokens=False)["input_ids"])
        if len(ids) <= limit:
            return example
        return replace(example, references=(tokenizer.decode(ids[:limit], skip_special_tokens=True).strip(),))

    return replace(data, dev=[cut(row) for row in data.dev], test=[cut(row) for row in data.test])


def max_new_tokens(task: Task, backbone: Backbone, label_tokens: LabelTokens = "longest_label") -> int:
    """Decoding steps: the longest label with its end, or the task's limit less the start token.

    As `recipe.label_tokens` says, labels get more steps than they need; never fewer.
    """
    if task.parts:
        return max(max_new_tokens(part, backbone, label_tokens) for part in task.parts)
    if task.kind == "classification":
        longest = max(len(target_ids(label, backbone, None)) for label in task.targets)
        return longest if label_tokens == "longest_label" else max(longest, label_tokens - 1)
    return task.max_target_length - 1


def _source_ids(texts: list[str], backbone: Backbone, limit: int) -> tuple[list[list[int]], int]:
    """Return the token ids of each text, and how many texts were cut."""
    tokenizer, kind = backbone.tokenizer, backbone.kind
    if kind.text_marks == "as they are":
        made = tokenizer(texts, truncation=True, max_length=limit)
        return list(made["input_ids"]), _num_cut(made, texts, tokenizer, limit)
    suffix = list(tokenizer(kind.text_suffix, add_special_tokens=False)["input_ids"])
    begin, end = _tokens_around(tokenizer)
    if kind.text_marks == "both" and not (begin and end):
        problem = (
            f"the tokenizer of encoder '{backbone.name}' puts no token {'behind' if begin else 'in front of'} a text"
        )
        raise UserError(problem, hint="An encoder reads a text between two special tokens, such as [CLS] and [SEP].")
    tail = end if kind.text_marks == "both" else suffix
    # the text is cut, never what stands around it; end tokens that are taken off below need no room
    room = limit - len(tail) + len(end)
    marks = {*_boundary_tokens(backbone), *begin, *end}
    made = tokenizer(texts, truncation=True, max_length=room)
    num_cut = _num_cut(made, texts, tokenizer, room)
    bodies = made["input_ids"]
    return [[*begin, *(i for i in body[len(begin) :] if i not in marks), *tail] for body in bodies], num_cut


def _boundary_tokens(backbone: Backbone) -> set[int]:
    """Return the begin and the end token. A text that spells one would seem to begin or end there, so it loses it."""
    begin = getattr(backbone.tokenizer, "bos_token_id", None)
    return {backbone.eos_id} if begin is None else {backbone.eos_id, begin}


def _tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids that a tokenizer puts before and behind a text. Raises UserError if the text's own ids change."""
    text = "0"  # any text with a token of its own would do
    plain, framed = (tokenizer(text, add_special_tokens=added)["input_ids"] for added in (False, True))
    for start in range(len(framed) - len(plain) + 1):
        if framed[start : start + len(plain)] == plain:
            return list(framed[:start]), list(framed[start + len(plain) :])
    raise UserError(f"the tokenizer {type(tokenizer).__name__} changes a text's tokens where it frames it")


def _num_cut(made: Any, texts: Sequence[str], tokenizer: Any, limit: int) -> int:
    """Return how many of the tokenised texts were cut."""
    if made.encodings is not None:
        return sum(bool(encoding.overflowing) for encoding in made.encodings)
    # a tokenizer written in Python does not say, so texts that fill the limit are tokenised again without it
    full = [text for text, ids in zip(texts, made["input_ids"], strict=True) if len(ids) >= limit]
    return sum(len(tokenizer(text, verbose=False)["input_ids"]) > limit for text in full)


def _ragged(rows: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    """Return all ids in one array, and the offset at which each row starts, [N + 1]."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    flat = np.fromiter((item for row in rows for item in row), np.int64, int(offsets[-1]))
    return flat, offsets


def _padded(values: Ids, offsets: Ids, rows: Ids, pad: int) -> Ids:
    """Return the ids of `rows` as one array, padded on the right, [len(rows), T]."""
    starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
    columns = np.arange(lengths.max(initial=0))[None]  # [1, T]
    inside = columns < lengths[:, None]  # [len(rows), T]
    # padding may point behind the last id, so the index is held inside; `where` puts the padding there
    return np.where(inside, values[np.minimum(starts[:, None] + columns, len(values) - 1)], pad)
