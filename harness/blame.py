"""Whose code it was that raised, where the code of many cells runs side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.memory import is_out_of_memory
from harness.seal import BackboneChanged, Seal


class CellError(Exception):
    """The code of one cell's method raised; the exception is the cause of this one."""

    def __init__(self, cell: int) -> None:
        self.cell = cell
        super().__init__(f"the method of cell {cell} of the bundle raised")


@contextmanager
def blaming(cell: int, seal: Seal | None = None) -> Iterator[None]:
    """Say whose code it was that raised; running out of memory is nobody's fault alone.

    With the `seal` of the backbone, also whose code it was that wrote to it: raises BackboneChanged.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error) or isinstance(error, (CellError, BackboneChanged)):
            raise
        _require_unwritten(cell, seal)
        raise CellError(cell) from error
    _require_unwritten(cell, seal)


def _require_unwritten(cell: int, seal: Seal | None) -> None:
    what = None if seal is None else seal.written()
    if what is not None:
        raise BackboneChanged(what, cell)
