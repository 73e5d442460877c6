"""The commands that print tables of results: `report`, `table`, `fidelity` and `tuning`. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.boards import (
    OutFile,
    Published,
    Results,
    SuiteFileOption,
    SuiteName,
    WhereOption,
    find_record,
    judge,
    marked,
    scan,
    write,
)
from harness.errors import UserError
from harness.report import Format, without_gc

FormatOption = Annotated[Format, typer.Option("--format", help="Form of the tables.")]


@without_gc
def report(
    results: Results = Path("results"),
    format: FormatOption = "terminal",
    suite: SuiteName = None,
    out: OutFile = None,
    published: Published = None,
    costs: Annotated[bool, typer.Option("--costs", help="Add time per step and peak memory.")] = False,
    statistics: Annotated[
        bool, typer.Option("--statistics", help="Add intervals and mark what is not separable from the best.")
    ] = False,
) -> None:
    """Make the leaderboard from stored results.

    Example: harness report results --format markdown --statistics --published accept-2024
    """
    if statistics and format == "csv":
        raise UserError("has no column in a CSV file", field="--statistics", hint="--format json has all of it.")
    from harness.report import render_boards

    record = find_record(published)
    scanned = scan(results, suite)
    boards = marked(scanned, record)
    verdicts = judge(boards, scanned) if statistics or format == "json" else []
    write(render_boards(boards, format, costs, verdicts), out, format)


@without_gc
def table(
    names: Annotated[str, typer.Argument(metavar="A,B,...", help="Names, e.g. accept-1; list shows them; or all.")],
    results: Results = Path("results"),
    format: FormatOption = "terminal",
    suite: SuiteName = None,
    out: OutFile = None,
    layouts: SuiteFileOption = None,
    where: WhereOption = None,
) -> None:
    """Fill tables of a declared shape, such as a paper's, with stored results.

    Example: harness table accept-1 results --format markdown
    """
    from harness.cli.report_layouts import conditions, layout_tables, list_layouts

    if names == "list":
        write(list_layouts(layouts), out)
        return
    asked = conditions(where, suite)
    scanned = scan(results, suite)
    write(layout_tables(names, layouts, asked, [result for _, result in scanned], format), out, format)


@without_gc
def fidelity(
    name: Annotated[str, typer.Argument(metavar="NAME[:TABLE]", help="A record, e.g. accept-2024.")],
    results: Results = Path("results"),
    format: FormatOption = "terminal",
    suite: SuiteName = None,
    out: OutFile = None,
) -> None:
    """Set our numbers beside published ones, cell by cell.

    Example: harness fidelity accept-2024 results
    """
    from harness.report import fidelity_rows, lay_out_fidelity, render_tables

    record = find_record(name)
    boards = marked(scan(results, suite), record)
    write(render_tables([lay_out_fidelity(board) for board in boards], fidelity_rows(boards), format), out, format)


@without_gc
def tuning(
    results: Results = Path("results"), format: FormatOption = "terminal", suite: SuiteName = None, out: OutFile = None
) -> None:
    """Show what the grid searches gave, and what choosing by the test split would have shown.

    Example: harness tuning results
    """
    from harness.report import lay_out_tuning, render_tables, tuning_rows

    boards = marked(scan(results, suite), None)
    write(render_tables([lay_out_tuning(board) for board in boards], tuning_rows(boards), format), out, format)
