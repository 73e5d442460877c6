"""Processor time that a suite costs beside training: its reading, its plan, its stored results, its report.

    python -m benchmarks.loading --write

The suites are generated: deep ones of ten table rows and more and more seeds, up to 10,000 cells, and wide ones of one
seed and more and more rows with settings of their own, up to 1,000. Results are invented ones. Each suite is measured
in a new process, behind one of ten cells that pays for imports and caches. Where cost grows linearly, each further cell
costs the same between any two sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.report_speed import invent
from benchmarks.startup import README, TASKS, suite_text
from harness import load_results, provenance
from harness.backbone import weights_fingerprint
from harness.cli.commands import app
from harness.data import cell_rows
from harness.runner import Plan, device_name, judge_suite, make_plan
from harness.runner.pack import pack
from harness.suite import Overrides
from tools.arguments import whole

MARKS = ("<!-- loading:begin -->\n", "<!-- loading:end -->")
SIZES = {"deep": (10, 100, 1_000, 10_000), "wide": (10, 100, 1_000)}
NUM_ROWS = 8
"""Test rows of a stored result; `benchmarks/report_speed.py` measures reports of more."""
STAGES = {
    "read": "the suite file, names and settings; cells and their identities",
    "plan": "the same, with a look for each result where none is; bundles",
    "plan, stored": "the same where all results are stored",
    "stale": "methods, weights and rows of all results beside those of today",
    "harness plan": "the whole command, all stored",
    "harness plan, half": "the whole command, every second result stored: fit, steps and time of what is missing too",
    "load_results": "all results, as data frame",
    "report": "the whole command `harness report`",
    "verify": "the whole command `harness verify`",
}


def wide_text(cells: int) -> str:
    """A suite of that many cells, one of each of two tasks for every row: no two rows have the same settings."""
    rows = "\n".join(
        f"  row{index}: {{method: prompt_tuning, prompt_length: {1 + index}, recipe: {{lr: 0.1}}}}"
        for index in range(cells // 2)
    )
    return (
        f"suite: wide\nversion: 1\nbackbones: [micro-t5]\ntasks: [{', '.join(TASKS)}]\nseeds: [0]\n"
        f"recipe: {{steps: 10, batch_size: 16}}\nmethods:\n{rows}\n"
    )


SHAPES = {"deep": suite_text, "wide": wide_text}


def store_results(plan: Plan, every: int = 1) -> None:
    """Store an invented result of every cell, or every second, as if made here today."""
    generator = np.random.default_rng(0)
    fingerprint = functools.cache(weights_fingerprint)
    here = provenance.collect_provenance(device_name())
    for cell in plan.pending()[::every]:
        source = plan.suite.backbone_sources[cell.backbone]
        made, predictions = invent(generator, cell, 0.7, NUM_ROWS)
        assert made.backbone is not None
        assert made.usage is not None
        facts = {
            "method_sha256": plan.methods[cell.method].spec.source_sha256,
            "provenance": here,
            "usage": made.usage.model_copy(update={"model_flops": 1e15, "num_target_tokens": 1_000_000}),
            "data": cell_rows(cell, None, plan.suite.folder).record,
            "backbone": made.backbone.model_copy(update={"source": source, "fingerprint": fingerprint(source)}),
        }
        plan.store.write(made.model_copy(update=facts), predictions, None)


def planned(suite: Path, results: Path) -> Plan:
    """A plan of a suite, with its bundles made."""
    plan = make_plan(suite, Overrides(), results, None)
    pack(plan, plan.pending())
    return plan


def num_stale(plan: Plan) -> int:
    """How many of the results of a plan are stale."""
    return sum(plan.is_stale(result) for group in plan.results for result in group.values())


def command(*arguments: str) -> None:
    """Run a command of the program in this process, and show nothing of it."""
    with contextlib.redirect_stdout(io.StringIO()):
        app([*arguments], standalone_mode=False)


def stages(suite: Path, folder: Path) -> dict[str, Callable[[], Any]]:
    """What is measured, by the names of STAGES. Stores results of `suite` in `folder`."""
    empty, half, results = folder / "empty", folder / "half", folder / "results"
    for where, every in ((results, 1), (half, 2)):
        store_results(planned(suite, where), every)
    stored = planned(suite, results)
    if stored.pending() or num_stale(stored):
        raise SystemExit("results are missing or stale, so something else would be measured")
    return {
        "read": lambda: judge_suite(suite, Overrides()),
        "plan": lambda: planned(suite, empty),
        "plan, stored": lambda: planned(suite, results),
        "stale": lambda: num_stale(stored),
        "harness plan": lambda: command("plan", str(suite), "--results", str(results), "--no-probe"),
        "harness plan, half": lambda: command("plan", str(suite), "--results", str(half), "--no-probe"),
        "load_results": lambda: load_results(results),
        "report": lambda: command("report", str(results)),
        "verify": lambda: command("verify", str(results)),
    }


def measure_here(shape: str, cells: int) -> dict[str, float]:
    """Processor seconds of each stage for a suite of that many cells, in this process."""
    with tempfile.TemporaryDirectory() as name:
        suite = Path(name, "suite.yaml")
        suite.write_text(SHAPES[shape](cells))
        found = {}
        for stage, work in stages(suite, Path(name)).items():
            gc.collect()
            start = time.process_time()
            work()
            found[stage] = time.process_time() - start
    return found


def measure(shape: str, cells: int) -> dict[str, float]:
    """The same in a new process."""
    call = [sys.executable, "-m", "benchmarks.loading", "--child", shape, str(cells)]
    out = subprocess.run(call, capture_output=True, text=True, check=False, cwd=README.parents[1])
    if out.returncode:
        raise SystemExit(f"{shape}, {cells} cells: could not be measured:\n{out.stdout}{out.stderr}")
    found: dict[str, float] = json.loads(out.stdout.splitlines()[-1])
    return found


def table(found: Mapping[int, Sequence[Mapping[str, float]]]) -> str:
    """Milliseconds a cell by stage and size, and what a further cell costs; medians over runs."""
    sizes = sorted(found)
    medians = {stage: [statistics.median(run[stage] for run in found[size]) for size in sizes] for stage in STAGES}
    rows = []
    for stage, seconds in medians.items():
        each = [1000 * value / size for value, size in zip(seconds, sizes, strict=True)]
        pairs = zip(itertools.pairwise(seconds), itertools.pairwise(sizes), strict=True)
        further = [1000 * (b - a) / (larger - smaller) for (a, b), (smaller, larger) in pairs]
        rows.append([stage, *(f"{value:.2f}" for value in (*each, *further)), f"{seconds[-1]:.1f}"])
    spans = [f"each of {a:,} to {b:,}" for a, b in itertools.pairwise(sizes)]
    headers = ["stage", *(f"{size:,} cells" for size in sizes), *spans, f"{sizes[-1]:,} cells, s"]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def report(found: Mapping[str, Mapping[int, Sequence[Mapping[str, float]]]]) -> str:
    """The tables, when and on what they were made, and what the stages are."""
    made = provenance.collect_provenance("cpu")
    dirty = " with local changes" if made["dirty"] else ""
    runs = min(len(of_size) for sizes in found.values() for of_size in sizes.values())
    head = (
        f"{provenance.utc_now()}, commit {str(made['commit'])[:10]}{dirty}, {made['processor']}, "
        f"{os.cpu_count()} cores, load of the machine {os.getloadavg()[2]:.1f}. Milliseconds of the processor for each "
        f"cell, and for each further one between two sizes; runs of each size: {runs}."
    )
    tables = [f"{shape}:\n\n{table(sizes)}" for shape, sizes in found.items() if sizes]
    told = "; ".join(f"`{stage}`: {what}" for stage, what in STAGES.items())
    return "\n\n".join([head, *tables, f"{told}.\n"])


def write(text: str) -> None:
    """Put the figures into the README, in place of those before."""
    before, rest = README.read_text().split(MARKS[0])
    README.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=whole, default=10_000, help="cells of the largest suite")
    parser.add_argument("--runs", type=whole, default=1, help="of each suite, in alternation")
    parser.add_argument("--write", action="store_true", help="put the figures into benchmarks/README.md")
    parser.add_argument("--child", nargs=2, metavar=("SHAPE", "CELLS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        shape, cells = options.child
        measure_here(shape, SIZES[shape][0])
        print(json.dumps(measure_here(shape, int(cells))))
        return
    found: dict[str, dict[int, list[dict[str, float]]]] = {
        shape: {size: [] for size in sizes if size <= options.most} for shape, sizes in SIZES.items()
    }
    for _ in range(options.runs):
        for shape, sizes in found.items():
            for size, runs in sizes.items():
                runs.append(measure(shape, size))
                print(shape, size, *(f"{name} {value:.2f}" for name, value in runs[-1].items()), sep="  ", flush=True)
    text = report(found)
    print(f"\n{text}")
    if options.write:
        write(text)


if __name__ == "__main__":
    main()
