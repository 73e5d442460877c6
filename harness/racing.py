"""Racing the points of a grid: at a few marks the weaker half leaves, by dev score.

Successive halving (Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", algorithm 1): each mark comes after twice the steps of the one before. Each point keeps the schedule
of its full length, so that those that stay are what they would be without a race (with dropout, as in another draw).

Unlike there, a mark at which no point has learnt anything yet is passed over: dev scores of a method that learns late
are chance at first, and a race would be decided by tossing coins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from harness.schema import Cell

STANDARD_ERRORS = 3
CORRELATIONS = ("matthews", "pearson", "spearman")


@dataclass(frozen=True)
class Race:
    """The grid of one label on one seed; its cells share a bundle and its number of steps."""

    label: str
    seed: int
    num_points: int
    """Points of the whole grid, those included that a run before this one has finished."""
    begins_at_once: bool = False
    """Whether points leave also while none has learnt anything."""

    def holds(self, cell: Cell) -> bool:
        return (cell.label, cell.seed) == (self.label, self.seed)


def marks(num_points: int, steps: int, eval_every: int) -> dict[int, int]:
    """Step of each mark -> how many points may stay.

    Halvings until one is left would come after 1/2, 1/4, 1/8 ... of the steps, counted backwards; a mark waits for
    the next evaluation, and marks that meet there are one.
    """
    num_halvings = math.ceil(math.log2(num_points)) if num_points > 1 else 0
    wanted = [steps / 2 ** (num_halvings - index) for index in range(num_halvings)]
    at_evaluation = sorted({math.ceil(step / eval_every) * eval_every for step in wanted})
    return {step: math.ceil(num_points / 2 ** (index + 1)) for index, step in enumerate(at_evaluation) if step < steps}


@dataclass(frozen=True)
class Chance:
    """What a constant answer scores on a dev split, in percent, and how far scores are from it by chance."""

    score: float
    standard_error: float

    def is_below(self, best: float) -> bool:
        """Whether a score is clearly above it; so clearly that the best of dozens hardly ever is by chance."""
        return best - self.score > STANDARD_ERRORS * self.standard_error


def standard_error(metric: str, num_rows: int) -> float:
    """Of a score at chance, in percent: that of a correlation, else the largest that a share can have."""
    return (100 if metric in CORRELATIONS else 50) / math.sqrt(num_rows)


def losers(scores: Mapping[int, float], keep: int) -> list[int]:
    """The keys that have to leave so that `keep` stay: the lowest scores, among equals those named last."""
    ranked = sorted(scores, key=lambda key: -scores[key])
    return ranked[keep:]
