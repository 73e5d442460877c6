"""The rows of a cell in three splits: read, converted, cut into train, dev and test, and kept for the next cell.

One task, a mixture of tasks, or a few-shot draw. `cell_rows` is the way in.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from harness.data.class_names import class_features, name_classes
from harness.data.examples import Converter, Example, TaskData, count_duplicates
from harness.data.few_shot import draw_few
from harness.data.file_formats import LocatedRow, TsvRules, read_file, with_labels
from harness.data.origins import Origin, find_origin
from harness.data.record import DataRecord
from harness.data.tasks.declared import cell_mixture, cell_task
from harness.data.tasks.task import NEEDED_SPLITS, SPLIT_RULES, Source, Task
from harness.errors import UserError
from harness.suite import Cell, Draw, Mixture, ProtocolReference, RowLimit, Strict, TaskFile

SPLIT_SEED = 42
"""The seed with which DePT's code cuts every split, whatever the training seed (docs/protocol.md)."""
NUM_HELD_OUT = 1_000
"""Training rows that become dev of a large task, as in DePT's code."""

Rows = list[list[Example]]
"""Published rows, each with its examples. Rows are what is cut: two examples of one row never come into two splits."""


def cell_rows(cell: Cell, data_dir: str | None, suite_folder: str) -> TaskData:
    """Load the rows that a cell needs, once per process: a task's or a mixture's, or a few-shot draw from them.

    The last 32 tasks and 64 draws are kept: they take little room beside a backbone.
    """
    request = cell.model_dump_json(include=set(_RowsRequest.model_fields))
    if cell.few_shot is None:
        return _load_rows(request, data_dir, suite_folder)
    return _draw_rows(request, cell.few_shot, data_dir, suite_folder)


@functools.lru_cache(maxsize=64)
def _draw_rows(request: str, draw: Draw, data_dir: str | None, suite_folder: str) -> TaskData:
    return draw_few(_load_rows(request, data_dir, suite_folder), draw)


@functools.lru_cache(maxsize=32)
def _load_rows(request: str, data_dir: str | None, suite_folder: str) -> TaskData:
    """`request` is a _RowsRequest as JSON: a string can be the key of a cache, a cell cannot."""
    asked = _RowsRequest.model_validate_json(request)
    if asked.mixture is not None:
        return load_mixture(cell_mixture(asked.mixture, asked.task, asked.protocol, suite_folder), data_dir)
    data = load_task(cell_task(asked.task, asked.protocol, asked.definition, suite_folder), data_dir)
    return data if asked.row_limit is None else limit_rows(data, asked.row_limit)


class _RowsRequest(Strict):
    """The fields of a cell that decide its rows; cells that differ in others share them."""

    task: str
    protocol: ProtocolReference
    definition: TaskFile | None
    mixture: Mixture | None
    row_limit: RowLimit | None = None


