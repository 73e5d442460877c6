"""Low-rank updates of a linear module, for one cell or for many cells in two batched products.

Shapes: N rows ordered by cell, C cells, M the most rows of one cell, R rank, in and out the module's widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from harness.backbone import on_device


@dataclass(frozen=True)
class LowRank:
    """scale * B A dropout(x), added to a linear module's output for x (Hu et al. 2022, section 4.1)."""

    down: nn.Linear
    """A, weight [R, in], no bias."""
    up: nn.Linear
    """B, weight [out, R], no bias."""
    scale: float
    dropout: nn.Module
    """`nn.Dropout` or `nn.Identity`."""

    @property
    def shape(self) -> tuple[float, ...]:
        """What updates must have in common to be computed together: widths, rank, scale, dropout rate."""
        size, rank = self.down.in_features, self.down.out_features
        return size, rank, self.up.out_features, self.scale, getattr(self.dropout, "p", 0.0)

    def added(self, states: Tensor, output: Tensor) -> Tensor:
        """Module's input [N, ..., in] and output [N, ..., out] -> the output plus the update, [N, ..., out]."""
        dropped = self.dropout(_cast(states, self.down.weight))
        # the scale meets R numbers of a position, not `out`; as torch.add's alpha it would be rounded to bfloat16
        changed: Tensor = output + self.up(self.down(dropped) * self.scale)
        return changed.to(output.dtype)


class CellBlocks:
    """Converts between rows of several cells, [N, ...], and one block [C * M, ...] with M rows for every cell.

    A batched product needs the same number of rows for every cell. A cell with fewer than M gets its last row again;
    what is computed for the copies is thrown away, so they take no gradient.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        """`counts` is the number of rows of each cell, in their order."""
        self.counts = list(counts)
        self._indices: dict[torch.device, tuple[Tensor, Tensor]] = {}
        """By device, since each of many modules asks again: the way into the block and the way out."""

    def gathered(self, rows: Tensor) -> Tensor:
        """[N, ...] -> [C * M, ...]."""
        return rows if self._is_block else rows.index_select(0, self._on(rows.device)[0])

    def scattered(self, block: Tensor) -> Tensor:
        """[C * M, ...] -> [N, ...], without the copies."""
        return block if self._is_block else block.index_select(0, self._on(block.device)[1])

    @property
    def _is_block(self) -> bool:
        """Whether all cells have the same number of rows, so that nothing needs to be copied."""
        return len(set(self.counts)) == 1

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """For each of the C * M block entries its row, [C * M]; for each of the N rows its block entry, [N]."""
        if device not in self._indices:
            most, counts = max(self.counts), np.array(self.counts)
            starts = np.cumsum(counts) - counts
            within = np.minimum(np.arange(most)[None], counts[:, None] - 1)
            entries = np.concatenate([cell * most + np.arange(count) for cell, count in enumerate(self.counts)])
            self._indices[device] = on_device((starts[:, None] + within).ravel(), device), on_device(entries, device)
        return self._indices[device]


def add_all_updates(updates: Sequence[LowRank], parts: CellBlocks, states: Tensor, output: Tensor) -> Tensor:
    """Do as `LowRank.added` for all cells at once: input [N, ..., in], output [N, ..., out] -> [N, ..., out].

    `updates` holds one update per cell, all of the same `shape`; `parts` says which rows are whose.
    """
    first = updates[0]
    # one dropout over all rows: cells share the stream of random numbers anyway
    dropped = first.dropout(_cast(states, first.down.weight))
    down = torch.stack([update.down.weight for update in updates])  # [C, R, in]
    up = torch.stack([update.up.weight for update in updates])  # [C, out, R]
    block = parts.gathered(dropped).reshape(len(updates), -1, states.shape[-1])  # [C, M * positions, in]
    update = torch.bmm(torch.bmm(block, down.mT) * first.scale, up.mT)  # [C, M * positions, out]
    rows = parts.scattered(update.reshape(-1, *output.shape[1:]))
    return (output + rows).to(output.dtype)


def _cast(states: Tensor, like: Tensor) -> Tensor:
    """Bring states to the type of the weights; autocast does that itself. Meta tensors have no autocast."""
    is_cast = not states.is_meta and torch.is_autocast_enabled(states.device.type)
    return states if is_cast else states.to(like.dtype)
