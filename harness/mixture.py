"""Training on several tasks at once: their rows as one data set, and how often the rows of each task are drawn.

N is the number of rows of a task or of all tasks together, K the number of tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data import Encoded, TaskData, load_task
from harness.schema import DataRecord, Mixture
from harness.suite_file import Sampling
from harness.tasks.record import Task

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


def sampling_shares(sizes: Sequence[int], sampling: Sampling, temperature: float) -> list[float]:
    """Return the probability of each task, n_k^a / sum_j n_j^a (Raffel et al. 2020, section 3.5.2).

    `sizes` are the n_k; a is 1 for proportional, 0 for equal and 1 / temperature for temperature sampling.
    """
    power = {"proportional": 1.0, "equal": 0.0, "temperature": 1 / temperature}[sampling]
    weights = [size**power for size in sizes]
    return [weight / sum(weights) for weight in weights]


class RowOrder:
    """Endless row indices of one task: each epoch is a new permutation, and the seed alone decides them all.

    Each cell of a bundle has one of its own, so a cell sees the same rows whatever it is trained together with.
    """

    def __init__(self, num_rows: int, seed: int) -> None:
        self.num_rows = num_rows
        self.generator = torch.Generator().manual_seed(seed)
        self.waiting = np.empty(0, np.int64)

    def draw(self, count: int) -> Index:
        """Return the next `count` row indices, [count]; a batch may reach over the end of an epoch."""
        while len(self.waiting) < count:
            epoch = torch.randperm(self.num_rows, generator=self.generator).numpy()
            self.waiting = np.concatenate([self.waiting, epoch])
        drawn, self.waiting = self.waiting[:count], self.waiting[count:]
        return drawn

    def state(self) -> dict[str, Tensor]:
        """Return what decides the rows to come, for a checkpoint."""
        return {"generator": self.generator.get_state(), "waiting": torch.from_numpy(self.waiting.copy())}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self.generator.set_state(state["generator"])
        self.waiting = state["waiting"].numpy().copy()


class MixedOrder:
    """Endless row indices of a mixture: for each row a task is drawn by its share, then the next row of that task."""

    def __init__(self, sizes: Sequence[int], mixture: Mixture, seed: int) -> None:
        self.shares = torch.tensor(sampling_shares(sizes, mixture.sampling, mixture.temperature), dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(seed)
        # one order per task, so the rows of a task come as they would if it were trained alone
        self.orders = [RowOrder(size, seed) for size in sizes]
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])  # [K], first row of each task

    def draw(self, count: int) -> Index:
        """Return the next `count` row indices into the joined tasks, [count]."""
        tasks = torch.multinomial(self.shares, count, replacement=True, generator=self.generator).numpy()
        rows = np.empty(count, np.int64)
        for task in np.unique(tasks):  # all rows of a task at once: a batch has few tasks and many rows
            where = np.flatnonzero(tasks == task)
            rows[where] = self.starts[task] + self.orders[task].draw(len(where))
        return rows

    def state(self) -> dict[str, Tensor]:
        """Return what decides the rows to come, for a checkpoint."""
        parts = {f"{i}.{name}": t for i, order in enumerate(self.orders) for name, t in order.state().items()}
        return {"generator": self.generator.get_state(), **parts}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self.generator.set_state(state["generator"])
        for i, order in enumerate(self.orders):
            order.restore({name: state[f"{i}.{name}"] for name in ("generator", "waiting")})


def row_order(data: TaskData, mixture: Mixture | None, seed: int) -> RowOrder | MixedOrder:
    """Return the order in which a cell sees the training rows."""
    if mixture is None:
        return RowOrder(len(data.train), seed)
    return MixedOrder([len(part.train) for part in data.parts], mixture, seed)
