"""Stored results as the report commands read them: filtered, made into leaderboards, judged, written. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import UserError
from harness.screen import as_html, say

if TYPE_CHECKING:
    from harness.report import Board, PublishedRecord, Significance
    from harness.results import Result

Results = Annotated[Path, typer.Argument(help="Folder of the results.")]
SuiteName = Annotated[str | None, typer.Option(help="Only this suite, or several: A,B.")]
OutFile = Annotated[Path | None, typer.Option(help="Write to this file instead of the screen.")]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Write into this folder.")]
Published = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:TABLE]",
        help="Put a record of published numbers beside the measured ones, e.g. accept-2024, or one table of it.",
    ),
]
SuiteFileOption = Annotated[
    str | None, typer.Option("--layouts", metavar="SUITE", help="Suite file whose `report` block declares layouts.")
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="KEY=VALUE", help="Win over what a layout asks for, e.g. backbone=t5-small."),
]


def scan(results: Path, suite: str | None) -> list[tuple[Path, Result]]:
    """All results below a folder, of some suites only where names are given. Raises UserError if there are none."""
    from harness.results import ResultStore

    names = None if suite is None else [name.strip() for name in suite.split(",")]
    scanned = [item for item in ResultStore(results).scan() if names is None or item[1].cell.suite in names]
    if not scanned:
        raise UserError("holds no results" + (f" of suite '{suite}'" if suite else ""), where=str(results))
    return scanned


def marked(scanned: Sequence[tuple[Path, Result]], record: PublishedRecord | None) -> list[Board]:
    """The leaderboards of results; each entry knows what has changed since its runs were made."""
    from harness.report import collect_boards
    from harness.results import changed_since

    boards = collect_boards((result for _, result in scanned), record)
    for entry in (entry for board in boards for row in board.rows for entry in row.entries.values()):
        runs = [*entry.runs, *(run for search in entry.searches for run in search)]
        entry.stale = sorted({change for run in runs for change in changed_since(run)})
    return boards


def judge(boards: Sequence[Board], scanned: Sequence[tuple[Path, Result]]) -> list[Significance | None]:
    """The statistics of each board, from the predictions beside its results."""
    from harness.report import assess_board
    from harness.results import PredictionFiles

    files = PredictionFiles(scanned)
    return [assess_board(board, files.test_answers) for board in boards]


def find_record(name: str | None) -> PublishedRecord | None:
    """A record of published numbers by its name. Raises UserError for an unknown one."""
    from harness.report import find_published

    return None if name is None else find_published(name)


def write(text: str, out: Path | None, style: str = "terminal") -> None:
    """Print a report, or write it to a file. Raises UserError if that cannot be written."""
    if out is None:
        say(as_html(text) if style == "html" else text, end="")
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(out), field="--out") from None
