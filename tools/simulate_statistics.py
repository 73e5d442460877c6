"""Holds the statistics of reports against worlds whose truth is known: coverage, false claims, power.

    python -m tools.simulate_statistics [--mechanisms NAME ...] [--seeds 1 2 3 5] [--rows 28 300 5000] [--boards 1000]
    python -m tools.simulate_statistics --quick

A board has five methods. In the first run of each setting they are equal: every entry that is said to differ is a false
claim, and a board with any counts once. In the second, one method is better by `--gap` points, and what counts is how
many of the other four are told from it. What is run is the code of the reports, from the answers on.

The worlds: the logit of a right answer is the method's, plus the row's (deviation 1.5; hard rows are hard for all
methods), plus the run's. The deviation between runs is given in points.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.special

from harness.report.statistics.comparison import AVERAGE, Comparison, judge
from harness.report.statistics.intervals import Sample
from harness.results import Answers
from tools.arguments import over_zero, whole

HARDNESS = 1.5
"""Deviation of the rows' logits. At a score of 80 it makes three quarters of the rows all but always right."""
METHODS = 5
NODES, MASS = np.polynomial.hermite_e.hermegauss(80)
MASS = MASS / MASS.sum()


@dataclass(frozen=True)
class World:
    """How runs of equal methods come about."""

    title: str
    score: float = 80.0
    """True score of a method in accuracy, points."""
    deviation: float = 2.0
    """Of the score between runs, points."""
    unstable: float = 1.0
    """The first method's deviation, in deviations of the others."""
    failing: float = 0.0
    """Share of runs that learn nothing: they answer at chance."""
    shared: float = 1.0
    """Share of the rows' hardness that all methods have in common."""
    group: int = 1
    """Rows that belong together: they are equally hard."""
    told: bool = True
    """Whether the answers say which rows belong together."""
    luck: float = 0.0
    """Deviation of the luck of drawn training rows, points, which methods share."""
    metric: str = "accuracy"
    num_labels: int = 2
    tasks: int = 1
    methods: int = METHODS


