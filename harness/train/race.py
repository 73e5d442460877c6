"""Successive halving: at a few steps of training, called rungs, the weaker half of a grid's points is dropped.

Jamieson and Talwalkar (2016), "Non-stochastic Best Arm Identification and Hyperparameter Optimization", algorithm 1.
Points are compared by dev score, and each rung comes after twice the steps of the one before. Each point keeps the
learning rate schedule of its full length, so the points that stay are those of a full search (with dropout, as in
another draw).

One thing differs from the paper: a rung at which no point is better than chance is skipped. Some methods learn late,
and until then their dev scores are chance, so that a race would be decided by tossing coins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from harness.suite import Cell

STANDARD_ERRORS = 3
"""A score counts as better than chance from so many standard errors on. A constant answer is that lucky on one dev
split in about 740 (normal law, one side); a race looks at the best of dozens of scores."""
CORRELATIONS = ("matthews", "pearson", "spearman")
"""Metrics whose chance level is a correlation of 0, not a share of right answers."""


@dataclass(frozen=True)
class Race:
    """The points of a grid, or of one batch of a search, on one seed.

    They share a bundle, and train for the same number of steps.
    """

    label: str
    seed: int
    num_points: int
    """Points in all, also those that an earlier run has finished."""
    begins_at_once: bool = False
    """Whether points are dropped even while none is better than chance (`tuning.begin: at_once`)."""
    study: str = ""
    """The search whose batch it is; empty for a grid."""
    first: int = 0
    """Number of its first point in the grid or search; the others follow it."""

    def holds(self, cell: Cell) -> bool:
        """Whether a cell is one of its points. A repeat is none: it is trained after its point has won."""
        same = (cell.label, cell.seed, cell.repeat, cell.study) == (self.label, self.seed, 1, self.study)
        return same and self.first <= cell.grid_index < self.first + self.num_points


def rungs(num_points: int, steps: int, eval_every: int) -> dict[int, int]:
    """The rungs of a race: step -> how many points stay in training.

    It takes ceil(log2(points)) halvings until one point is left. The last comes after 1/2 of the steps, the one before
    after 1/4, then 1/8, and so on. A rung is moved to the next evaluation; rungs that meet there are one. A rung at the
    last step would save nothing and is left out.
    """
    num_halvings = math.ceil(math.log2(num_points)) if num_points > 1 else 0
    wanted = [steps / 2 ** (num_halvings - index) for index in range(num_halvings)]
    at_evaluation = sorted({math.ceil(step / eval_every) * eval_every for step in wanted})
    return {step: math.ceil(num_points / 2 ** (index + 1)) for index, step in enumerate(at_evaluation) if step < steps}


@dataclass(frozen=True)
class ChanceLevel:
    """The level of chance on a dev split."""

    score: float
    """What a constant answer scores, in percent."""
    standard_error: float
    """How far a score at chance is from that, in percent."""

    def is_below(self, best: float) -> bool:
        """Whether `best`, in percent, is better than chance by STANDARD_ERRORS."""
        return best - self.score > STANDARD_ERRORS * self.standard_error


def standard_error(metric: str, num_rows: int) -> float:
    """Standard error of a score at chance on `num_rows` rows, in percent.

    It is 1 / sqrt(n) for a correlation, and sqrt(p (1 - p) / n) for a share p of right answers, at most 1 / (2
    sqrt(n)).
    """
    return (100 if metric in CORRELATIONS else 50) / math.sqrt(num_rows)


def eliminated(scores: Mapping[int, float], keep: int) -> list[int]:
    """The keys to drop so that `keep` stay: those with the lowest scores, and of equal ones those named last."""
    ranked = sorted(scores, key=lambda key: -scores[key])
    return ranked[keep:]
