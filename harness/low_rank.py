"""Low-rank updates of a linear module: one cell's, or those of many cells in two batched products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from harness.memory import on_device


@dataclass(frozen=True)
class LowRank:
    """scale * B A dropout(x), added to what a linear module makes of x (Hu et al. 2022, section 4.1)."""

    down: nn.Linear
    """A, weight [R, in], no bias."""
    up: nn.Linear
    """B, weight [out, R], no bias."""
    scale: float
    dropout: nn.Module
    """`nn.Dropout` or `nn.Identity`."""

    @property
    def shape(self) -> tuple[float, ...]:
        """What updates must have in common to be computed together."""
        size, rank = self.down.in_features, self.down.out_features
        return size, rank, self.up.out_features, self.scale, getattr(self.dropout, "p", 0.0)

    def added(self, states: Tensor, made: Tensor) -> Tensor:
        """[N, ..., in], [N, ..., out] -> [N, ..., out]: the module's output `made` with the update."""
        dropped = self.dropout(_cast(states, self.down.weight))
        changed: Tensor = made + self.up(self.down(dropped)) * self.scale
        return changed.to(made.dtype)


class Parts:
    """Consecutive rows of several cells, and the same rows as a block [cells, most rows of one]."""

    def __init__(self, counts: Sequence[int]) -> None:
        """`counts` of the rows of each cell, in their order."""
        self.counts = list(counts)
        self._places: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def gathered(self, rows: Tensor) -> Tensor:
        """[N, ...] -> [C * M, ...]: each cell's rows, filled up with whatever row there is to M."""
        return rows if self._is_block else rows.index_select(0, self._on(rows.device)[0])

    def scattered(self, block: Tensor) -> Tensor:
        """[C * M, ...] -> [N, ...]: the rows without what filled up."""
        return block if self._is_block else block.index_select(0, self._on(block.device)[1])

    @property
    def _is_block(self) -> bool:
        return len(set(self.counts)) == 1

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row of each place of the block, place of each row."""
        if device not in self._places:
            most, counts = max(self.counts), np.array(self.counts)
            starts = np.cumsum(counts) - counts
            within = np.minimum(np.arange(most)[None], counts[:, None] - 1)
            places = np.concatenate([cell * most + np.arange(count) for cell, count in enumerate(self.counts)])
            self._places[device] = on_device((starts[:, None] + within).ravel(), device), on_device(places, device)
        return self._places[device]


def added_together(updates: Sequence[LowRank], parts: Parts, states: Tensor, made: Tensor) -> Tensor:
    """As `LowRank.added`, each of `updates` for its part of the rows; all have the same `shape`."""
    first = updates[0]
    dropped = first.dropout(_cast(states, first.down.weight))
    down = torch.stack([update.down.weight for update in updates])
    up = torch.stack([update.up.weight for update in updates])
    block = parts.gathered(dropped).reshape(len(updates), -1, states.shape[-1])
    update = torch.bmm(torch.bmm(block, down.mT), up.mT) * first.scale
    rows = parts.scattered(update.reshape(-1, *made.shape[1:]))
    return (made + rows).to(made.dtype)


def _cast(states: Tensor, like: Tensor) -> Tensor:
    """In the type of the weights, where autocast does not see to it."""
    is_cast = not states.is_meta and torch.is_autocast_enabled(states.device.type)
    return states if is_cast else states.to(like.dtype)
