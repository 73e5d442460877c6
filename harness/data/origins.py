"""Where a task's rows come from: a generator, the user's own files, a folder below --data, or the hub.

The first of these that applies is taken, in this order, and its name goes into every result. All splits of a task come
from one origin: copies may differ in the order of rows, so a mix of two could put one row into two splits. A task whose
record says where each split comes from (`sources`) has an origin for each, and the splits of one data set share theirs.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.data.file_formats import SAVED_MARK, SUFFIXES, is_readable
from harness.data.tasks.task import NEEDED_SPLITS, Hub, Source, Task
from harness.errors import UserError, require_choice
from harness.hub import offline, why_unreachable

STEMS: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "val", "dev"),
    "validation_matched": ("validation_matched", "dev_matched"),
    "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
    "test": ("test",),
}
"""Split, named as on the hub -> names that its file may have in any layout."""


@dataclass(frozen=True)
class Origin:
    """Where the rows of a task were found; `name` and `revision` are stored in results."""

    name: str
    revision: str
    files: Mapping[str, list[Path]] | None = None
    """Split -> its files on this machine."""
    tables: Mapping[str, Any] | None = None
    """Split -> its table, loaded from the hub."""
    parts: Mapping[str, Origin] = field(default_factory=dict)
    """Split -> the origin of its data set, for a task with `sources`; then `name` and `revision` tell all of them."""

    def place(self, split: str) -> str:
        """Return where the rows of a split are, for messages."""
        if split in self.parts:
            return f"{self.parts[split].name}, as {split}"
        return str(self.files[split][0]) if self.files and split in self.files else f"{self.name} {split}"


class MissingData(UserError):
    """The data folder does not hold all of a task."""

    lacking: dict[str, list[str]] = {}
    """Folder that holds a part of the task -> the splits it lacks."""


def find_origin(task: Task, data_dir: str | Path | None) -> Origin:
    """Choose where the rows of `task` come from; rows of the hub are loaded here.

    A folder counts only if it holds every split that the task's split rule needs. Raises UserError that names every
    folder looked in.
    """
    if task.generate:
        return Origin("generated", f"version {task.version}")
    if task.files:
        return _declared_origin(task)
    if task.sources:
        return _joined_origin(task, data_dir)
    return _single_origin(task, NEEDED_SPLITS[task.split], data_dir)


def _joined_origin(task: Task, data_dir: str | Path | None) -> Origin:
    """Find the data set of every split; those that share one have the same origin."""
    needed = NEEDED_SPLITS[task.split]
    assert set(task.sources) == set(needed), f"task {task.name} names sources of other splits than it needs"
    found: dict[tuple[object, ...], Origin] = {}
    parts: dict[str, Origin] = {}
    for split in needed:
        data_set = _data_set(task.sources[split])
        if data_set not in found:
            shared = [source for source in task.sources.values() if _data_set(source) == data_set]
            stems = {source.split: source.stems for source in shared}
            own = replace(task, hub=shared[0].hub, folders=shared[0].folders, stems=stems, shared_folders=())
            found[data_set] = _single_origin(own, tuple(stems), data_dir)
        parts[split] = found[data_set]
    name = "; ".join(f"{split}: {_as_told(parts[split].name, task.sources[split], split)}" for split in needed)
    return Origin(name, "; ".join(f"{split}: {parts[split].revision}" for split in needed), parts=parts)


def _data_set(source: Source) -> tuple[object, ...]:
    return source.hub, source.folders


def _as_told(name: str, source: Source, split: str) -> str:
    """Return where a split comes from in words, such as "hub openai/gsm8k:main train, 50 rows"."""
    there = "" if source.split == split else f" {source.split}"
    drawn = "" if source.num_drawn is None else f", {source.num_drawn:,} rows drawn"
    left_out = f", without rows {source.left_out}" if source.left_out else ""
    return f"{name}{there}{drawn}{left_out}"


def _single_origin(task: Task, splits: Sequence[str], data_dir: str | Path | None) -> Origin:
    """Find the one folder, or the one copy on the hub, that holds all of these published splits."""
    if data_dir is None:
        return _load_from_hub(task, splits)
    root = Path(data_dir)
    require_folder(data_dir)
    lacking: dict[str, list[str]] = {}
    for folder in _candidate_folders(task):
        files, missing = _search_folder(root, folder, task, splits)
        if not missing:
            return Origin(f"folder {folder}", "local files", files=files)
        if files:
            lacking[folder] = missing
    raise _missing_data(task, splits, root, lacking)


def require_folder(data_dir: str | Path | None) -> None:
    """Raise UserError if the named data folder does not exist, whether or not any task needs it."""
    if data_dir is not None and not Path(data_dir).is_dir():
        raise UserError("no such data folder", where=str(data_dir), field="--data", hint="HARNESS_DATA sets it too.")


def _missing_data(task: Task, splits: Sequence[str], root: Path, lacking: dict[str, list[str]]) -> MissingData:
    if lacking:
        parts = [f"{root / folder} has no {' and no '.join(splits)}" for folder, splits in lacking.items()]
        problem = f"task '{task.name}' is not complete in the data folder: {'; '.join(parts)}"
    else:
        looked = ", ".join(str(root / folder) for folder in _candidate_folders(task))
        problem = f"no files of task '{task.name}' in the data folder; looked in {looked}"
    names = ", ".join("|".join((*STEMS[split], *task.stems.get(split, ()))) for split in splits)
    otherwise = (
        f"The files are at {task.download}." if task.download else "Without --data the task is loaded from the hub."
    )
    hint = f"Looked for {names} with {', '.join(SUFFIXES)}. {otherwise}"
    error = MissingData(problem, field="--data", hint=hint)
    error.lacking = lacking
    return error


def _candidate_folders(task: Task) -> list[str]:
    """Folders below --data that may hold the task: names of the official download first, then of a copy of the hub."""
    hub = []
    for copy in task.hub:
        name = copy.path.rsplit("/", 1)[-1]
        inside = f"/{copy.config}" if copy.config else ""
        hub += [f"hub/{copy.config or name}", copy.path + inside, name + inside]
    return list(dict.fromkeys([*task.folders, *task.shared_folders, *hub]))


def _search_folder(
    root: Path, folder: str, task: Task, splits: Sequence[str]
) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the files of the needed splits that `folder` holds, and the splits that it lacks."""
    files: dict[str, list[Path]] = {}
    missing = []
    for split in splits:
        usual = () if folder in task.shared_folders else STEMS[split]
        found = _split_files(root / folder, (*usual, *task.stems.get(split, ())))
        if not found:
            missing.append(split)
            continue
        files[split] = found
        # a download that was cut off leaves some of the shards, which would pass for a smaller data set
        if len(found) != _num_shards(found):
            missing.append(f"complete {split} ({len(found)} of {_num_shards(found)} shards)")
    return files, missing


