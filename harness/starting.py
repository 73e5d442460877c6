"""Reads the tensors that a cell starts from: another cell's, or those of a file of the user's.

Shapes: P prompt vectors, S source length, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_tensors
from torch import Tensor

from harness.errors import UserError
from harness.export import is_collapsible
from harness.loading import meta_backbone
from harness.method import Method, load_file
from harness.provenance import sha256_file
from harness.schema import Cell, StartRecord

PROMPT_NAMES = ("prompt", "prompt_embeddings")
"""What a prompt is called in files of this program and of PEFT."""


class SourceFailed(Exception):
    """A cell cannot train because the tensors that it starts from are missing or not the expected ones."""


@dataclass(frozen=True)
class StartFile:
    """A file with tensors that a cell starts from. It can be pickled, since Ray sends it to other machines."""

    title: str
    path: Path
    """A safetensors file."""
    sha256: str | None
    """What the file's hash has to be; None where the source failed before it wrote one."""
    cell: Cell | None = None
    """The cell that trained the tensors; None for a file of the user's."""
    method_file: Path | None = None
    """The file of that cell's method."""
    backbone: str = ""
    """That cell's backbone, as the suite names it."""
    problem: str = ""
    """Why there are no tensors; empty where there are."""

    @property
    def record(self) -> StartRecord:
        cell_id = self.cell.cell_id if self.cell else None
        return StartRecord(title=self.title, cell_id=cell_id, tensors=self.sha256 or "")


def read_start(start: StartFile) -> dict[str, Tensor]:
    """Read the tensors of one source, as `handed_over` would give them.

    Raises SourceFailed where the source failed, or its file is missing or not the one that was stored.
    """
    if start.problem:
        raise SourceFailed(f"the source '{start.title}' failed: {start.problem}")
    if not start.path.exists():
        raise SourceFailed(f"the tensors of the source '{start.title}' are missing: {start.path.name}")
    if sha256_file(start.path) != start.sha256:
        raise SourceFailed(f"the tensors of the source '{start.title}' are not those that were stored with its result")
    if start.cell is None:
        return prompt_file(start.path)
    assert start.method_file is not None
    cls = load_file(start.method_file).cls
    tensors = load_tensors(start.path)
    if cls is None or not issubclass(cls, Method) or not is_collapsible(cls):
        return tensors
    # the source's method is built only to be filled; its draws must not move the random numbers of the cell that asks
    with torch.random.fork_rng():
        method = cls(cls.HP(**start.cell.hp), meta_backbone(start.backbone))
    method.load_state_dict(tensors, assign=True)
    return handed_over(method.eval())


def handed_over(method: Method) -> dict[str, Tensor]:
    """Return what a trained method gives to cells that start from it.

    These are its own tensors by name, and `prompt` [P, H] and `added` [S, H] where it collapses to them.
    """
    tensors = dict(method.state_dict())
    with torch.no_grad():
        return {**tensors, **method.export()} if is_collapsible(method) else tensors


def prompt_file(path: Path) -> dict[str, Tensor]:
    """Read a user's file. What PEFT calls a prompt, or else the only table [P, H] of the file, is called `prompt`.

    Raises UserError where the file is no safetensors file.
    """
    try:
        tensors = load_tensors(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot be read as safetensors: {error}", where=str(path)) from None
    tables = [name for name, tensor in tensors.items() if tensor.dim() == 2]
    name = next((name for name in PROMPT_NAMES if name in tensors), tables[0] if len(tables) == 1 else None)
    return tensors if name is None else {**tensors, "prompt": tensors[name]}
