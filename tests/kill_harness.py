"""Kill a run at random moments, continue it, and hold what it ends with against a run that nobody touched.

    python -m tests.kill_harness --kills 200
    python -m tests.kill_harness --kills 200 --processes 2

A trial kills a forked run (SIGKILL) after a random time or at a random file operation, before, in the middle of or
behind it, or makes that operation fail. After each trial every stored result has to be whole and what was finished
before has to be untouched. Once a run comes to its end, its results have to equal those of the untouched run.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import harness
from harness.results.schema import Result
from harness.results.store import NotStored, ResultStore, predictions_path, tensors_path
from harness.runner import engines
from harness.runner.run_suite import Rerun
from harness.suite.cell import Key
from harness.train.bundle import Bundle, BundleListener, train_bundle
from harness.train.cell_result import CellResult

SUITE = """\
suite: kills
backbones: [micro-t5]
tasks: [TASKS]
seeds: [1, 2]
recipe: {steps: STEPS, batch_size: 4, eval_every: EVERY, warmup_steps: 1, warmup_max_share: 1.0,
         backbone_dropout: false, precision: float64}
methods:
  majority:
  prompt_tuning: {prompt_length: 4, recipe: {lr: {sweep: [0.1, 0.3]}}}
  dept: {prompt_length: 3, budget_length: 6, added_lr: 0.001, recipe: {lr: {sweep: [0.1, 0.3]}}}
  lora: {rank: 2, dropout: 0, recipe: {lr: {sweep: [0.003, 0.01]}}}
  adamix: {rank: 2, recipe: {lr: 0.001}}
execution: {checkpoint_every: 2 steps}
define_tasks:
"""
TASK = """\
  NAME: {files: rows.csv, fields: {NAME: text}, label: verdict, labels: [bad, good], dev_share: 12, test_share: 12,
         max_source_length: 32}
"""


@dataclass(frozen=True)
class Trouble:
    """What happens to a run: at its `at`-th file operation, or after `after_s` seconds."""

    kind: str
    """time, before, within, behind or error."""
    at: int = 0
    after_s: float = 0.0


@dataclass
class Tally:
    """What was done and seen."""

    kinds: Counter[str] = field(default_factory=Counter)
    num_kills: int = 0
    num_runs: int = 0
    num_continued: int = 0
    num_stored: int = 0


def suite_text(tasks: str = "one", steps: int = 8, every: int = 4) -> str:
    """Grids, winners' further seeds, cells in a bundle and alone, a method that draws random numbers in training."""
    text = SUITE.replace("TASKS", tasks).replace("STEPS", str(steps)).replace("EVERY", str(every))
    return text + "".join(TASK.replace("NAME", name.strip()) for name in tasks.split(","))


def lay_out(folder: Path, text: str) -> None:
    """A folder with the suite file and the rows of its tasks."""
    folder.mkdir()
    (folder / "suite.yaml").write_text(text)
    rows = [f"number {i} was {'fine' if i % 3 else 'no use'},{'good' if i % 3 else 'bad'}" for i in range(60)]
    (folder / "rows.csv").write_text("\n".join(["text,verdict", *rows]) + "\n")


def forked(work: Callable[[], None]) -> int:
    """Run `work` in a child that has everything loaded; return its process number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        code = 0
    except NotStored:
        code = 2
    except BaseException:  # the child must not go on as a second parent
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def train(folder: Path, rerun: Rerun = "none") -> None:
    """One run of the folder's suite; bundles and their products are logged."""

    def logged(bundle: Bundle, listener: BundleListener) -> None:
        for cell in bundle.cells:
            log(folder, "begin", cell.key)
        say, on_product = listener.say, listener.on_product

        def store(product: CellResult) -> None:
            on_product(product)
            log(folder, "end", product.result.key)

        def tell(text: str) -> None:
            log(folder, "said", ("", "", text))
            say(text)

        listener.on_product, listener.say = store, tell
        train_bundle(bundle, listener)

    vars(engines)["execute"] = logged
    harness.run(folder / "suite.yaml", results=folder / "results", quiet=True, rerun=rerun)


def log(folder: Path, event: str, key: tuple[str, ...] = ("", "", ""), process: int | None = None) -> None:
    """Append one line, whole, whoever else writes."""
    line = json.dumps([time.time(), process or os.getpid(), event, *key]) + "\n"
    with open(folder / "log.jsonl", "ab", buffering=0) as file:
        file.write(line.encode())


