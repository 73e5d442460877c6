"""Speed of training and evaluation beside what a user could run otherwise, in one process, in alternation.

    python -m benchmarks.bench --write          the full form; `make bench` is what two cores do in two hours
    python -m benchmarks.bench --shape t5-small smollm2-135m --floors     only what has a floor
    python -m benchmarks.bench --quick          minutes: shows that all runs; its figures mean nothing

Each round runs every contender once, one after the other, so that a machine that slows down slows all of them; shown
are medians over rounds, and medians of the rounds' ratios. A first, short round is thrown away. A job whose rounds take
long has fewer of them, one at least, and says so; those that have a floor, and what they are compared with, have three.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks import ours, theirs
from benchmarks.ours import Measured
from benchmarks.workload import TARGET_TOKENS, Workload, known_shape, workload
from harness import provenance
from harness.runner import device_name
from tools.arguments import over_zero, whole

README = Path(__file__).with_name("README.md")
TASKS = ("sst2", "mnli", "boolq", "multirc")
BUNDLES = (6, 18, 36)
EVALUATED_TOGETHER = 6
VARIANT_CELLS = 18
FLOOR_CELLS = 18
LEAST_ROUNDS = 3
"""Rounds of what a floor is held to, however long they take."""
EVALUATION = "evaluation"
METHODS = ("prompt_tuning", "lora")
FLOORS = {"prompt_tuning": ("sst2", "boolq"), "lora": TASKS, EVALUATION: ("sst2",)}
"""By job, the tasks on which a floor is held."""
POSITIONS_PER_STEP = 150
"""Texts with fewer tokens on average are trained on in more steps: few rows of them would be a chance mean length."""
PADDED, CAREFUL = "(a) Trainer, padded", "(b) Trainer"
HEADERS = ("task", "what", "contender", "rows/s", "of (a)", "of (b)", "padding", "utilisation", "peak MiB", "rounds")
EVALUATED_EVERY = 1_000
"""Steps between evaluations, and rows of each, in the run of which evaluation's share is told."""


Run = Callable[[int, int], Measured]
"""By how many steps of training or rows to answer, and by a seed, which decides the rows that are trained on."""


@dataclass
class Contender:
    """One way to do the work.

    `cells` is how many train together, 0 where it is not ours.
    """

    name: str
    run: Run
    amount: int
    cells: int = 0
    rates: list[float] = field(default_factory=list)
    last: Measured = field(default=Measured(0.0))
    has_floor: bool = False
    """Whether it is one side of a ratio that has a floor."""

    def round(self) -> None:
        self.last = self.run(self.amount, len(self.rates))
        self.rates.append(self.last.rate)

    @property
    def rate(self) -> float:
        """Median over rounds."""
        return statistics.median(self.rates)


def num_steps(work: Workload, method: str, options: argparse.Namespace) -> int:
    """Steps of (b) and (c): more on short texts, where a step is cheap and 16 lengths are a matter of chance.

    With a prompt in front steps cost much the same everywhere.
    """
    if options.quick or method in ("prompt_tuning", *ours.VARIANTS):
        return int(options.steps)
    mean = work.encoded.source_offsets[-1] / len(work.encoded)
    return int(options.steps) * max(1, round(POSITIONS_PER_STEP / float(mean)))


