"""Says which cell's code raised an exception, or wrote to the backbone, where code of many cells runs side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.backbone import BackboneChanged, Seal, is_out_of_memory


class CellError(Exception):
    """The code of one cell's method raised an exception, which is this one's `__cause__`.

    `cell` is the cell's position in the bundle. The bundle drops that cell as failed and trains the others.
    """

    def __init__(self, cell: int) -> None:
        self.cell = cell
        super().__init__(f"the method of cell {cell} of the bundle raised")


@contextmanager
def errors_of_cell(cell: int, seal: Seal | None = None) -> Iterator[None]:
    """Turn what is raised within this context into a CellError of `cell`.

    An error for lack of memory passes as it is: all cells together filled the device, and the micro-batch is halved.
    With the `seal` of the backbone, raises BackboneChanged, with the cell, where its code has written to the backbone.
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # a method file that calls sys.exit() must not end the run
        if is_out_of_memory(error) or isinstance(error, (CellError, BackboneChanged)):
            raise
        _require_unwritten(cell, seal)
        raise CellError(cell) from error
    _require_unwritten(cell, seal)


def _require_unwritten(cell: int, seal: Seal | None) -> None:
    """Raise BackboneChanged where the seal says that a tensor of the backbone has other numbers."""
    what = None if seal is None else seal.written()
    if what is not None:
        raise BackboneChanged(what, cell)
