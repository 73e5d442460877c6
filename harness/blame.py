"""Whose code it was that raised, where the code of many cells runs side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.memory import is_out_of_memory


class CellError(Exception):
    """The code of one cell's method raised; the exception is the cause of this one."""

    def __init__(self, cell: int) -> None:
        self.cell = cell
        super().__init__(f"the method of cell {cell} of the bundle raised")


@contextmanager
def blaming(cell: int) -> Iterator[None]:
    """Say whose code it was that raised; running out of memory is nobody's fault alone."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error) or isinstance(error, CellError):
            raise
        raise CellError(cell) from error
