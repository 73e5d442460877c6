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


_command = app.command(cls=CommandWithChoices)
# in the order of the help: begin, run, look at results, look after them, look around, look at one file
_command(cli_new.new)
_command(cli_run.run)
app.command(cls=PlanCommand)(cli_run.plan)
_command(cli_run.devices)
_command(cli_slurm.slurm)
app.command(cls=ReportCommand)(cli_report.report)
_command(cli_report.table)
_command(cli_report.fidelity)
_command(cli_report.tuning)
_command(cli_report.figures)
_command(cli_report.site)
_command(cli_store.score)
_command(cli_store.verify)
_command(cli_folders.compare)
_command(cli_folders.merge)
_command(cli_list.suites)
_command(cli_list.methods)
_command(cli_list.params)
_command(cli_list.tasks)
_command(cli_list.preview)
_command(cli_list.protocols)
_command(cli_check.check)
_command(cli_export.export)
_command(cli_new.schema)


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
