"""How much the seed that chose the grid point flatters what is reported, for every shipped suite.

    python -m tools.choosing_seed [--deviation 2] [--score 90] [--dev-rows 500] [--draws 200000]

The model: all grid points of a method are equally good. Each run's true score is `--score` plus a normal deviation of
`--deviation` points, which dev and test share; its dev score adds the chance of `--dev-rows` rows. The point with the
best dev score is reported with the run that won, and run again with the other seeds. The advantage is the reported
score less the true one. Nothing is trained.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.data import suite_tasks
from harness.method import read_specs
from harness.shipped import shipped_suites
from harness.suite import MethodSpec, Overrides, expand_suite, load_suite
from harness.text_tables import text_table
from tools.arguments import over_zero, whole

BATCH = 20_000
"""Draws at a time; with 64 grid points an array of them takes 10 MB."""


@dataclass(frozen=True)
class Advantage:
    """What choosing and reporting with the same seed adds, in points of the score."""

    of_the_run: float
    """For the run that was chosen."""
    of_the_mean: float
    """For the mean over all seeds, of which that run is one."""


def simulate(
    num_points: int, num_seeds: int, deviation: float = 2.0, score: float = 90.0, dev_rows: int = 500,
    draws: int = 200_000, seed: int = 0,
) -> Advantage:  # fmt: skip
    """Return the mean advantage over `draws` searches of `num_points` equal grid points."""
    random = np.random.default_rng(seed)
    noise = 100 * np.sqrt(score / 100 * (1 - score / 100) / dev_rows)
    total, done = 0.0, 0
    while done < draws:
        size = min(BATCH, draws - done)
        true = random.normal(0, deviation, (size, num_points))
        winner = (true + random.normal(0, noise, true.shape)).argmax(1)
        total += float(true[np.arange(size), winner].sum())
        done += size
    return Advantage(total / draws, total / draws / num_seeds)


def searched(suite_path: str, methods: Mapping[str, MethodSpec]) -> Counter[tuple[int, int]]:
    """(grid points, seeds) -> number of table entries of a suite, for entries that choose among several points."""
    suite = load_suite(suite_path, Overrides())
    if suite.file.tuning.seeds == "each":
        return Counter()
    groups = expand_suite(suite, methods, {name: task.spec for name, task in suite_tasks(suite).items()})
    found = ((len(group.points), len(group.seeds)) for group in groups if not group.is_source and group.repeat == 1)
    return Counter(shape for shape in found if shape[0] > 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each shipped suite and shape of its searches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deviation", type=over_zero, default=2.0, help="between seeds, in points")
    parser.add_argument("--score", type=float, default=90.0, help="true score, 0-100")
    parser.add_argument("--dev-rows", type=whole, default=500)
    parser.add_argument("--draws", type=whole, default=200_000)
    given = parser.parse_args(arguments)
    methods = read_specs()
    shapes = {path.stem: searched(str(path), methods) for path in sorted(shipped_suites().glob("*.yaml"))}
    known: dict[int, Advantage] = {}
    rows = []
    for name, counts in shapes.items():
        for (points, seeds), entries in sorted(counts.items()):
            if points not in known:
                known[points] = simulate(points, 1, given.deviation, given.score, given.dev_rows, given.draws)
            gain = known[points].of_the_run
            rows.append(
                {
                    "suite": name,
                    "entries": entries,
                    "grid points": points,
                    "seeds": seeds,
                    "that run": f"+{gain:.1f}",
                    "mean": f"+{gain / seeds:.1f}",
                    "--report-seeds others": "+0.0" if seeds > 1 else "no run left",
                }
            )
    print(text_table(rows, list(rows[0])))
    none = [name for name, counts in shapes.items() if not counts]
    print(f"\nNo entry chooses among grid points in: {', '.join(none)}")


if __name__ == "__main__":
    main()