def load_task(task: Task, data_dir: str | Path | None) -> TaskData:
    """Read the rows of a task, convert them to examples and cut the splits.

    Raises UserError that names file and row where something is wrong with them.
    """
    origin = find_origin(task, data_dir)
    convert, tsv = Converter(task), _tsv_rules(task)
    read = {name: _converted(convert, name, _read_split(task, origin, name, tsv)) for name in NEEDED_SPLITS[task.split]}
    if not task.ids_are_documented:  # of a shipped task it is known that a label such as 1 is the second class
        convert.check()
    for name, rows in read.items():
        if not rows:
            raise UserError(f"split '{name}' of task '{task.name}' has no rows", where=origin.place(name))
    train, dev, test = ([example for row in rows for example in row] for rows in _cut_splits(task, list(read.values())))
    record = DataRecord(
        source=_told_source(origin, tsv.skipped, convert.edits),
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


def _converted(convert: Converter, split: str, rows: Iterator[LocatedRow]) -> Rows:
    """Convert the rows of a published split; all but those of train may be joined."""
    task = convert.task
    source = task.sources.get(split)
    prepare = source.prepare if source is not None and source.prepare is not None else task.prepare
    converted = convert.read(rows, prepare)
    return _joined(converted) if task.joins_references and split != "train" else converted


def _joined(rows: Rows) -> Rows:
    """Make one row of those with the same source text; its references are those of all, in their order."""
    by_source: dict[str, list[Example]] = {}
    for row in rows:
        for example in row:
            by_source.setdefault(example.source, []).append(example)
    return [
        [replace(same[0], references=tuple(dict.fromkeys(text for example in same for text in example.references)))]
        for same in by_source.values()
    ]


def _read_split(task: Task, origin: Origin, split: str, tsv: TsvRules) -> Iterator[LocatedRow]:
    """Yield (where, row) for each row of a split, named as on the hub. Raises UserError on a broken file."""
    if split in origin.parts:
        part, source = origin.parts[split], task.sources[split]
        yield from _of_source(source, _read_split(task, part, source.split, tsv))
    elif task.generate:
        for index, row in enumerate(task.generate(split)):
            yield f"{task.name} {split} row {index}", row
    elif origin.files is not None:
        for path in origin.files[split]:
            rows = read_file(path, tsv)
            yield from with_labels(rows, path, task.label_files, task.label) if task.label_files else rows
    elif origin.tables is not None:
        table = origin.tables[split]
        classes = class_features(table.features.to_dict())
        for index, row in enumerate(table.to_list()):
            where = f"{origin.name} {split} row {index}"
            yield where, name_classes(row, classes, where)


def _of_source(source: Source, rows: Iterator[LocatedRow]) -> Iterator[LocatedRow]:
    """Yield the rows of a data set that a split of a task takes."""
    kept = ((where, row) for where, row in rows if source.keep is None or source.keep(row))
    if source.num_drawn is None:
        yield from kept
        return
    drawn = list(kept)
    order = np.arange(len(drawn))
    np.random.RandomState(0).shuffle(order)  # the legacy generator, whose numbers NumPy keeps for good
    yield from (drawn[index] for index in order[: source.num_drawn])


def _tsv_rules(task: Task) -> TsvRules:
    # every name that a column of this task has in any layout: a first line with one of them is a header
    names = {task.label, *(column for _, column in task.fields), *task.choices, *task.tsv_columns}
    if task.messages:
        names.add(task.messages)
    names.update(name for others in task.aliases.values() for name in others)
    return TsvRules(task.tsv_columns, names, task.skips_broken_rows)


def _told_source(origin: Origin, skipped: Sequence[str], edits: Mapping[str, int]) -> str:
    """Return the name of the origin, with the number of broken rows left out and of rows repaired, by kind of repair.

    Call it after all rows were read.
    """
    told = [f"{len(skipped)} broken rows left out"] if skipped else []
    told += [f"{edit} in {count:,} row{'' if count == 1 else 's'}" for edit, count in sorted(edits.items())]
    return origin.name + (f" ({'; '.join(told)})" if told else "")


def limit_rows(data: TaskData, limit: RowLimit) -> TaskData:
    """Return the task with at most the wanted rows of each split, drawn once for all seeds and kept in their order.

    The first rows of a fixed permutation are taken, so 100 rows are a part of 200. Rows that belong together
    (`Example.group`) are taken together while there is room.
    """
    splits: dict[str, list[Example]] = {}
    for name in ("train", "dev", "test"):
        rows, most = data.split(name), getattr(limit, name)
        splits[name] = list(rows) if most is None or most >= len(rows) else _some_of(rows, most)
    whole = {name: len(data.split(name)) for name, rows in splits.items() if len(rows) < len(data.split(name))}
    changed = {
        **{f"num_{name}": len(rows) for name, rows in splits.items()},
        "num_duplicates": count_duplicates(splits["train"], [*splits["dev"], *splits["test"]]),
        "fingerprint": _fingerprint(*splits.values()) if whole else data.record.fingerprint,
        "one_class": _one_class(data.task, splits),
        "whole": whole,
    }
    train, dev, test = splits.values()
    return replace(data, train=train, dev=dev, test=test, record=data.record.model_copy(update=changed))


def _some_of(rows: Sequence[Example], most: int) -> list[Example]:
    """Return `most` rows or, where a group has no room, fewer; never part of a group and never none."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.group or f"row {index}", []).append(index)
    together, taken = list(groups.values()), list[int]()
    for number in permutation(len(together)):
        if not taken or len(taken) + len(together[number]) <= most:
            taken += together[number]
    return [rows[index] for index in sorted(taken)]


def load_mixture(task: Task, data_dir: str | Path | None) -> TaskData:
    """Read the rows of every task of a mixture. Raises UserError as `load_task` does."""
    tasks = tuple(load_task(part, data_dir) for part in task.parts)
    splits = {name: [row for data in tasks for row in data.split(name)] for name in ("train", "dev", "test")}
    return TaskData(task, **splits, record=_joined_record(tasks), parts=tasks)


def _joined_record(tasks: Sequence[TaskData]) -> DataRecord:
    """Return one record for the rows of all tasks; that of each task stands in its `parts`."""
    records = [data.record for data in tasks]
    return DataRecord(
        source="; ".join(dict.fromkeys(record.source for record in records)),
        revision="; ".join(dict.fromkeys(record.revision for record in records)),
        split_rule="each task by its own rule",
        num_train=sum(record.num_train for record in records),
        num_dev=sum(record.num_dev for record in records),
        num_test=sum(record.num_test for record in records),
        num_duplicates=sum(record.num_duplicates for record in records),
        # a hash of hashes: it changes if the rows of any task, or the order of the tasks, change
        fingerprint=hashlib.sha256(" ".join(record.fingerprint for record in records).encode()).hexdigest()[:16],
        parts={data.task.name: data.record for data in tasks},
    )


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
    num_dev = _num_rows(task.dev_share, total)
    if task.split == "cut_dev":
        dev, train = _cut(read[0], min(num_dev, total // 2))  # as above
        return train, dev, read[1]
    num_test = _num_rows(task.test_share, total)
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
            # a choice's reference is a number, so its texts count too
            texts = (*example.read_texts, *example.references, *example.choices)
            digest.update("\x1f".join(texts).encode() + b"\n")
    return digest.hexdigest()[:16]
