"""Renders the pages and puts them in place, whole or not at all."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.errors import UserError
from harness.report.aggregate import Board
from harness.report.significance import Significance
from harness.report.site.cells import listed, show
from harness.report.site.grids import groups
from harness.report.site.method_files import read_method_files
from harness.report.site.pages import Material, Page, cell_context, pages
from harness.report.site.runs import Run, as_csv, as_json, list_runs
from harness.report.site.swatches import swatch
from harness.report.tables import render
from harness.results import read_result
from harness.schema import Result

HERE = Path(__file__).parent
MARK = "assets/harness-site.css"
"""A folder that holds this file was written here, and may be replaced."""
MANY = 1_000
"""From so many cells on, starting processes for them pays."""
CHUNK = 250
_held: dict[Path, Result] = {}
"""Results in memory, while pages are written."""


def write_site(
    boards: Sequence[Board],
    judge: Callable[[], Sequence[Significance | None]],
    scanned: Sequence[tuple[Path, Result]],
    results: Path,
    out: Path,
    method_folders: Sequence[Path] = (),
) -> str:
    """Write all pages below `out`, in place of an earlier site there; return one line about them.

    `boards` must be made from the very results in `scanned`, which lie below `results`; `judge` works out what the
    statistics say about each board. `method_folders` hold the files of methods that are not shipped. Raises UserError
    if `out` is a file, or a folder of other things, or cannot be written.
    """
    runs = list_runs(scanned, boards, results)
    methods = read_method_files(method_folders)
    with _replacing(out) as folder:
        shutil.copytree(HERE / "static", folder / "assets")
        _write(folder / "data" / "runs.json", as_json(runs))
        _write(folder / "data" / "runs.csv", as_csv(runs))
        with _writing_cells(folder, scanned, runs):
            verdicts = judge()
            _write(folder / "data" / "leaderboards.json", render(boards, "json", significance=verdicts))
            _write(folder / "data" / "leaderboards.csv", render(boards, "csv"))
            count = _write_pages(folder, pages(Material(scanned, boards, verdicts, runs, methods)))
    return f"{count + len(runs):,} pages: {out / 'index.html'}\n"


@functools.cache
def environment() -> Environment:
    """The templates, every text escaped unless a template says otherwise."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    made.globals.update(version=metadata.version("peft-harness"), swatch=swatch)
    made.filters.update(show=show, groups=groups, listed=listed)
    return made


def write_cells(folder: Path, items: Iterable[tuple[Path, Run]]) -> None:
    """Write the page of each result, read anew in a process that does not hold it: handing it over would cost more."""

    def context(path: Path, run: Run) -> dict[str, Any]:
        return cell_context(path, _held[path] if path in _held else read_result(path), run)

    _write_pages(folder, ((run.page, "cell.html", context(path, run)) for path, run in items))


def _write_pages(folder: Path, found: Iterable[Page]) -> int:
    """Write pages; return how many."""
    templates, count = environment(), 0
    for address, name, context in found:
        root = "../" * address.count("/")
        _write(folder / address, templates.get_template(name).render(root=root, **context))
        count += 1
    return count


def _write(path: Path, text: str) -> None:
    content = text.encode("utf-8", errors="replace")
    try:
        _put(path, content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        _put(path, content)


def _put(path: Path, content: bytes) -> None:
    with open(path, "wb", buffering=0) as file:  # of thousands of small files each call of the system counts
        file.write(content)


@contextmanager
def _writing_cells(folder: Path, scanned: Sequence[tuple[Path, Result]], runs: Sequence[Run]) -> Iterator[None]:
    """Write the pages of cells; where there are many, in other processes while this one does something else."""
    items = [(path, run) for (path, _), run in zip(scanned, runs, strict=True)]
    with _holding(scanned):
        if len(items) < MANY:
            write_cells(folder, items)
            yield
            return
        with _in_processes(folder, items):
            yield


@contextmanager
def _holding(scanned: Sequence[tuple[Path, Result]]) -> Iterator[None]:
    """Results that this process and those forked from it need not read again."""
    _held.update(scanned)
    try:
        yield
    finally:
        _held.clear()


@contextmanager
def _in_processes(folder: Path, items: Sequence[tuple[Path, Run]]) -> Iterator[None]:
    # forked ones share what is in memory; elsewhere than on Linux the system's libraries do not bear that
    start = "fork" if sys.platform == "linux" else "spawn"
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1), get_context(start), gc.disable) as pool:
        jobs = [pool.submit(write_cells, folder, items[i : i + CHUNK]) for i in range(0, len(items), CHUNK)]
        try:
            yield
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


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
