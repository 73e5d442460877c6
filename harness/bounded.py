"""Files that may come from anybody, read up to a limit: a regular file, never more bytes than a reader is ready for."""

from __future__ import annotations

import stat
from pathlib import Path

from harness.errors import UserError


def read_bounded(path: Path, most: int, kind: str) -> bytes:
    """Bytes of a regular file. Raises OSError, and UserError for more than `most` bytes or for what is no file.

    The bytes read are what is counted: the size that a file system states may be another.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        raise UserError("is not a regular file", where=str(path))
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"is larger than {most:,} bytes, the limit for {kind}", where=str(path))
    return content
