"""The states of the random number generators, taken and put back."""

from __future__ import annotations

import torch


def random_state() -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the state of PyTorch's random numbers, of the CPU and of the current CUDA device where there is one."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def restore_random_state(state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    """Set the random numbers back to a state that `random_state` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