def training(work: Workload, method: str, shape: str, options: argparse.Namespace) -> list[Contender]:
    """The contenders of training: (a), (b), (c), and for methods that share a forward pass (d)."""

    device = options.device
    bundled = method == "prompt_tuning"
    floor = work.task in FLOORS.get(method, ())

    def trainer(padded: bool, bf16: bool, compiled: bool) -> Run:
        return lambda steps, seed: Measured(
            theirs.train_rate(work, method, shape, device, steps, seed, padded=padded, bf16=bf16, compiled=compiled)
        )

    def bundle(cells: int, precision: str, compiled: bool = False, name: str = method) -> Run:
        # a step of a bundle holds many times the rows; where launches are to be overlapped, one is no rate yet
        fewest = 2 if device == "cuda" else 1
        return lambda steps, seed: ours.train_rate(
            work, name, shape, device, precision, cells, max(fewest, steps // cells), seed, compiled
        )

    steps = num_steps(work, method, options)
    # padded to one length all steps take the same time, and on a CPU one of them tells it
    padded = Contender(PADDED, trainer(True, False, False), options.steps if device == "cuda" else 1)
    found = [padded] if options.padded else []
    for precision in options.precision:
        bf16 = precision == "bfloat16"
        careful = trainer(False, bf16, False)
        found.append(Contender(f"{CAREFUL}, no waste, {precision}", careful, steps, has_floor=floor))
        if options.compile:
            found.append(Contender(f"{CAREFUL}, no waste, {precision}, compiled", trainer(False, bf16, True), steps))
        sizes = (1,) if ours.runs_alone(method, shape) else (1, *options.bundles)
        held = FLOOR_CELLS if bundled else 1
        if options.floors:
            sizes = (held,)
        names = {size: f"({'c' if size == 1 else 'd'}) ours, {size} cell{'s' * (size > 1)}" for size in sizes}
        found += [
            Contender(f"{names[n]}, {precision}", bundle(n, precision), steps, n, has_floor=floor and n == held)
            for n in sizes
        ]
        if options.compile and bundled:
            found += [
                Contender(f"{names[n]}, {precision}, compiled", bundle(n, precision, True), steps, n)
                for n in sizes
                if n > 1
            ]
        for name in options.variants if bundled else ():
            run = bundle(VARIANT_CELLS, precision, options.compile, name)
            found.append(
                Contender(f"(d) ours, {VARIANT_CELLS} cells of {name}, {precision}", run, steps, VARIANT_CELLS)
            )
    return found


def evaluation(work: Workload, shape: str, options: argparse.Namespace) -> list[Contender]:
    """The contenders of answering `eval_rows` rows with the tokens of one label."""

    device = options.device
    floor = work.task in FLOORS[EVALUATION]

    def generate(padded: bool, bf16: bool) -> Run:
        return lambda rows, _: Measured(
            theirs.generate_rate(work, shape, device, rows, TARGET_TOKENS, padded=padded, bf16=bf16)
        )

    def decode(cells: int, precision: str) -> Run:
        return lambda rows, _: Measured(ours.evaluation_rate(work, shape, device, precision, rows, cells))

    rows = options.eval_rows
    found = [Contender("(a) generate, padded", generate(True, False), rows)] if options.padded else []
    for precision in options.precision:
        careful = generate(False, precision == "bfloat16")
        found.append(Contender(f"(b) generate, sorted, {precision}", careful, rows, has_floor=floor))
        for cells in (1, EVALUATED_TOGETHER):
            name = f"ours, {cells} cell{'s' * (cells > 1)}, {precision}"
            found.append(Contender(name, decode(cells, precision), rows, cells, has_floor=floor))
    return found


def measure(what: str, contenders: list[Contender], options: argparse.Namespace) -> None:
    """Run all in alternation; the round that warms up caches and compilers does not count.

    On a CPU bundles are not warmed up: they run the code that one cell, or the Trainer, has warmed up. The last round
    is the one behind which `seconds` have passed; contenders with a floor go on to LEAST_ROUNDS.
    """
    for contender in contenders:
        if options.device == "cuda" or contender.cells <= 1:
            contender.run(theirs.EVALUATION_BATCH if what == EVALUATION else 1, 0)
    started = time.perf_counter()
    least = min(LEAST_ROUNDS, options.rounds)
    running = contenders
    for number in range(options.rounds):
        for contender in running:
            contender.round()
        if time.perf_counter() - started > options.seconds:
            running = [item for item in contenders if item.has_floor] if number + 1 < least else []


def evaluation_share(trained: list[Contender], evaluated: list[Contender]) -> float | None:
    """Evaluation's share of the time of a run of ours that answers as many rows as it has steps in between.

    Of the bundles of the fastest precision; None where no bundle was trained.
    """
    train = max((item.rate for item in trained if item.cells > 1), default=None)
    answer = max(item.rate for item in evaluated if item.cells > 1)
    if train is None:
        return None
    seconds, training_seconds = EVALUATED_EVERY / answer, EVALUATED_EVERY * theirs.BATCH_SIZE / train
    return seconds / (seconds + training_seconds)


def table_rows(task: str, what: str, contenders: list[Contender]) -> list[list[str]]:
    """Medians and ratios; (b) is the fastest of its kind."""
    padded = next((c for c in contenders if c.name.startswith("(a)")), None)
    careful = max((c for c in contenders if c.name.startswith("(b)")), key=lambda c: c.rate)
    return [
        [
            task,
            what,
            item.name,
            f"{item.rate:.1f}",
            *("" if other is None else f"{_ratio(item, other):.2f}" for other in (padded, careful)),
            "" if item.last.padding is None else f"{100 * item.last.padding:.1f} %",
            "" if item.last.utilisation is None else f"{100 * item.last.utilisation:.1f} %",
            "" if item.last.peak_bytes is None else f"{item.last.peak_bytes / 2**20:,.0f}",
            str(len(item.rates)),
        ]
        for item in contenders
    ]


def _ratio(item: Contender, other: Contender) -> float:
    """The median over the rounds that both have run."""
    return statistics.median(a / b for a, b in zip(item.rates, other.rates, strict=False))


def report(rows: list[list[str]], shares: dict[str, float], shape: str, options: argparse.Namespace) -> str:
    """The table under a line that says when, with which commit and on what it was made, and what follows from it."""
    made = provenance.collect_provenance(device_name() if options.device == "cuda" else "cpu")
    dirty = " with local changes" if made["dirty"] else ""
    device = made["device"] if options.device == "cuda" else f"{made['processor']}, {torch.get_num_threads()} threads"
    head = (
        f"{provenance.utc_now()}, commit {str(made['commit'])[:10]}{dirty}, {device}, "
        f"torch {made['versions']['torch']}, "
        f"transformers {made['versions']['transformers']}, peft {made['versions']['peft']}; {shape} shape, "
        f"up to {options.rounds} rounds of {options.steps} steps of {theirs.BATCH_SIZE} rows (more on short texts), "
        f"evaluation of {options.eval_rows:,} rows; load of the machine {load():.1f}."
    )
    every = f"{EVALUATED_EVERY:,}"
    tail = "".join(
        f"\n{task}: evaluating {every} rows every {every} steps takes {100 * share:.1f} % of a run.\n"
        for task, share in shares.items()
    )
    used = [index for index in range(len(HEADERS)) if any(row[index] for row in rows)]
    kept = [[row[index] for index in used] for row in rows]
    headers = [HEADERS[index] for index in used]
    return f"{head}\n\n{tabulate(kept, headers, tablefmt='pipe', disable_numparse=True)}\n{tail}"


def load() -> float:
    """Processes that wanted to run, on average over a quarter of an hour; more than those of the benchmark distort."""
    return os.getloadavg()[2]


def write(text: str, device: str, shape: str) -> None:
    """Put the figures of a shape on a device into the README, in place of those before or behind those of others."""
    start, end = (f"<!-- {word}figures: {device} {shape} -->" for word in ("", "end of "))
    more = f"<!-- more figures: {device} -->"
    whole = README.read_text()
    if start not in whole:
        whole = whole.replace(more, f"### {shape}\n\n{start}\n{end}\n\n{more}")
    before, rest = whole.split(start)
    README.write_text(f"{before}{start}\n\n{text}\n{end}{rest.split(end)[1]}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--shape",
        nargs="+",
        type=known_shape,
        default=None,
        help="t5-small, smollm2-135m, llama-2-7b:nf4, ...; t5-base on a GPU by default",
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(theirs.CONFIGS), default=list(METHODS))
    parser.add_argument("--eval-tasks", nargs="*", choices=TASKS, default=None, help="all of --tasks by default")
    parser.add_argument(
        "--variants", nargs="*", choices=ours.VARIANTS, default=None, help="bundles of these too; on a GPU all"
    )
    parser.add_argument("--precision", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--bundles", nargs="+", type=whole, default=list(BUNDLES))
    parser.add_argument("--compile", action="store_true", help="also with torch.compile: the Trainer, and bundles")
    parser.add_argument("--rounds", type=whole, default=3)
    parser.add_argument("--steps", type=whole, default=6)
    parser.add_argument(
        "--seconds", type=over_zero, default=float("inf"), help="behind these a job starts no new round"
    )
    parser.add_argument("--eval-rows", type=whole, default=1_000, help="rows that each contender answers, by all cells")
    parser.add_argument("--floors", action="store_true", help="only what has a floor, and what it is compared with")
    parser.add_argument("--skip-padded", dest="padded", action="store_false", help="without (a), which takes longest")
    parser.add_argument("--quick", action="store_true", help="one round on mini shapes and one task, on any machine")
    parser.add_argument("--write", action="store_true", help="put the figures into benchmarks/README.md")
    options = parser.parse_args(arguments)
    if options.quick and not torch.cuda.is_available():
        options.device, options.compile = "cpu", False
    options.shape = options.shape or ["t5-base" if options.device == "cuda" else "t5-small"]
    if options.variants is None:
        options.variants = list(ours.VARIANTS) if options.device == "cuda" else []
    options.eval_tasks = options.tasks if options.eval_tasks is None else options.eval_tasks
    if options.quick:
        options.shape, options.rounds, options.steps = ["mini", "mini-decoder"], 1, 2
        options.methods, options.write = list(theirs.CONFIGS), False
        options.tasks = options.eval_tasks = ["sst2"]
        options.precision, options.eval_rows = ["float32"], 64
    return options


def tasks_of(job: str, tasks: list[str], options: argparse.Namespace) -> list[str]:
    """Those of the tasks on which a job is to run."""
    return [task for task in tasks if not options.floors or task in FLOORS.get(job, ())]


def bench(shape: str, options: argparse.Namespace) -> str:
    """Run all jobs of one shape; return their report."""
    rows: list[list[str]] = []
    shares: dict[str, float] = {}
    for task in options.tasks:
        work = workload(task)
        jobs = {
            method: training(work, method, shape, options)
            for method in options.methods
            if task in tasks_of(method, options.tasks, options)
        }
        if task in tasks_of(EVALUATION, options.eval_tasks, options):
            jobs[EVALUATION] = evaluation(work, shape, options)
        for what, contenders in jobs.items():
            measure(what, contenders, options)
            rows += table_rows(task, what, contenders)
            print(tabulate(rows[-len(contenders) :], HEADERS, tablefmt="pipe", disable_numparse=True), flush=True)
        if {"prompt_tuning", EVALUATION} <= jobs.keys():
            share = evaluation_share(jobs["prompt_tuning"], jobs[EVALUATION])
            shares |= {} if share is None else {task: share}
    return report(rows, shares, shape, options)


def main() -> None:
    options = parse()
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if options.device == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    warnings.filterwarnings("ignore")
    for shape in options.shape:
        text = bench(shape, options)
        print(f"\n{text}", flush=True)
        if options.write:
            write(text, options.device, shape)


if __name__ == "__main__":
    main()
