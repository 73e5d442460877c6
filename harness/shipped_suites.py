"""The suites that ship with the program, by name."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UserError


def suites_folder() -> Path:
    """Where they lie: beside the program in a checkout, within it where it is installed."""
    package = Path(__file__).resolve().parent
    return next(folder for folder in (package.parent / "suites", package / "_suites") if folder.is_dir())


def find_suite(name: str) -> Path:
    """A path, or the name of a suite that ships with the program. Raises UserError naming the choices."""
    path = Path(name)
    if path.exists():
        return path
    shipped = suites_folder()
    candidates = [shipped / path.name, shipped / f"{path.name}.yaml"]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None and path.parent == Path():
        choices = sorted([*map(str, Path().glob("*.y*ml")), *(item.stem for item in shipped.glob("*.yaml"))])
        raise UserError("no such file, nor a shipped suite of that name", where=name, value=name, choices=choices)
    return found or path
