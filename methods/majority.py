"""Majority: the most frequent training target for every row, the floor that a method must clear."""

from collections import Counter
from collections.abc import Sequence

from harness.method import Paper, Rule


class Majority(Rule):
    """Where two targets are equally frequent, the one that comes first in the training split wins."""

    name = "majority"
    paper = Paper("", "")

    def answers(self, train_targets: Sequence[str], num_rows: int, seed: int) -> list[str]:
        """The same answer for all rows; the seed changes nothing."""
        return [Counter(train_targets).most_common(1)[0][0]] * num_rows
