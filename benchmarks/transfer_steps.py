"""How many steps a prompt that starts from another task's prompt needs to reach what a random start reaches in all.

    harness run transfer --results out
    python -m benchmarks.transfer_steps out

Per seed: the random start's dev score at its last step is the goal; counted is the first evaluated step at which a run
has reached it, the whole training where it never has. Differences are paired by seed, with Student's interval.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import scipy.stats
from tabulate import tabulate

from harness.results import Result, ResultStore

LEVEL = 0.95
SUITE = "transfer"
RANDOM = "random_start"


def steps_to(goal: float, result: Result) -> int | None:
    """First evaluated step whose dev score is at least `goal`; None if there is none."""
    return next((entry.step for entry in result.dev_history if entry.selection >= goal), None)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the bounds of Student's interval over seeds."""
    mean = statistics.fmean(values)
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def by_seed(results: Path) -> dict[str, dict[int, Result]]:
    """Finished runs of the suite: row -> seed -> result."""
    found: dict[str, dict[int, Result]] = {}
    for _, result in ResultStore(results).scan():
        if result.cell.suite == SUITE and result.status == "done":
            runs = found.setdefault(result.cell.label, {})
            if result.cell.seed in runs:
                raise SystemExit(f"{results} holds two runs of {result.cell.label} with seed {result.cell.seed}")
            runs[result.cell.seed] = result
    return found


def summary(label: str, runs: Mapping[int, Result], goals: Mapping[int, Result]) -> dict[str, str]:
    """One line of the table; all numbers are means over seeds."""
    seeds = sorted(runs.keys() & goals.keys())
    total = max(result.dev_history[-1].step for result in runs.values())
    needed, saved = [], []
    for seed in seeds:
        goal = goals[seed].dev_history[-1].selection
        reached, random = steps_to(goal, runs[seed]), steps_to(goal, goals[seed])
        needed.append(reached)
        saved.append(float((random or total) - (reached or total)))
    mean, low, high = interval(saved)
    return {
        "start": label,
        "seeds": str(len(seeds)),
        "first dev score": f"{statistics.fmean(runs[seed].dev_history[0].selection for seed in seeds):.1f}",
        "last dev score": f"{statistics.fmean(runs[seed].dev_history[-1].selection for seed in seeds):.1f}",
        "steps to the goal": f"{statistics.fmean(step or total for step in needed):.0f}",
        "never reached it": str(sum(step is None for step in needed)),
        "steps saved [95% interval]": "" if label == RANDOM else f"{mean:.0f} [{low:.0f}, {high:.0f}]",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, help="folder that `harness run transfer` wrote")
    found = by_seed(parser.parse_args().results)
    goals = found.pop(RANDOM)
    lines = [summary(RANDOM, goals, goals), *(summary(label, runs, goals) for label, runs in sorted(found.items()))]
    print(tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
