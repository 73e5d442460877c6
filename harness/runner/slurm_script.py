"""A batch script for SLURM: an array whose tasks share one results folder.

Every task of the array runs the same command. Which cells a task trains is settled by claims in the results folder, so
there is no list to keep, and a task that dies leaves nothing behind that another could not take over. The script is
plain bash, to be read, changed and submitted again.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError

GRACE_S = 180
"""Seconds before the time limit at which a task is told to stop. A run stops after its step and writes a checkpoint:
seconds on most networks; a step of 11 billion parameters with its evaluation may take a minute."""
MOST_RESTARTS = 100
"""A task is put back into the queue as often at most, so that one that never gets further ends some day."""
LEAST_TURN = 3
"""A time limit is as many times the grace at least: a task that only starts and stops would do so for ever."""
_TIME = r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}"
_FORMS = {
    "--time": (_TIME, "minutes, HH:MM:SS or DAYS-HH:MM:SS, e.g. 12:00:00"),
    "--memory": (r"\d+[KMGT]?", "megabytes, or a number with K, M, G or T, e.g. 32G"),
    "--partition": (r"[\w.,-]+", "a name of `sinfo`"),
    "--account": (r"[\w.-]+", "a name of `sacctmgr show account`"),
    "--sbatch": (r"--[a-z][a-z-]*(=[^\s'\"]+)?", "one option as sbatch has it, e.g. --qos=long"),
}
_OWN = {
    "array": "--jobs",
    "time": "--time",
    "cpus-per-task": "--cpus",
    "gpus": "--gpus",
    "mem": "--memory",
    "partition": "--partition",
    "account": "--account",
    "signal": "--grace",
    "output": "--results",
}
"""Options of sbatch that the script sets -> ours. Given a second time they would win, over our checks too."""
_FIXED = ("job-name", "open-mode", "requeue", "no-requeue")


@dataclass(frozen=True)
class Allocation:
    """What a task of the array asks SLURM for."""

    num_tasks: int
    time: str
    """SLURM's own form, such as 12:00:00."""
    cpus: int
    gpus: int = 0
    grace_s: int = GRACE_S
    """Seconds before the time limit at which a task stops."""
    memory: str | None = None
    partition: str | None = None
    account: str | None = None
    further: tuple[str, ...] = ()
    """Further options of sbatch, such as --qos=long."""

    def check(self) -> None:
        """Raise UserError for a value that sbatch would not read, or that would end its line."""
        for field, value, least in (
            ("--jobs", self.num_tasks, 1),
            ("--cpus", self.cpus, 1),
            ("--gpus", self.gpus, 0),
            ("--grace", self.grace_s, 1),
        ):
            if value < least:
                raise UserError(f"expected {least} or more, got {value}", field=field)
        named = [("--time", self.time), ("--memory", self.memory), ("--partition", self.partition)]
        named += [("--account", self.account), *(("--sbatch", option) for option in self.further)]
        for field, text in named:
            form, meaning = _FORMS[field]
            if text is not None and re.fullmatch(form, text, re.ASCII) is None:
                raise UserError(f"expected {meaning}; got '{text}'", field=field)
        for option in self.further:
            # sbatch takes the beginning of a name for the name
            name = option.removeprefix("--").partition("=")[0]
            ours = next((own for theirs, own in _OWN.items() if theirs.startswith(name)), None)
            if ours or any(fixed.startswith(name) for fixed in _FIXED):
                hint = f"Give {ours}." if ours else "Change it in the script that is written."
                raise UserError(f"'{option}' is set by the script itself", field="--sbatch", hint=hint)
        if seconds_of(self.time) < LEAST_TURN * self.grace_s:
            raise UserError(
                f"a task stops {self.grace_s} seconds before its time limit of {self.time}: nothing would be trained",
                field="--time",
                hint=f"Give {LEAST_TURN * self.grace_s // 60} minutes or more, or a shorter --grace.",
            )

    def lines(self) -> list[str]:
        """The options, one of sbatch a line."""
        made = [f"--array=0-{self.num_tasks - 1}", f"--time={self.time}", f"--cpus-per-task={self.cpus}"]
        made += [f"--gpus={self.gpus}"] * (self.gpus > 0)
        made += [f"--mem={self.memory}"] * (self.memory is not None)
        made += [f"--partition={self.partition}"] * (self.partition is not None)
        made += [f"--account={self.account}"] * (self.account is not None)
        return [*made, *self.further]


