"""The command `harness`. Each command is a thin layer over a function; torch is imported only where it is used."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from harness import cli_list, cli_report, cli_store
from harness.cli_list import show
from harness.cli_options import (
    Address,
    Backbones,
    CheckpointEvery,
    CpusPerBundle,
    DataDir,
    EngineOption,
    GpusPerBundle,
    ListFormat,
    MethodDirs,
    Methods,
    ProtocolName,
    RerunOption,
    ResultsDir,
    Seeds,
    Settings,
    Tasks,
    TrackOption,
)
from harness.errors import UserError
from harness.provenance import program_version
from harness.screen import make_bearable, say
from harness.shipped_suites import find_suite

if TYPE_CHECKING:
    from harness.runner import RunSummary

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


@app.command()
def run(
    suite: Annotated[str, typer.Argument(help="Suite file, or the name of a shipped suite.")],
    methods: Methods = None,
    tasks: Tasks = None,
    backbones: Backbones = None,
    seeds: Seeds = None,
    settings: Settings = None,
    protocol: ProtocolName = None,
    results: ResultsDir = Path("results"),
    data: DataDir = None,
    methods_dir: MethodDirs = None,
    rerun: RerunOption = "none",
    checkpoint_every: CheckpointEvery = None,
    engine: EngineOption = "local",
    address: Address = None,
    cpus_per_bundle: CpusPerBundle = None,
    gpus_per_bundle: GpusPerBundle = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    track: TrackOption = None,
) -> None:
    """Train every missing cell of a suite and store the results.

    Example: harness run suites/superglue.yaml --methods accept,ept,dept --tasks cb,wic --set recipe.steps=300
    """
    from harness.engines import make_engine
    from harness.runner import run as run_suite
    from harness.stop import Stopped

    changed = parse_settings(settings)
    if checkpoint_every is not None:
        changed["execution.checkpoint_every"] = checkpoint_every
    try:
        summary = run_suite(
            find_suite(suite),
            methods=split(methods),
            tasks=split(tasks),
            backbones=split(backbones),
            seeds=split_ints(seeds),
            settings=changed,
            protocol=protocol,
            results=results,
            data=data,
            method_dirs=methods_dir or (),
            rerun=rerun,
            engine=make_engine(engine, address, cpus_per_bundle, gpus_per_bundle),
            quiet=quiet,
            track=track,
        )
    except KeyboardInterrupt as stopped:
        kept = "finished cells are stored, and of those in training the last checkpoint"
        say(f"stopped; {kept}: the same command continues", is_error=True)
        raise typer.Exit(stopped.exit_code if isinstance(stopped, Stopped) else 130) from None
    say(_account(summary))
    say(_next(summary))
    if summary.num_failed or summary.num_kept_failed or summary.unfit:
        raise typer.Exit(1)


def _account(summary: RunSummary) -> str:
    """What a run did, in one line; before it, which rows do not fit and why."""
    return (
        "".join(f"{line}\n" for line in summary.unfit)
        + f"{summary.num_trained} cells trained, {summary.num_failed} of them failed; "
        f"{summary.num_kept} were there already"
        + (f", {summary.num_kept_failed} as failures (--rerun failed tries again)" if summary.num_kept_failed else "")
        + (f"; {summary.num_stale} are stale (--rerun stale makes them again)" if summary.num_stale else "")
        + (f"; {summary.num_elsewhere} were trained by other processes" if summary.num_elsewhere else "")
        + (f"; {len(summary.unfit)} rows do not fit and were left out, see above" if summary.unfit else "")
        + f". Results: {summary.results}"
    )


def _next(summary: RunSummary) -> str:
    """What to type next: the last line of a run."""
    failed = summary.num_failed + summary.num_kept_failed
    again = "; the same run with --rerun failed tries the failed cells again" if failed else ""
    return f"Next: harness report {shlex.quote(str(summary.results))}{again}"


@app.command()
def plan(
    suite: Annotated[str | None, typer.Argument(help="Suite file, or the name of a shipped suite.")] = None,
    methods: Methods = None,
    tasks: Tasks = None,
    backbones: Backbones = None,
    seeds: Seeds = None,
    settings: Settings = None,
    protocol: ProtocolName = None,
    results: ResultsDir = Path("results"),
    data: DataDir = None,
    methods_dir: MethodDirs = None,
    probe: Annotated[
        bool | None,
        typer.Option(
            "--probe/--no-probe",
            help="Measure this device for seconds where no stored result tells its speed. By default with weights that "
            "are on this machine, up to a billion.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="Say instead which backbones fit, e.g. h200.")
    ] = None,
    rules: Annotated[bool, typer.Option("--rules", help="Print the keys of the protocol too, with reasons.")] = False,
    format: ListFormat = "terminal",
) -> None:
    """Show the cells of a suite, what is done, missing or stale, each method's budget and the time; trains nothing.

    Example: harness plan suites/quickstart.yaml; harness plan --device a100-80gb --backbones t5-3b,llama-2-7b
    """
    if device is not None:
        others = {"--methods": methods, "--tasks": tasks, "--seeds": seeds, "--set": settings, "--protocol": protocol}
        for option in (name for name, value in others.items() if value):
            raise UserError("changes nothing beside --device, which asks for backbones only", field=option)
        from harness.device_plan import describe_device

        show(describe_device(device, split(backbones) or (suite_backbones(suite) if suite else None)), format)
        return
    if suite is None:
        raise UserError("names no suite", field="SUITE", hint="Or ask what fits a device: --device NAME.")
    from harness.listings import describe_plan
    from harness.planning import make_plan
    from harness.suite import Overrides

    overrides = Overrides(
        split(methods), split(tasks), split(backbones), split_ints(seeds), parse_settings(settings), protocol
    )
    made = make_plan(find_suite(suite), overrides, results, data, [str(folder) for folder in methods_dir or ()])
    show(describe_plan(made, probe, rules), format)


app.command()(cli_report.report)
app.command()(cli_report.score)
app.command()(cli_store.verify)


app.command()(cli_list.suites)


app.command()(cli_list.methods)


@app.command()
def params(
    backbone: Annotated[str, typer.Option(help="Known name, folder or hub id.")] = "t5-base",
    methods: Methods = None,
    settings: Settings = None,
    methods_dir: MethodDirs = None,
    format: ListFormat = "terminal",
) -> None:
    """Count trainable parameters, in training and kept for inference, without any download.

    Example: harness params --backbone t5-base --methods dept --set dept.source_length=348
    """
    from harness.listings_params import describe_params
    from harness.method import discover

    found = discover(*(methods_dir or ()))
    show(describe_params(found, split(methods), backbone, parse_settings(settings)), format)


app.command()(cli_list.tasks)


@app.command()
def preview(
    task: Annotated[str, typer.Argument(help="Name of a task.")],
    backbone: Annotated[str, typer.Option(help="Backbone whose tokenizer is used.")] = "micro-t5",
    split_name: Annotated[Literal["train", "dev", "test"], typer.Option("--split", help="Which split.")] = "train",
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 3,
    suite: Annotated[str | None, typer.Option(help="Suite file: its own tasks, its protocol.")] = None,
    protocol: ProtocolName = None,
    data: DataDir = None,
    format: ListFormat = "terminal",
) -> None:
    """Show rows of a task exactly as the model sees them, with token counts.

    Example: harness preview cb --data DIR --backbone t5-base --rows 2
    """
    from harness.listings_data import describe_rows

    file = find_suite(suite) if suite else None
    show(describe_rows(task, backbone, split_name, rows, data, file, protocol), format)


app.command()(cli_list.protocols)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="A suite file (.yaml) or a method file (.py).")],
    methods_dir: MethodDirs = None,
    format: ListFormat = "terminal",
) -> None:
    """Check a suite file, or hold a method file to the contract on a tiny backbone.

    Example: harness check methods/dept.py
    """
    from harness.contract import check_method_file
    from harness.listings import describe_contract, describe_suite

    if path.suffix != ".py":
        show(describe_suite(find_suite(str(path)), [str(folder) for folder in methods_dir or ()]), format)
        return
    findings = check_method_file(path)
    show(describe_contract(path, findings), format)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def export(
    result: Annotated[Path, typer.Argument(help="JSON of a trained cell.")],
    out: Annotated[Path, typer.Argument(help="Where to write, e.g. prompt.safetensors.")],
    backbone: Annotated[str | None, typer.Option(help="Folder or hub id, if the result's name is neither.")] = None,
    methods_dir: MethodDirs = None,
) -> None:
    """Write what inference needs of a trained cell: its prompt and added table, without the networks behind them.

    Example: harness export results/quickstart/micro_sentiment/ept/micro-t5/CELL.json ept.safetensors
    """
    from harness.export import export_result

    done = export_result(result, out, backbone, tuple(str(folder) for folder in methods_dir or ()))
    for name, shape in done.shapes.items():
        say(f"{name} {shape}")
    say(f"written to {done.path}; as few as {done.num_kept:,} numbers determine it")
    if done.source_changed:
        say("note: the method's file has changed since this cell was trained", is_error=True)


def suite_backbones(suite: str) -> list[str]:
    """Sources of a suite's backbones."""
    from harness.suite import Overrides, load_suite

    return list(load_suite(find_suite(suite), Overrides()).backbone_sources.values())


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
    from harness.yaml12 import parse_value

    settings = {}
    for pair in pairs or []:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise UserError(f"expected KEY=VALUE, got '{pair}'", field="--set")
        settings[key] = parse_value(value, f"--set {key}")
    return settings


def main() -> None:
    """Run the command line: a user's mistake ends with one message and exit code 2."""
    make_bearable()
    try:
        app()
    except UserError as error:
        say(f"error: {error}", is_error=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
