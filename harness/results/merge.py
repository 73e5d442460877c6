"""Merges results folders into a new one: every file is checked, the new folder appears whole or not at all.

Files are gathered in a hidden folder beside the new one, which is renamed at the end. A merge that was killed goes on
from there: what lies there with the right content is kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.files import put_in_place, sync_folder, write_aside
from harness.provenance import sha256_file
from harness.results.schema import Result
from harness.results.store import ResultStore, predictions_path, tensors_path
from harness.suite import Key

BLOCK = 1 << 20
"""Bytes that are copied at once: a file of tensors may not fit into memory."""


@dataclass(frozen=True)
class Merged:
    """What a merge did."""

    num_cells: int
    num_equal: int
    """Copies of a cell that another folder holds too."""
    num_replaced: int
    """Copies that a preferred folder's won over."""
    num_files: int
    num_kept: int
    """Files that an earlier merge, which was cut off, had copied already."""


@dataclass(frozen=True)
class _Copy:
    source: Path
    target: Path
    """Relative to the new folder."""
    sha256: str


def merge_folders(
    folders: Sequence[Path], out: Path, prefer: Sequence[Path] = (), without_tensors: bool = False
) -> Merged:
    """Write the results of all `folders`, with predictions and tensors, into the new folder `out`.

    With `without_tensors` the tensors stay behind: what a board shows is in results and predictions, and one folder is
    enough then. `verify_folder` takes such a folder by the same switch.

    Equal copies of a cell become one. Of copies that differ the one in the first folder of `prefer` counts.

    Raises UserError, with nothing written, for copies that differ without a preferred one, for a file that is damaged
    or missing, and if `out` exists; and for a disk that takes no more, after which the same merge goes on.
    """
    _require_new(folders, out, prefer, fewest=1 if without_tensors else 2)
    found = {folder: dict(_by_key(folder)) for folder in folders}
    chosen, num_equal, num_replaced = _chosen(found, prefer)
    if not chosen:
        raise UserError("hold no results", where=" and ".join(map(str, folders)))
    copies = [copy for path, result in chosen.values() for copy in _files_of(path, result, without_tensors)]
    # all is read once before anything is written, so that a damaged file leaves nothing behind
    for copy in copies:
        _require_whole(copy)
    staging = out.parent / f".{out.name}.merge"
    try:
        num_kept = _gather(copies, staging)
        os.rename(staging, out)
        sync_folder(out.parent)
    except OSError as error:
        hint = f"What was copied lies in {staging}: the same command goes on from there."
        raise UserError(f"cannot be written: {error.strerror}", where=str(out), hint=hint) from None
    return Merged(len(chosen), num_equal, num_replaced, len(copies), num_kept)


def _require_new(folders: Sequence[Path], out: Path, prefer: Sequence[Path], fewest: int) -> None:
    """Raise UserError unless the folders are several and the new one is none yet, and lies in none of them."""
    places = [folder.resolve() for folder in folders]
    if len(places) < fewest:
        raise UserError("needs two folders of results or more, and then the new one", field="harness merge")
    for index, (folder, place) in enumerate(zip(folders, places, strict=True)):
        if place in places[:index]:
            raise UserError("is named twice", where=str(folder))
    if os.path.lexists(out):
        raise UserError("is there already; a merge writes a new folder", where=str(out))
    if not out.absolute().parent.is_dir():
        parent = out.absolute().parent
        raise UserError("is a file, no folder" if parent.exists() else "no such folder", where=str(parent))
    inside = next((folder for folder, place in zip(folders, places, strict=True)
                   if out.resolve().is_relative_to(place)), None)  # fmt: skip
    if inside is not None:
        raise UserError(f"lies in {inside}, where its results would count twice", where=str(out))
    for folder in prefer:
        if folder.resolve() not in places:
            raise UserError(f"'{folder}' is none of the folders to merge", field="--prefer", value=str(folder),
                            choices=map(str, folders))  # fmt: skip


def _by_key(folder: Path) -> Iterator[tuple[Key, tuple[Path, Result]]]:
    """Yield the results of a folder. Raises UserError for one that is damaged or is not of the cell it describes."""
    for path, result in ResultStore(folder).scan():
        if result.cell_id != result.cell.cell_id:
            problem = f"says cell {result.cell_id}, its settings give {result.cell.cell_id}"
            raise UserError(problem, where=str(path), hint="harness verify says more.")
        yield result.key, (path, result)


