"""From rows to splits to token ids: how splits are cut, fingerprints, ragged token arrays."""

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
NUM_HELD_OUT = 1_000
DECODER_SUFFIX = " Label : "
"""Put behind the source text where one network reads the text and writes the answer (DePT's code)."""


Rows = list[list[Example]]
"""Examples by published row; a row is cut into a split as a whole."""


@dataclass(frozen=True)
class TaskData:
    """The three splits of a task and the record of where they came from."""

    task: Task
    train: list[Example]
    dev: list[Example]
    test: list[Example]
    record: DataRecord
    parts: tuple[TaskData, ...] = ()
    """The tasks of a mixture; its splits are theirs, one after the other."""

    def split(self, name: str) -> list[Example]:
        """Return "train", "dev" or "test"."""
        splits: dict[str, list[Example]] = {"train": self.train, "dev": self.dev, "test": self.test}
        return splits[name]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a split, ragged: row i is `ids[offsets[i]:offsets[i+1]]`."""

    source_ids: np.ndarray[Any, np.dtype[np.int64]]
    source_offsets: np.ndarray[Any, np.dtype[np.int64]]
    target_ids: np.ndarray[Any, np.dtype[np.int64]]
    target_offsets: np.ndarray[Any, np.dtype[np.int64]]
    tasks: np.ndarray[Any, np.dtype[np.int64]] | None = None
    """Which task of a mixture each row belongs to; None for a single task."""
    num_cut_sources: int = 0
    """Rows whose source text was longer than the limit."""
    num_cut_targets: int = 0

    def __len__(self) -> int:
        return len(self.source_offsets) - 1

    def source_lengths(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        lengths: np.ndarray[Any, Any] = self.source_offsets[rows + 1] - self.source_offsets[rows]
        return lengths

    def target_lengths(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        lengths: np.ndarray[Any, Any] = self.target_offsets[rows + 1] - self.target_offsets[rows]
        return lengths

    def sources(self, rows: np.ndarray[Any, Any], pad: int) -> np.ndarray[Any, Any]:
        """Source ids of `rows`, right-padded, [len(rows), longest]."""
        return _padded(self.source_ids, self.source_offsets, rows, pad)

    def targets(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Target ids of `rows`, right-padded with -100, [len(rows), longest]."""
        return _padded(self.target_ids, self.target_offsets, rows, -100)


