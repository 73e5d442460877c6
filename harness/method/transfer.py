"""Functions for methods that start from the tensors of other cells, their sources. Part of the public surface.

Shapes: B rows, T tokens, H hidden width, P prompt vectors, N sources. A source holds tensors by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

PAIR = ("a", "b")
"""Names of the factors A [S, R], B [R, H] of a source's added table; without one, such names mean something else."""


def source_prompt(source: Mapping[str, Tensor], length: int, width: int) -> Tensor:
    """The prompt [P, H] of a source that learnt nothing else: a prompt that goes with an added table is half of it.

    Raises ValueError unless it is [`length`, `width`] and there is no table.
    """
    prompt = _prompt_in(source, length, width)
    if "added" in source:
        problem = "a source has learnt a table for the token embeddings beside its prompt"
        raise ValueError(f"{problem}; this method takes a prompt alone and would drop it")
    return prompt


def _prompt_in(source: Mapping[str, Tensor], length: int, width: int) -> Tensor:
    prompt = source.get("prompt")
    if prompt is None:
        raise ValueError(f"a source holds {', '.join(sorted(source)[:3])}, no prompt")
    if prompt.shape != (length, width):
        raise ValueError(f"a source's prompt is {list(prompt.shape)}, wanted is [{length}, {width}]")
    return prompt


@torch.no_grad()
def decomposed_into(source: Mapping[str, Tensor], prompt: Tensor, pair: tuple[Tensor, Tensor], scale: float) -> None:
    """Fill a prompt [P, H] and the factors A [S, R], B [R, H] of an added table `scale` A B with those of a source.

    A source that multiplies its own A B by another number has B brought to `scale`, so that the table stays what it
    was. A source with a prompt alone leaves A and B as they are.

    Raises ValueError where shapes differ, and where a source has a table whose factors it does not hold.
    """
    learnt = _prompt_in(source, *prompt.shape)
    if "added" in source:
        if not all(name in source for name in PAIR):
            raise ValueError("a source has a table for the token embeddings, but not its factors a [S, R] and b [R, H]")
        for own, name in zip(pair, PAIR, strict=True):
            copy_into(own, source[name], f"the pair's {name}")
        pair[1].mul_(_factor(source, scale))
    copy_into(prompt, learnt, "the prompt")


def _factor(source: Mapping[str, Tensor], scale: float) -> float:
    """What the source multiplies A B by, over `scale`; 1 where nothing tells, and up to the rounding of a table."""
    if source["added"].is_meta:
        return 1.0
    table, product = source["added"].double(), source["a"].double() @ source["b"].double()
    size = float((product * product).sum())
    ratio = float((table * product).sum()) / size / scale if size > 0 else 1.0
    return 1.0 if abs(ratio - 1) < 1e-3 else ratio


def source_prompts(sources: Sequence[Mapping[str, Tensor]], length: int, width: int) -> Tensor:
    """Return the prompts of several sources, [N, P, H]. Raises ValueError as `source_prompt` does."""
    return torch.stack([source_prompt(source, length, width) for source in sources])


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
