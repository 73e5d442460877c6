"""Reads tensors by name from a user's file, without running what a pickle holds."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_tensors
from torch import Tensor

from harness.errors import UserError

PICKLED = {".bin", ".pt", ".pth"}
"""Endings of PyTorch's own files."""


def is_numbers(tensor: Tensor) -> bool:
    """Whether a tensor holds finite decimal numbers."""
    return tensor.is_floating_point() and bool(torch.isfinite(tensor).all())


def is_index(tensor: Tensor) -> bool:
    """Whether a tensor holds whole numbers: types of PEFT that train some entries of a matrix save which."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def plain_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError."""
    try:
        return load_tensors(path)
    except (OSError, SafetensorError) as error:
        hint = f"Endings of PyTorch's own files: {', '.join(sorted(PICKLED))}."
        raise UserError(f"cannot be read as safetensors: {error}", where=str(path), hint=hint) from None


def pickled_tensors(path: Path, alone: str | None = None) -> dict[str, Tensor]:
    """The tensors of PyTorch's own file; a single one, as ATTEMPT's code saves a prompt, is called `alone`.

    Nothing but tensors is loaded: a pickle may hold code. Raises UserError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of plain pickles, which are refused just below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes of a damaged pickle lead to, an IndexError or an AssertionError too
        problem = f"cannot be read as tensors of PyTorch ({type(error).__name__})"
        hint = "It is damaged, or a pickle with other things than tensors in it, which may run code and is not opened."
        raise UserError(problem, where=str(path), hint=hint) from None
    if alone is not None and isinstance(found, Tensor):
        found = {alone: found}
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError("holds no tensors by name, as a state_dict does", where=str(path))
    return {str(name): tensor.detach().clone() for name, tensor in found.items()}
