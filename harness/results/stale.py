"""Which results are of another version of a method, task, protocol or adapter than today's, as far as files alone show.

`superseded` finds them for cells that a plan has no result of; `changed_since` says it of one result in a report. A
plan, which also has rows and weights at hand, compares those too (`Plan.is_stale`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.data import all_tasks
from harness.errors import UserError
from harness.results.schema import Result
from harness.results.store import ResultStore, read_result
from harness.shipped import shipped_methods
from harness.suite import Cell, Key, ProtocolReference, resolve_protocol


def superseded(store: ResultStore, cells: Iterable[Cell]) -> dict[Key, Result]:
    """Per cell, its stored result under another version of its task or protocol, or of another adapter of that name.

    What changes a setting or a source makes another cell of it, so such a result stands under another name.
    """
    cells = list(cells)
    own = {store.path(cell) for cell in cells}
    by_place = {_without_versions(cell): cell for cell in cells}
    found: dict[Key, Result] = {}
    for folder in sorted({path.parent for path in own}):
        for result in _others(folder, own):
            now = by_place.get(_without_versions(result.cell))
            if now is not None and _versions(now) != _versions(result.cell):
                found[now.key] = result
    return found


def changed_since(result: Result) -> list[str]:
    """What of a result's origin is another today, as far as that shows without its rows and weights."""
    cell = result.cell
    changed = []
    if _source(cell.method) not in (None, result.method_sha256):
        changed.append("the method's file")
    if cell.definition is None and _task_version(cell.task) not in (None, cell.task_version):
        changed.append("the version of the task")
    if _protocol_version(cell.protocol.name) not in (None, cell.protocol.version):
        changed.append("the version of the protocol")
    return changed


def _others(folder: Path, own: set[Path]) -> Iterator[Result]:
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        if path not in own and not path.name.startswith("."):
            try:
                yield read_result(path)
            except UserError:
                continue  # a report and `verify` name it


def _without_versions(cell: Cell) -> tuple[str, ...]:
    """What a cell keeps when a version rises."""
    protocol = cell.protocol.name, repr(sorted(cell.protocol.overrides.items()))
    grid = repr(sorted(cell.grid.items()))
    shots = "" if cell.few_shot is None else f"{cell.few_shot.k} {cell.few_shot.select_with}"
    rows = shots if cell.row_limit is None else f"{shots} {cell.row_limit.model_dump_json()}"
    starts = repr([(start.title, start.seed) for start in cell.init_from])
    return cell.label, cell.task, cell.backbone, str(cell.seeds), str(cell.repeat), rows, starts, grid, *protocol


def _versions(cell: Cell) -> tuple[int, int | None, list[str]]:
    """Versions of task and protocol, and hashes of adapters that were trained elsewhere."""
    adapters = [start.identity for start in cell.init_from if start.adapter is not None]
    return cell.task_version, cell.protocol.version, adapters


@functools.cache
def _source(method: str) -> str | None:
    """SHA-256 of a shipped method's file; None for a method from elsewhere."""
    file = shipped_methods() / f"{method}.py"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


@functools.cache
def _task_version(name: str) -> int | None:
    """As it is today; remembered, since finding all tasks takes as long as reading a result."""
    tasks = all_tasks()
    return tasks[name].version if name in tasks else None


@functools.cache
def _protocol_version(name: str) -> int | None:
    try:
        return resolve_protocol(ProtocolReference(name=name)).reference.version
    except UserError:
        return None
