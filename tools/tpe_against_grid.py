"""Searches by TPE, at random and over a grid at equal budget, on the shipped micro T5: which finds the better setting?

    python -m tools.tpe_against_grid --out DIR [--repetitions 5] [--trials 8] [--steps 30] [--methods lora,...]

Each repetition has a training seed and a search seed of its own. All three strategies search the same ranges: the grid
crosses values that lie evenly in them, so nobody has picked its points. What counts is the test score of the setting
that the best dev score chooses. A stopped command goes on where it was. Few steps, since
after the quickstart's 200 nearly every point of LoRA scores 100 and nothing is left to find.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from scipy import stats

import harness
from harness.results import Result, best_point, dev_selection, load_results, read_result
from harness.suite import Range
from tools.arguments import whole

STRATEGIES = ("grid", "random", "tpe")
LEVEL = 0.95
FIRST_SEED = 100


@dataclass(frozen=True)
class Row:
    """A method with the ranges that are searched: its learning rate, by its logarithm, and one setting of its own."""

    label: str
    lr: Range
    setting: str
    values: Range
    fixed: str = ""


ROWS = (
    Row("prompt_tuning", Range(0.01, 3.0, log=True), "prompt_length", Range(4, 40, log=True)),
    Row("lora", Range(1e-4, 0.1, log=True), "rank", Range(1, 32, log=True), "alpha: 16"),
)
"""About two decades around the grids of the quickstart suite, as one would search a method that one does not know."""


def suite_text(strategy: str, row: Row, repetition: int, trials: int, steps: int, task: str) -> str:
    """The suite of one search: the quickstart's recipe, one method, one task."""
    if strategy == "grid":
        second = 2 if trials % 2 == 0 else 1
        first = trials // second
        lr, values = (
            f"{{sweep: [{', '.join(str(span.at((i + 0.5) / n)) for i in range(n))}]}}"
            for span, n in ((row.lr, first), (row.values, second))
        )
        tuning = "{strategy: grid}"
    else:
        lr, values = (f"{{range: [{span.low}, {span.high}], log: true}}" for span in (row.lr, row.values))
        half = max(1, trials // 2)
        tuning = f"{{strategy: {strategy}, trials: {trials}, seed: {repetition}"
        tuning += f", startup: {half}, batch: {max(1, half // 2)}}}" if strategy == "tpe" else "}"
    own = ", ".join(filter(None, (f"{row.setting}: {values}", row.fixed, f"recipe: {{lr: {lr}}}")))
    return (
        f"suite: {strategy}-{repetition}\nbackbones: [micro-t5]\ntasks: [{task}]\nseeds: [{FIRST_SEED + repetition}]\n"
        f"tuning: {tuning}\n"
        f"recipe: {{steps: {steps}, batch_size: 16, warmup_steps: 6, eval_every: {steps}, "
        f"backbone_dropout: false}}\nmethods: {{{row.label}: {{{own}}}}}\n"
    )


def search(folder: Path, text: str, label: str) -> list[Result]:
    """Run one search and return its results in the order of the trials."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "suite.yaml"
    path.write_text(text)
    harness.run(path, results=folder / "results", quiet=True)
    table = load_results(folder / "results")
    files = sorted(set(table[table["method"] == label]["path"]))
    return sorted((read_result(Path(file)) for file in files), key=lambda result: result.cell.grid_index)


def measured(results: Sequence[Result]) -> dict[str, Any]:
    """What one search has found and spent."""
    best = best_point(results)
    assert best is not None, "every trial failed"
    winner = results[best]
    assert winner.test is not None
    scores = [dev_selection(result) for result in results]
    return {
        "test": winner.test.score,
        "dev": scores[best],
        "best_dev_after": list(accumulate(scores, max)),
        "point": winner.cell.grid,
        "trials": len(results),
        "failed": sum(result.status == "failed" for result in results),
        "steps": sum(result.usage.num_steps for result in results if result.usage),
        "device_s": sum(result.usage.total_s for result in results if result.usage),
    }


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean of paired differences and the ends of its interval by Student's t."""
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, float("-inf"), float("inf")
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(differences) - 1)) * error
    return mean, mean - reach, mean + reach


def report(found: list[dict[str, Any]]) -> str:
    """Scores by method and strategy, then the differences over repetitions, each a mean over the methods."""
    lines = ["| method | strategy | test of the chosen, mean | each repetition | best dev, mean | failed trials |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for label in dict.fromkeys(item["method"] for item in found):
        for strategy in STRATEGIES:
            own = [item for item in found if (item["method"], item["strategy"]) == (label, strategy)]
            tests = [item["test"] for item in own]
            dev = statistics.fmean(item["dev"] for item in own)
            each = ", ".join(f"{score:.1f}" for score in tests)
            failed = sum(item["failed"] for item in own)
            lines.append(f"| {label} | {strategy} | {statistics.fmean(tests):.1f} | {each} | {dev:.1f} | {failed} |")
    lines.append("")
    for other in ("grid", "random"):
        for kind in ("test", "dev"):
            mean, low, high = interval(differences(found, other, kind))
            lines.append(f"tpe - {other}, {kind}: {mean:+z.1f} points [{low:+z.1f}, {high:+z.1f}]")
    trials = min(len(item["best_dev_after"]) for item in found)
    for strategy in STRATEGIES:
        curves = [item["best_dev_after"] for item in found if item["strategy"] == strategy]
        means = [statistics.fmean(curve[n] for curve in curves) for n in range(trials)]
        lines.append(f"best dev after 1 to {trials} trials, {strategy}: " + ", ".join(f"{m:.1f}" for m in means))
    return "\n".join(lines) + "\n"


def differences(found: Sequence[dict[str, Any]], other: str, kind: str) -> list[float]:
    """TPE minus another strategy for each repetition, the mean over methods."""

    def score(repetition: int, strategy: str) -> float:
        own = [i[kind] for i in found if (i["repetition"], i["strategy"]) == (repetition, strategy)]
        return statistics.fmean(own)

    return [score(r, "tpe") - score(r, other) for r in sorted({item["repetition"] for item in found})]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for suites, results and found.json")
    for name, default in (("repetitions", 5), ("trials", 8), ("steps", 30)):
        parser.add_argument(f"--{name}", type=whole, default=default)
    parser.add_argument("--task", default="micro_paraphrase")
    parser.add_argument("--methods", default=",".join(row.label for row in ROWS))
    parser.add_argument("--only", type=int, help="train this repetition alone, as one of several processes")
    given = parser.parse_args()
    rows = [row for row in ROWS if row.label in given.methods.split(",")]
    found: list[dict[str, Any]] = []
    for repetition in range(given.repetitions) if given.only is None else [given.only]:
        for row in rows:
            for strategy in STRATEGIES:
                text = suite_text(strategy, row, repetition, given.trials, given.steps, given.task)
                results = search(given.out / f"{row.label}-{strategy}-{repetition}", text, row.label)
                place = {"method": row.label, "strategy": strategy, "repetition": repetition}
                found.append({**place, **measured(results)})
                print(f"{row.label} {strategy} {repetition}: test {found[-1]['test']:.1f}", flush=True)
    if given.only is None:
        (given.out / "found.json").write_text(json.dumps(found, indent=1) + "\n")
        print(report(found), end="")


if __name__ == "__main__":
    main()
