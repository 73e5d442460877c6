"""Seconds before the first step: what a run imports, plans, checks, loads, claims and builds until it trains.

    python -m benchmarks.startup --write

The suites are the quickstart and generated ones of 10 to 10,000 cells, of which the larger should cost in
proportion. Each is run in a new process, which ends at its first step. Processor time is of that process with all of
its threads; where others use the machine, it says more than the clock.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from tools.arguments import whole

README = Path(__file__).with_name("README.md")
QUICKSTART = Path(__file__).parents[1] / "suites" / "quickstart.yaml"
MARKS = ("<!-- startup:begin -->\n", "<!-- startup:end -->")
SIZES = (10, 100, 1_000, 10_000)
LEAST_CELLS = 1_000
"""Further cells from which the time of one can be told: a start varies by a second, further cells cost 0.2 ms each."""
ONE_RATE = "added_lr: 0.001, "
METHODS = {"prompt_tuning": "", "dept": ONE_RATE, "accept": ONE_RATE, "ept": ONE_RATE, "lora": ""}
"""By name, the settings without which a method would have a grid of its own."""
TASKS = ("micro_sentiment", "micro_entailment")
STAGES = ("import", "plan", "check and load", "to the first step")
HEADERS = ("suite", "cells", *STAGES, "all, seconds", "all, processor seconds", "runs")


def suite_text(cells: int) -> str:
    """A suite of that many cells without grids, so that all of them are pending from the start."""
    per_seed = len(METHODS) * len(TASKS)
    if cells % per_seed:
        raise ValueError(f"a suite has {per_seed} cells for each seed, so {cells} cannot be made")
    methods = "\n".join(f"  {name}: {{{settings}recipe: {{lr: 0.1}}}}" for name, settings in METHODS.items())
    return (
        f"suite: startup\nversion: 1\nbackbones: [micro-t5]\ntasks: [{', '.join(TASKS)}]\n"
        f"seeds: {list(range(cells // per_seed))}\nrecipe: {{steps: 10, batch_size: 16}}\nmethods:\n{methods}\n"
    )


def until_first_step(suite: str, results: str, started: float) -> None:
    """Run a suite in this process up to its first step, print what the clock said on the way as JSON, and end.

    `started` is when the process was, by the clock that all processes share.
    """
    from harness.runner import run_suite
    from harness.train import BundleTrainer

    ends = [time.time()]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            finally:
                ends.append(time.time())

        return called

    def first_step(*_: Any) -> None:
        ends.append(time.time())
        starts = [started, *ends[:-1]]
        seconds = [end - start for start, end in zip(starts, ends, strict=True)]
        print(json.dumps({"seconds": seconds, "processor": time.process_time()}), flush=True)
        os._exit(0)  # nothing is to be stored or tidied: the folder is a temporary one

    for name in ("make_plan", "check_cells"):
        setattr(run_suite, name, timed(getattr(run_suite, name)))
    setattr(BundleTrainer, "_train_step", first_step)  # noqa: B010, the types of the two differ
    run_suite.run(suite, results=results, quiet=True)


def measure(suite: Path) -> dict[str, Any]:
    """Seconds of each stage, and of the processor in all, of a new process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.startup", "--child", str(suite), folder, repr(time.time())]
        out = subprocess.run(command, capture_output=True, text=True, check=False, cwd=README.parents[1])
    if out.returncode or not out.stdout:
        raise SystemExit(f"{suite.name} did not reach a first step:\n{out.stdout}{out.stderr}")
    found: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return found


def table_row(name: str, cells: int, runs: list[dict[str, Any]]) -> list[str]:
    """Medians over runs, each figure by itself."""
    stages = [statistics.median(run["seconds"][index] for run in runs) for index in range(len(STAGES))]
    whole = statistics.median(sum(run["seconds"]) for run in runs)
    processor = statistics.median(run["processor"] for run in runs)
    return [name, f"{cells:,}", *(f"{value:.1f}" for value in (*stages, whole, processor)), str(len(runs))]


def growth(rows: list[list[str]]) -> str:
    """What one more cell costs between suites of neighbouring sizes; the time of fewer than LEAST_CELLS is noise."""
    told = []
    for a, b in itertools.pairwise(rows):
        further = int(b[1].replace(",", "")) - int(a[1].replace(",", ""))
        if further >= LEAST_CELLS:
            told.append(f"{1000 * (float(b[-2]) - float(a[-2])) / further:.2f} ms from {a[1]} to {b[1]}")
    return f"Processor time of one more cell: {', '.join(told)}."


def report(rows: list[list[str]]) -> str:
    """The table under a line that says when, with which commit and on what it was made."""
    from harness import provenance

    made = provenance.collect_provenance("cpu")
    dirty = " with local changes" if made["dirty"] else ""
    head = (
        f"{provenance.utc_now()}, commit {str(made['commit'])[:10]}{dirty}, {made['processor']}, "
        f"{os.cpu_count()} cores, load of the machine {os.getloadavg()[2]:.1f}. Seconds."
    )
    generated = [row for row in rows if row[0] == "generated"]
    tail = f"\n{growth(generated)}\n" if len(generated) > 1 else ""
    tail += "\nDifferences of less than a second are noise where others use the machine.\n"
    return f"{head}\n\n{tabulate(rows, HEADERS, tablefmt='pipe', disable_numparse=True)}\n{tail}"


def write(text: str) -> None:
    """Put the figures into the README, in place of those before."""
    before, rest = README.read_text().split(MARKS[0])
    README.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


def quickstart_cells() -> int:
    """All cells of the quickstart, those of winners with further seeds included."""
    from harness.runner import make_plan
    from harness.suite import Overrides

    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(QUICKSTART, Overrides(None, None, None, None, {}, None), folder, None)
    return sum(plan.num_cells(group) for group in plan.groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", type=whole, default=list(SIZES), help="cells of the generated suites")
    parser.add_argument("--runs", type=whole, default=3, help="of each suite, in alternation")
    parser.add_argument("--write", action="store_true", help="put the figures into benchmarks/README.md")
    parser.add_argument("--child", nargs=3, metavar=("SUITE", "RESULTS", "STARTED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        suite, results, started = options.child
        until_first_step(suite, results, float(started))
        raise SystemExit("no step was taken")
    with tempfile.TemporaryDirectory() as folder:
        suites = {("quickstart", quickstart_cells()): QUICKSTART}
        for size in options.sizes:
            path = Path(folder) / f"startup-{size}.yaml"
            path.write_text(suite_text(size))
            suites["generated", size] = path
        found: dict[tuple[str, int], list[dict[str, Any]]] = {key: [] for key in suites}
        for _ in range(options.runs):
            for key, path in suites.items():
                found[key].append(measure(path))
                print(*table_row(*key, found[key][-1:]), sep="  ", flush=True)
    text = report([table_row(*key, runs) for key, runs in found.items()])
    print(f"\n{text}")
    if options.write:
        write(text)


if __name__ == "__main__":
    main()
