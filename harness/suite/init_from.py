"""`init_from`: cells that start from the trained tensors of other cells or of a file.

This file reads what a suite names as sources, and makes the part of a cell's identity that the sources decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.suite.cell import Cell, Start, digest
from harness.suite.file_schema import MethodSpec, SourceChoice
from harness.validation import validate_model

INIT_FROM = "init_from"
GRID_KEY = f"cell.{INIT_FROM}"
"""Name of the setting in a grid that sweeps over sources."""
NO_SOURCE = "none"
"""Value of `init_from` that means no source: a random start."""


def read_sources(value: Any, where: str, field: str) -> tuple[SourceChoice, ...]:
    """Return the sources that a suite names, in their order. Raises UserError for a value that names no source."""
    if value is None or value == NO_SOURCE:
        return ()
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, dict) for item in items):
        problem = f"expected {{method: ..., task: ...}}, {{file: ...}}, a list of these, or {NO_SOURCE}; got {value!r}"
        raise UserError(problem, where=where, field=field)
    found = []
    for item in items:
        try:
            found.append(validate_model(SourceChoice, item, lambda *key: where))
        except UserError as error:
            inner = f"{field}.{error.field}" if error.field else field
            raise UserError(
                error.problem, where=where, field=inner, value=error.value, choices=error.choices, hint=error.hint
            ) from None
    return tuple(found)


def check_num_sources(choices: Sequence[SourceChoice], spec: MethodSpec, where: str, field: str) -> None:
    """Raise UserError unless the method can start from this number of sources."""
    fewest, most = spec.takes_sources
    if fewest <= len(choices) and (most is None or len(choices) <= most):
        return
    if not most and most is not None:
        raise UserError(f"'{spec.name}' cannot start from other cells", where=where, field=field)
    wanted = f"{fewest}" if most == fewest else f"at least {fewest}" if most is None else f"{fewest} to {most}"
    hint = f"For example {INIT_FROM}: {{method: prompt_tuning, task: mnli}}; a list where there are several."
    raise UserError(f"'{spec.name}' starts from {wanted} sources, got {len(choices)}", where=where, field=field,
                    hint=hint)  # fmt: skip


def sources_title(choices: Sequence[SourceChoice]) -> str:
    """Return the sources of a cell in words, for tables."""
    return " + ".join(choice.title for choice in choices) or NO_SOURCE


def start_from_file(choice: SourceChoice, folder: str, where: str) -> Start:
    """Return a file as a source. Its content is its identity, not its name. Raises UserError if it cannot be read."""
    assert choice.file is not None
    path = Path(folder) / choice.file
    try:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=where, field=str(path)) from None
    # 16 hex digits, 64 bits: as long as a cell_id
    return Start(title=choice.title, file=choice.file, identity=content[:16], family=content[:16])


def start_from_cells(
    choice: SourceChoice, cells: dict[tuple[int, int], Cell], num_points: int, seed: int, study: str = ""
) -> Start:
    """Return the winner of a grid as a source, before it is known who wins. `cells` maps (grid point, seed) to a cell.

    The identity is a hash of all cells that may be chosen, so it is known before any of them is trained. Of a search
    whose points follow from results, it is a hash of the `study`: its name and its number of trials.
    """
    search = cells[(0, seed)].search_seed
    points = range(num_points)
    ids = {cells[(point, of)].cell_id for point in points for of in (seed, search)}
    first = cells[(0, seed)]
    grid = [study] if study else sorted({str(sorted(cells[(point, seed)].grid.items())) for point in points})
    if study:
        ids = {digest([first.group_id, study, seed, search])}
    return Start(
        title=f"{first.label} on {first.task}" + (f" on {first.backbone}" if choice.backbone else ""),
        label=first.label,
        task=first.task,
        backbone=first.backbone,
        seed=seed,
        identity=ids.pop() if len(ids) == 1 else digest(sorted(ids)),
        family=digest([first.group_id, grid, choice.seed]),
    )
