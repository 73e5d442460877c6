"""How many tokens a forward pass may hold on a device, and what memory it takes.

A budget of tokens is halved when memory runs out; on a GPU, a probe finds the first budget. Beside these stand helpers
for devices: peak memory, streams of random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

Result = TypeVar("Result")

NO_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory")
"""Words of the RuntimeErrors that a CPU, cuBLAS and Metal raise in place of torch.OutOfMemoryError."""

PROBE_TOKENS = (2_048, 8_192)
"""Tokens of the two probed micro-batches. The smaller is a CPU's default, and is used where a probe runs out of memory.
The wider the two lie apart, the less the rounding of allocators bends the line through them."""
MEMORY_SHARE = 0.8
"""Share of the free memory that a probed budget may fill. The rest is for optimisers, whose moments do not exist yet
when the probe runs, and for fragmentation. A larger share trades fewer forward passes for more halvings later."""


@dataclass
class TokenBudget:
    """The number of tokens, padding included, that one micro-batch may hold."""

    tokens: int
    num_halvings: int = 0
    """Stored with each result: a run that halves often was given too large a budget."""

    def halve(self) -> None:
        self.tokens //= 2
        self.num_halvings += 1


def until_it_fits(
    work: Callable[[int], Result], budget: TokenBudget, shortest: int, undo: Callable[[], None] = lambda: None
) -> Result:
    """Return `work(budget.tokens)`. Each time memory runs out, call `undo`, halve the budget and try again.

    `shortest` is the length of the shortest row in tokens: once two such rows share no micro-batch, nothing is left to
    halve, and the error is passed on. A new try draws the same random numbers, so the result is that of a run which
    had the smaller budget from the start.
    """
    while True:
        before = random_state()
        try:
            return work(budget.tokens)
        except RuntimeError as error:
            if not is_out_of_memory(error) or budget.tokens < 2 * shortest:
                raise
        # outside the handler, since there the traceback still holds the tensors of the failed try
        undo()
        budget.halve()
        restore_random_state(before)
        if torch.cuda.is_available():
            # blocks of the old sizes would otherwise stay with PyTorch and leave no room for the new ones
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there was no memory left for a tensor."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)


def probed_tokens(peak_bytes: Callable[[int], int], free_bytes: int, most: int) -> int:
    """Return the largest budget in tokens, at most `most`, whose step fits into MEMORY_SHARE of `free_bytes`.

    `peak_bytes(tokens)` runs one micro-batch of that many tokens and returns its peak memory in bytes. Two sizes give a
    line: what a step takes in any case, and what each token adds.
    """
    small, large = PROBE_TOKENS
    try:
        at_small, at_large = peak_bytes(small), peak_bytes(large)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return small
    per_token = (at_large - at_small) / (large - small)
    if per_token <= 0:  # another part of the step had the peak at both sizes, so the line says nothing about more
        return large
    fixed = at_small - per_token * small
    return max(small, min(most, math.floor((MEMORY_SHARE * free_bytes - fixed) / per_token)))


def reset_peak_memory() -> None:
    """Start to measure the peak memory of the device again from now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    """Return the peak memory in bytes: of the device since the reset; on a CPU, of the process since its start.

    0 where the system does not tell (Windows).
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
        import sys
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def random_state() -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the state of PyTorch's random numbers, of the CPU and of the current CUDA device where there is one."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def restore_random_state(state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    """Set the random numbers back to a state that `random_state` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
