"""What a layer-side method makes of one module of the backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from harness.low_rank import LowRank

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LayerChange:
    """A function of a module's input or of its output, row by row: no row may depend on another, nor on how many.

    The module takes one tensor [N, ..., in], by position, and gives one tensor [N, ..., out], N being the rows.
    """

    module: nn.Module
    instead: Change | None = None
    """Input -> output, in place of the module, which it may call."""
    low_rank: LowRank | None = None
    """Added to the output; those of several cells are computed together where they have the same shape."""
    after: Change | None = None
    """Output -> output, behind the others."""
    position_bias: Tensor | None = None
    """[buckets, heads], in place of the table of relative positions that the module, an attention of T5, has."""