def seconds_of(time: str) -> int:
    """A time limit of SLURM in seconds: minutes, MM:SS, HH:MM:SS, DAYS-HH, DAYS-HH:MM or DAYS-HH:MM:SS."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash or len(parts) == 3:
        parts += [0] * (3 - len(parts))
    else:
        parts = [0, *parts, *[0] * (2 - len(parts))]
    hours, minutes, seconds = parts
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def batch_script(
    name: str,
    command: Sequence[str],
    allocation: Allocation,
    logs: Path,
    folder: Path,
    setup: Sequence[str] = (),
    python_path: str = "",
) -> str:
    """The text of a script for `sbatch`.

    `command` is what each task runs in `folder`, behind the lines of `setup`. `logs` is a folder that exists on all
    nodes. `python_path` is the caller's PYTHONPATH: it goes into the script, since sbatch may be called from another
    shell, and clusters may start tasks without the caller's environment. Raises UserError for values that sbatch would
    not read.
    """
    allocation.check()
    for field, text in (("--setup", line) for line in setup):
        if "\n" in text:
            raise UserError("expected one line each; the option may be repeated", field=field)
    if any(sign in str(logs) for sign in "\n\"'%\\"):
        raise UserError("sbatch cannot write logs below a folder with such a name", where=str(logs))
    options = [
        f"--job-name=harness-{re.sub(r'[^A-Za-z0-9._-]', '-', name)}",
        *allocation.lines(),
        f'--output="{logs}/%A_%a.log"',
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{allocation.grace_s}",
    ]
    return _SCRIPT.format(
        name=name.replace("\n", " "),
        options="\n".join(f"#SBATCH {option}" for option in options),
        folder=shlex.quote(str(folder)),
        setup="".join(f"{line}\n" for line in setup),
        python_path=_python_path(python_path, folder),
        command=shlex.join(command),
        most=MOST_RESTARTS,
        grace=allocation.grace_s,
    )


def _python_path(given: str, folder: Path) -> str:
    """The line that sets PYTHONPATH, with its relative entries as `folder` has them; nothing where none is set.

    What the node sets itself stays behind it.
    """
    if not given:
        return ""
    entries = [str(folder / entry) for entry in given.split(os.pathsep)]  # an empty entry is the folder itself
    path = shlex.quote(os.pathsep.join(dict.fromkeys(entries)))
    return f'export PYTHONPATH={path}"${{PYTHONPATH:+:$PYTHONPATH}}"\n'


_SCRIPT = """#!/bin/bash
# Suite {name} as an array of tasks that share one results folder. Submit it with sbatch; submit it again at any time:
# what is stored stays, and what is missing is trained.
{options}
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}" PYTHONUNBUFFERED=1
{python_path}cd {folder} || exit 2
{setup}
child=0 again=no
# {grace} seconds before the time limit: stop behind a checkpoint, then go back into the queue
trap 'again=yes; kill -TERM "$child" 2> /dev/null' USR1
# scancel and preemption: stop behind a checkpoint
trap 'kill -TERM "$child" 2> /dev/null' TERM
{command} &
child=$!
# a signal ends `wait` before the command has ended
while true; do
  wait "$child"
  code=$?
  if [ "$code" -le 128 ] || ! kill -0 "$child" 2> /dev/null; then break; fi
done
# 0, 1 and 2 are the command's own: done, with failed cells, a mistake that another try would repeat
if [ "$again" = yes ] && [ "$code" -gt 2 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {most} ]; then
  # without this line nothing tells that a turn was too short for the start of the command
  printf 'turn %s ends before its time limit; back into the queue\\n' "$((${{SLURM_RESTART_COUNT:-0}} + 1))"
  # SLURM_JOB_ID of one of the tasks is that of the whole array
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""