def load_task(task: Task, data_dir: str | Path | None) -> TaskData:
    """Read, convert and split the rows of a task. Raises UserError naming file and row of what is wrong."""
    source = find_source(task, data_dir)
    convert = Converter(task)
    read = {name: convert.read(read_split(task, source, name)) for name in NEEDED_SPLITS[task.split]}
    if not task.ids_are_documented:
        convert.check()
    for name, rows in read.items():
        if not rows:
            raise UserError(f"split '{name}' of task '{task.name}' has no rows", where=source.place(name))
    train, dev, test = ([example for row in rows for example in row] for rows in _carve(task, list(read.values())))
    record = DataRecord(
        source=source.describe(convert.edits),
        revision=source.revision,
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
            raise UserError(problem, where=source.place(NEEDED_SPLITS[task.split][-1]))
    return TaskData(task, train, dev, test, record)


def encode(examples: Sequence[Example], backbone: Backbone, task: Task, max_source_length: int) -> Encoded:
    """Tokenise a split for a backbone: sources cut on the right, targets closed by the end token."""
    sources, num_cut = _source_ids([example.source for example in examples], backbone, max_source_length)
    limit = task.max_target_length if task.kind != "classification" else None
    whole = {text: target_ids(text, backbone, None) for text in {example.target for example in examples}}
    long = {text for text, ids in whole.items() if limit is not None and len(ids) > limit}
    known = whole | {text: target_ids(text, backbone, limit) for text in long}
    targets = [known[example.target] for example in examples]
    num_long = sum(example.target in long for example in examples)
    return Encoded(*_ragged(sources), *_ragged(targets), num_cut_sources=num_cut, num_cut_targets=num_long)


def target_ids(text: str, backbone: Backbone, limit: int | None) -> list[int]:
    """Token ids of an answer, its one end token last; at most `limit`."""
    marks = _marks(backbone)
    ids = [i for i in backbone.tokenizer(text, add_special_tokens=False)["input_ids"] if i not in marks]
    return [*ids[: None if limit is None else limit - 1], backbone.eos_id]


def has_cut_references(task: Task) -> bool:
    """Whether references are cut like the targets of training: DePT's code scores its text tasks so."""
    return any(map(has_cut_references, task.parts)) or (task.kind == "text" and task.references == "first")


def cut_references(data: TaskData, tokenizer: Any) -> TaskData:
    """References of dev and test as DePT's code scores them: an answer longer than the target limit is cut like it.

    Rules are scored so too, with the tokenizer of their table's backbone: rows of one column have the same references.
    """
    if data.parts:
        parts = tuple(cut_references(part, tokenizer) for part in data.parts)
        dev, test = ([row for part in parts for row in part.split(name)] for name in ("dev", "test"))
        return replace(data, parts=parts, dev=dev, test=test)
    task = data.task
    if not has_cut_references(task):
        return data
    most = task.max_target_length - 1  # the end token takes one

    def cut(example: Example) -> Example:
        whole = list(tokenizer(example.target, add_special_tokens=False)["input_ids"])
        if len(whole) <= most:
            return example
        return replace(example, references=(tokenizer.decode(whole[:most], skip_special_tokens=True).strip(),))

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


def _carve(task: Task, read: Sequence[Rows]) -> tuple[Rows, Rows, Rows]:
    """Cut train, dev and test from the splits that the task's rule needs, in its order."""
    if len(read) == 3:
        return read[0], read[1], read[2]
    if task.split == "halve_validation":
        train, validation = read
        half = len(validation) // 2
        dev, test = _cut(validation, half)
        return train, dev, test
    if task.split == "hold_out_1000":
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
    """Cut the permuted rows before each of `ends`; the last piece is the rest."""
    order = permutation(len(rows))
    pieces = zip((0, *ends), (*ends, len(rows)), strict=True)
    return [[rows[index] for index in order[start:end]] for start, end in pieces]


def _num_rows(share: float | int, total: int) -> int:
    """Rows that a share stands for: a float is a part of `total`, an integer a number."""
    return round(share * total) if isinstance(share, float) else share


def permutation(num_rows: int) -> list[int]:
    """The order in which every split is cut: torch.randperm with seed 42 on the CPU, whatever the training seed."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    order: list[int] = torch.randperm(num_rows, generator=generator).tolist()
    return order


def count_duplicates(train: Sequence[Example], others: Sequence[Example]) -> int:
    """Rows of dev and test whose source text also stands in train."""
    seen = {example.source for example in train}
    return sum(example.source in seen for example in others)


def _one_class(task: Task, splits: Mapping[str, Sequence[Example]]) -> dict[str, str]:
    """Split -> label, where all rows of a classification have the same: no score there can tell methods apart."""
    if task.kind != "classification":
        return {}
    found = {name: {example.target for example in rows} for name, rows in splits.items()}
    names = dict(zip(task.targets, task.labels, strict=True))
    return {name: names[min(targets)] for name, targets in found.items() if len(targets) == 1}


def _fingerprint(*splits: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for rows in splits:
        digest.update(f"split {len(rows)}\n".encode())
        for example in rows:
            digest.update("\x1f".join((example.source, *example.references)).encode() + b"\n")
    return digest.hexdigest()[:16]


def _source_ids(texts: list[str], backbone: Backbone, limit: int) -> tuple[list[list[int]], int]:
    """Token ids of each text, and how many texts were cut."""
    tokenizer = backbone.tokenizer
    if backbone.is_encoder_decoder:
        made = tokenizer(texts, truncation=True, max_length=limit)
        return list(made["input_ids"]), _num_cut(made, texts, tokenizer, limit)
    suffix = list(tokenizer(DECODER_SUFFIX, add_special_tokens=False)["input_ids"])
    begin, end = _frame(tokenizer)
    room = limit - len(suffix) + len(end)
    marks = {*_marks(backbone), *begin, *end}
    made = tokenizer(texts, truncation=True, max_length=room)
    num_cut = _num_cut(made, texts, tokenizer, room)
    bodies = made["input_ids"]
    return [[*begin, *(i for i in body[len(begin) :] if i not in marks), *suffix] for body in bodies], num_cut


def _marks(backbone: Backbone) -> set[int]:
    """The begin and the end token; one that a text spells out would read as the place where it begins or ends."""
    begin = getattr(backbone.tokenizer, "bos_token_id", None)
    return {backbone.eos_id} if begin is None else {backbone.eos_id, begin}


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before and behind a text."""
    text = "0"
    plain, framed = (tokenizer(text, add_special_tokens=added)["input_ids"] for added in (False, True))
    for start in range(len(framed) - len(plain) + 1):
        if framed[start : start + len(plain)] == plain:
            return list(framed[:start]), list(framed[start + len(plain) :])
    raise UserError(f"the tokenizer {type(tokenizer).__name__} changes a text's tokens where it frames it")


def _num_cut(made: Any, texts: Sequence[str], tokenizer: Any, limit: int) -> int:
    """How many of the tokenised texts were cut; a tokenizer in Python does not say, and is asked again."""
    if made.encodings is not None:
        return sum(bool(encoding.overflowing) for encoding in made.encodings)
    full = [text for text, ids in zip(texts, made["input_ids"], strict=True) if len(ids) >= limit]
    return sum(len(tokenizer(text, verbose=False)["input_ids"]) > limit for text in full)


def _ragged(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    flat = np.fromiter((item for row in rows for item in row), np.int64, int(offsets[-1]))
    return flat, offsets


def _padded(
    values: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], pad: int
) -> np.ndarray[Any, Any]:
    starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
    columns = np.arange(lengths.max(initial=0))[None]
    inside = columns < lengths[:, None]
    return np.where(inside, values[np.minimum(starts[:, None] + columns, len(values) - 1)], pad)
