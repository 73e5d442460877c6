"""From rows to examples to token ids: labels, splits, fingerprints, ragged token arrays."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.backbone import Backbone
from harness.errors import UserError
from harness.schema import DataRecord
from harness.sources import LocatedRow, find_source, read_split
from harness.tasks.record import SPLIT_RULES, Row, Task

SPLIT_SEED = 42
NUM_HELD_OUT = 1_000
DECODER_SUFFIX = " Label : "
"""Put behind the source text where one network reads the text and writes the answer (DePT's code)."""


@dataclass(frozen=True)
class Example:
    """One row as the model sees it."""

    source: str
    target: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class TaskData:
    """The three splits of a task and the record of where they came from."""

    task: Task
    train: list[Example]
    dev: list[Example]
    test: list[Example]
    record: DataRecord

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
    names = ("train", "validation", "test") if task.split == "given" else ("train", "validation")
    splits = {name: _examples(task, read_split(task, source, name)) for name in names}
    for name, rows in splits.items():
        if not rows:
            raise UserError(f"split '{name}' of task '{task.name}' has no rows", where=source.place(name))
    train, dev, test = _carve(task, splits)
    record = DataRecord(
        source=source.name,
        revision=source.revision,
        split_rule=SPLIT_RULES[task.split],
        num_train=len(train),
        num_dev=len(dev),
        num_test=len(test),
        fingerprint=_fingerprint(train, dev, test),
    )
    for name, rows in (("dev", dev), ("test", test)):
        if not rows:
            problem = f"split '{name}' of task '{task.name}' has no rows: {record.split_rule}"
            raise UserError(problem, where=source.place("validation"))
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


def max_new_tokens(task: Task, backbone: Backbone) -> int:
    """Decoding steps: the longest label with its end, or the task's limit less the start token."""
    if task.kind == "classification":
        return max(len(target_ids(label, backbone, None)) for label in task.targets)
    return task.max_target_length - 1


def to_example(task: Task, where: str, row: Row) -> Example:
    """Convert one flat row. Raises UserError naming its place when a field is missing or a label unknown."""
    for _, column in (*task.fields, ("", task.label)):
        if column not in row:
            raise UserError(f"field '{column}' is missing", where=where, value=column, choices=list(row))
        if row[column] is None:
            raise UserError(f"field '{column}' is empty", where=where)
    source = " ".join(f"{tag}: {row[column]}" for tag, column in task.fields)
    if task.kind == "text":
        answers = _answers(row[task.label], where, task.label)
        return Example(source, answers[0], (answers[0],))
    target = _digit(task, row[task.label], where) if task.kind == "classification" else _number(row[task.label], where)
    return Example(source, target, (target,))


def _examples(task: Task, rows: Iterable[LocatedRow]) -> list[Example]:
    examples: list[Example] = []
    for where, row in rows:
        try:
            flat = list(task.prepare(row)) if task.prepare else [row]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"has not the fields of task '{task.name}': {error!r}", where=where) from None
        examples.extend(to_example(task, where, item) for item in flat)
    return examples


def _digit(task: Task, label: object, where: str) -> str:
    """Label id as a digit, from an id, a bool, or a class name."""
    names = {name.lower(): index for index, name in enumerate(task.labels)} | dict(task.label_words)
    text = str(label).strip().lower()
    if text in names:
        return str(names[text])
    if text in task.targets:
        return text
    raise UserError(
        f"label {label!r} is not one of task '{task.name}'",
        where=where,
        field=task.label,
        value=str(label),
        choices=task.labels,
        hint="Hidden test labels (-1) cannot be scored." if text == "-1" else None,
    )


def _number(label: object, where: str) -> str:
    """Gold value rounded to one decimal, the form that is trained on and scored against."""
    try:
        value = float(str(label))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"label {label!r} is not a number", where=where)
    return f"{value:.1f}"


def _answers(value: object, where: str, column: str) -> list[str]:
    texts = value.get("text") if isinstance(value, dict) else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"'{column}' holds no answer text", where=where)
    return texts


def _carve(task: Task, splits: dict[str, list[Example]]) -> tuple[list[Example], list[Example], list[Example]]:
    train, validation = splits["train"], splits["validation"]
    if task.split == "given":
        return train, validation, splits["test"]
    if task.split == "halve_validation":
        order = permutation(len(validation))
        half = len(validation) // 2
        return train, [validation[i] for i in order[:half]], [validation[i] for i in order[half:]]
    order = permutation(len(train))
    held_out, kept = order[:NUM_HELD_OUT], order[NUM_HELD_OUT:]
    return [train[i] for i in kept], [train[i] for i in held_out], validation


def permutation(num_rows: int) -> list[int]:
    """The order in which every split is cut: torch.randperm with seed 42 on the CPU, whatever the training seed."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    order: list[int] = torch.randperm(num_rows, generator=generator).tolist()
    return order


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
