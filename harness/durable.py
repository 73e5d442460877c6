"""Files that are whole or not there: written aside, flushed to the disk, renamed into place."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write one file. Raises OSError, and leaves what was there before."""
    put_in_place([write_aside(path, lambda aside: aside.write_bytes(content))])
    sync_folder(path.parent)


def write_aside(path: Path, write: Callable[[Path], object]) -> tuple[Path, Path]:
    """Let `write` fill a hidden file beside `path` and flush it; return (that file, path) for `put_in_place`.

    Raises whatever `write` does, with nothing left behind.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write(aside)
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
    except BaseException:
        discard([(aside, path)])
        raise
    return aside, path


def put_in_place(written: Sequence[tuple[Path, Path]]) -> None:
    """Rename files written aside, in order. Raises OSError; then those that are left are dropped."""
    try:
        for aside, path in written:
            os.replace(aside, path)
    finally:
        discard(written)


def discard(written: Sequence[tuple[Path, Path]]) -> None:
    """Drop files written aside that were not put in place."""
    for aside, _ in written:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut, where the system can."""
    with contextlib.suppress(OSError):  # the files are whole without it; some file systems refuse
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
