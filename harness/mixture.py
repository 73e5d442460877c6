"""Training on several tasks at once: their rows behind each other, and how often those of each task come."""

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
    """Read the rows of every task of a mixture. Raises UserError as `load_task`."""
    parts = tuple(load_task(part, data_dir) for part in task.parts)
    splits = {name: [row for part in parts for row in part.split(name)] for name in ("train", "dev", "test")}
    return TaskData(task, **splits, record=_record(parts), parts=parts)


def _record(parts: Sequence[TaskData]) -> DataRecord:
    records = [part.record for part in parts]
    return DataRecord(
        source="; ".join(dict.fromkeys(record.source for record in records)),
        revision="; ".join(dict.fromkeys(record.revision for record in records)),
        split_rule="each task by its own rule",
        num_train=sum(record.num_train for record in records),
        num_dev=sum(record.num_dev for record in records),
        num_test=sum(record.num_test for record in records),
        num_duplicates=sum(record.num_duplicates for record in records),
        fingerprint=hashlib.sha256(" ".join(record.fingerprint for record in records).encode()).hexdigest()[:16],
        parts={part.task.name: part.record for part in parts},
    )


def join_encoded(parts: Sequence[Encoded]) -> Encoded:
    """Token arrays of several tasks as one; each row knows its task."""
    return Encoded(
        np.concatenate([part.source_ids for part in parts]),
        _joined_offsets([part.source_offsets for part in parts]),
        np.concatenate([part.target_ids for part in parts]),
        _joined_offsets([part.target_offsets for part in parts]),
        np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        sum(part.num_cut_sources for part in parts),
        sum(part.num_cut_targets for part in parts),
    )


def _joined_offsets(parts: Sequence[Index]) -> Index:
    lengths = np.concatenate([np.diff(offsets) for offsets in parts])
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def sampling_shares(sizes: Sequence[int], sampling: Sampling, temperature: float) -> list[float]:
    """Probability of each task, n_k^a / sum_j n_j^a with a = 1, 0 or 1 / temperature (Raffel et al. 2020, 3.5.2)."""
    power = {"proportional": 1.0, "equal": 0.0, "temperature": 1 / temperature}[sampling]
    weights = [size**power for size in sizes]
    return [weight / sum(weights) for weight in weights]


class RowOrder:
    """Endless row indices of one task: a fresh permutation per epoch, from the seed alone."""

    def __init__(self, num_rows: int, seed: int) -> None:
        self.num_rows = num_rows
        self.generator = torch.Generator().manual_seed(seed)
        self.waiting = np.empty(0, np.int64)

    def draw(self, count: int) -> Index:
        while len(self.waiting) < count:
            epoch = torch.randperm(self.num_rows, generator=self.generator).numpy()
            self.waiting = np.concatenate([self.waiting, epoch])
        drawn, self.waiting = self.waiting[:count], self.waiting[count:]
        return drawn

    def state(self) -> dict[str, Tensor]:
        """What decides the rows to come."""
        return {"generator": self.generator.get_state(), "waiting": torch.from_numpy(self.waiting.copy())}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self.generator.set_state(state["generator"])
        self.waiting = state["waiting"].numpy().copy()


class MixedOrder:
    """Endless row indices of a mixture: each row's task is drawn by its share, then the next row of that task."""

    def __init__(self, sizes: Sequence[int], mixture: Mixture, seed: int) -> None:
        self.shares = torch.tensor(sampling_shares(sizes, mixture.sampling, mixture.temperature), dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(seed)
        self.orders = [RowOrder(size, seed) for size in sizes]
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])

    def draw(self, count: int) -> Index:
        tasks = torch.multinomial(self.shares, count, replacement=True, generator=self.generator).numpy()
        rows = np.empty(count, np.int64)
        for task in np.unique(tasks):
            where = np.flatnonzero(tasks == task)
            rows[where] = self.starts[task] + self.orders[task].draw(len(where))
        return rows

    def state(self) -> dict[str, Tensor]:
        """What decides the rows to come."""
        parts = {f"{i}.{name}": t for i, order in enumerate(self.orders) for name, t in order.state().items()}
        return {"generator": self.generator.get_state(), **parts}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self.generator.set_state(state["generator"])
        for i, order in enumerate(self.orders):
            order.restore({name: state[f"{i}.{name}"] for name in ("generator", "waiting")})


def row_order(data: TaskData, mixture: Mixture | None, seed: int) -> RowOrder | MixedOrder:
    """In which order a cell sees the training rows."""
    if mixture is None:
        return RowOrder(len(data.train), seed)
    return MixedOrder([len(part.train) for part in data.parts], mixture, seed)
