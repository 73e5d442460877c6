"""From rows to splits to token ids: how splits are cut, fingerprints, ragged token arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
        source=source.describe(),
        revision=source.revision,
        split_rule=SPLIT_RULES[task.split],
        num_train=len(train),
        num_dev=len(dev),
        num_test=len(test),
        num_duplicates=_count_duplicates(train, [*dev, *test]),
        fingerprint=_fingerprint(train, dev, test),
    )
    for name, examples in (("train", train), ("dev", dev), ("test", test)):
        if not examples:
            problem = f"split '{name}' of task '{task.name}' has no rows: {record.split_rule}"
            raise UserError(problem, where=source.place(NEEDED_SPLITS[task.split][-1]))
    return TaskData(task, train, dev, test, record)


def encode(examples: Sequence[Example], backbone: Backbone, task: Task, max_source_length: int) -> Encoded:
    """Tokenise a split for a backbone: sources cut on the right, targets closed by the end token."""
    sources = _source_ids([example.source for example in examples], backbone, max_source_length)
    limit = task.max_target_length if task.kind != "classification" else None
    unique = {example.target for example in examples}
    known = {text: target_ids(text, backbone, limit) for text in unique}
    targets = [known[example.target] for example in examples]
    return Encoded(*_ragged(sources), *_ragged(targets))


def target_ids(text: str, backbone: Backbone, limit: int | None) -> list[int]:
    """Token ids of an answer, its end token last; at most `limit`."""
    ids = list(backbone.tokenizer(text, add_special_tokens=False)["input_ids"])
    return [*ids[: None if limit is None else limit - 1], backbone.eos_id]


def cut_references(data: TaskData, backbone: Backbone) -> TaskData:
    """References of a text task as DePT's code scores them: an answer longer than the target limit is cut like it."""
    if data.parts:
        parts = tuple(cut_references(part, backbone) for part in data.parts)
        dev, test = ([row for part in parts for row in part.split(name)] for name in ("dev", "test"))
        return replace(data, parts=parts, dev=dev, test=test)
    task = data.task
    if task.kind != "text" or task.references == "all":
        return data

    def cut(example: Example) -> Example:
        whole = target_ids(example.target, backbone, None)
        if len(whole) <= task.max_target_length:
            return example
        kept = backbone.tokenizer.decode(whole[: task.max_target_length - 1], skip_special_tokens=True).strip()
        return replace(example, references=(kept,))

    return replace(data, dev=[cut(row) for row in data.dev], test=[cut(row) for row in data.test])


def max_new_tokens(task: Task, backbone: Backbone) -> int:
    """Decoding steps: the longest label with its end, or the task's limit less the start token."""
    if task.parts:
        return max(max_new_tokens(part, backbone) for part in task.parts)
    if task.kind == "classification":
        return max(len(target_ids(label, backbone, None)) for label in task.targets)
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


def _count_duplicates(train: Sequence[Example], others: Sequence[Example]) -> int:
    """Rows of dev and test whose source text also stands in train."""
    seen = {example.source for example in train}
    return sum(example.source in seen for example in others)


def _fingerprint(*splits: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for rows in splits:
        digest.update(f"split {len(rows)}\n".encode())
        for example in rows:
            digest.update("\x1f".join((example.source, *example.references)).encode() + b"\n")
    return digest.hexdigest()[:16]


def _source_ids(texts: list[str], backbone: Backbone, limit: int) -> list[list[int]]:
    tokenizer = backbone.tokenizer
    if backbone.is_encoder_decoder:
        return list(tokenizer(texts, truncation=True, max_length=limit)["input_ids"])
    suffix = list(tokenizer(DECODER_SUFFIX, add_special_tokens=False)["input_ids"])
    bodies = tokenizer(texts, truncation=True, max_length=limit - len(suffix))["input_ids"]
    return [[*body, *suffix] for body in bodies]


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