def _split_files(folder: Path, stems: Sequence[str]) -> list[Path]:
    """Return the files of one split: one file, one folder of `save_to_disk`, or its Parquet shards; else nothing."""
    if not folder.is_dir():
        return []
    for stem in stems:
        for suffix in ("", *SUFFIXES):
            path = folder / f"{stem}{suffix}"
            if is_readable(path):
                return [path]
        for pattern in (f"{stem}-*.parquet", f"data/{stem}-*.parquet", f"{stem}/*.parquet"):
            shards = sorted(folder.glob(pattern))
            if shards:
                return shards
    return []


def _num_shards(files: Sequence[Path]) -> int:
    """Return how many shards a split has: 2 for `train-00000-of-00002.parquet`, else the number of files."""
    announced = re.search(r"-of-(\d+)\.parquet$", files[-1].name) if files else None
    return int(announced[1]) if announced else len(files)


def _declared_origin(task: Task) -> Origin:
    """Return the files that a suite declares for its own task.

    Raises UserError for a split that is unknown, that the split rule needs and nobody names, or whose file is missing.
    """
    where = f"files of task '{task.name}'"
    splits = {name: split for split, names in STEMS.items() for name in names}
    files: dict[str, list[Path]] = {}
    for name, path in task.files.items():
        split = splits[require_choice(name, splits, kind="split", where=where)]
        if split in files:
            raise UserError(f"split '{split}' is given twice", where=where)
        files[split] = _declared_files(Path(path), task, split)
    if list(files) == ["train"] and Path(task.files["train"]).is_dir():
        # a single folder stands for all the splits that it holds
        folder = Path(task.files["train"])
        others = {split: _split_files(folder, STEMS[split]) for split in ("validation", "test")}
        files |= {split: found for split, found in others.items() if found}
    needed = NEEDED_SPLITS[task.split]
    _refuse_unused(task, files)
    lacking = [split for split in needed if split not in files]
    if lacking:
        raise UserError(
            f"split rule '{task.split}' needs {' and '.join(needed)}; there is no {' and no '.join(lacking)}",
            where=where,
            hint="Split rule 'cut_train' cuts dev and test from train.",
        )
    return Origin("files " + ", ".join(task.files[name] for name in task.files), "local files", files=files)


