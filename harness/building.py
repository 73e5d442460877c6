"""A cell's method on its backbone: built with the cell's seed, and tried, before there is anything to lose."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.backbone import Backbone
from harness.cell_state import checked_groups
from harness.errors import UserError
from harness.heads import LinearHead
from harness.method import Method
from harness.schema import Cell
from harness.seal import BackboneChanged, Seal
from harness.starting import StartFile, read_start
from harness.tasks.record import Task


def build_method(cell: Cell, cls: type[Method], backbone: Backbone, where: str | None = None) -> Method:
    """Create a cell's tensors. Raises UserError, at `where`, if settings do not fit the backbone."""
    try:
        method = cls(cls.HP(**cell.hp), backbone)
        checked_groups(method, cell.recipe.lr)
        return method
    except ValueError as error:
        problem = f"does not fit backbone '{cell.backbone}': {error}"
        raise UserError(problem, where=where, field=f"methods.{cell.label}") from None


def build_to_train(
    cell: Cell, cls: type[Method], backbone: Backbone, task: Task, starts: Sequence[StartFile], seal: Seal | None
) -> Method:
    """Create a cell's tensors on the backbone's device; the same seed gives the same, whatever else is in the bundle.

    Raises BackboneChanged where `__init__` or `start_from` has left something on the backbone, whether or not it raised
    something else; a write through `.data` shows later.
    """
    try:
        torch.manual_seed(cell.seed)
        method = cls(cls.HP(**cell.hp), backbone).to(backbone.device)
        if starts:
            method.start_from([read_start(start) for start in starts])
        if cell.recipe.head == "linear":
            method.linear_head = LinearHead(len(task.targets), backbone.embedding.weight)
        checked_groups(method, cell.recipe.lr, cell.recipe.head_lr)
    finally:
        what = None if seal is None else seal.structure() or seal.written()
        if what is not None:
            raise BackboneChanged(what)
    return method


def try_detaching(method: Method, backbone: Backbone, seal: Seal) -> None:
    """Attach and detach a method that does so in its own way. Raises BackboneChanged if that leaves anything behind."""
    if type(method).attach is Method.attach:
        return
    try:
        method.attach(backbone)
    finally:
        method.detach(backbone)
        what = seal.difference()
        if what is not None:
            raise BackboneChanged(f"{type(method).__name__}.detach() leaves {what} changed")
