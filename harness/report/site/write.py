"""Writes all pages into a new folder, which replaces the old one only if everything went well."""

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
from harness.report.boards import Board
from harness.report.site.cells import listed, show
from harness.report.site.grids import groups
from harness.report.site.method_files import read_method_files
from harness.report.site.pages import Material, Page, cell_context, pages
from harness.report.site.runs import Run, as_csv, as_json, list_runs
from harness.report.site.swatches import swatch
from harness.report.statistics.significance import Significance
from harness.report.tables import render_boards
from harness.results import Result, read_result
from harness.suite import Bold

HERE = Path(__file__).parent
MARK = "assets/harness-site.css"
"""A folder that holds this file is an earlier site and may be replaced; any other folder is left alone."""
MANY = 1_000
"""Number of cells from which on their pages are written by other processes. Starting up to four takes time
too, and 1,000 cells are one CHUNK for each."""
CHUNK = 250
"""Cells that a process takes at a time. Small enough that all end at about the same time, large enough that handing out
work costs little."""
_held: dict[Path, Result] = {}
"""Path -> result while pages are written. Forked processes share it, so they need not read the files again."""


def write_site(
    boards: Sequence[Board],
    judge: Callable[[], Sequence[Significance | None]],
    scanned: Sequence[tuple[Path, Result]],
    folders: Sequence[Path],
    out: Path,
    method_folders: Sequence[Path] = (),
    bold: Bold = "ties",
) -> str:
    """Write all pages into the folder `out`, in place of an earlier site; return one line about them.

    `boards` must be made from the results in `scanned`, which lie below `folders`. `judge` computes the
    statistics of each board: it is called here because it takes long, and pages of cells are written meanwhile.
    `method_folders` hold the files of methods that are not shipped; `bold` says what tables mark. Raises UserError if
    `out` is a file or a folder of other things, or cannot be written.
    """
    runs = list_runs(scanned, boards, folders)
    methods = read_method_files(method_folders)
    with _replacing(out) as folder:
        shutil.copytree(HERE / "static", folder / "assets")
        _write(folder / "data" / "runs.json", as_json(runs))
        _write(folder / "data" / "runs.csv", as_csv(runs))
        with _writing_cells(folder, scanned, runs):
            verdicts = judge()
            _write(folder / "data" / "leaderboards.json", render_boards(boards, "json", False, verdicts, bold))
            _write(folder / "data" / "leaderboards.csv", render_boards(boards, "csv", False, verdicts, bold))
            count = _write_pages(folder, pages(Material(scanned, boards, verdicts, runs, methods, bold)))
    return f"{count + len(runs):,} pages: {out / 'index.html'}\n"


@functools.cache
def environment() -> Environment:
    """The templates. Every text is escaped unless a template says otherwise, since names may come from anybody."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    made.globals.update(version=metadata.version("peft-harness"), swatch=swatch)
    made.filters.update(show=show, groups=groups, listed=listed)
    return made


def write_cells(folder: Path, items: Iterable[tuple[Path, Run]]) -> None:
    """Write the page of each result. A process that does not hold a result reads it: sending it would cost more."""

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
    try:  # most folders exist already: to ask each time would be one more system call a file
        _put(path, content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        _put(path, content)


def _put(path: Path, content: bytes) -> None:
    with open(path, "wb", buffering=0) as file:  # one system call a file less, which counts with thousands of files
        file.write(content)


@contextmanager
def _writing_cells(folder: Path, scanned: Sequence[tuple[Path, Result]], runs: Sequence[Run]) -> Iterator[None]:
    """Write the pages of cells; from MANY on in other processes, while this one runs the body of the `with` block."""
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
    """Keep results in `_held` while the body of the `with` block runs."""
    _held.update(scanned)
    try:
        yield
    finally:
        _held.clear()


@contextmanager
def _in_processes(folder: Path, items: Sequence[tuple[Path, Run]]) -> Iterator[None]:
    # forked processes share the results in memory; on macOS libraries may crash after a fork, and Windows has none
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
    """Give a new folder beside `out`. It replaces `out` if the `with` block succeeds, and is deleted if not."""
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        kind = "holds other things than a page" if out.is_dir() else "is a file, not a folder"
        raise UserError(kind, where=str(out), field="--out", hint="Name a new folder.")
    target = out.resolve()
    # beside it, since a rename works only within one file system
    fresh, old = (target.with_name(f".{target.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    try:
        fresh.mkdir(parents=True)
        yield fresh
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(out), field="--out") from None
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)