def _refuse_unused(task: Task, files: Mapping[str, list[Path]]) -> None:
    """Raise UserError if the user gave validation or test rows that the split rule would silently leave out."""
    unused = [split for split in files if split not in NEEDED_SPLITS[task.split]]
    if unused and task.split == "cut_train":
        raise UserError(
            f"split rule 'cut_train' cuts dev and test from train, but {' and '.join(unused)} rows are there too",
            where=f"files of task '{task.name}'",
            hint="Say split: given, halve_validation or hold_out_1000, or name the training file alone.",
        )


def _declared_files(path: Path, task: Task, split: str) -> list[Path]:
    """Return the files of a split whose `path` the user declared.

    A file stands for itself; of a folder, the files named after the split count, and if there are none, all data files.
    """
    where, suffixes = str(path), ", ".join(SUFFIXES)
    if not path.exists():
        raise UserError(f"no such file or folder for split '{split}' of task '{task.name}'", where=where)
    if is_readable(path):
        return [path]
    if path.is_file():
        raise UserError(f"is in no known format; known are {suffixes}", where=where)
    found = _split_files(path, STEMS[split]) or [file for file in sorted(path.iterdir()) if is_readable(file)]
    if not found:
        raise UserError(f"holds no data files ({suffixes}, or {SAVED_MARK} of save_to_disk)", where=where)
    if len(found) != _num_shards(found):
        raise UserError(f"holds {len(found)} of {_num_shards(found)} shards", where=where)
    return found


def _load_from_hub(task: Task, splits: Sequence[str]) -> Origin:
    """Load every needed split from the first copy on the hub that has them all.

    Raises UserError with one reason per copy, or that nothing is on this machine and the hub cannot be reached.
    """
    from datasets import load_dataset

    closed, reasons = why_unreachable(), []
    for hub in task.hub:
        try:
            with offline() if closed and not Path(hub.path).exists() else contextlib.nullcontext():
                tables = {s: load_dataset(hub.path, hub.config, split=s, revision=hub.revision) for s in splits}
        except Exception as error:  # the hub client raises dozens of types; the next copy gets its turn
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reasons.append(f"{hub}: {lines[0]}")
            continue
        return Origin(f"hub {hub}", _hub_commit(hub), tables=tables)
    if task.download:
        raise UserError(
            f"task '{task.name}' has no copy on the hub",
            hint=f"The files are at {task.download}; name the folder that holds them: --data DIR, or HARNESS_DATA.",
        )
    if closed and not any(Path(hub.path).exists() for hub in task.hub) and task.hub:
        raise UserError(
            f"task '{task.name}' is not on this machine: nothing of it was fetched before, and {closed}",
            hint="Name a folder with a copy: --data DIR, or HARNESS_DATA.",
        )
    raise UserError(
        f"task '{task.name}' could not be loaded from the hub: {'; '.join(reasons) or 'no copy is known there'}",
        hint="Give a local copy with --data DIR.",
    )


def _hub_commit(hub: Hub) -> str:
    """Return the commit of a data set: as the record names it, else that of its branch, main unless it names another.

    If the hub does not answer, it is the name of the branch, or "unknown" for main.
    """
    from huggingface_hub import HfApi

    name = hub.revision or "unknown"
    if re.fullmatch(r"[0-9a-f]{40}", name) or why_unreachable():
        return name
    try:
        return str(HfApi().dataset_info(hub.path, revision=hub.revision).sha)
    except Exception:  # without it the fingerprint in the result still identifies the rows
        return name
