"""The commands that show stored results: tables (`report`, `table`, `fidelity`, `tuning`), `figures` and `site`.

Each reads the folder, makes leaderboards, and hands them to `harness.report`. Nothing here needs torch. What needs
scipy and pandas is imported inside the commands: it takes 0.7 s of processor time, the whole help 0.4 s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli.completion import complete_folder, complete_layout_list, complete_suite
from harness.cli.options import FormatOption
from harness.errors import UserError
from harness.garbage import without_gc
from harness.screen import as_html, say

if TYPE_CHECKING:
    from harness.report import Board, PublishedRecord, Significance
    from harness.results import Gathered, Result
    from harness.suite import Bold, ReportBlock, ReportSeeds

Folders = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[RESULTS]...", help="Folders of the results. \\[results]", autocompletion=complete_folder),
]
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
    str | None,
    typer.Option(
        "--layouts",
        metavar="SUITE",
        help="Suite file whose `report` block declares layouts and how they mark.",
        autocompletion=complete_suite,
    ),
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="KEY=VALUE", help="Win over what a layout asks for, e.g. backbone=t5-small."),
]

BoldOption = Annotated[
    Literal["ties", "best"] | None,
    typer.Option(
        "--bold", help="Bold: the best and all that tests cannot tell from it (ties), or the highest score (best)."
    ),
]
ReportSeedsOption = Annotated[
    Literal["all", "others"] | None,
    typer.Option(
        "--report-seeds", help="With others, the seed that chose a grid point is left out of means and tests."
    ),
]


@without_gc
def report(
    results: Folders = None,
    format: FormatOption = "terminal",
    suite: SuiteName = None,
    out: OutFile = None,
    published: Published = None,
    costs: Annotated[bool, typer.Option("--costs", help="Add time, memory, search budgets and forgetting.")] = False,
    statistics: Annotated[
        bool, typer.Option("--statistics", help="Add intervals and mark what is not separable from the best.")
    ] = False,
    bold: BoldOption = None,
    report_seeds: ReportSeedsOption = None,
    layouts: SuiteFileOption = None,
) -> None:
    """Make the leaderboard from stored results.

    Example: harness report results --format markdown --statistics --published accept-2024
    """
    if statistics and format == "csv":
        raise UserError("has no column in a CSV file", field="--statistics", hint="--format json has all of it.")
    from harness.report import render_boards

    block = report_block(layouts, bold, report_seeds)
    record = find_record(published)
    found = scan(results, suite)
    scanned = found.scanned
    boards = marked(found, record, block.report_seeds)
    if block.bold == "best":
        compare_references(boards, scanned)
    # JSON is for programs and holds all that is known; the highest score can be marked without the tests' time
    needs_tests = statistics or format == "json" or block.bold == "ties"
    verdicts = judge(boards, scanned) if needs_tests else []
    write(render_boards(boards, format, costs, verdicts, block.bold, statistics), out, format)


@without_gc
def table(
    names: Annotated[
        str,
        typer.Argument(
            metavar="A,B,...",
            help="Names, e.g. accept-1; list shows them; or all.",
            autocompletion=complete_layout_list,
        ),
    ],
    results: Folders = None,
    format: FormatOption = "terminal",
    suite: SuiteName = None,
    out: OutFile = None,
    layouts: SuiteFileOption = None,
    where: WhereOption = None,
    bold: BoldOption = None,
    report_seeds: ReportSeedsOption = None,
) -> None:
    """Fill tables of a declared shape, such as a paper's, with stored results.

    Example: harness table accept-1 results --format markdown
    """
    from harness.cli.report_layouts import conditions, layout_tables, list_layouts

    if names == "list":
        write(list_layouts(layouts), out)
        return
    asked = conditions(where, suite)
    found = scan(results, suite)
    block = report_block(layouts, bold, report_seeds)
    write(layout_tables(names, layouts, asked, found, format, block.bold, block.report_seeds), out, format)


@without_gc
def fidelity(
    name: Annotated[str, typer.Argument(metavar="NAME[:TABLE]", help="A record, e.g. accept-2024.")],
    results: Folders = None,
    format: FormatOption = "terminal",
    suite: SuiteName = None,
    out: OutFile = None,
    report_seeds: ReportSeedsOption = None,
    layouts: SuiteFileOption = None,
) -> None:
    """Set our numbers beside published ones, cell by cell.

    Example: harness fidelity accept-2024 results
    """
    from harness.report import fidelity_rows, lay_out_fidelity, render_tables

    record = find_record(name)
    boards = marked(scan(results, suite), record, report_block(layouts, None, report_seeds).report_seeds)
    write(render_tables([lay_out_fidelity(board) for board in boards], fidelity_rows(boards), format), out, format)


@without_gc
def tuning(
    results: Folders = None,
    format: FormatOption = "terminal",
    suite: SuiteName = None,
    out: OutFile = None,
    report_seeds: ReportSeedsOption = None,
    layouts: SuiteFileOption = None,
) -> None:
    """Show what the grid searches gave, and what choosing by the test split would have shown.

    Example: harness tuning results
    """
    from harness.report import lay_out_tuning, render_tables, tuning_rows

    boards = marked(scan(results, suite), None, report_block(layouts, None, report_seeds).report_seeds)
    write(render_tables([lay_out_tuning(board) for board in boards], tuning_rows(boards), format), out, format)


@without_gc
def figures(
    out: OutFolder,
    results: Folders = None,
    suite: SuiteName = None,
    layouts: SuiteFileOption = None,
    where: WhereOption = None,
    statistics: Annotated[bool, typer.Option("--statistics", help="Show intervals and ranks too.")] = False,
    report_seeds: ReportSeedsOption = None,
) -> None:
    """Draw every figure that the results have enough numbers for, as SVG, PDF and PNG.

    Example: harness figures results --out figures
    """
    from harness.cli.report_layouts import conditions, figure_layouts

    try:
        from harness.report import draw_all, draw_declared
    except ImportError:
        hint = "pip install 'peft-harness[figures]'"
        raise UserError("needs the package matplotlib", field="harness figures", hint=hint) from None
    asked, seeds = conditions(where, suite), report_block(layouts, None, report_seeds).report_seeds
    found = scan(results, suite)
    scanned, boards = found.scanned, marked(found, None, seeds)
    compare_references(boards, scanned)
    declared = draw_declared(figure_layouts(layouts), scanned, out, asked, seeds)
    paths = [*draw_all(boards, judge(boards, scanned) if statistics else [], out), *declared]
    say("".join(f"{line}\n" for line in [*paths, *found.notes]), end="")


@without_gc
def site(
    out: OutFolder,
    results: Folders = None,
    suite: SuiteName = None,
    published: Published = None,
    methods_dir: Annotated[
        list[Path] | None, typer.Option("--methods-dir", help="Another folder of method files; may be repeated.")
    ] = None,
    bold: BoldOption = None,
    report_seeds: ReportSeedsOption = None,
    layouts: SuiteFileOption = None,
) -> None:
    """Write the leaderboard and every run behind it as a folder of web pages.

    Example: harness site results --out reports/site
    """
    for folder in methods_dir or ():
        if not folder.is_dir():
            raise UserError("no such folder", where=str(folder), field="--methods-dir")
    from harness.report import write_site

    block = report_block(layouts, bold, report_seeds)
    record = find_record(published)
    found = scan(results, suite)
    scanned, boards = found.scanned, marked(found, record, block.report_seeds)
    compare_references(boards, scanned)
    folders = folders_of(results)
    pages = write_site(boards, lambda: judge(boards, scanned), scanned, folders, out, methods_dir or (), block.bold)
    say(pages, end="")


def folders_of(results: Sequence[Path] | None) -> list[Path]:
    """The folders that a command reads: those that it names, or else `results`."""
    return list(results or [Path("results")])


def scan(results: Sequence[Path] | None, suite: str | None) -> Gathered:
    """Return the results of some folders, or those of the named suites (A,B); each cell once.

    Raises UserError if there are none.
    """
    from harness.results import gather

    folders = folders_of(results)
    found = gather(folders)
    found.scanned = _of_suites(found.scanned, suite, " and ".join(map(str, folders)))
    return found


def _of_suites(scanned: Iterable[tuple[Path, Result]], suite: str | None, where: str) -> list[tuple[Path, Result]]:
    """The results of the named suites (A,B), or all. Raises UserError if there are none."""
    names = None if suite is None else [name.strip() for name in suite.split(",")]
    kept = [item for item in scanned if names is None or item[1].cell.suite in names]
    if not kept:
        raise UserError("holds no results" + (f" of suite '{suite}'" if suite else ""), where=where)
    return kept


def report_block(layouts: str | None, bold: Bold | None, report_seeds: ReportSeeds | None) -> ReportBlock:
    """The `report` block of a suite file, or the defaults, with what the command line says laid over it."""
    from harness.cli.report_layouts import block_of

    said = {"bold": bold, "report_seeds": report_seeds}
    return block_of(layouts).model_copy(update={key: value for key, value in said.items() if value is not None})


def marked(found: Gathered, record: PublishedRecord | None, report_seeds: ReportSeeds = "all") -> list[Board]:
    """Make the leaderboards of results, and note in each entry what has changed since its runs were made."""
    from harness.report import collect_boards
    from harness.results import changed_since

    boards = collect_boards((result for _, result in found.scanned), record, report_seeds, found.reruns)
    for board in boards:
        board.folders = found.notes
    for entry in (entry for board in boards for row in board.rows for entry in row.entries.values()):
        runs = [*entry.runs, *(run for search in entry.searches for run in search)]
        entry.stale = sorted({change for run in runs for change in changed_since(run)})
    return boards


def judge(boards: Sequence[Board], scanned: Sequence[tuple[Path, Result]]) -> list[Significance | None]:
    """Compute the statistics of each board, from the predictions beside its results."""
    from harness.report import assess_board
    from harness.results import PredictionFiles

    files = PredictionFiles(scanned)
    return [assess_board(board, files.test_answers) for board in boards]


def compare_references(boards: Sequence[Board], scanned: Sequence[tuple[Path, Result]]) -> None:
    """Hold entries apart whose stored references differ, for marks and fronts without a test behind them."""
    from harness.report import hold_references_apart
    from harness.results import PredictionFiles

    hold_references_apart(boards, PredictionFiles(scanned).test_answers)


def find_record(name: str | None) -> PublishedRecord | None:
    """Find a record of published numbers by its name. Raises UserError for an unknown one."""
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
