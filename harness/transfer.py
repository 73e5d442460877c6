"""Functions for methods that start from the tensors of other cells, their sources. Part of the public surface.

Shapes: B rows, T tokens, H hidden width, P prompt vectors, N sources. A source holds tensors by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def prompt_of(source: Mapping[str, Tensor], length: int, width: int) -> Tensor:
    """Return the prompt that a source learnt, [P, H]. Raises ValueError unless it is there and [`length`, `width`]."""
    prompt = source.get("prompt")
    if prompt is None:
        raise ValueError(f"a source holds {', '.join(sorted(source)[:3])}, no prompt")
    if prompt.shape != (length, width):
        raise ValueError(f"a source's prompt is {list(prompt.shape)}, wanted is [{length}, {width}]")
    return prompt


def prompts_of(sources: Sequence[Mapping[str, Tensor]], length: int, width: int) -> Tensor:
    """Return the prompts of several sources, [N, P, H]. Raises ValueError as `prompt_of` does."""
    return torch.stack([prompt_of(source, length, width) for source in sources])


def max_over_tokens(embeds: Tensor, mask: Tensor) -> Tensor:
    """Return the largest value of each dimension over a text's tokens: [B, T, H], mask [B, T] -> [B, H]."""
    # -inf, so that padding never wins; a text without any token would give -inf
    return embeds.masked_fill(mask[..., None] == 0, float("-inf")).amax(1)


@torch.no_grad()
def copy_into(own: Tensor, learnt: Tensor, what: str) -> None:
    """Copy what a source has learnt into `own`, of any shape. Raises ValueError, with the name `what`, for another.

    Without the check PyTorch would broadcast, and one prompt of width 1 would fill all vectors.
    """
    if own.shape != learnt.shape:
        raise ValueError(f"{what} is {list(learnt.shape)} in the source, wanted is {list(own.shape)}")
    own.copy_(learnt)
