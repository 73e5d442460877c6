"""Reading and writing files safely: a written file is complete or absent, a read file has a limit on its size.

A write goes to a hidden file in the same folder, is flushed to the disk and then renamed. Renaming within one folder
is atomic, so a process that is killed at any moment leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness.errors import UserError

RESERVED = frozenset(
    ["con", "prn", "aux", "nul", *(f"{device}{number}" for device in ("com", "lpt") for number in range(1, 10))]
)
"""Names that Windows keeps for devices, whatever ending follows."""


def is_reserved(name: str) -> bool:
    """Whether Windows cannot have a file or folder of this name: that of a device, or one with a dot at its end."""
    return name.partition(".")[0].lower() in RESERVED or name.endswith(".")


def write_whole(path: Path, content: bytes) -> None:
    """Write one file. Raises OSError; the file that was there before is then unchanged."""
    put_in_place([write_aside(path, lambda aside: aside.write_bytes(content))])
    sync_folder(path.parent)


def write_aside(path: Path, write: Callable[[Path], object]) -> tuple[Path, Path]:
    """Let `write` fill a hidden file beside `path`, and flush it; return (hidden file, path) for `put_in_place`.

    Raises whatever `write` raises; the hidden file is then deleted.
    """
    # 32 random bits: two processes that write the same path never share a hidden file
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with usual_rights(aside):
            write(aside)
        # without the flush, a power cut after the rename could leave a file with the right name and no content
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
    except BaseException:
        discard([(aside, path)])
        raise
    return aside, path


@contextlib.contextmanager
def usual_rights(path: Path) -> Iterator[None]:
    """Let the file that is written inside have the rights of any new file, as the umask of the process has them.

    `save_file` of safetensors writes a file that its owner alone can read, which neither an adapter to give away nor a
    checkpoint in a folder shared by several users may be. Raises OSError.
    """
    path.touch()
    rights = stat.S_IMODE(path.stat().st_mode)
    yield
    if stat.S_IMODE(path.stat().st_mode) != rights:
        path.chmod(rights)


def put_in_place(written: Sequence[tuple[Path, Path]]) -> None:
    """Rename the hidden files to their paths, in order. Raises OSError; the files not renamed yet are then deleted."""
    try:
        for aside, path in written:
            os.replace(aside, path)
    finally:
        discard(written)


def discard(written: Sequence[tuple[Path, Path]]) -> None:
    """Delete the hidden files that were not renamed; a file that cannot be deleted is left."""
    for aside, _ in written:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that renames in it outlast a power cut, where the system can do that."""
    with contextlib.suppress(OSError):  # the files are complete without it, and some file systems refuse
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_bounded(path: Path, limit: int, kind: str) -> bytes:
    """Return the bytes of a regular file, at most `limit`; `kind` names the file in the message, as "a result".

    For files that may come from anybody. Raises OSError, and UserError for a larger file or for anything that is not a
    regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for a writer, perhaps for ever
        raise UserError("is not a regular file", where=str(path))
    with open(path, "rb") as file:
        # count what is read: the size that a file system states may differ (0 for files in /proc)
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(f"is larger than {limit:,} bytes, the limit for {kind}", where=str(path))
    return content


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a hidden folder beside `path` to fill, which becomes `path` when all went well; else nothing is left of it.

    Raises UserError where `path` is a file or holds something, or where nothing can be written beside it.
    """
    path = Path(os.path.abspath(path))  # "." has no name of its own
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "exists and is not empty" if path.is_dir() else "is a file"
        raise UserError(what, where=str(path), hint="Name a new folder: what is there is never overwritten.")
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(path)) from None
    try:
        yield aside
        if path.exists():
            path.rmdir()
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(path.parent)
