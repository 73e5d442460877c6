"""Speed of training and evaluation beside what a user could run otherwise, in one process, in alternation.

    python -m benchmarks.bench --write          the full form, as `make bench`
    python -m benchmarks.bench --quick          minutes: shows that all runs; its figures mean nothing

Each round runs every contender once, one after the other, so that a machine that slows down slows all of them; shown
are medians over rounds, and medians of the rounds' ratios. A first, short round is thrown away.
"""

from __future__ import annotations

import argparse
import os
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks import ours, theirs
from benchmarks.workload import Workload, workload
from harness import provenance
from harness.probe import device_name

README = Path(__file__).with_name("README.md")
TASKS = ("sst2", "mnli", "boolq", "multirc")
BUNDLES = (6, 18, 36)
EVALUATED_TOGETHER = 6
PADDED, CAREFUL = "(a) Trainer, padded", "(b) Trainer"
HEADERS = ("task", "what", "contender", "rows/s", "of (a)", "of (b)", "padding", "utilisation")


@dataclass
class Contender:
    """One way to do the work; `run(steps)` returns rows per second and what else is known."""

    name: str
    run: Callable[[int], tuple[float, float | None, float | None]]
    rates: list[float] = field(default_factory=list)
    padding: float | None = None
    utilisation: float | None = None

    def round(self, steps: int) -> None:
        rate, self.padding, self.utilisation = self.run(steps)
        self.rates.append(rate)


