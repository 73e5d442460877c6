"""Training on several tasks at once: their rows as one data set, and how often the rows of each task are drawn.

N is the number of rows of a task or of all tasks together, K the number of tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.record import DataRecord
from harness.data.splits import TaskData, load_task
from harness.data.tasks.task import Task
from harness.data.tokenization import Encoded

Index = np.ndarray[Any, np.dtype[np.int64]]


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


def join_encoded(splits: Sequence[Encoded]) -> Encoded:
    """Return the token arrays of one split of several tasks as one, task after task; each row knows its task."""
    return Encoded(
        np.concatenate([split.source_ids for split in splits]),
        _joined_offsets([split.source_offsets for split in splits]),
        np.concatenate([split.target_ids for split in splits]),
        _joined_offsets([split.target_offsets for split in splits]),
        np.repeat(np.arange(len(splits)), [len(split) for split in splits]),
        sum(split.num_cut_sources for split in splits),
        sum(split.num_cut_targets for split in splits),
    )


def _joined_offsets(offsets: Sequence[Index]) -> Index:
    """Return the offsets of rows that stand one after the other, from those of each task, [N + 1] from [N_k + 1]."""
    lengths = np.concatenate([np.diff(each) for each in offsets])
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
