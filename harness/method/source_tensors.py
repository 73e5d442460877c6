"""Reads the tensors that a cell starts from: another cell's, or those of a file of the user's.

Shapes: P prompt vectors, S source length, H hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file as load_tensors
from torch import Tensor

from harness.backbone import meta_backbone
from harness.errors import UserError
from harness.method.adapter_tensors import DECOMPOSED_ALPHA, SAVED_PAIR, read_adapter_tensors
from harness.method.export import HEAD, is_collapsible
from harness.method.method import Method, own_export
from harness.method.registry import load_file
from harness.method.source_files import PICKLED, is_numbers, pickled_tensors, plain_tensors
from harness.provenance import sha256_file
from harness.results import StartRecord
from harness.suite import Cell

PROMPT_NAMES = ("prompt", "prompt_embeddings")
"""Names of a prompt in files of this program and of PEFT."""


class SourceFailed(Exception):
    """A cell cannot train because the tensors that it starts from are missing or not the expected ones."""


@dataclass(frozen=True)
class SourceFile:
    """A file with tensors that a cell starts from. It can be pickled, since Ray sends it to other machines."""

    title: str
    path: Path
    """A safetensors file; of the user's, PyTorch's own format too."""
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
    config: Mapping[str, Any] | None = None
    """The configuration of an adapter that was trained elsewhere; None for any other source."""

    @property
    def record(self) -> StartRecord:
        cell_id = self.cell.cell_id if self.cell else None
        return StartRecord(title=self.title, cell_id=cell_id, tensors=self.sha256 or "")


def read_source_tensors(start: SourceFile) -> dict[str, Tensor]:
    """Read the tensors of one source, as `tensors_for_others` would give them.

    Raises SourceFailed where the source failed, or its file is missing or not the one that was stored.
    """
    if start.problem:
        raise SourceFailed(f"the source '{start.title}' failed: {start.problem}")
    if not start.path.exists():
        raise SourceFailed(f"the tensors of the source '{start.title}' are missing: {start.path.name}")
    # a file that was exchanged by hand would give results whose recorded start is not the one they had
    if sha256_file(start.path) != start.sha256:
        raise SourceFailed(f"the tensors of the source '{start.title}' are not those that were stored with its result")
    if start.config is not None:
        return read_adapter_tensors(start.path, start.config)
    if start.cell is None:
        return read_prompt_file(start.path)
    assert start.method_file is not None
    cls = load_file(start.method_file).cls
    # each task has a head of its own
    tensors = {name: tensor for name, tensor in load_tensors(start.path).items() if not name.startswith(HEAD)}
    if cls is None or not issubclass(cls, Method) or not is_collapsible(cls.for_settings(cls.HP(**start.cell.hp))):
        return tensors  # no prompt can be computed, but a cell of the same method can take over the tensors
    # the source's method is built only to be filled; its draws must not move the random numbers of the cell that asks
    with torch.random.fork_rng():
        method = cls(cls.HP(**start.cell.hp), meta_backbone(start.backbone))
    method.load_state_dict(tensors, assign=True)
    return tensors_for_others(method.eval())


def tensors_for_others(method: Method) -> dict[str, Tensor]:
    """Return what a trained method gives to cells that start from it.

    These are its own tensors by name, and `prompt` [P, H] and `added` [S, H] where it collapses to them.
    """
    tensors = dict(method.state_dict())
    with torch.no_grad():
        return {**tensors, **own_export(method)} if is_collapsible(method) else tensors


def read_prompt_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a user's file; its prompt, or its only table, is called `prompt`.

    The low-rank pair of an adapter file is called `a` and `b`, and the table that it makes `added`.

    Of PyTorch's own files nothing but tensors is loaded: a pickle may hold code. Raises UserError.
    """
    tensors = pickled_tensors(path) if path.suffix.lower() in PICKLED else plain_tensors(path)
    for name, tensor in tensors.items():
        if not is_numbers(tensor):
            raise UserError(f"'{name}' holds values that are no finite decimal numbers", where=str(path))
    if any(name in tensors for name in SAVED_PAIR):
        tensors |= _added_table(tensors, path)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in SAVED_PAIR}
    tables = [name for name, tensor in tensors.items() if tensor.dim() == 2]
    prompts = [name for name in PROMPT_NAMES if name in tensors] or tables
    if not prompts or (prompts is tables and len(tables) > 1):
        return tensors
    prompt = tensors.pop(prompts[0])
    return {**tensors, "prompt": prompt}


def _added_table(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`a` [S, R], `b` [R, H] and the table [S, H] that the authors' code makes of them. Raises UserError."""
    shapes = {name: list(tensors[name].shape) for name in SAVED_PAIR if name in tensors}
    a, b = (tensors.get(name) for name in SAVED_PAIR)
    if a is None or b is None or a.dim() != 2 or b.dim() != 2 or not 0 < a.shape[1] == b.shape[0]:
        raise UserError(f"holds no low-rank pair [S, R], [R, H]: {shapes}", where=str(path))
    scale = DECOMPOSED_ALPHA / math.sqrt(a.shape[1])
    return {"a": a, "b": b, "added": scale * a @ b}
