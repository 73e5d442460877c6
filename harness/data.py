"""From rows to splits to token ids: how train, dev and test are cut, their fingerprint, and their token ids as arrays.

Shapes: N rows of a split, T token ids of the longest source or target among the rows asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.backbone import Backbone
from harness.errors import UserError
from harness.examples import Converter, Example
from harness.schema import DataRecord
from harness.sources import find_source, read_split
from harness.suite_file import LabelTokens
from harness.tasks.record import NEEDED_SPLITS, SPLIT_RULES, Task

SPLIT_SEED = 42
"""The seed with which DePT's code cuts every split, whatever the training seed (docs/protocol.md)."""
NUM_HELD_OUT = 1_000
"""Training rows that become dev of a large task, as in DePT's code."""
DECODER_SUFFIX = " Label : "
"""Put behind the source text for a decoder-only network, which reads the text and writes the answer (DePT's code)."""

Ids = np.ndarray[Any, np.dtype[np.int64]]
Rows = list[list[Example]]
"""Published rows, each with its examples. Rows are what is cut: two examples of one row never come into two splits."""


@dataclass(frozen=True)
class TaskData:
    """The three splits of a task, and the record of where they came from."""

    task: Task
    train: list[Example]
    dev: list[Example]
    test: list[Example]
    record: DataRecord
    parts: tuple[TaskData, ...] = ()
    """For a mixture, its tasks; the splits of the mixture are theirs, one after the other."""

    def split(self, name: str) -> list[Example]:
        """Return "train", "dev" or "test"."""
        splits: dict[str, list[Example]] = {"train": self.train, "dev": self.dev, "test": self.test}
        return splits[name]


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


def load_task(task: Task, data_dir: str | Path | None) -> TaskData:
    """Read the rows of a task, convert them to examples and cut the splits.

    Raises UserError that names file and row where something is wrong with them.
    """
    origin = find_source(task, data_dir)
    convert = Converter(task)
    read = {name: convert.read(read_split(task, origin, name)) for name in NEEDED_SPLITS[task.split]}
    if not task.ids_are_documented:  # of a shipped task it is known that a label such as 1 is the second class
        convert.check()
    for name, rows in read.items():
        if not rows:
            raise UserError(f"split '{name}' of task '{task.name}' has no rows", where=origin.place(name))
    train, dev, test = ([example for row in rows for example in row] for rows in _cut_splits(task, list(read.values())))
    record = DataRecord(
        source=origin.describe(convert.edits),
        revision=origin.revision,
        split_rule=SPLIT_RULES[task.split],
        num_train=len(train),
        num_dev=len(dev),
        num_test=len(test),
        num_duplicates=count_duplicates(train, [*dev, *test]),
        fingerprint=_fingerprint(train, dev, test),
        one_class=_one_class(task, {"train": train, "dev": dev, "test": test}),
    )
    for name, examples in (("train", train), ("dev", dev), ("test", test)):
        if not examples:
            problem = f"split '{name}' of task '{task.name}' has no rows: {record.split_rule}"
            raise UserError(problem, where=origin.place(NEEDED_SPLITS[task.split][-1]))
    return TaskData(task, train, dev, test, record)


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


def _cut_splits(task: Task, read: Sequence[Rows]) -> tuple[Rows, Rows, Rows]:
    """Cut train, dev and test by the task's split rule; `read` holds the published splits in NEEDED_SPLITS' order."""
    if len(read) == 3:  # the rules that cut nothing: NEEDED_SPLITS names train, dev and test
        return read[0], read[1], read[2]
    if task.split == "halve_validation":
        train, validation = read
        half = len(validation) // 2
        dev, test = _cut(validation, half)
        return train, dev, test
    if task.split == "hold_out_1000":
        # at most half of the rows: a small copy of a large task, as in a test, keeps rows to train on
        dev, train = _cut(read[0], min(NUM_HELD_OUT, len(read[0]) // 2))
        return train, dev, read[1]
    total = len(read[0])
    num_dev, num_test = _num_rows(task.dev_share, total), _num_rows(task.test_share, total)
    if min(num_dev, num_test, total - num_dev - num_test) < 1:
        problem = f"{num_dev} dev and {num_test} test rows cannot be cut from {total} rows with one left for each split"
        raise UserError(problem, where=f"task '{task.name}'", field="dev_share, test_share")
    dev, test, train = _cut(read[0], num_dev, num_dev + num_test)
    return train, dev, test


def _cut(rows: Rows, *ends: int) -> list[Rows]:
    """Permute the rows and cut them before each index in `ends`; the last piece is the rest."""
    order = permutation(len(rows))
    pieces = zip((0, *ends), (*ends, len(rows)), strict=True)
    return [[rows[index] for index in order[start:end]] for start, end in pieces]


def _num_rows(share: float | int, total: int) -> int:
    """Return the number of rows that a share stands for: a float is a part of `total`, an integer a number of rows."""
    return round(share * total) if isinstance(share, float) else share


def permutation(num_rows: int) -> list[int]:
    """Return the order in which rows are cut into splits: torch.randperm with seed 42, whatever the training seed."""
    # on the CPU, since a GPU's generator gives another permutation for the same seed
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    order: list[int] = torch.randperm(num_rows, generator=generator).tolist()
    return order


def count_duplicates(train: Sequence[Example], others: Sequence[Example]) -> int:
    """Return the number of rows in `others` (dev and test) whose source text also stands in train."""
    seen = {example.source for example in train}
    return sum(example.source in seen for example in others)


def _one_class(task: Task, splits: Mapping[str, Sequence[Example]]) -> dict[str, str]:
    """Return split -> label for each split of a classification whose rows all have one label.

    A score on such a split cannot tell one method from another, so reports warn of it.
    """
    if task.kind != "classification":
        return {}
    found = {name: {example.target for example in rows} for name, rows in splits.items()}
    names = dict(zip(task.targets, task.labels, strict=True))
    return {name: names[min(targets)] for name, targets in found.items() if len(targets) == 1}


def _fingerprint(*splits: Sequence[Example]) -> str:
    """Return a hash of the texts of all splits: results of two runs are comparable only if it is the same."""
    digest = hashlib.sha256()
    for rows in splits:
        digest.update(f"split {len(rows)}\n".encode())
        for example in rows:
            digest.update("\x1f".join((example.source, *example.references)).encode() + b"\n")
    return digest.hexdigest()[:16]


def _source_ids(texts: list[str], backbone: Backbone, limit: int) -> tuple[list[list[int]], int]:
    """Return the token ids of each text, and how many texts were cut."""
    tokenizer = backbone.tokenizer
    if backbone.is_encoder_decoder:
        made = tokenizer(texts, truncation=True, max_length=limit)
        return list(made["input_ids"]), _num_cut(made, texts, tokenizer, limit)
    suffix = list(tokenizer(DECODER_SUFFIX, add_special_tokens=False)["input_ids"])
    begin, end = _tokens_around(tokenizer)
    # the text is cut, never the suffix; the tokenizer's end tokens are taken off below and so need no room
    room = limit - len(suffix) + len(end)
    marks = {*_boundary_tokens(backbone), *begin, *end}
    made = tokenizer(texts, truncation=True, max_length=room)
    num_cut = _num_cut(made, texts, tokenizer, room)
    bodies = made["input_ids"]
    return [[*begin, *(i for i in body[len(begin) :] if i not in marks), *suffix] for body in bodies], num_cut


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
