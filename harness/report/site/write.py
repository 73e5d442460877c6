"""Renders the pages and puts them in place, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.errors import UserError
from harness.report.aggregate import Board
from harness.report.significance import Significance
from harness.report.site.cells import show
from harness.report.site.grids import groups
from harness.report.site.method_files import read_method_files
from harness.report.site.pages import Material, Page, cell_context, pages
from harness.report.site.runs import as_csv, as_json, list_runs
from harness.report.site.swatches import swatch
from harness.report.tables import render
from harness.schema import Result

HERE = Path(__file__).parent
MARK = "assets/harness-site.css"
"""A folder that holds this file was written here, and may be replaced."""


def write_site(
    boards: Sequence[Board],
    verdicts: Sequence[Significance | None],
    scanned: Sequence[tuple[Path, Result]],
    results: Path,
    out: Path,
    method_folders: Sequence[Path] = (),
) -> str:
    """Write all pages below `out`, in place of an earlier site there; return one line about them.

    `boards` must be made from the very results in `scanned`, which lie below `results`. `method_folders` hold the files
    of methods that are not shipped. Raises UserError if `out` is a file, or a folder of other things, or cannot be
    written.
    """
    runs = list_runs(scanned, boards, results)
    material = Material(scanned, boards, verdicts, runs, read_method_files(method_folders))
    with _replacing(out) as folder:
        shutil.copytree(HERE / "static", folder / "assets")
        _write(folder / "data" / "leaderboards.json", render(boards, "json", significance=verdicts))
        _write(folder / "data" / "leaderboards.csv", render(boards, "csv"))
        _write(folder / "data" / "runs.json", as_json(runs))
        _write(folder / "data" / "runs.csv", as_csv(runs))
        count = _render(folder, material)
    return f"{count:,} pages: {out / 'index.html'}\n"


def _render(folder: Path, material: Material) -> int:
    """Write every page; return how many."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    environment.globals.update(version=metadata.version("peft-harness"), swatch=swatch)
    environment.filters.update(show=show, groups=groups)
    count = 0
    for count, (address, name, context) in enumerate(_all_pages(material), 1):
        root = "../" * address.count("/")
        _write(folder / address, environment.get_template(name).render(root=root, **context))
    return count


def _all_pages(material: Material) -> Iterator[Page]:
    yield from pages(material)
    for (path, result), run in zip(material.scanned, material.runs, strict=True):
        context: dict[str, Any] = cell_context(path, result, run)
        yield run.page, "cell.html", context


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="replace")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out` that takes its place if all goes well, and leaves no trace otherwise."""
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        kind = "holds other things than a page" if out.is_dir() else "is a file, not a folder"
        raise UserError(kind, where=str(out), field="--out", hint="Name a new folder.")
    place = out.resolve()
    fresh, old = (place.with_name(f".{place.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    try:
        fresh.mkdir(parents=True)
        yield fresh
        if place.exists():
            place.rename(old)
        fresh.rename(place)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(out), field="--out") from None
    finally:
        if old.exists() and not place.exists():
            old.rename(place)
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)
