"""The command `check`: a suite file, or a method file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.completion import complete_checked
from harness.cli.list import show
from harness.cli.options import ListFormat, MethodDirs, require_file
from harness.runner import judge_suite
from harness.suite import Overrides, find_suite


def check(
    path: Annotated[
        Path,
        typer.Argument(help="A suite file (.yaml) or a method file (.py).", autocompletion=complete_checked),
    ],
    methods_dir: MethodDirs = None,
    format: ListFormat = "terminal",
) -> None:
    """Check a suite file, or hold a method file to the contract on a tiny backbone.

    Example: harness check methods/dept.py
    """
    folders = [str(folder) for folder in methods_dir or ()]
    if path.suffix != ".py":
        suite = find_suite(str(path))
        judge_suite(suite, Overrides(), folders)
        from harness.cli.listings import describe_suite

        show(describe_suite(suite, folders), format)
        return
    require_file(path)
    from harness.cli.listings import describe_contract
    from harness.train import check_method_file

    findings = check_method_file(path)
    show(describe_contract(path, findings), format)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
