"""Checks of a whole results folder: every file is read, scores are computed again, nothing is trained, no torch."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from harness.errors import UserError
from harness.provenance import sha256_file
from harness.results.check_files import check_predictions, check_tensors
from harness.results.rescore import TOLERANCE, rescore_folder
from harness.results.schema import DevScore, Result
from harness.results.selection import best_step
from harness.results.store import ResultStore, predictions_path, read_result, tensors_path
from harness.suite import NO_TEXT, Key

Kind = Literal[
    "unreadable",  # a JSON that is no result: cut short, no such fields, another format
    "edited",  # a result whose content is not what its checksum was made of
    "identity",  # a result whose ids are not those of the cell it describes
    "place",  # a result that stands elsewhere than its cell belongs
    "duplicate",  # a second copy of a result, which would pass for another run
    "incomplete",  # a result that lacks what its status promises, or has what it cannot have
    "missing",  # a file that belongs to a result and is not there
    "changed",  # a file that is not the one its result was stored with
    "predictions",  # predictions that cannot be read, or are not those of all rows of dev and test
    "scores",  # a score that its predictions do not give
    "selection",  # a selected step that the dev scores do not select
    "tensors",  # tensors that cannot be read, or do not hold what the parameter counts say
    "orphan",  # predictions or tensors without a result
    "leftover",  # what a process that died left behind
    "link",  # a symbolic link to a folder, which no report follows
]

ALIVE_S = 600.0
"""Seconds after which a run without a sign of life counts as gone, as in `claims`, where runs renew theirs every 20 s.
What a running process is writing is not reported as left over."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; `path` is relative to the results folder."""

    path: str
    kind: Kind
    problem: str


@dataclass
class Verified:
    """How much was checked, and what is wrong with it."""

    num_results: int = 0
    num_files: int = 0
    findings: list[Finding] = field(default_factory=list)
    not_recomputed: list[str] = field(default_factory=list)
    """Results with a metric that is code and that the user has not allowed by name, so it was not computed."""
    without_tensors: bool = False
    """Whether files of tensors may be absent."""


def verify_folder(root: Path, without_tensors: bool = False) -> Verified:
    """Check every file below `root`. Raises UserError only if there is no such folder.

    With `without_tensors` files of tensors may be absent, as in a folder that was published without them.
    """
    if not root.is_dir():
        raise UserError("no such results folder", where=str(root))
    # one walk, so that every check sees the same files even if a run is writing
    files, links = _walk(root)
    verified = Verified(num_files=len(files), without_tensors=without_tensors)
    found = verified.findings
    found += [Finding(_name(root, path), "link", "links to a folder; reports do not follow it") for path in links]
    seen: dict[Key, Path] = {}
    for path in files:
        if path.suffix == ".json" and not path.name.startswith("."):
            verified.num_results += 1
            found += [Finding(_name(root, path), *item) for item in _check_result(root, path, seen, verified)]
    present = {path for path in files if path.suffix == ".json"}
    found += [Finding(_name(root, path), *item) for path in files for item in _check_stray(path, present)]
    if not _is_running(root):
        left = [path for path in files if path.name.startswith(".") and path.name.endswith(".tmp")]
        found += [Finding(_name(root, path), "leftover", "was being written when its process ended") for path in left]
        found += [Finding(_name(root, path), "leftover", problem) for path, problem in _left_by_runs(root)]
    found.sort(key=lambda item: (item.path, item.kind))
    return verified


