"""Bring the results of an earlier format to today's: all files are looked at, then backed up, then replaced."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.durable import read_bounded, write_whole
from harness.errors import UserError
from harness.results import MAX_BYTES, checksum, read_result
from harness.schema import RESULT_FORMAT, Result

Content = dict[str, Any]
"""A result's JSON."""


@dataclass(frozen=True)
class Step:
    """What turns a result of one format into one of the next."""

    does: str
    apply: Callable[[Content], Content]


# format -> the step from it to the next; the format itself and the checksum are set by `_migrated`
STEPS: Mapping[int, Step] = {
    1: Step("adds the checksum by which an edit by hand is noticed", lambda content: content),
}


@dataclass(frozen=True)
class Migrated:
    """What was done; `backup` holds the files as they were, and is None where there was nothing to do."""

    num_results: int
    num_changed: int
    backup: Path | None
    steps: tuple[str, ...]


def migrate(root: Path) -> Migrated:
    """Migrate every result below `root`. Raises UserError, before anything is written, for what cannot be read.

    An interrupted migration leaves whole files, old or new, and the same command continues.
    """
    if not root.is_dir():
        raise UserError("no such results folder", where=str(root))
    paths = [path for path in sorted(root.rglob("*.json")) if not _is_hidden(path.relative_to(root))]
    changed, formats = {}, set()
    for path in paths:
        result = read_result(path)
        if result.format < RESULT_FORMAT:
            formats |= set(range(result.format, RESULT_FORMAT))
            changed[path] = _migrated(path, result.format)
    if not changed:
        return Migrated(len(paths), 0, None, ())
    backup = _backup(root, list(changed))
    for path, content in changed.items():
        try:
            write_whole(path, content)
        except OSError as error:
            hint = f"The files as they were are in {backup}; the same command continues."
            raise UserError(f"cannot be written: {error.strerror}", where=str(path), hint=hint) from None
    return Migrated(len(paths), len(changed), backup, tuple(STEPS[number].does for number in sorted(formats)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _migrated(path: Path, version: int) -> bytes:
    """The file in today's format, as a run would have written it."""
    content: Content = json.loads(read_bounded(path, MAX_BYTES, "a result"))
    for number in range(version, RESULT_FORMAT):
        content = STEPS[number].apply(content)
    content = Result.model_validate_json(json.dumps(content | {"format": RESULT_FORMAT})).model_dump(mode="json")
    return (json.dumps(content | {"checksum": checksum(content)}, indent=1) + "\n").encode()


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name}-{number}")


def _backup(root: Path, paths: list[Path]) -> Path:
    """Copy files to a dated folder beside `root`. Raises UserError if that fails."""
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    name = f"{root.resolve().name}.backup-{moment}"
    folder = next(path for path in _numbered(root.resolve().with_name(name)) if not path.exists())
    try:
        folder.mkdir()
        for path in paths:
            copy = folder / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
    except OSError as error:
        problem = f"the files to migrate cannot be copied there: {error.strerror}; nothing was changed"
        raise UserError(problem, where=str(folder)) from None
    return folder
