"""Reading the tensors that a cell starts from: those of another cell as its method hands them over, or a file's."""

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
"""Names of a prompt in files of this program and of PEFT."""


class SourceFailed(Exception):
    """A cell cannot be trained because what it starts from is not there."""


@dataclass(frozen=True)
class StartFile:
    """Where one source of a cell lies; picklable."""

    title: str
    path: Path
    """A safetensors file."""
    sha256: str | None
    cell: Cell | None = None
    """The cell that trained it; None for a file of the user's."""
    method_file: Path | None = None
    backbone: str = ""
    problem: str = ""
    """Why there are no tensors, where the source failed."""

    @property
    def record(self) -> StartRecord:
        cell_id = self.cell.cell_id if self.cell else None
        return StartRecord(title=self.title, cell_id=cell_id, tensors=self.sha256 or "")


def read_start(start: StartFile) -> dict[str, Tensor]:
    """The tensors of one source. Raises SourceFailed where it failed or its file is not the one that was stored."""
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
    with torch.random.fork_rng():
        method = cls(cls.HP(**start.cell.hp), meta_backbone(start.backbone))
    method.load_state_dict(tensors, assign=True)
    return handed_over(method.eval())


def handed_over(method: Method) -> dict[str, Tensor]:
    """What a trained method gives to those that start from it: its tensors, and its collapsed form where it has one."""
    tensors = dict(method.state_dict())
    with torch.no_grad():
        return {**tensors, **method.export()} if is_collapsible(method) else tensors


def prompt_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a user's file; its prompt, or its only table, is called `prompt`. Raises UserError."""
    try:
        tensors = load_tensors(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot be read as safetensors: {error}", where=str(path)) from None
    tables = [name for name, tensor in tensors.items() if tensor.dim() == 2]
    name = next((name for name in PROMPT_NAMES if name in tensors), tables[0] if len(tables) == 1 else None)
    return tensors if name is None else {**tensors, "prompt": tensors[name]}