def training(work: Workload, method: str, options: argparse.Namespace) -> list[Contender]:
    """The contenders of training: (a), (b), (c), and for methods that share a forward pass (d)."""

    def trainer(padded: bool, bf16: bool, compiled: bool) -> Callable[[int], tuple[float, None, None]]:
        shape, device = options.shape, options.device
        return lambda steps: (
            theirs.train_rate(work, method, shape, device, steps, padded=padded, bf16=bf16, compiled=compiled),
            None,
            None,
        )

    def bundle(
        cells: int, precision: str, compiled: bool = False
    ) -> Callable[[int], tuple[float, float | None, float | None]]:
        def run(steps: int) -> tuple[float, float | None, float | None]:
            # a step of a bundle holds many times the rows; two still make a stable rate
            usage = ours.train_usage(
                work, method, options.shape, options.device, precision, cells, max(2, steps // cells), compiled
            )
            assert usage.samples_per_s is not None
            return usage.samples_per_s, usage.padding_share, usage.utilisation

        return run

    found = [Contender(PADDED, trainer(True, False, False))]
    for precision in options.precision:
        bf16 = precision == "bfloat16"
        found.append(Contender(f"{CAREFUL}, no waste, {precision}", trainer(False, bf16, False)))
        if options.compile:
            found.append(Contender(f"{CAREFUL}, no waste, {precision}, compiled", trainer(False, bf16, True)))
        sizes = (1, *options.bundles)
        names = {size: f"({'c' if size == 1 else 'd'}) ours, {size} cell{'s' * (size > 1)}" for size in sizes}
        found += [Contender(f"{names[size]}, {precision}", bundle(size, precision)) for size in sizes]
        if options.compile and method == "prompt_tuning":
            found += [Contender(f"{names[n]}, {precision}, compiled", bundle(n, precision, True)) for n in sizes[1:]]
    return found


def evaluation(work: Workload, options: argparse.Namespace) -> list[Contender]:
    """The contenders of answering `eval_rows` rows with the tokens of one label."""

    def generate(padded: bool) -> Callable[[int], tuple[float, None, None]]:
        rate = theirs.generate_rate
        return lambda _: (
            rate(work, options.shape, options.device, options.eval_rows, 2, padded=padded), None, None
        )  # fmt: skip

    def decode(cells: int, precision: str) -> Callable[[int], tuple[float, None, None]]:
        rate = ours.evaluation_rate
        return lambda _: (
            rate(work, options.shape, options.device, precision, options.eval_rows, cells), None, None
        )  # fmt: skip

    found = [Contender("(a) generate, padded", generate(True)), Contender("(b) generate, sorted", generate(False))]
    for precision in options.precision:
        for cells in (1, EVALUATED_TOGETHER):
            found.append(Contender(f"ours, {cells} cell{'s' * (cells > 1)}, {precision}", decode(cells, precision)))
    return found


def measure(contenders: list[Contender], rounds: int, steps: int) -> None:
    """Run all in alternation; the round that warms up caches and compilers does not count."""
    for contender in contenders:
        contender.run(2)
    for _ in range(rounds):
        for contender in contenders:
            contender.round(steps)


def table_rows(task: str, what: str, contenders: list[Contender]) -> list[list[str]]:
    """Medians and ratios; (b) is the fastest of its kind."""
    padded = contenders[0]
    careful = max((c for c in contenders if c.name.startswith("(b)")), key=lambda c: statistics.median(c.rates))
    return [
        [
            task,
            what,
            item.name,
            f"{statistics.median(item.rates):.1f}",
            *(f"{_ratio(item, other):.2f}" for other in (padded, careful)),
            "" if item.padding is None else f"{100 * item.padding:.1f} %",
            "" if item.utilisation is None else f"{100 * item.utilisation:.1f} %",
        ]
        for item in contenders
    ]


def _ratio(item: Contender, other: Contender) -> float:
    return statistics.median(a / b for a, b in zip(item.rates, other.rates, strict=True))


def report(rows: list[list[str]], options: argparse.Namespace) -> str:
    """The table under a line that says when, with which commit and on what it was made."""
    made = provenance.collect(device_name() if options.device == "cuda" else "cpu")
    dirty = " with local changes" if made["dirty"] else ""
    device = made["device"] if options.device == "cuda" else f"{made['processor']}, {torch.get_num_threads()} threads"
    head = (
        f"{provenance.now()}, commit {str(made['commit'])[:10]}{dirty}, {device}, torch {made['versions']['torch']}, "
        f"transformers {made['versions']['transformers']}, peft {made['versions']['peft']}; {options.shape} shape, "
        f"{options.rounds} rounds of {options.steps} steps."
    )
    return f"{head}\n\n{tabulate(rows, HEADERS, tablefmt='pipe', disable_numparse=True)}\n"


def write(text: str, device: str) -> None:
    """Put the figures of a device into the README, in place of those before."""
    start, end = f"<!-- figures: {device} -->\n", f"<!-- end of figures: {device} -->"
    whole = README.read_text()
    before, rest = whole.split(start)
    README.write_text(f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", default=None, help="t5-small, t5-base, ... or mini; t5-base on a GPU by default")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(ours.HP), default=list(ours.HP))
    parser.add_argument("--precision", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--bundles", nargs="+", type=int, default=list(BUNDLES))
    parser.add_argument("--compile", action="store_true", help="also with torch.compile: the Trainer, and bundles")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--eval-rows", type=int, default=1_000)
    parser.add_argument("--quick", action="store_true", help="one round on a mini shape and one task")
    parser.add_argument("--write", action="store_true", help="put the figures into benchmarks/README.md")
    options = parser.parse_args()
    options.shape = options.shape or ("t5-base" if options.device == "cuda" else "t5-small")
    if options.quick:
        options.shape, options.tasks, options.rounds, options.steps = "mini", ["sst2"], 1, 2
        options.precision, options.eval_rows = ["float32"], 64
    return options


def main() -> None:
    options = parse()
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if options.device == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    warnings.filterwarnings("ignore")
    rows: list[list[str]] = []
    for task in options.tasks:
        work = workload(task)
        jobs = {method: training(work, method, options) for method in options.methods}
        jobs["evaluation"] = evaluation(work, options)
        for what, contenders in jobs.items():
            measure(contenders, options.rounds, options.steps)
            rows += table_rows(task, what, contenders)
            print(tabulate(rows[-len(contenders) :], HEADERS, tablefmt="pipe", disable_numparse=True), flush=True)
    text = report(rows, options)
    print(f"\n{text}")
    if options.write:
        write(text, options.device)


if __name__ == "__main__":
    main()
