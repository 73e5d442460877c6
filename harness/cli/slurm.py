"""The command `slurm`: a suite as an array of tasks."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import (
    Backbones,
    CheckpointEvery,
    DataDir,
    MethodDirs,
    Methods,
    ProtocolName,
    ResultsDir,
    Seeds,
    Settings,
    Tasks,
    parse_wait,
)
from harness.cli.run import judged, read_overrides
from harness.errors import UserError
from harness.files import discard, put_in_place, write_aside
from harness.runner import GRACE_S, Allocation, batch_script
from harness.screen import say

SBATCH = typer.Option(
    "--sbatch", metavar="OPTION", help="A further option of sbatch, e.g. --qos=long; may be repeated."
)
SETUP = typer.Option(
    "--setup", metavar="LINE", help="A line before the command, e.g. 'module load cuda'; may be repeated."
)


def slurm(
    suite: Annotated[str, typer.Argument(help="Suite file, or the name of a shipped suite.")],
    out: Annotated[Path | None, typer.Option(help="Where to write the script. [harness-SUITE.sh]")] = None,
    jobs: Annotated[int, typer.Option(help="Tasks of the array.")] = 4,
    time: Annotated[
        str, typer.Option(help="Time limit of a task; what is left then goes on in its next turn.")
    ] = "12:00:00",
    cpus: Annotated[int, typer.Option(help="Processors of a task.")] = 4,
    gpus: Annotated[int, typer.Option(help="GPUs of a task.")] = 0,
    grace: Annotated[
        int, typer.Option(help="Seconds before the time limit at which a task stops behind a checkpoint.")
    ] = GRACE_S,
    memory: Annotated[str | None, typer.Option(help="Memory of a task, e.g. 32G.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition of the cluster.")] = None,
    account: Annotated[str | None, typer.Option(help="Account that is charged.")] = None,
    sbatch: Annotated[list[str] | None, SBATCH] = None,
    setup: Annotated[list[str] | None, SETUP] = None,
    methods: Methods = None,
    tasks: Tasks = None,
    backbones: Backbones = None,
    seeds: Seeds = None,
    settings: Settings = None,
    protocol: ProtocolName = None,
    results: ResultsDir = Path("results"),
    data: DataDir = None,
    methods_dir: MethodDirs = None,
    checkpoint_every: CheckpointEvery = None,
    wait: Annotated[
        str, typer.Option(metavar="TIME", help="How long a task with nothing to do stays, should another one die.")
    ] = "15m",
) -> None:
    """Write a script for SLURM: an array of tasks that share the results folder.

    Example: harness slurm suites/superglue.yaml --jobs 8 --gpus 1 --time 04:00:00 --results /shared/out
    """
    overrides = read_overrides(methods, tasks, backbones, seeds, settings, protocol, checkpoint_every)
    parse_wait(wait)
    path = judged(suite, overrides, data, methods_dir)
    target = out or Path(f"harness-{path.stem}.sh")
    if target.is_dir():
        raise UserError("this is a folder; give the name of a file", where=str(target), field="--out")
    logs = Path(f"{results.absolute()}-slurm")
    given = {"--methods": methods, "--tasks": tasks, "--backbones": backbones, "--seeds": seeds, "--protocol": protocol}
    given |= {"--data": data and str(Path(data).absolute()), "--checkpoint-every": checkpoint_every, "--wait": wait}
    command = [sys.executable, "-m", "harness", "run", str(path.absolute()), "--results", str(results.absolute())]
    command += [part for option, value in given.items() if value is not None for part in (option, value)]
    command += [part for folder in methods_dir or () for part in ("--methods-dir", str(folder.absolute()))]
    command += [part for setting in settings or () for part in ("--set", setting)]
    allocation = Allocation(jobs, time, cpus, gpus, grace, memory, partition, account, tuple(sbatch or ()))
    python_path = os.environ.get("PYTHONPATH", "")
    text = batch_script(path.stem, command, allocation, logs, Path.cwd(), setup or (), python_path)
    try:
        written = write_aside(target, lambda aside: aside.write_text(text))
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(target), field="--out") from None
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        discard([written])
        raise UserError(f"the folder of logs cannot be made: {error.strerror}", where=str(logs)) from None
    put_in_place([written])
    say(f"written to {target}; logs will stand in {logs}")
    say(f"Next: sbatch {target}")