def _walk(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the files, and the links to folders, in the order of paths; hidden folders hold no results."""
    files, links = [], []
    for folder, names, inside in os.walk(root, followlinks=False):
        links += [Path(folder, name) for name in names if Path(folder, name).is_symlink()]
        names[:] = sorted(name for name in names if not name.startswith("."))
        files += [Path(folder, name) for name in inside]
    return sorted(files), sorted(links)


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


Problem = tuple[Kind, str]
"""(kind, problem)"""


def _check_result(root: Path, path: Path, seen: dict[Key, Path], verified: Verified) -> Iterator[Problem]:
    try:
        result = read_result(path)
    except UserError as error:
        problem = f"{error.field}: {error.problem}" if error.field else error.problem
        yield "edited" if "checksum" in problem else "unreadable", problem
        return
    cell = result.cell
    if (result.cell_id, result.group_id) != (cell.cell_id, cell.group_id):
        yield "identity", f"says cell {result.cell_id} of group {result.group_id}, its settings give {cell.cell_id} "\
                          f"of {cell.group_id}"  # fmt: skip
    expected = ResultStore(root).path(cell)
    if path != expected:
        yield "place", f"belongs to {_name(root, expected)}"
    first = seen.setdefault(result.key, path)
    if first != path:
        yield "duplicate", f"is a copy of {_name(root, first)}"
    # an edited result may be consistent in some places only, so every check runs
    yield from _check_completeness(result)
    yield from _check_forgetting(result)
    yield from _check_selection(result)
    yield from _check_beside(path, result, verified)


def _check_completeness(result: Result) -> Iterator[Problem]:
    needed = {"dev": result.dev, "metrics": result.metrics, "params": result.params, "data": result.data,
              "dev_history": result.dev_history, "predictions": result.files.predictions}  # fmt: skip
    if result.status != "done":
        if result.failure is None:
            yield "incomplete", f"{result.status}, and does not say why"
        if result.dev or result.test or result.files.predictions or result.files.tensors:
            yield "incomplete", f"{result.status}, and yet has scores or files"
        return
    if result.raced_out_at is None:
        needed["test"] = result.test
    elif result.test is not None:
        yield "incomplete", "left its search, and yet has a test score"
    missing = [name for name, value in needed.items() if not value]
    if result.failure is not None:
        yield "incomplete", "is done, and yet holds a failure"
    if missing:
        yield "incomplete", f"is done, and lacks {', '.join(missing)}"
    for part in result.cell.mixture.parts if result.cell.mixture else ():
        held = (result.dev, result.test, result.metrics, result.data)
        if any(item is not None and part.task not in item.parts for item in held):
            yield "incomplete", f"is a mixture, and lacks what belongs to its task {part.task}"
    for split in ("dev", "test"):
        score = result.dev if split == "dev" else result.test
        if score is not None and result.data is not None:
            num_rows = result.data.num_dev if split == "dev" else result.data.num_test
            if score.num_rows != num_rows:
                yield "incomplete", f"{split} has {num_rows} rows, {score.num_rows} were scored"


def _check_forgetting(result: Result) -> Iterator[Problem]:
    """Check that what is measured on a general text is there exactly where the recipe asks for it, and whole."""
    made, name = result.forgetting, result.cell.recipe.forgetting_text
    is_trained = (
        result.status == "done" and result.raced_out_at is None and bool(result.usage and result.usage.num_steps)
    )
    if made is None:
        if is_trained and name != NO_TEXT:
            yield "incomplete", f"lacks its loss on the general text '{name}'"
        return
    if made.text != name or result.status != "done":
        yield "incomplete", f"has a loss on the general text '{made.text}' that nobody asked for"
    if re.fullmatch(r"[0-9a-f]{64}", made.sha256) is None:
        yield "incomplete", "its general text has no SHA-256"
    if (made.rise is None) == (made.problem is None):
        yield "incomplete", "says neither how much was forgotten nor why that was not measured, or both"
    losses = [loss for loss in (made.before, made.after) if loss is not None]
    if min(losses, default=0.0) < 0 or (losses and not (made.num_tokens > 0 and made.window > 1)):
        yield "incomplete", "its losses on the general text are below 0, or of no tokens"


def _check_selection(result: Result) -> Iterator[Problem]:
    history = result.dev_history
    if result.status != "done" or not history:
        return
    steps = [item.step for item in history]
    if steps != sorted(set(steps)):
        yield "selection", "its dev scores are not in the order of their steps"
    best = best_step((item.step, item.selection) for item in history)  # the very function that chose it
    if result.selected_step != best:
        yield "selection", f"selected step {result.selected_step}, the best dev score is that of step {best}"
    metric = result.metrics.selection if result.metrics else None
    for item in history:
        if metric in item.metrics and not abs(item.metrics[metric] - item.selection) <= TOLERANCE:
            yield (
                "selection",
                f"step {item.step} was judged by {item.selection}, its {metric} is {item.metrics[metric]}",
            )
    chosen = next((item for item in history if item.step == result.selected_step), None)
    if chosen is not None and result.dev is not None and not _same(chosen, result.dev.metrics):
        yield "selection", f"dev scores differ from those of the selected step {chosen.step}"


def _same(chosen: DevScore, metrics: dict[str, float]) -> bool:
    return chosen.metrics.keys() == metrics.keys() and all(
        abs(value - metrics[name]) <= TOLERANCE for name, value in chosen.metrics.items()
    )


def _check_beside(path: Path, result: Result, verified: Verified) -> Iterator[Problem]:
    """Check the predictions and tensors of a result."""
    intact = {}
    for name, file, stored in (
        ("predictions", predictions_path(path), result.files.predictions),
        ("tensors", tensors_path(path), result.files.tensors),
    ):
        if name == "tensors" and verified.without_tensors and stored is not None and not file.exists():
            intact[name] = False
            continue
        problem = _compare(file, stored)
        intact[name] = stored is not None and problem is None
        if problem is not None:
            yield problem[0], f"{file.name}: {problem[1]}"
    trained = result.params.num_trained if result.params and result.status == "done" else 0
    if trained and result.raced_out_at is None and result.files.tensors is None:
        yield "missing", f"{trained:,} numbers were trained and no tensors stored"
    if intact["tensors"] and result.params:
        yield from (("tensors", text) for text in check_tensors(tensors_path(path), result.params))
    if intact["predictions"]:
        problems = list(check_predictions(predictions_path(path), result))
        yield from (("predictions", text) for text in problems)
        if not problems:  # scores of rows that are missing or doubled would differ anyway
            yield from _recompute(path, result, verified)


def _compare(file: Path, stored: str | None) -> Problem | None:
    """Return what is wrong with a file whose SHA-256 a result states; None if nothing."""
    try:
        if stored is None:
            return ("orphan", "is there, and its result knows of none") if file.exists() else None
        if not file.is_file():
            return "missing", "belongs to the result and is not there"
        if sha256_file(file) != stored:
            return "changed", "is not the file that was stored: its SHA-256 is another"
    except OSError as error:
        return "missing", f"cannot be read: {error.strerror}"
    return None


def _recompute(path: Path, result: Result, verified: Verified) -> Iterator[Problem]:
    checked = rescore_folder([(path, result)])
    verified.not_recomputed += checked.refused
    yield from (("scores", line.removeprefix(f"{path}: ")) for line in checked.moved)


def _check_stray(path: Path, present: set[Path]) -> Iterator[Problem]:
    """Report predictions and tensors that belong to no result."""
    for suffix in (".predictions.parquet", ".safetensors"):
        owner = path.with_name(f"{path.name.removesuffix(suffix)}.json")
        if path.name.endswith(suffix) and not path.name.startswith(".") and owner not in present:
            yield "orphan", f"its result {owner.name} is not there"


def _is_running(root: Path) -> bool:
    """Return whether some process has shown a sign of life within ALIVE_S."""
    with contextlib.suppress(OSError):
        return any(time.time() - path.stat().st_mtime < ALIVE_S for path in (root / ".claims").glob("*.alive"))
    return False


def _left_by_runs(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield (path, problem) for claims and checkpoints that no process holds any more."""
    for path in sorted((root / ".claims").glob("*")):
        yield path, "claims cells for a process that is gone; the next run takes it over"
    for path in sorted((root / ".checkpoints").rglob("*")):
        if path.is_file():
            yield path, "is the state of a run that was cut off; the same run command goes on from it"
