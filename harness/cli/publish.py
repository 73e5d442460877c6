"""The commands that write a folder to show: `figures` and `site`. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.boards import (
    OutFolder,
    Published,
    Results,
    SuiteFileOption,
    SuiteName,
    WhereOption,
    find_record,
    judge,
    marked,
    scan,
)
from harness.errors import UserError
from harness.report import without_gc
from harness.screen import say


@without_gc
def figures(
    out: OutFolder,
    results: Results = Path("results"),
    suite: SuiteName = None,
    layouts: SuiteFileOption = None,
    where: WhereOption = None,
    statistics: Annotated[bool, typer.Option("--statistics", help="Show intervals and ranks too.")] = False,
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
    asked = conditions(where, suite)
    scanned = scan(results, suite)
    boards = marked(scanned, None)
    declared = draw_declared(figure_layouts(layouts), scanned, out, asked)
    paths = [*draw_all(boards, judge(boards, scanned) if statistics else [], out), *declared]
    say("".join(f"{path}\n" for path in paths), end="")


@without_gc
def site(
    out: OutFolder,
    results: Results = Path("results"),
    suite: SuiteName = None,
    published: Published = None,
    methods_dir: Annotated[
        list[Path] | None, typer.Option("--methods-dir", help="Another folder of method files; may be repeated.")
    ] = None,
) -> None:
    """Write the leaderboard and every run behind it as a folder of web pages.

    Example: harness site results --out reports/site
    """
    for folder in methods_dir or ():
        if not folder.is_dir():
            raise UserError("no such folder", where=str(folder), field="--methods-dir")
    from harness.report import write_site

    record = find_record(published)
    scanned = scan(results, suite)
    boards = marked(scanned, record)
    pages = write_site(boards, lambda: judge(boards, scanned), scanned, results, out, methods_dir or ())
    say(pages, end="")
