"""The suites that ship with the program, by name."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UserError
from harness.shipped import shipped_suites


def find_suite(name: str) -> Path:
    """A path, or the name of a suite that ships with the program. Raises UserError naming the choices."""
    path = Path(name)
    if path.exists():
        return path
    shipped = shipped_suites()
    candidates = [shipped / path.name, shipped / f"{path.name}.yaml"]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None and path.parent == Path():
        choices = sorted([*map(str, Path().glob("*.y*ml")), *(item.stem for item in shipped.glob("*.yaml"))])
        raise UserError("no such file, nor a shipped suite of that name", where=name, value=name, choices=choices)
    return found or path
