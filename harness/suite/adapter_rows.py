"""Rows that name several adapters at once: `adapter: [a, b]` and `adapter: folder/*` become a row for each.

The row `mine` with the folders `out/a` and `out/b` becomes `mine-a` and `mine-b`, which is how tables, `exceptions` and
`--methods` call them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.suite.adapter_folder import CONFIG_FILE
from harness.suite.file_schema import ADAPTER
from harness.suite.trained_adapter import ENDINGS
from harness.yaml_lines import Document

PATTERN = re.compile(r"[*?\[]")
"""Characters that make a pattern of a path."""
MOST_ROWS = 1_000
"""Rows that one pattern may stand for."""


def with_a_row_for_each(document: Document) -> dict[str, Any]:
    """Return the suite's data with each row of several adapters as several rows; `document` gets their lines.

    Raises UserError for a pattern that finds nothing, and for two rows of one name.
    """
    rows = document.data.get("methods")
    if not isinstance(rows, dict):
        return dict(document.data)
    made: dict[Any, Any] = {}
    for label, own in rows.items():
        named = _named(own)
        if not (isinstance(named, list) or (isinstance(named, str) and PATTERN.search(named))):
            _put(made, label, own, document.where("methods", label))
            continue
        where = document.where("methods", label, ADAPTER)
        for folder in _found(named, Path(document.path).parent, where, f"methods.{label}.{ADAPTER}"):
            new = f"{label}-{_slug(folder)}"
            _put(made, new, {**own, ADAPTER: _of_one(own[ADAPTER], folder)}, where)
            lines = {key: line for key, line in document.lines.items() if key[:2] == ("methods", label)}
            document.lines.update({("methods", new, *key[2:]): line for key, line in lines.items()})
    return {**document.data, "methods": made}


def _put(made: dict[Any, Any], label: Any, own: Any, where: str) -> None:
    if label in made:
        hint = "Rows are called by the last part of a folder's path; give one a row of its own."
        raise UserError(f"two rows would be called '{label}'", where=where, field=f"methods.{label}", hint=hint)
    made[label] = own


def _named(own: Any) -> Any:
    """What a row says of its adapters: a path, a list of paths or a pattern; None for other rows."""
    said = own.get(ADAPTER) if isinstance(own, Mapping) else None
    return said.get("folder") if isinstance(said, Mapping) else said


def _of_one(said: Any, folder: str) -> Any:
    return {**said, "folder": folder} if isinstance(said, Mapping) else folder


def _found(named: str | list[Any], folder: Path, where: str, field: str) -> list[str]:
    """The paths that a list names, or those that a pattern finds, in the order of their names."""
    if isinstance(named, list):
        if not named or not all(isinstance(item, str) and item and not PATTERN.search(item) for item in named):
            raise UserError(f"expected paths of folders, got {named!r}", where=where, field=field)
        return named
    if Path(named).is_absolute():
        base, pattern = Path(Path(named).anchor), str(Path(named).relative_to(Path(named).anchor))
    else:
        base, pattern = folder, named
    try:
        paths = sorted(path for path in base.glob(pattern) if _may_be_adapter(path))
    except (ValueError, NotImplementedError, OSError) as error:
        raise UserError(f"is no pattern of paths: {error}", where=where, field=field) from None
    if not paths or len(paths) > MOST_ROWS:
        what = "no folder with an adapter" if not paths else f"{len(paths):,} folders; a row may name {MOST_ROWS:,}"
        raise UserError(f"'{named}' finds {what}", where=where, field=field)
    return [str(path if Path(named).is_absolute() else path.relative_to(folder)) for path in paths]


def _may_be_adapter(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file() or (path.is_file() and path.suffix.lower() in ENDINGS)


def _slug(folder: str) -> str:
    """The last part of a path with the characters that a row's name may have."""
    path = Path(folder)
    name = path.stem if path.suffix.lower() in ENDINGS else path.name
    return re.sub(r"[^A-Za-z0-9_+-]+", "-", name).strip("-") or "it"
