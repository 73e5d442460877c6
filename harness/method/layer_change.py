"""The unit in which a layer-side method says what it changes: one module of the backbone, and how.

Shapes: N rows, `...` the positions, in and out the widths that the module reads and gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from harness.method.low_rank import LowRank

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LayerChange:
    """A change of one module: something in its place, a low-rank update, something behind it, or several of these.

    The module takes one tensor [N, ..., in], by position, and gives one tensor [N, ..., out]. A change treats each row
    by itself, whatever the other rows are and however many: rows of many cells pass through the backbone together.
    """

    module: nn.Module
    instead: Change | None = None
    """[n, ..., in] -> [n, ..., out], called in place of the module; it may call the module itself."""
    low_rank: LowRank | None = None
    """Added to the output. Updates of one shape are computed for all cells at once."""
    after: Change | None = None
    """[n, ..., out] -> [n, ..., out], called last."""
    position_bias: Tensor | None = None
    """[buckets, heads], used in place of the table of relative positions of the module, which is a T5 attention."""
