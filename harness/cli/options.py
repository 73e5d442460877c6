"""Options that several commands have, and how their values are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from harness.cli import completion
from harness.errors import UserError

Methods = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,...",
        help="Only these rows of the suite, or other methods with their own defaults.",
        autocompletion=completion.complete_method_list,
    ),
]
Tasks = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,...",
        help="These tasks instead of the suite's: names, or titles of tables.",
        autocompletion=completion.complete_task_list,
    ),
]
Backbones = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,...",
        help="These instead of the suite's: known names, folders, hub ids, or short names of the suite's own.",
        autocompletion=completion.complete_backbone_list,
    ),
]
Seeds = Annotated[str | None, typer.Option(metavar="A,B,...", help="These training seeds instead of the suite's.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a suite value, e.g. recipe.steps=300.")
]
ProtocolName = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="NAME",
        help="Another protocol than the suite's, unchanged.",
        autocompletion=completion.complete_protocol,
    ),
]
ResultsDir = Annotated[
    Path, typer.Option("--results", help="Folder of the results.", autocompletion=completion.complete_folder)
]
DataDir = Annotated[
    str | None,
    typer.Option(
        "--data",
        envvar="HARNESS_DATA",
        help="Folder with local copies of the tasks' data.",
        autocompletion=completion.complete_folder,
    ),
]
MethodDirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--methods-dir",
        help="Another folder of method files; may be repeated.",
        autocompletion=completion.complete_folder,
    ),
]
RerunOption = Annotated[Literal["none", "failed", "stale"], typer.Option(help="Which stored results to make again.")]
CheckpointEvery = Annotated[
    str | None, typer.Option(metavar="TIME", help="How often training is kept on disk: 90s, 10m, 2h, 500steps, or off.")
]
EngineOption = Annotated[
    Literal["local", "ray"], typer.Option(help="Train in this process, or on the workers of a Ray cluster.")
]
Address = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="A running Ray cluster, or auto; else Ray is started here.")
]
CpusPerBundle = Annotated[int | None, typer.Option(metavar="N", help="Processors of each of Ray's workers. [1]")]
GpusPerBundle = Annotated[
    int | None, typer.Option(metavar="N", help="GPUs of each of Ray's workers, on machines that have any. [1]")
]
WaitOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Leave once other processes have had all that is left for so long: 90s, 10m, 2h. [stay]"
    ),
]
TrackOption = Annotated[
    Literal["tensorboard", "wandb", "mlflow"] | None, typer.Option(help="Show live curves of every cell there.")
]
Format = Literal["terminal", "markdown", "latex", "html", "csv", "json"]
"""The forms that a table of results can be written in. They stand here, not beside their writers in `report/tables.py`:
those need scipy, which no `--help` should wait for."""
FormatOption = Annotated[Format, typer.Option("--format", help="Form of the tables.")]
ListFormat = Annotated[Literal["terminal", "json"], typer.Option("--format", help="terminal or json.")]


def split(names: str | None) -> list[str] | None:
    """`a,b` -> ["a", "b"]."""
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def split_ints(names: str | None) -> list[int] | None:
    """`1,2` -> [1, 2]. Raises UserError on anything else."""
    try:
        return None if names is None else [int(name) for name in split(names) or []]
    except ValueError:
        raise UserError(f"expected whole numbers, got '{names}'", field="--seeds") from None


def parse_settings(pairs: list[str] | None) -> dict[str, Any]:
    """`["recipe.steps=300"]` -> {"recipe.steps": 300}, values read as YAML."""
    from harness.yaml_lines import parse_value

    settings = {}
    for pair in pairs or []:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise UserError(f"expected KEY=VALUE, got '{pair}'", field="--set")
        settings[key] = parse_value(value, f"--set {key}")
    return settings


def parse_wait(text: str | None) -> float | None:
    """`10m` -> 600 seconds. Raises UserError on anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(s|m|h)", text, re.ASCII)
    if found is None:
        raise UserError(f"expected a time such as 90s, 10m or 2h; got '{text}'", field="--wait")
    return float(int(found[1]) * {"s": 1, "m": 60, "h": 3_600}[found[2]])


def require_file(path: Path) -> None:
    """Raise UserError unless there is such a file, before what reads it is imported."""
    if not path.is_file():
        raise UserError("no such file", where=str(path))
