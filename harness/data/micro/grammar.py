"""A seeded grammar of short English text and six small, honest tasks made from it.

The tasks have the columns of their namesakes on the Hugging Face hub (SST-2, MNLI, MRPC, STS-B, CoLA, SQuAD).
Their answers follow from the sentences' structure, so that counting words does not solve them. Validation and
test rows contain combinations of a noun and a predicate (`lexicon.is_heldout`) that train rows and `text`
never do. Equal arguments give equal rows on every machine and Python version.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator

from harness.data.micro.lexicon import heldout_combinations
from harness.data.micro.phrases import Dice, passage
from harness.data.micro.tasks import LABELLED, OPEN, Row

TASKS: tuple[str, ...] = ("sentiment", "entailment", "paraphrase", "similarity", "acceptability", "qa")
SPLITS: tuple[str, ...] = ("train", "validation", "test")

# slightly uneven on purpose: always giving the commonest label must score above chance, as it does on real tasks
LABEL_SHARES: dict[str, tuple[tuple[int, float], ...]] = {
    "sentiment": ((0, 0.47), (1, 0.53)),
    "entailment": ((0, 0.36), (1, 0.33), (2, 0.31)),
    "paraphrase": ((0, 0.46), (1, 0.54)),
    "acceptability": ((0, 0.45), (1, 0.55)),
}
_PATIENCE = 5_000
"""Draws without a new row after which the grammar counts as used up. Too few would refuse a size that it has; too many
only delay the refusal."""


def generate(task: str, split: str, size: int, seed: int = 0) -> list[Row]:
    """Return the first `size` distinct rows of a task's split for this seed.

    A text belongs to one split whatever the seed, so splits never overlap. Columns: sentiment and
    acceptability (sentence, label), entailment (premise, hypothesis, label), paraphrase and similarity
    (sentence1, sentence2, label; the latter a float from 0 to 5), qa (context, question, answers).

    Raises ValueError for an unknown task or split, a negative size, or more rows than the grammar has.
    """
    _check(task, split, size)
    chosen: dict[str, Row] = {}
    fruitless = 0
    rows = _rows(task, split, Dice(random.Random(f"{task} {split} {seed}")))
    while len(chosen) < size:
        row = next(rows)
        before = len(chosen)
        chosen.setdefault(row_text(row), row)
        fruitless = 0 if len(chosen) > before else fruitless + 1
        if fruitless > _PATIENCE:
            raise ValueError(f"{task} {split} has only about {len(chosen)} rows, not {size}")
    return list(chosen.values())


def text(rng: random.Random) -> str:
    """Return two or three sentences of plain text without any held-out combination; advances `rng`."""
    dice = Dice(rng)
    while True:
        candidate = passage(dice)
        if not heldout_combinations(candidate):
            return candidate


def row_text(row: Row) -> str:
    """Return all text fields of a row as one string. Rows with the same string count as the same row."""
    return " | ".join(value for value in row.values() if isinstance(value, str))


def belongs(text_of_row: str, split: str) -> bool:
    """Return whether a row's text may occur in the split: held-out combinations stand in validation and test only."""
    if not heldout_combinations(text_of_row):
        return split == "train"
    # sorted words decide, so that two texts of the same words, one right and one wrong, come into one split
    words = " ".join(sorted(text_of_row.split()))
    return split == ("validation", "test")[zlib.crc32(words.encode()) & 1]


def _rows(task: str, split: str, dice: Dice) -> Iterator[Row]:
    while True:
        if task in OPEN:
            yield _accepted(task, split, dice, 0)
        else:
            yield _accepted(task, split, dice, dice.weighted(LABEL_SHARES[task]))


def _accepted(task: str, split: str, dice: Dice, label: int) -> Row:
    """Return a row of the split with this label. A rejected row is drawn again with its label, so shares stay."""
    while True:
        row = OPEN[task](dice) if task in OPEN else LABELLED[task](dice, label)
        if belongs(row_text(row), split):
            return row


def _check(task: str, split: str, size: int) -> None:
    if task not in TASKS:
        raise ValueError(f"unknown micro task {task!r}; choose from {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
    if size < 0:
        raise ValueError(f"size must be at least 0, not {size}")
