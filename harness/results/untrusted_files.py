"""What a stranger's folder of results may not hold: links, odd names, huge files, ambiguous JSON, markup.

Nothing is followed: entries are looked at as they are, and files are read up to a limit.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import is_reserved, read_bounded
from harness.results.store import MAX_BYTES

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,119}")
"""Names of folders and files: those of a suite's tasks, rows and backbones, and of cells with their endings."""
ENDINGS = (".json", ".predictions.parquet", ".safetensors")
BESIDE = {"README.md", "LICENSE"}
"""Files that may lie beside results at the top."""
OF_RUNS = {".claims", ".checkpoints"}
"""Folders that a run leaves empty; what is left in them is named by `verify_folder`."""
MAX_ENTRIES = 200_000
"""Files and folders: twenty times the results of the largest suite that we have seen, each with its three files."""
MARKUP = re.compile(r"<\s*[A-Za-z!/?]")
SPECIAL_TOKENS = re.compile(r"</?(s|pad|unk|mask|bos|eos|sep|cls|extra_id_\d+)>|<\|[\w ]{1,40}\|>", re.IGNORECASE)
"""Texts between angle brackets that are no markup: a template or a label may hold them."""
FREE_TEXTS = {"failure"}
"""Fields whose texts are a traceback, which shows source code."""


@dataclass
class Strange:
    """What was found: (path relative to the folder, what kind of thing, problem) each."""

    found: list[tuple[str, str, str]] = field(default_factory=list)
    is_readable: bool = True
    """Whether the folder holds plain files alone, so that others may read it."""


def find_strange(root: Path, max_bytes: int) -> Strange:
    """Look at every entry below `root`; files of more than `max_bytes` are named.

    Contents are read only if all entries are plain files and folders.
    """
    made = Strange()
    files: list[Path] = []
    names: dict[str, str] = {}
    for index, (path, name) in enumerate(_entries(root)):
        if index == MAX_ENTRIES:
            made.found.append((name, "size", f"is one of more than {MAX_ENTRIES:,} files and folders; stopped here"))
            made.is_readable = False
            break
        problem = _problem_of_kind(root, path)
        if problem is not None:
            made.found.append((name, *problem))
            made.is_readable = False
            continue
        lower = names.setdefault(name.lower(), name)
        if lower != name:
            made.found.append((name, "name", f"is {lower} where names have no case, as on Windows and macOS"))
        if is_reserved(path.name):
            made.found.append((name, "name", "is a name that Windows cannot have"))
        if not path.is_dir():
            files.append(path)
            made.found += [(name, *problem) for problem in _problems_of_file(root, path, max_bytes)]
        elif not NAME.fullmatch(path.name) and name not in OF_RUNS:
            made.found.append((name, "name", "is no name of a suite, task, row or backbone"))
    if made.is_readable:
        for path in files:
            if path.suffix == ".json" and NAME.fullmatch(path.name):
                name = path.relative_to(root).as_posix()
                made.found += [(name, *problem) for problem in _problems_of_json(path)]
    return made


def _entries(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file and folder with its name below `root`, in order; links are not followed."""
    for folder, folders, files in os.walk(root, followlinks=False):
        folders.sort()
        for each in sorted([*folders, *files]):
            path = Path(folder, each)
            yield path, path.relative_to(root).as_posix()


def _problem_of_kind(root: Path, path: Path) -> tuple[str, str] | None:
    """Return what is wrong with an entry that is no plain file or folder."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        target = Path(os.path.realpath(path))
        leaves = not target.is_relative_to(os.path.realpath(root))
        return "link", f"is a link{' that leads out of the folder' if leaves else ''}; a submission holds plain files"
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        return "link", "is neither a file nor a folder"
    return None


def _problems_of_file(root: Path, path: Path, max_bytes: int) -> Iterator[tuple[str, str]]:
    size = path.lstat().st_size
    if size > max_bytes:
        yield "size", f"has {size:,} bytes, more than the {max_bytes:,} that are taken"
    if (path.parent == root and path.name in BESIDE) or path.relative_to(root).parts[0] in OF_RUNS:
        return
    if not NAME.fullmatch(path.name) or not path.name.endswith(ENDINGS):
        yield "name", "is no file that results have: CELL.json, CELL.predictions.parquet, CELL.safetensors"


class _Refused(ValueError):
    """JSON that is read in different ways by different readers."""


def _problems_of_json(path: Path) -> Iterator[tuple[str, str]]:
    """Yield what a JSON holds that the reader of results would let pass, or would read as something else."""
    try:
        content = read_bounded(path, MAX_BYTES, "a result")
        data = json.loads(content, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except _Refused as error:
        yield "content", str(error)
        return
    except (OSError, ValueError, RecursionError, UserError):
        return  # `verify_folder` says that it cannot be read
    if isinstance(data, dict):
        for place, text in _texts({key: value for key, value in data.items() if key not in FREE_TEXTS}, ()):
            problem = _problem_of_text(text)
            if problem is not None:
                yield "content", f"{place}: {problem}"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"holds the key {repeated!r} twice, of which each reader takes another")
    return made


def _refuse_constant(name: str) -> Any:
    raise _Refused(f"holds {name}, which is no number of JSON")


def _texts(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield (place, text) of all keys and values that are texts."""
    if isinstance(value, str):
        yield ".".join(path), value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield ".".join(path) or "top", key
            yield from _texts(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, (*path, str(index)))


def _problem_of_text(text: str) -> str | None:
    found = MARKUP.search(SPECIAL_TOKENS.sub("", text))
    if found:
        return f"holds what looks like markup: {text[:60]!r}"
    plain = text.replace("\n", "").replace("\t", "")
    if not plain.isprintable():
        return f"holds characters that nobody sees: {text[:60]!a}"
    return None
