"""How many tokens a forward pass may hold: a budget that halves when memory runs out, and a probe that finds one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

Result = TypeVar("Result")

# what a CPU, cuBLAS and Metal say instead of raising torch.OutOfMemoryError
NO_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory")

PROBE_TOKENS = (2_048, 8_192)
MEMORY_SHARE = 0.8
"""Share of the free memory that a probed budget may fill; the rest is for optimisers and fragmentation."""


@dataclass
class TokenBudget:
    """Tokens, padding included, that one micro-batch may hold."""

    tokens: int
    num_halvings: int = 0

    def halve(self) -> None:
        self.tokens //= 2
        self.num_halvings += 1


def until_it_fits(
    work: Callable[[int], Result], budget: TokenBudget, shortest: int, undo: Callable[[], None] = lambda: None
) -> Result:
    """Return `work(budget.tokens)`; each time memory runs out, undo what was half done, halve the budget, repeat.

    `shortest` is the length of the shortest row: once not even two of those share a micro-batch there is nothing
    left to halve, and the error is passed on. A repetition draws the same random numbers.
    """
    while True:
        before = random_state()
        try:
            return work(budget.tokens)
        except RuntimeError as error:
            if not is_out_of_memory(error) or budget.tokens < 2 * shortest:
                raise
        # outside the handler, where no traceback holds the tensors of the failed attempt any more
        undo()
        budget.halve()
        restore_random_state(before)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a tensor found no room."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)


def probed_tokens(peak_bytes: Callable[[int], int], free_bytes: int, most: int) -> int:
    """Largest budget, at most `most`, whose step fits into MEMORY_SHARE of the free memory.

    `peak_bytes(tokens)` runs one micro-batch of that many tokens and returns what it took at its peak. Two
    sizes give a line: what a step takes anyway, and what each token adds.
    """
    small, large = PROBE_TOKENS
    try:
        at_small, at_large = peak_bytes(small), peak_bytes(large)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return small
    per_token = (at_large - at_small) / (large - small)
    if per_token <= 0:
        return large
    fixed = at_small - per_token * small
    return max(small, min(most, math.floor((MEMORY_SHARE * free_bytes - fixed) / per_token)))


def on_device(values: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """An array as a tensor on `device`; to a CUDA device from pinned memory, so that the host does not wait."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def reset_peak_memory() -> None:
    """Start measuring the peak of the device's memory anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """Peak allocated device memory in bytes since the reset; on a CPU, the process's peak resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
        import sys
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def random_state() -> tuple[torch.Tensor, torch.Tensor | None]:
    """PyTorch's streams of random numbers, of the processor and of the current device."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def restore_random_state(state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    """Go back to what `random_state` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
