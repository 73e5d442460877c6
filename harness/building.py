"""Creates the method of a cell on its backbone, and tries it, before any training that could be lost."""

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
    """Create a cell's method, to see whether it can be. Raises UserError, at `where`, if settings do not fit."""
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
    """Create a cell's method, ready to train, on the backbone's device.

    The cell's seed is set first, so its tensors do not depend on what else is in the bundle. Raises BackboneChanged
    where `__init__` or `start_from` has changed the backbone, even if it also raised something else. A write through
    `.data` is found later, by `Seal.difference`.
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
    """Attach and detach a method that overrides `attach`. Raises BackboneChanged where something stays behind.

    Methods that only list `layer_changes` are attached by the harness itself, and need no trial.
    """
    if type(method).attach is Method.attach:
        return
    try:
        method.attach(backbone)
    finally:
        method.detach(backbone)
        what = seal.difference()
        if what is not None:
            raise BackboneChanged(f"{type(method).__name__}.detach() leaves {what} changed")
