"""The commands that read results: `harness report` and `harness score`. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.errors import UserError
from harness.report.tables import Format
from harness.report.uncollected import uncollected
from harness.screen import as_html, say

if TYPE_CHECKING:
    from harness.report.aggregate import Board
    from harness.report.published import Record
    from harness.report.significance import Significance
    from harness.report_declarations import Where
    from harness.schema import Result

Results = Annotated[Path, typer.Argument(help="Folder of the results.")]
FormatOption = Annotated[
    Literal[Format, "site"], typer.Option("--format", help="Form of the tables; site is a folder of web pages.")
]
SuiteName = Annotated[str | None, typer.Option(help="Only this suite, or several: A,B.")]
OutFile = Annotated[
    Path | None, typer.Option(help="Write to this file instead of the screen; with --format site, to this folder.")
]
Published = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:TABLE]",
        help="Put a record of published numbers beside the measured ones, e.g. accept-2024, or one table of it.",
    ),
]
Fidelity = Annotated[
    str | None, typer.Option(metavar="NAME[:TABLE]", help="Instead: our numbers beside a record's, cell by cell.")
]
Tuning = Annotated[
    bool, typer.Option("--tuning", help="Instead: what the grid searches gave, and what choosing by test would.")
]
FigureFolder = Annotated[Path | None, typer.Option(metavar="DIR", help="Instead: draw the figures into this folder.")]
Layouts = Annotated[
    str | None,
    typer.Option(
        "--table", metavar="A,B,...", help="Instead: tables of a declared shape, e.g. accept-1; list names all."
    ),
]
SuiteFileOption = Annotated[
    str | None, typer.Option("--layouts", metavar="SUITE", help="Suite file whose `report` block declares layouts.")
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="KEY=VALUE", help="Win over what a layout asks for, e.g. backbone=t5-small."),
]
Costs = Annotated[bool, typer.Option("--costs", help="Add time per step and peak memory.")]
Statistics = Annotated[
    bool, typer.Option("--statistics", help="Add intervals and mark what is not separable from the best.")
]
MethodFolders = Annotated[
    list[Path] | None,
    typer.Option("--methods-dir", help="With --format site: another folder of method files; may be repeated."),
]


@uncollected
def report(
    results: Results = Path("results"),
    format: FormatOption = "terminal",
    suite: SuiteName = None,
    out: OutFile = None,
    published: Published = None,
    fidelity: Fidelity = None,
    tuning: Tuning = False,
    figures: FigureFolder = None,
    table: Layouts = None,
    layouts: SuiteFileOption = None,
    where: WhereOption = None,
    costs: Costs = False,
    statistics: Statistics = False,
    methods_dir: MethodFolders = None,
) -> None:
    """Make the leaderboard from stored results.

    Example: harness report results --format markdown --statistics --published accept-2024
    """
    from harness.cli_layouts import conditions, layout_tables, list_layouts
    from harness.report.published import find
    from harness.report.tables import render

    if sum((fidelity is not None, tuning, figures is not None, table is not None)) > 1:
        raise UserError("only one of --fidelity, --tuning, --figures and --table can be made at a time")
    if statistics and (fidelity is not None or tuning or table is not None or format == "csv"):
        raise UserError("has no place here", field="--statistics", hint="Tables, figures and --format json have it.")
    if format == "site":
        check_site(out, fidelity is not None or tuning or figures is not None or table is not None)
    if published is not None and (tuning or figures is not None or fidelity is not None or table is not None):
        raise UserError("stands beside the leaderboard only", field="--published")
    if table is None and figures is None:
        check_unused({"--where": where, "--layouts": layouts}, "is for --table and --figures only")
    if format != "site":
        check_unused({"--methods-dir": methods_dir}, "is for --format site only")
    if table == "list":
        return write(list_layouts(layouts), out)
    wanted = fidelity or published
    record = None if wanted is None else find(wanted)
    scanned, asked = scan(results, suite), conditions(where, suite)
    if format == "site":
        return site(marked(scanned, record), scanned, results, out, methods_dir or ())
    if table is not None:
        return write(layout_tables(table, layouts, asked, [result for _, result in scanned], format), out, format)
    boards = marked(scanned, record)
    if fidelity is not None:
        text = fidelity_tables(boards, format)
    elif tuning:
        text = tuning_tables(boards, format)
    elif figures is not None:
        text = draw(boards, judge(boards, scanned) if statistics else [], figures, scanned, layouts, asked)
    else:
        verdicts = judge(boards, scanned) if statistics or format == "json" else []
        text = render(boards, format, costs, verdicts)
    write(text, out, format)


def marked(scanned: Sequence[tuple[Path, Result]], record: Record | None) -> list[Board]:
    """The leaderboards of results; each entry knows what has changed since its runs were made."""
    from harness.report.aggregate import collect
    from harness.staleness import changed_since

    boards = collect((result for _, result in scanned), record)
    for entry in (entry for board in boards for row in board.rows for entry in row.entries.values()):
        runs = [*entry.runs, *(run for search in entry.searches for run in search)]
        entry.stale = sorted({change for run in runs for change in changed_since(run)})
    return boards


def scan(results: Path, suite: str | None) -> list[tuple[Path, Result]]:
    """All results below a folder, of some suites only where names are given. Raises UserError if there are none."""
    from harness.results import ResultStore

    names = None if suite is None else [name.strip() for name in suite.split(",")]
    scanned = [item for item in ResultStore(results).scan() if names is None or item[1].cell.suite in names]
    if not scanned:
        raise UserError("holds no results" + (f" of suite '{suite}'" if suite else ""), where=str(results))
    return scanned


def check_unused(given: Mapping[str, object], problem: str) -> None:
    """Raise UserError for an option that would change nothing: its answer would pass for another."""
    for name, value in given.items():
        if value:
            raise UserError(problem, field=name)


def check_site(out: Path | None, is_other: bool) -> None:
    """Raise UserError where a page is asked for together with what it cannot be."""
    if is_other:
        problem = "is the leaderboard; leave out --fidelity, --tuning, --figures and --table"
        raise UserError(problem, field="--format site")
    if out is None:
        raise UserError("is missing; a page is a folder", field="--out", hint="For example --out reports/site.")


def site(
    boards: Sequence[Board],
    scanned: Sequence[tuple[Path, Result]],
    results: Path,
    out: Path | None,
    method_folders: Sequence[Path],
) -> None:
    """Write the pages of the leaderboard into the folder `out`. Raises UserError where that cannot be."""
    from harness.report.site.write import write_site

    assert out is not None, "checked before anything was read"
    for folder in method_folders:
        if not folder.is_dir():
            raise UserError("no such folder", where=str(folder), field="--methods-dir")
    say(write_site(boards, lambda: judge(boards, scanned), scanned, results, out, method_folders), end="")


def fidelity_tables(boards: Sequence[Board], format: Format) -> str:
    """Our numbers beside those of the boards' record."""
    from harness.report.fidelity import lay_out_fidelity, records
    from harness.report.tables import render_records

    return render_records([lay_out_fidelity(board) for board in boards], records(boards), format)