def _chosen(
    found: dict[Path, dict[Key, tuple[Path, Result]]], prefer: Sequence[Path]
) -> tuple[dict[Key, tuple[Path, Result]], int, int]:
    """Return each cell's copy that counts, how many further copies are equal to it, and how many differ from it."""
    order = [folder.resolve() for folder in prefer]
    preferred = sorted((f for f in found if f.resolve() in order), key=lambda folder: order.index(folder.resolve()))
    chosen: dict[Key, tuple[Path, Result]] = {}
    by_choice: set[Key] = set()
    refused: list[tuple[Path, Path]] = []
    num_equal = num_replaced = 0
    for folder in dict.fromkeys([*preferred, *found]):
        for key, (path, result) in found[folder].items():
            if key not in chosen:
                chosen[key] = path, result
                by_choice |= {key} if folder in preferred else set()
            elif chosen[key][1].checksum == result.checksum:
                num_equal += 1
            elif key in by_choice:
                num_replaced += 1
            else:
                refused.append((chosen[key][0], path))
    if refused:
        raise _differing(refused, list(found))
    return chosen, num_equal, num_replaced


def _differing(refused: Sequence[tuple[Path, Path]], folders: Sequence[Path]) -> UserError:
    first, path = refused[0]
    more = f", and {len(refused) - 1:,} more cells do" if len(refused) > 1 else ""
    names = " or ".join(f"--prefer {folder}" for folder in folders)
    hint = f"Choose whose copy counts: {names}; harness compare shows what differs."
    return UserError(f"differs from {first}, a result of the same cell{more}", where=str(path), hint=hint)


def _files_of(path: Path, result: Result, without_tensors: bool) -> Iterator[_Copy]:
    """Yield the files of a result with what their content has to be; the JSON last, as when it was stored."""
    target = ResultStore("").path(result.cell)
    for file, place, sha256 in (
        (predictions_path(path), predictions_path(target), result.files.predictions),
        (tensors_path(path), tensors_path(target), None if without_tensors else result.files.tensors),
    ):
        if sha256 is not None:
            yield _Copy(file, place, sha256)
    # the JSON holds a checksum of its own content, which a scan has checked
    yield _Copy(path, target, sha256_file(path))


def _require_whole(copy: _Copy) -> None:
    """Raise UserError unless a file is there with the content that its result was stored with."""
    try:
        content = sha256_file(copy.source)
    except OSError as error:
        problem = f"belongs to a result and cannot be read: {error.strerror}"
        raise UserError(problem, where=str(copy.source)) from None
    if content != copy.sha256:
        raise UserError("is not the file that was stored: its SHA-256 is another", where=str(copy.source))


def _gather(copies: Sequence[_Copy], staging: Path) -> int:
    """Copy the files below `staging`; return how many lay there already. Raises OSError, and UserError as above."""
    wanted = {staging / copy.target for copy in copies}
    for path in [path for path in staging.rglob("*") if path.is_file() or path.is_symlink()]:
        if path not in wanted or path.is_symlink():  # of another choice of folders, or half a file
            path.unlink()
    num_kept = 0
    for copy in copies:
        target = staging / copy.target
        if target.is_file() and sha256_file(target) == copy.sha256:
            num_kept += 1
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        put_in_place([write_aside(target, _writer(copy))])
    for folder in sorted({path.parent for path in wanted}):
        sync_folder(folder)
    _delete_empty(staging)
    return num_kept


def _writer(copy: _Copy) -> Callable[[Path], None]:
    def write(aside: Path) -> None:
        """Copy the file, and hold what was written against its SHA-256."""
        digest = hashlib.sha256()
        with open(copy.source, "rb") as source, open(aside, "wb") as target:
            while block := source.read(BLOCK):
                digest.update(block)
                target.write(block)
        if digest.hexdigest() != copy.sha256:
            raise UserError("was changed while it was copied", where=str(copy.source))

    return write


def _delete_empty(staging: Path) -> None:
    """Delete folders that another choice of folders has left without a file."""
    for folder in sorted((path for path in staging.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
