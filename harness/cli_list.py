"""The commands that list what there is: suites, methods, tasks, protocols."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from harness.cli_options import DataDir, ListFormat, MethodDirs
from harness.screen import say


def suites(
    folder: Annotated[Path, typer.Argument(help="Folder whose suite files are listed too.")] = Path(),
    format: ListFormat = "terminal",
) -> None:
    """List the suites that ship with the program and those of a folder: what each is for, and how many cells it has.

    Example: harness suites my_suites
    """
    from harness.listings_suites import describe_suites

    show(describe_suites(folder), format)


def methods(methods_dir: MethodDirs = None, format: ListFormat = "terminal") -> None:
    """List every method found, with what it is and, where a file is broken, why.

    Example: harness methods --methods-dir my_methods
    """
    from harness.listings import describe_methods
    from harness.method import discover

    show(describe_methods(discover(*(methods_dir or ()))), format)


def tasks(data: DataDir = None, format: ListFormat = "terminal") -> None:
    """List every task; with --data, what was found there and whether its sizes are the published ones.

    Example: harness tasks --data DIR
    """
    from harness.listings_data import describe_tasks

    show(describe_tasks(data), format)


def protocols(
    format: Annotated[Literal["terminal", "markdown", "json"], typer.Option("--format", help="Form.")] = "terminal",
) -> None:
    """Show the protocols side by side: what each key decides, its value and the reason.

    Example: harness protocols --format markdown
    """
    from harness.listings_protocols import describe_protocols

    show(describe_protocols(format), format)


def show(data: dict[str, Any], style: str) -> None:
    """Print a listing: JSON data, or its tables as text. Ends with exit code 1 if rows of a suite do not fit."""
    if style == "json":
        say(json.dumps({key: value for key, value in data.items() if key != "text"}, indent=1))
    else:
        say(data["text"])
    if data.get("unfit"):
        raise typer.Exit(1)