WORLDS = {
    "equal": World("equal methods, runs 2 points apart"),
    "wide": World("runs 6 points apart", deviation=6.0),
    "still": World("runs that do not differ", deviation=0.0),
    "near-100": World("scores of 98, runs 0.5 apart", score=98.0, deviation=0.5),
    "own-rows": World("each method has hard rows of its own", shared=0.0),
    "unstable": World("one method's runs lie 3 times as far apart", unstable=3.0),
    "failing": World("one run in ten learns nothing", failing=0.1),
    "three-tasks": World("three tasks and their average", tasks=3),
    "two-methods": World("two methods", methods=2),
    "groups": World("five rows belong together", group=5),
    "groups-untold": World("five rows belong together, and the answers do not say so", group=5, told=False),
    "draws": World("few-shot draws: shared luck of 4 points", luck=4.0),
    "f1": World("F1 of scores of 98", score=98.0, deviation=0.5, metric="f1"),
    "macro-f1": World("macro-F1 of three labels, scores of 98", score=98.0, deviation=0.5, metric="macro_f1",
                      num_labels=3),
    "matthews": World("Matthews of scores of 98", score=98.0, deviation=0.5, metric="matthews"),
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What boards of one world showed."""

    coverage: float
    """Share of intervals that hold the true score: of the method, or with one run of that run."""
    false_boards: float
    """Share of boards of equal methods with any false claim."""
    told: float
    """Share of worse methods that are told from the best."""
    doubt: float
    """Share of the worse methods for which the verdict is "cannot tell"."""
    width: float
    """Mean width of the intervals, points."""
    seconds: float


def score_at(logit: float | np.ndarray, spread: float) -> np.ndarray:
    """Score, 0 to 100, over rows and runs whose logits deviate by `spread` from `logit`."""
    made: np.ndarray = 100 * scipy.special.expit(np.asarray(logit)[..., None] + spread * NODES) @ MASS
    return made


def logit_of(score: float, spread: float) -> float:
    """The logit at which `score_at` gives a score."""
    grid = np.linspace(-12, 12, 4_001)
    return float(np.interp(score, score_at(grid, spread), grid))


class Simulation:
    """Boards of one world, with N rows and K runs of each method."""

    def __init__(self, world: World, num_rows: int, num_runs: int, gap: float, seed: int) -> None:
        self.world, self.num_rows, self.num_runs, self.gap = world, num_rows, num_runs, gap
        self.random = np.random.default_rng([seed, num_rows, num_runs])
        # how many points one logit is worth where the score is
        middle = logit_of(world.score, HARDNESS)
        slope = float(score_at(np.array(middle + 0.05), HARDNESS) - score_at(np.array(middle - 0.05), HARDNESS)) / 0.1
        self.deviations = np.full(world.methods, world.deviation / slope)
        self.deviations[0] *= world.unstable
        self.luck = world.luck / slope

    def logits(self, is_equal: bool) -> np.ndarray:
        """The logit of each method, which gives all the same true score, or the last one `gap` more."""
        scores = np.full(self.world.methods, self.world.score)
        if not is_equal:
            scores[-1] = min(99.9, self.world.score + self.gap)
        spreads = np.sqrt(HARDNESS**2 + self.deviations**2 + self.luck**2)
        return np.array([logit_of(score, spread) for score, spread in zip(scores, spreads, strict=True)])

    def board(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Right answers [M, K, N], the logit of each run [M, K], and the unit of each row [N]."""
        world, count = self.world, -(-self.num_rows // self.world.group)
        units = np.repeat(np.arange(count), world.group)[: self.num_rows]
        common = self.random.normal(0, HARDNESS * world.shared**0.5, count)[units]
        own = self.random.normal(0, HARDNESS * (1 - world.shared) ** 0.5, (world.methods, 1, count))[..., units]
        runs = logits[:, None] + self.deviations[:, None] * self.random.normal(size=(world.methods, self.num_runs))
        runs = runs + self.luck * self.random.normal(size=(1, self.num_runs))
        runs = np.where(self.random.random(runs.shape) < world.failing, -np.inf, runs)
        chances = scipy.special.expit(runs[..., None] + common + own)
        chance_level = 1 / world.num_labels
        chances = np.where(np.isneginf(runs)[..., None], chance_level, chances)
        return self.random.random(chances.shape) < chances, runs, units

    def samples(self, hits: np.ndarray, units: np.ndarray) -> dict[str, Sample]:
        """Row name -> the sample that a report would make of these answers."""
        world = self.world
        told = units if world.told else np.arange(self.num_rows)
        seeds = [(k, k) if world.luck else (k,) for k in range(self.num_runs)]
        if world.metric == "accuracy":
            return {f"m{i}": Sample.of_values(seeds, 100.0 * item, told) for i, item in enumerate(hits)}
        labels = [str(i) for i in range(world.num_labels)]
        truth = self.random.integers(world.num_labels, size=self.num_rows)
        other = truth + self.random.integers(1, world.num_labels, size=(*hits.shape[:2], self.num_rows))
        answers = np.where(hits, truth, other % world.num_labels)
        references = [[labels[i]] for i in truth]
        return {
            f"m{i}": Sample.of(
                [(seed, Answers([labels[j] for j in run], references)) for seed, run in zip(seeds, runs, strict=True)],
                [world.metric], labels,
            )
            for i, runs in enumerate(answers)
        }  # fmt: skip

    def truths(self, logits: np.ndarray, runs: np.ndarray) -> np.ndarray:
        """The true score of each method [M]; with one run that of the run."""
        if self.num_runs == 1:
            accuracy = np.where(np.isneginf(runs[:, 0]), 100 / self.world.num_labels, score_at(runs[:, 0], HARDNESS))
        else:
            spreads = np.sqrt(HARDNESS**2 + self.deviations**2 + self.luck**2)
            known = np.array([float(score_at(np.array(a), b)) for a, b in zip(logits, spreads, strict=True)])
            accuracy = (1 - self.world.failing) * known + self.world.failing * 100 / self.world.num_labels
        # of balanced labels: F1 and macro-F1 are the accuracy, Matthews is 0 at chance
        if self.world.metric == "matthews":
            return (accuracy - 50) * 2
        return accuracy

    def play(self, num_boards: int) -> Outcome:
        """Run boards of equal methods, and as many with one better method."""
        start, equal, apart = time.perf_counter(), self.logits(True), self.logits(False)
        held, widths, false, told, doubt = [], [], 0, [], []
        for is_equal in (True, False):
            logits = equal if is_equal else apart
            for _ in range(num_boards if is_equal else max(1, num_boards // 4)):
                comparison, tasks = Comparison(), [f"t{i}" for i in range(self.world.tasks)]
                truths: dict[tuple[str, str], float] = {}
                means: dict[str, dict[str, float]] = {}
                for task in tasks:
                    hits, runs, units = self.board(logits)
                    samples = self.samples(hits, units)
                    comparison.add_task(task, samples)
                    means[task] = {name: float(item.scores.mean()) for name, item in samples.items()}
                    found = self.truths(logits, runs)
                    truths |= {(name, task): truth for name, truth in zip(samples, found, strict=True)}
                comparison.finish(tasks)
                if len(tasks) > 1:
                    truths |= {
                        (name, AVERAGE): float(np.mean([truths[name, task] for task in tasks])) for name in samples
                    }
                    means[AVERAGE] = {name: float(np.mean([means[task][name] for task in tasks])) for name in samples}
                kinds = {
                    (column, name): verdict.kind
                    for column, gaps in comparison.gaps.items()
                    for name, verdict in judge(means[column], gaps, len(comparison.gaps)).items()
                }
                if is_equal:
                    false += "differs" in kinds.values()
                    for key, (low, high) in comparison.intervals.items():
                        held.append(low - 1e-9 <= truths[key] <= high + 1e-9)
                        widths.append(high - low)
                else:
                    best = f"m{self.world.methods - 1}"
                    others = [kind for (column, name), kind in kinds.items() if name != best and column == "t0"]
                    told += [kind == "differs" for kind in others]
                    doubt += [kind == "cannot tell" for kind in others]
        told, doubt = told or [False], doubt or [True]
        return Outcome(
            float(np.mean(held)), false / num_boards, float(np.mean(told)), float(np.mean(doubt)),
            float(np.mean(widths)), time.perf_counter() - start,
        )  # fmt: skip


def lines(arguments: argparse.Namespace, show: Callable[[str], None]) -> None:
    """Print one line of a Markdown table for each setting."""
    heads = ["world", "rows", "seeds", "coverage", "width", "false boards", f"told at {arguments.gap:g}", "doubt", "s"]
    show(f"| {' | '.join(heads)} |\n|{'|'.join([':--'] + ['--:'] * (len(heads) - 1))}|")
    settings = {name: getattr(arguments, name) for name in ("deviation", "score", "methods")}
    changes = {name: value for name, value in settings.items() if value is not None}
    for name in arguments.mechanisms:
        for num_rows in arguments.rows:
            for num_runs in arguments.seeds:
                world = replace(WORLDS[name], **changes)
                slow = 1 if world.metric == "accuracy" else 4
                num_boards = max(1, arguments.boards // slow)
                made = Simulation(world, num_rows, num_runs, arguments.gap, arguments.random).play(num_boards)
                untested = num_runs == 1
                cells = [name, f"{num_rows:,}", f"{num_runs}", f"{made.coverage:.3f}", f"{made.width:.1f}",
                         "no test" if untested else f"{made.false_boards:.3f}", "" if untested else f"{made.told:.2f}",
                         "" if untested else f"{made.doubt:.2f}", f"{made.seconds:.0f}"]  # fmt: skip
                show(f"| {' | '.join(cells)} |")


def main(given: Sequence[str] | None = None) -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.simulate_statistics", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--mechanisms", nargs="+", choices=WORLDS, default=list(WORLDS), help="worlds to try")
    parser.add_argument("--seeds", nargs="+", type=whole, default=[1, 2, 3, 5], help="runs of each method")
    parser.add_argument("--rows", nargs="+", type=whole, default=[28, 300, 5_000], help="test rows")
    parser.add_argument(
        "--boards", type=whole, default=1_000, help="boards of equal methods; of F1 and the like a quarter"
    )
    parser.add_argument("--gap", type=float, default=10.0, help="points by which the better method is better")
    parser.add_argument("--methods", type=whole, help="methods of a board")
    parser.add_argument("--deviation", type=over_zero, help="deviation between runs, points")
    parser.add_argument("--score", type=float, help="true score of the equal methods")
    parser.add_argument("--random", type=int, default=0, help="seed of the simulation itself")
    parser.add_argument("--quick", action="store_true", help="100 boards, 28 and 300 rows, 2 and 3 seeds")
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.boards, arguments.rows, arguments.seeds = 100, [28, 300], [2, 3]
    lines(arguments, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
