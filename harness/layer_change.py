"""What a layer-side method makes of one module of the backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LayerChange:
    """A function of a module's input or of its output, row by row: no row may depend on another, nor on how many.

    The module takes one tensor [N, ..., in], by position, and gives one tensor [N, ..., out], N being the rows.
    """

    module: nn.Module
    instead: Change | None = None
    """Input -> output, in place of the module, which it may call."""
    after: Change | None = None
    """Output -> output."""
