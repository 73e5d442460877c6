"""The commands about one file: `check` a suite or a method, `export` a trained cell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.completion import complete_checked
from harness.cli.list import show
from harness.cli.options import ListFormat, MethodDirs, require_file
from harness.runner import judge_suite
from harness.screen import say
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


def export(
    result: Annotated[Path, typer.Argument(help="JSON of a trained cell.")],
    out: Annotated[Path, typer.Argument(help="Where to write, e.g. prompt.safetensors.")],
    backbone: Annotated[str | None, typer.Option(help="Folder or hub id, if the result's name is neither.")] = None,
    methods_dir: MethodDirs = None,
) -> None:
    """Write what inference needs of a trained cell: its prompt and added table, without the networks behind them.

    Example: harness export results/quickstart/micro_sentiment/ept/micro-t5/CELL.json ept.safetensors
    """
    require_file(result)
    from harness.method import export_result

    done = export_result(result, out, backbone, tuple(str(folder) for folder in methods_dir or ()))
    for name, shape in done.shapes.items():
        say(f"{name} {shape}")
    say(f"written to {done.path}; as few as {done.num_kept:,} numbers determine it")
    if done.source_changed:
        say("note: the method's file has changed since this cell was trained", is_error=True)
