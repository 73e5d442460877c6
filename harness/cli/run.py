"""The commands about the cells of a suite: `run`, `plan` and `devices`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.backbone import resolve_backbone
from harness.cli.completion import complete_backbone_list, complete_suite
from harness.cli.list import show
from harness.cli.options import (
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
    WaitOption,
    parse_settings,
    parse_wait,
    split,
    split_ints,
)
from harness.data import require_folder
from harness.errors import UserError
from harness.garbage import without_gc
from harness.runner import judge_suite
from harness.screen import say
from harness.suite import Overrides, find_suite, load_suite

if TYPE_CHECKING:
    from harness.runner import RunSummary

Suite = Annotated[
    str, typer.Argument(help="Suite file, or the name of a shipped suite.", autocompletion=complete_suite)
]


def run(
    suite: Suite,
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
    wait: WaitOption = None,
) -> None:
    """Train every missing cell of a suite and store the results.

    Example: harness run suites/superglue.yaml --methods accept,ept,dept --tasks cb,wic --set recipe.steps=300
    """
    overrides = read_overrides(methods, tasks, backbones, seeds, settings, protocol, checkpoint_every)
    wait_s = parse_wait(wait)
    path = judged(suite, overrides, data, methods_dir)
    from harness.runner import make_engine
    from harness.runner import run as run_suite
    from harness.stop import Stopped

    try:
        summary = run_suite(
            path,
            methods=overrides.methods,
            tasks=overrides.tasks,
            backbones=overrides.backbones,
            seeds=overrides.seeds,
            settings=dict(overrides.settings),
            protocol=protocol,
            results=results,
            data=data,
            method_dirs=methods_dir or (),
            rerun=rerun,
            engine=make_engine(engine, address, cpus_per_bundle, gpus_per_bundle),
            quiet=quiet,
            track=track,
            wait_s=wait_s,
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
        + (f"; {summary.num_left} are left to other processes, --wait is over" if summary.num_left else "")
        + (f"; rows that do not fit and were left out, see above: {len(summary.unfit)}" if summary.unfit else "")
        + f". Results: {summary.results}"
    )


def _next(summary: RunSummary) -> str:
    """What to type next: the last line of a run."""
    failed = summary.num_failed + summary.num_kept_failed
    again = "; the same run with --rerun failed tries the failed cells again" if failed else ""
    return f"Next: harness report {shlex.quote(str(summary.results))}{again}"


@without_gc
def plan(
    suite: Suite,
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
    rules: Annotated[bool, typer.Option("--rules", help="Print the keys of the protocol too, with reasons.")] = False,
    format: ListFormat = "terminal",
) -> None:
    """Show the cells of a suite, what is done, missing or stale, each method's budget and the time; trains nothing.

    Example: harness plan suites/quickstart.yaml
    """
    overrides = read_overrides(methods, tasks, backbones, seeds, settings, protocol)
    path = judged(suite, overrides, data, methods_dir)
    from harness.cli.listings import describe_plan
    from harness.runner import make_plan

    made = make_plan(path, overrides, results, data, [str(folder) for folder in methods_dir or ()])
    show(describe_plan(made, probe, rules), format)


def devices(
    device: Annotated[str, typer.Argument(metavar="NAME", help="A device, e.g. h200.")],
    backbones: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Only these: known names, folders or hub ids. [all known]",
            autocompletion=complete_backbone_list,
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="Only the backbones of this suite file or shipped suite.", autocompletion=complete_suite),
    ] = None,
    format: ListFormat = "terminal",
) -> None:
    """Show which backbones fit the memory of a device, and in how many bits; needs neither the device nor a download.

    Example: harness devices a100-80gb --backbones t5-3b,llama-2-7b
    """
    if backbones is not None and suite is not None:
        raise UserError("both say which backbones; give one of them", field="--backbones and --suite")
    asked = split(backbones) if suite is None else _suite_backbones(suite)
    for name in asked or ():
        resolve_backbone(name, "--backbones" if suite is None else suite)
    from harness.runner import describe_device

    show(describe_device(device, asked), format)


def read_overrides(
    methods: str | None, tasks: str | None, backbones: str | None, seeds: str | None, settings: list[str] | None,
    protocol: str | None, checkpoint_every: str | None = None,
) -> Overrides:  # fmt: skip
    """What the options change in a suite. Raises UserError for a text that cannot be read."""
    lists = split(methods), split(tasks), split(backbones)
    changed = parse_settings(settings)
    if checkpoint_every is not None:
        changed["execution.checkpoint_every"] = checkpoint_every
    return Overrides(*lists, split_ints(seeds), changed, protocol)


def judged(suite: str, overrides: Overrides, data: str | None, methods_dir: list[Path] | None) -> Path:
    """The file of a suite. Raises UserError for every mistake that can be told before torch is imported."""
    path = find_suite(suite)
    require_folder(data)
    judge_suite(path, overrides, methods_dir or ())
    return path


def _suite_backbones(suite: str) -> list[str]:
    """What a suite names as its backbones: known names, folders or hub ids."""
    return list(load_suite(find_suite(suite), Overrides()).backbone_sources.values())
