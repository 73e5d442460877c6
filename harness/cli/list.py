"""The commands that show what there is: suites, methods, parameters, tasks, rows, protocols."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from harness.backbone import resolve_backbone
from harness.cli.completion import complete_backbone, complete_folder, complete_suite, complete_task
from harness.cli.options import DataDir, ListFormat, MethodDirs, Methods, ProtocolName, Settings, parse_settings, split
from harness.data import require_folder
from harness.method import method_paths, read_specs
from harness.runner import check_method_options, find_task
from harness.screen import say
from harness.suite import find_suite


def suites(
    folder: Annotated[
        Path, typer.Argument(help="Folder whose suite files are listed too.", autocompletion=complete_folder)
    ] = Path(),
    format: ListFormat = "terminal",
) -> None:
    """List the suites that ship with the program and those of a folder: what each is for, and how many cells it has.

    Example: harness suites my_suites
    """
    from harness.cli.list_suites import describe_suites

    show(describe_suites(folder), format)


def methods(
    methods_dir: MethodDirs = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Say of each method whether it fits this network: name, folder or hub id.",
            autocompletion=complete_backbone,
        ),
    ] = None,
    format: ListFormat = "terminal",
) -> None:
    """List every method found, with what it is and, where a file is broken, why.

    Example: harness methods --backbone llama-3-8b
    """
    method_paths(methods_dir or ())
    if backbone is not None:
        resolve_backbone(backbone, "--backbone")
    from harness.cli.listings import describe_methods
    from harness.method import discover

    show(describe_methods(discover(*(methods_dir or ())), backbone), format)


def tasks(data: DataDir = None, format: ListFormat = "terminal") -> None:
    """List every task; with --data, what was found there and whether its sizes are the published ones.

    Example: harness tasks --data DIR
    """
    require_folder(data)
    from harness.cli.list_tasks import describe_tasks

    show(describe_tasks(data), format)


def params(
    backbone: Annotated[
        str, typer.Option(help="Known name, folder or hub id.", autocompletion=complete_backbone)
    ] = "t5-base",
    methods: Methods = None,
    settings: Settings = None,
    methods_dir: MethodDirs = None,
    format: ListFormat = "terminal",
) -> None:
    """Count trainable parameters, in training and kept for inference, without any download.

    Example: harness params --backbone t5-base --methods dept --set dept.source_length=348
    """
    names, changed = split(methods), parse_settings(settings)
    resolve_backbone(backbone, "--backbone")
    check_method_options(read_specs(methods_dir or ()), names, changed)
    from harness.cli.list_params import describe_params
    from harness.method import discover

    show(describe_params(discover(*(methods_dir or ())), names, backbone, changed), format)


def preview(
    task: Annotated[str, typer.Argument(help="Name of a task.", autocompletion=complete_task)],
    backbone: Annotated[
        str, typer.Option(help="Backbone whose tokenizer is used.", autocompletion=complete_backbone)
    ] = "micro-t5",
    split_name: Annotated[Literal["train", "dev", "test"], typer.Option("--split", help="Which split.")] = "train",
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 3,
    suite: Annotated[
        str | None, typer.Option(help="Suite file: its own tasks, its protocol.", autocompletion=complete_suite)
    ] = None,
    protocol: ProtocolName = None,
    data: DataDir = None,
    format: ListFormat = "terminal",
) -> None:
    """Show rows of a task exactly as the model sees them, with token counts.

    Example: harness preview cb --data DIR --backbone t5-base --rows 2
    """
    file = find_suite(suite) if suite else None
    require_folder(data)
    find_task(task, file, protocol)
    resolve_backbone(backbone, "--backbone")
    from harness.cli.list_tasks import describe_rows

    show(describe_rows(task, backbone, split_name, rows, data, file, protocol), format)


def protocols(
    format: Annotated[Literal["terminal", "markdown", "json"], typer.Option("--format", help="Form.")] = "terminal",
) -> None:
    """Show the protocols side by side: what each key decides, its value and the reason.

    Example: harness protocols --format markdown
    """
    from harness.cli.list_protocols import describe_protocols

    show(describe_protocols(format), format)


def show(data: dict[str, Any], style: str) -> None:
    """Print a listing: JSON data, or its tables as text. Ends with exit code 1 if rows of a suite do not fit."""
    if style == "json":
        say(json.dumps({key: value for key, value in data.items() if key != "text"}, indent=1))
    else:
        say(data["text"])
    if data.get("unfit"):
        raise typer.Exit(1)
