"""The script for SLURM, run by bash as slurmd runs it: what each signal does, and what goes back into the queue."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli.commands import app
from harness.errors import UserError
from harness.runner import Allocation, batch_script
from harness.runner.slurm_script import seconds_of

ALLOCATION = Allocation(4, "12:00:00", cpus=2)


def written(tmp_path: Path, command: str, setup: Sequence[str] = ()) -> Path:
    """A script that runs a line of bash, in a folder whose name needs quotes."""
    folder = tmp_path / "a folder's"
    folder.mkdir(exist_ok=True)
    path = tmp_path / "job.sh"
    path.write_text(batch_script("my suite", ["bash", "-c", command], ALLOCATION, tmp_path / "logs", folder, setup))
    return path


def start(tmp_path: Path, path: Path, restarts: int = 0) -> subprocess.Popen[str]:
    """Run a script with what slurmd sets; `scontrol` writes down how it was called."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "scontrol").write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/requeued\n')
    (tools / "scontrol").chmod(0o755)
    given = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "2"}
    given |= {"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"}
    given["SLURM_RESTART_COUNT"] = str(restarts)
    return subprocess.Popen(["bash", str(path)], env=os.environ | given, text=True, stdout=subprocess.PIPE)


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


# stops at SIGTERM with 143, as `harness run` does, but only when its step is over
STOPS = 'trap "sleep 0.2; touch saved; exit 143" TERM; touch begun; while true; do sleep 0.02; done'


@pytest.mark.parametrize(
    ("sent", "restarts", "requeued"),
    [(signal.SIGUSR1, 0, True), (signal.SIGTERM, 0, False), (signal.SIGUSR1, 100, False)],
    ids=["the time is nearly up", "cancelled", "put back too often"],
)
def test_a_signal_lets_the_run_stop_behind_its_step(
    tmp_path: Path, sent: signal.Signals, restarts: int, requeued: bool
) -> None:
    process = start(tmp_path, written(tmp_path, STOPS), restarts)
    folder = tmp_path / "a folder's"
    wait_for(folder / "begun")
    process.send_signal(sent)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert ("turn 1 ends before its time limit; back into the queue" in said) == requeued
    assert (folder / "saved").exists(), "the script must wait for the run to stop"
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 77_3\n"


@pytest.mark.parametrize("code", [0, 1, 2, 9])
def test_the_code_of_a_run_is_that_of_the_task(tmp_path: Path, code: int) -> None:
    process = start(tmp_path, written(tmp_path, f"exit {code}"))
    process.communicate(timeout=60)
    assert process.returncode == code
    assert not (tmp_path / "requeued").exists()


def test_a_run_that_ends_as_its_time_is_up_is_not_repeated(tmp_path: Path) -> None:
    process = start(tmp_path, written(tmp_path, 'trap "exit 1" TERM; touch begun; while true; do sleep 0.02; done'))
    wait_for(tmp_path / "a folder's" / "begun")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert not (tmp_path / "requeued").exists()


def test_setup_and_processors_reach_the_command(tmp_path: Path) -> None:
    process = start(tmp_path, written(tmp_path, 'echo "$OMP_NUM_THREADS $MINE"', setup=["export MINE='a b'"]))
    assert process.communicate(timeout=60)[0] == "2 a b\n"


def test_the_callers_python_path_reaches_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters may start tasks without the caller's environment, and in another folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"lib's:/opt/x:{tmp_path}")
    done = CliRunner().invoke(app, ["slurm", "quickstart", "--results", "out"])
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "harness-quickstart.sh").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("export PYTHONPATH=")]
    for of_node, expected in (("", ""), ("/of/node", ":/of/node")):
        shown = subprocess.run(["bash", "-c", f'{line}; printf %s "$PYTHONPATH"'], env={"PYTHONPATH": of_node},
                               capture_output=True, text=True, check=True).stdout  # fmt: skip
        assert shown == f"{tmp_path}/lib's:/opt/x:{tmp_path}{expected}"
    assert lines.index(line) < next(i for i, text in enumerate(lines) if " -m harness run " in text)
    monkeypatch.delenv("PYTHONPATH")
    assert CliRunner().invoke(app, ["slurm", "quickstart", "--results", "out"]).exit_code == 0
    assert "PYTHONPATH" not in (tmp_path / "harness-quickstart.sh").read_text()


@pytest.mark.parametrize(
    ("allocation", "field"),
    [
        (Allocation(0, "1:00:00", 1), "--jobs"),
        (Allocation(1, "1 hour", 1), "--time"),
        (Allocation(1, "1:00:00", 0), "--cpus"),
        (Allocation(1, "1:00:00", 1, gpus=-1), "--gpus"),
        (Allocation(1, "1:00:00", 1, grace_s=0), "--grace"),
        (Allocation(1, "8:59", 1), "--time"),
        (Allocation(1, "2:59", 1, grace_s=60), "--time"),
        (Allocation(1, "1:00:00", 1, memory="32 GB"), "--memory"),
        (Allocation(1, "1:00:00", 1, partition="a\n#SBATCH --exclusive"), "--partition"),
        (Allocation(1, "1:00:00", 1, account="me; rm"), "--account"),
        (Allocation(1, "1:00:00", 1, further=("exclusive",)), "--sbatch"),
        (Allocation(1, "1:00:00", 1, further=("--time=1",)), "Give --time"),
        (Allocation(1, "1:00:00", 1, further=("--sig=USR2",)), "Give --grace"),
        (Allocation(1, "1:00:00", 1, further=("--no-requeue",)), "Change it in the script"),
    ],
)
def test_a_value_that_sbatch_cannot_read_is_told(tmp_path: Path, allocation: Allocation, field: str) -> None:
    with pytest.raises(UserError) as told:
        batch_script("s", ["true"], allocation, tmp_path, tmp_path)
    assert field in str(told.value)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("30", 1_800),
        ("10:30", 630),
        ("1:30:00", 5_400),
        ("2-12", 216_000),
        ("2-12:30", 217_800),
        ("1-00:00:01", 86_401),
    ],
)
def test_every_form_of_a_time_limit_is_taken(tmp_path: Path, time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds
    made = batch_script("s", ["true"], Allocation(1, time, 1), tmp_path, tmp_path)
    assert f"#SBATCH --time={time}\n" in made


def test_the_command_writes_what_each_task_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = "slurm quickstart --jobs 3 --gpus 2 --results out --methods lora --set recipe.steps=4 --sbatch=--qos=long"
    done = CliRunner().invoke(app, asked.split())
    assert done.exit_code == 0, done.output
    text = (tmp_path / "harness-quickstart.sh").read_text()
    assert (tmp_path / "out-slurm").is_dir(), "slurmd makes no folder for its logs"
    for line in ("--array=0-2", "--gpus=2", "--qos=long", "--signal=B:USR1@180", "--requeue"):
        assert f"#SBATCH {line}\n" in text
    assert f"--results {tmp_path}/out --methods lora --wait 15m --set recipe.steps=4 &" in text
    assert subprocess.run(["bash", "-n", "harness-quickstart.sh"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--wait soon", "--wait"),
        ("--time never", "--time"),
        ("--set recipe.stepz=1", "steps"),
        ("--checkpoint-every sometimes", "checkpoint_every"),
        ("--results /dev/null/x", "cannot be made"),
        ("--out /dev/null/x.sh", "cannot be written"),
    ],
)
def test_a_mistake_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["slurm", "quickstart", *options.split()])
    assert told in str(done.exception)
    assert not list(tmp_path.iterdir())
