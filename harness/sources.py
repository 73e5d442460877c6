"""Where rows come from: generated, a folder below --data, or the hub. Every row knows its file and line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.tasks.record import Hub, Task

SPLIT_FILES = {"train": ("train",), "validation": ("validation", "val", "dev"), "test": ("test",)}
SUFFIXES = (".jsonl", ".parquet", ".csv")

LocatedRow = tuple[str, dict[str, Any]]
"""(file:line, row)"""


@dataclass(frozen=True)
class Source:
    """The place chosen for a task's rows; `name` and `revision` go into results."""

    name: str
    revision: str
    files: dict[str, list[Path]] | None = None
    tables: dict[str, Any] | None = None
    """Splits loaded from the hub."""

    def place(self, split: str) -> str:
        """Where the rows of a split are, for messages."""
        return str(self.files[split][0]) if self.files and split in self.files else f"{self.name} {split}"


def find_source(task: Task, data_dir: str | Path | None) -> Source:
    """Choose where the rows of `task` are; loads them if that is the hub. Raises UserError naming every place."""
    if task.generate:
        return Source("generated", f"version {task.version}")
    if data_dir is None:
        return _load_hub(task)
    root = Path(data_dir)
    if not root.is_dir():
        raise UserError("no such data folder", where=str(root), field="--data")
    for folder in task.folders:
        files = _split_files(root / folder)
        if files:
            return Source(f"folder {folder}", "local files", files=files)
    for folder in task.folders:
        if _has_split(root / folder, "train") != _has_split(root / folder, "validation"):
            have, lack = ("train", "validation") if _has_split(root / folder, "train") else ("validation", "train")
            wanted = " or ".join(f"{stem}{{{'|'.join(SUFFIXES)}}}" for stem in SPLIT_FILES[lack])
            raise UserError(f"has a {have} file but no {wanted}", where=str(root / folder))
    names = f"{{train,validation|val|dev}}{{{'|'.join(SUFFIXES)}}}"
    looked = ", ".join(f"{root / folder}/{names}" for folder in task.folders)
    raise UserError(
        f"no files of task '{task.name}' in the data folder; looked for {looked}",
        field="--data",
        hint="Without --data the task is loaded from the hub.",
    )


def read_split(task: Task, source: Source, split: str) -> Iterator[LocatedRow]:
    """Yield the rows of "train", "validation" or "test", each with its place. Raises UserError on broken files."""
    if task.generate:
        for index, row in enumerate(task.generate(split)):
            yield f"{task.name} {split} row {index}", row
    elif source.files is not None:
        for path in source.files.get(split, []):
            yield from _read_file(path)
    elif source.tables is not None:
        for index, row in enumerate(source.tables[split]):
            yield f"{source.name} {split} row {index}", dict(row)


def _has_split(folder: Path, split: str) -> bool:
    return any((folder / f"{stem}{suffix}").is_file() for stem in SPLIT_FILES[split] for suffix in SUFFIXES)


def _split_files(folder: Path) -> dict[str, list[Path]] | None:
    """Files of each split in `folder`; None unless both train and validation are there."""
    found = {}
    for split, stems in SPLIT_FILES.items():
        for stem in stems:
            files = [path for suffix in SUFFIXES for path in [folder / f"{stem}{suffix}"] if path.is_file()]
            files = files[:1] or sorted(folder.glob(f"{stem}-*.parquet"))
            if files:
                found[split] = files
                break
    return found if {"train", "validation"} <= set(found) else None


def _read_file(path: Path) -> Iterator[LocatedRow]:
    reader = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".csv": _read_csv}[path.suffix]
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text: {error.reason} at byte {error.start}", where=str(path)) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=str(path)) from None


def _read_jsonl(path: Path) -> Iterator[LocatedRow]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise UserError("is not a complete JSON object", where=f"{path}:{number}") from None
            if not isinstance(row, dict):
                raise UserError("is not a JSON object", where=f"{path}:{number}")
            yield f"{path}:{number}", row


def _read_parquet(path: Path) -> Iterator[LocatedRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"is not a readable Parquet file: {error}", where=str(path)) from None
    for index, row in enumerate(rows):
        yield f"{path}: row {index}", row


def _read_csv(path: Path) -> Iterator[LocatedRow]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise UserError(f"has not the {len(reader.fieldnames or ())} columns of the header", where=where)
                yield where, dict(row)
        except csv.Error as error:
            raise UserError(f"is not readable CSV: {error}", where=f"{path}:{reader.line_num}") from None


def _load_hub(task: Task) -> Source:
    """Load every split from the first alternative that has them all; splits of two copies are never mixed."""
    from datasets import load_dataset

    splits = ("train", "validation", "test") if task.split == "given" else ("train", "validation")
    reasons = []
    for hub in task.hub:
        try:
            tables = {split: load_dataset(hub.path, hub.config, split=split, revision=hub.revision) for split in splits}
        except Exception as error:  # the hub client raises dozens of types; each alternative gets its turn
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reasons.append(f"{hub}: {lines[0]}")
            continue
        return Source(f"hub {hub}", hub.revision or _commit(hub), tables=tables)
    raise UserError(
        f"task '{task.name}' could not be loaded from the hub: {'; '.join(reasons) or 'no copy is known there'}",
        hint="Give a local copy with --data DIR.",
    )


def _commit(hub: Hub) -> str:
    """Commit of the data set's main branch; "unknown" where the hub does not answer (rows from the cache)."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(hub.path).sha)
    except Exception:  # without network the rows' fingerprint still identifies them
        return "unknown"
