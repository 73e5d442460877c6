"""In which order the rows of a task, or of a mixture of tasks, come in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from harness.suite import Mixture, Sampling
from harness.train.batch_input import Index


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


def row_order(sizes: Sequence[int], mixture: Mixture | None, seed: int) -> RowOrder | MixedOrder:
    """Return the order in which a cell sees the training rows; `sizes` counts those of each of its tasks."""
    if mixture is None:
        return RowOrder(sum(sizes), seed)
    return MixedOrder(sizes, mixture, seed)
