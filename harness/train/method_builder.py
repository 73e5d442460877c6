"""Creates the method of a cell on its backbone, and tries it, before any training that could be lost."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.backbone import Backbone, BackboneChanged, Seal
from harness.data import Task
from harness.errors import UserError
from harness.method import LinearHead, Method, SourceFile, read_source_tensors
from harness.suite import Cell
from harness.train.cell_state import checked_groups


def build_method(cell: Cell, cls: type[Method], backbone: Backbone, where: str | None = None) -> Method:
    """Create a cell's method on the backbone's device, to see whether it can be.

    Raises UserError, at `where`, if settings do not fit.
    """
    try:
        method = cls(cls.HP(**cell.hp), backbone).to(backbone.device)
        checked_groups(method, cell.recipe.lr)  # wrong groups are found here, not in the first step of a long run
        return method
    except ValueError as error:
        problem = f"does not fit backbone '{cell.backbone}': {error}"
        raise UserError(problem, where=where, field=f"methods.{cell.label}") from None


def build_to_train(
    cell: Cell, cls: type[Method], backbone: Backbone, task: Task, starts: Sequence[SourceFile], seal: Seal | None
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
            method.start_from([read_source_tensors(start) for start in starts])
        if cell.recipe.head == "linear":
            # drawn last, so that the method starts from the same numbers with and without a head
            method.linear_head = LinearHead(len(task.targets), backbone.embedding.weight)
        checked_groups(method, cell.recipe.lr, cell.recipe.head_lr)
    finally:  # a method that raises may have changed the backbone as well, which other cells go on to use
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
