"""Majority: the most frequent training target for every row, the floor that a method must clear."""

from collections import Counter
from collections.abc import Sequence

from harness.method import Paper, Rule


class Majority(Rule):
    """Ties go to the target that stands first in the training split."""

    name = "majority"
    paper = Paper("", "")

    def answers(self, train_targets: Sequence[str], num_rows: int, seed: int) -> list[str]:
        return [Counter(train_targets).most_common(1)[0][0]] * num_rows
