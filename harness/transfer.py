"""What a method does with the tensors of other cells that it starts from; part of the surface of method files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def prompt_of(source: Mapping[str, Tensor], length: int, width: int) -> Tensor:
    """The prompt [P, H] that a source learnt. Raises ValueError unless it is [`length`, `width`]."""
    prompt = source.get("prompt")
    if prompt is None:
        raise ValueError(f"a source holds {', '.join(sorted(source)[:3])}, no prompt")
    if prompt.shape != (length, width):
        raise ValueError(f"a source's prompt is {list(prompt.shape)}, wanted is [{length}, {width}]")
    return prompt


def prompts_of(sources: Sequence[Mapping[str, Tensor]], length: int, width: int) -> Tensor:
    """The prompts of several sources, [N, P, H]. Raises ValueError as `prompt_of`."""
    return torch.stack([prompt_of(source, length, width) for source in sources])


def max_over_tokens(embeds: Tensor, mask: Tensor) -> Tensor:
    """[B, T, H], [B, T] -> [B, H]: the largest value of each dimension over the tokens of a text."""
    return embeds.masked_fill(mask[..., None] == 0, float("-inf")).amax(1)


@torch.no_grad()
def copy_into(own: Tensor, learnt: Tensor, what: str) -> None:
    """Fill `own` with what a source has learnt. Raises ValueError where the shapes differ."""
    if own.shape != learnt.shape:
        raise ValueError(f"{what} is {list(learnt.shape)} in the source, wanted is {list(own.shape)}")
    own.copy_(learnt)
