"""Rows of token ids of different lengths, without padding: row i is `ids[offsets[i]:offsets[i + 1]]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Ids = np.ndarray[Any, np.dtype[np.int64]]


def ragged(rows: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    """Return all ids in one array, and the offset at which each row starts, [N + 1]."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    flat = np.fromiter((item for row in rows for item in row), np.int64, int(offsets[-1]))
    return flat, offsets


def padded(values: Ids, offsets: Ids, rows: Ids, pad: int) -> Ids:
    """Return the ids of `rows` as one array, padded on the right, [len(rows), T]."""
    starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
    columns = np.arange(lengths.max(initial=0))[None]  # [1, T]
    inside = columns < lengths[:, None]  # [len(rows), T]
    # padding may point behind the last id, so the index is held inside; `where` puts the padding there
    return np.where(inside, values[np.minimum(starts[:, None] + columns, len(values) - 1)], pad)


def joined_offsets(offsets: Sequence[Ids]) -> Ids:
    """Return the offsets of rows that stand one after the other, from those of each task, [N + 1] from [N_k + 1]."""
    lengths = np.concatenate([np.diff(each) for each in offsets])
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
