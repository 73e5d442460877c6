"""Random guess: a label drawn evenly for every row, what knowing nothing but the labels scores."""

import random
from collections.abc import Sequence

from harness.method import Paper, Rule


class RandomGuess(Rule):
    """Where a task has no labels (texts, numbers), each answer is the target of a random training row."""

    name = "random_guess"
    paper = Paper("", "")

    def answers(self, train_targets: Sequence[str], num_rows: int, seed: int) -> list[str]:
        """One draw for each row."""
        # Python's own generator gives the same draws in every process and on every machine
        return random.Random(seed).choices(self.labels or train_targets, k=num_rows)