def tuning_tables(boards: Sequence[Board], format: Format) -> str:
    """What the grid searches of the boards gave."""
    from harness.report.tables import render_records
    from harness.report.tuning import lay_out_tuning, records

    return render_records([lay_out_tuning(board) for board in boards], records(boards), format)


def draw(
    boards: Sequence[Board], verdicts: Sequence[Significance | None], folder: Path,
    scanned: Sequence[tuple[Path, Result]], layouts: str | None, where: Where,
) -> str:  # fmt: skip
    """Draw all figures; one line per figure. Raises UserError where matplotlib is missing."""
    from harness.cli_layouts import figure_layouts

    try:
        from harness.report.figures import draw_all
        from harness.report.figures_declared import draw_declared
    except ImportError:
        raise UserError(
            "needs the package matplotlib", field="--figures", hint="pip install 'peft-harness[figures]'"
        ) from None
    declared = draw_declared(figure_layouts(layouts), scanned, folder, where)
    paths = [*draw_all(boards, verdicts, folder), *declared]
    return "".join(f"{path}\n" for path in paths)


def judge(boards: Sequence[Board], scanned: Sequence[tuple[Path, Result]]) -> list[Significance | None]:
    """The statistics of each board, from the predictions beside its results."""
    from harness.report.significance import assess
    from harness.report.stored import PredictionFiles

    files = PredictionFiles(scanned)
    return [assess(board, files.test_answers) for board in boards]


def write(text: str, out: Path | None, style: str = "terminal") -> None:
    """Print a report, or write it to a file. Raises UserError if that cannot be written."""
    if out is None:
        say(as_html(text) if style == "html" else text, end="")
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(out), field="--out") from None


@uncollected
def score(results: Results = Path("results")) -> None:
    """Recompute every metric from the stored predictions and show what moved; exit code 1 if anything did.

    Example: harness score results
    """
    from harness.report.rescore import rescore

    checked = rescore(scan(results, None))
    for line in [*checked.moved, *checked.refused]:
        say(line)
    say(f"{checked.num_scores:,} scores of {checked.num_runs:,} runs recomputed, {len(checked.moved)} differ")
    if checked.moved:
        raise typer.Exit(1)
