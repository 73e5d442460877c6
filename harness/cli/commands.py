"""The command `harness`. Each command is a thin layer over a function and imports that when it is called."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from harness.cli import check as cli_check
from harness.cli import export as cli_export
from harness.cli import folders as cli_folders
from harness.cli import list as cli_list
from harness.cli import new as cli_new
from harness.cli import report as cli_report
from harness.cli import results as cli_store
from harness.cli import run as cli_run
from harness.cli import slurm as cli_slurm
from harness.cli.choices import CommandWithChoices
from harness.cli.moved import PlanCommand, ReportCommand
from harness.errors import UserError
from harness.provenance import program_version
from harness.screen import replace_missing_characters, say

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train every registered tuning method on a suite of tasks and make a leaderboard one can trust.",
)


def _show_version(asked: bool) -> None:
    if asked:
        say(f"harness {program_version()}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """What stands before a command."""


# in the order of the help: begin, run, look at results, look after them, look around, look at one file
app.command(cls=CommandWithChoices)(cli_new.new)
app.command(cls=CommandWithChoices)(cli_run.run)
app.command(cls=PlanCommand)(cli_run.plan)
app.command(cls=CommandWithChoices)(cli_run.devices)
app.command(cls=CommandWithChoices)(cli_slurm.slurm)
app.command(cls=ReportCommand)(cli_report.report)
app.command(cls=CommandWithChoices)(cli_report.table)
app.command(cls=CommandWithChoices)(cli_report.fidelity)
app.command(cls=CommandWithChoices)(cli_report.tuning)
app.command(cls=CommandWithChoices)(cli_report.figures)
app.command(cls=CommandWithChoices)(cli_report.site)
app.command(cls=CommandWithChoices)(cli_store.score)
app.command(cls=CommandWithChoices)(cli_store.verify)
app.command(cls=CommandWithChoices)(cli_folders.compare)
app.command(cls=CommandWithChoices)(cli_folders.merge)
app.command(cls=CommandWithChoices)(cli_list.suites)
app.command(cls=CommandWithChoices)(cli_list.methods)
app.command(cls=CommandWithChoices)(cli_list.params)
app.command(cls=CommandWithChoices)(cli_list.tasks)
app.command(cls=CommandWithChoices)(cli_list.preview)
app.command(cls=CommandWithChoices)(cli_list.protocols)
app.command(cls=CommandWithChoices)(cli_check.check)
app.command(cls=CommandWithChoices)(cli_export.export)
app.command(cls=CommandWithChoices)(cli_new.schema)


def _refuse_shell(words: list[str]) -> None:
    """Raise UserError where a shell is named to an option that takes the calling one: Typer drops the word unsaid."""
    option, *named = words or [""]
    if option in ("--install-completion", "--show-completion") and named:
        raise UserError(
            f"takes no value, got '{named[0]}'; it is for the shell that it is called from",
            field=option,
            hint=f"Type `harness {option}` in that shell: bash, zsh, fish or PowerShell.",
        )


def main() -> None:
    """Run the command line: a user's mistake ends with one message and exit code 2."""
    replace_missing_characters()
    try:
        _refuse_shell(sys.argv[1:])
        app(prog_name="harness")  # also as `python -m harness`, which completion could not be asked for
    except UserError as error:
        say(f"error: {error}", is_error=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