def make_trouble(trouble: Trouble, folder: Path) -> None:
    """Let the `at`-th of the operations that storing consists of end the process, or fail."""
    calls = 0

    def wrapped(original: Callable[..., Any], is_write: bool) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls != trouble.at:
                return original(*args, **kwargs)
            if trouble.kind == "error":
                raise OSError(random.choice([errno.ENOSPC, errno.EIO]), "made up for this test")
            if trouble.kind == "within" and is_write:
                content = bytes(kwargs.get("data", args[1] if len(args) > 1 else b""))
                original(args[0], content[: len(content) // 2])
            elif trouble.kind == "behind":
                original(*args, **kwargs)
            log(folder, "dies")
            os.kill(os.getpid(), signal.SIGKILL)

        return operation

    setattr(Path, "write_bytes", wrapped(Path.write_bytes, True))  # noqa: B010
    for name in ("fsync", "replace", "link"):
        setattr(os, name, wrapped(getattr(os, name), False))


def snapshot(folder: Path) -> dict[str, tuple[str, float]]:
    """Every finished result, read in full, as path -> (digest, time of change). Raises if one is not whole."""
    found = {}
    if not (folder / "results").is_dir():
        return {}
    for path, result in ResultStore(folder / "results").scan():
        for beside, digest in (
            (predictions_path(path), result.files.predictions),
            (tensors_path(path), result.files.tensors),
        ):
            if digest is not None:
                assert hashlib.sha256(beside.read_bytes()).hexdigest() == digest, f"{beside} is not what {path} says"
        if result.status == "done":
            found[str(path)] = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime)
    return found


def outcome(result: Result, exact: bool) -> tuple[Any, ...]:
    """What has to be the same: scores, history, predictions; tensors and losses too where bundles are the same."""
    losses = [item.train_loss if exact else None for item in result.dev_history]
    history = [(item.step, item.metrics) for item in result.dev_history]
    tensors = result.files.tensors if exact else None
    scores = result.dev, result.test, result.selected_step, result.raced_out_at
    return result.status, history, losses, scores, result.files.predictions, tensors


def outcomes(folder: Path, exact: bool) -> dict[Key, tuple[Any, ...]]:
    scanned = ResultStore(folder / "results").scan()
    return {result.key: outcome(result, exact) for _, result in scanned}


def overlaps(folder: Path, ended: dict[int, float]) -> list[str]:
    """Cells that were begun while another process that still lived had begun and not finished them."""
    owner: dict[tuple[str, ...], int] = {}
    twice = []
    stored = {r.key: p.stat().st_mtime for p, r in ResultStore(folder / "results").scan()}
    for line in (folder / "log.jsonl").read_text().splitlines():
        when, process, event, *parts = json.loads(line)
        key = tuple(parts)
        if event == "dies":  # its cells may be taken over at once, long before its parent hears of it
            owner = {cell: other for cell, other in owner.items() if other != process}
        if event == "end":  # stored, as done or as a failure that another process may try again
            owner.pop(key, None)
        if event != "begin":
            continue
        before = owner.get(key)
        if before not in (None, process) and ended.get(before or 0, float("inf")) > when:
            twice.append(f"{key} by {before} and {process}")
        if stored.get(key, float("inf")) < when - 0.05:
            twice.append(f"{key} was finished when {process} began it")
        owner[key] = process
    return twice


def troubles(chance: random.Random, typical_s: float) -> Iterator[Trouble]:
    """Half of them by time, half at file operations."""
    while True:
        kind = chance.choice(["time", "time", "time", "before", "within", "behind", "error"])
        yield Trouble(kind, at=chance.randint(1, 60), after_s=chance.uniform(0.0, typical_s))


def untouched(folder: Path, text: str) -> float:
    """A run to hold the others against, after which this process has everything in memory; return its seconds."""
    lay_out(folder, text)
    started = time.monotonic()
    harness.run(folder / "suite.yaml", results=folder / "results", quiet=True)
    return time.monotonic() - started


_untouched_s: dict[str, float] = {}
"""Seconds that the untouched run of each folder took."""


def trial(folder: Path, plans: list[Trouble], chance: random.Random, ended: dict[int, float]) -> list[int]:
    """Run as many processes as there are plans, each with its trouble; return their exit codes."""
    rerun: Rerun = "failed" if chance.random() < 0.9 else "none"

    def start(plan: Trouble) -> int:
        def work() -> None:
            if plan.kind != "time":
                make_trouble(plan, folder)
            train(folder, rerun)

        return forked(work)

    begun = time.monotonic()
    children = {start(plan): plan for plan in plans}
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child, plan in children.items():
            if child in codes:
                continue
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
                ended[child] = time.time()
            elif plan.kind == "time" and time.monotonic() - begun > plan.after_s:
                log(folder, "dies", process=child)
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return list(codes.values())


def kill_and_continue(
    folder: Path, reference: Path, text: str, plans: Iterator[Trouble], chance: random.Random, most_kills: int,
    processes: int, tally: Tally,
) -> None:  # fmt: skip
    """One run with trouble until it ends, and what must hold after each trial and at the end."""
    lay_out(folder, text)
    (folder / "log.jsonl").touch()  # an operation that fails before the first cell begins leaves no line
    ended: dict[int, float] = {}
    finished: dict[str, tuple[str, float]] = {}
    had_error = False
    while True:
        is_last = tally.num_kills >= most_kills
        now = [Trouble("time", after_s=1e9) if is_last else next(plans) for _ in range(processes)]
        codes = trial(folder, now, chance, ended)
        assert set(codes) <= {0, 2, -signal.SIGKILL}, f"a run ended with {codes} after {now}"
        killed = sum(code == -signal.SIGKILL for code in codes)
        tally.num_kills += killed
        tally.kinds.update(
            plan.kind for plan, code in zip(now, codes, strict=True) if code != 0 or plan.kind == "error"
        )
        had_error |= any(plan.kind == "error" for plan in now)
        found = snapshot(folder)
        assert {path: found.get(path) for path in finished} == finished, "a finished cell was lost or trained again"
        finished = found
        if 0 in codes and all(item[0] == "done" for item in outcomes(folder, True).values()):
            break
    exact = processes == 1 and not had_error
    ours, theirs = outcomes(folder, exact), outcomes(reference, exact)
    differing = [name for name, expected in theirs.items() if ours.get(name) != expected]
    assert not differing, f"differ from the untouched run: {differing}"
    assert had_error or ours.keys() == theirs.keys(), "cells that the untouched run did not train"
    assert not (twice := overlaps(folder, ended)), f"trained twice at one time: {twice}"
    text = (folder / "log.jsonl").read_text()
    tally.num_continued += text.count("continued from a checkpoint")
    tally.num_runs += 1
    tally.num_stored += len(ours)


def kills(num_kills: int, processes: int, seed: int, text: str, where: Path, within: float = 1.0) -> Tally:
    """Kill runs `num_kills` times in all; raises AssertionError for whatever is not as it should be.

    An untouched run of the same suite that is already in `where` is taken for the one to hold the others against.
    """
    torch.set_num_threads(1)
    os.environ["HARNESS_CACHE"] = "off"
    chance, tally = random.Random(seed), Tally()
    reference = where / "untouched"
    seconds = _untouched_s.get(str(reference)) or _untouched_s.setdefault(str(reference), untouched(reference, text))
    plans = troubles(chance, seconds * within)
    while tally.num_kills < num_kills:
        folder = where / f"run-{tally.num_runs}"
        kill_and_continue(folder, reference, text, plans, chance, num_kills, processes, tally)
        shutil.rmtree(folder)
        print(f"{tally.num_kills} kills in {tally.num_runs} runs, all as they should be", file=sys.stderr, flush=True)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, default in (("kills", 200), ("processes", 1), ("seed", 0), ("steps", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tasks", default="one, two, three, four, five", help="names; each has 13 cells")
    parser.add_argument("--within", type=float, default=1.0, help="latest kill, as a share of an untouched run's time")
    given = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        text = suite_text(given.tasks, given.steps)
        tally = kills(given.kills, given.processes, given.seed, text, Path(folder), given.within)
    print(
        f"{tally.num_kills} kills in {tally.num_runs} runs of {tally.num_stored // tally.num_runs} cells, "
        f"{given.processes} process(es): {dict(tally.kinds)}; continued {tally.num_continued} times from a checkpoint; "
        f"{time.monotonic() - started:.0f} s. Final results equal those of the untouched run."
    )


if __name__ == "__main__":
    main()
