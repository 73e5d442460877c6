"""Token ids of the texts among which answers are chosen by likelihood, and what their likelihood is divided by.

Shapes: N rows of a split, C choices of all rows, M of some, T token ids of the longest of those.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.backbone import Backbone
from harness.data.examples import Example
from harness.data.prompt_form import PromptForm, make_form
from harness.data.ragged import Ids, joined_offsets, padded, ragged
from harness.data.tasks.task import Task
from harness.errors import UserError
from harness.suite import ChoiceScore

LENGTHS: dict[ChoiceScore, Callable[[str, Sequence[int]], int]] = {
    "sum": lambda text, ids: 1,
    "per_character": lambda text, ids: len(text),
    "per_byte": lambda text, ids: len(text.encode()),
    "per_token": lambda text, ids: len(ids),
}
"""What a log-likelihood is divided by; the blank in front of a choice does not count. lm-evaluation-harness calls the
accuracy by `sum` acc, that by `per_character` acc_norm, that by `per_byte` acc_bytes."""


@dataclass(frozen=True)
class EncodedChoices:
    """The choices of a split of N rows, row after row; those of row i are `row_offsets[i]` to `row_offsets[i + 1]`."""

    ids: Ids
    """[number of token ids in all]"""
    offsets: Ids
    """[C + 1], where the ids of each choice begin; the first is 0"""
    row_offsets: Ids
    """[N + 1]; a row without choices is answered by writing"""
    lengths: Any
    """[C], what the log-likelihood of each choice is divided by"""
    answers: tuple[str, ...]
    """By choice, the answer that it stands for: a number, or a label's target text"""

    def counts(self, rows: Ids) -> Ids:
        """Return the number of choices of each of `rows`, [len(rows)]."""
        counts: Ids = self.row_offsets[rows + 1] - self.row_offsets[rows]
        return counts

    def of(self, rows: Ids) -> tuple[Ids, Ids]:
        """Return the choices of `rows` in their order, [M], and for each the place of its row in `rows`, [M]."""
        counts = self.counts(rows)
        place = np.repeat(np.arange(len(rows)), counts)
        # the choices of a row follow each other: its first, and how many of its own came before
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.row_offsets[rows][place] + within, place

    def num_tokens(self, choices: Ids) -> Ids:
        """Return the number of token ids of each of `choices`, [M]."""
        counts: Ids = self.offsets[choices + 1] - self.offsets[choices]
        return counts

    def tokens(self, choices: Ids) -> Ids:
        """Return the ids of `choices`, padded on the right with -100, [M, T]."""
        return padded(self.ids, self.offsets, choices, -100)

    def are_equal(self, one: int, other: int) -> bool:
        """Whether two choices have the same token ids, and are divided by the same length."""
        first, second = (self.ids[self.offsets[choice] : self.offsets[choice + 1]] for choice in (one, other))
        return np.array_equal(first, second) and bool(self.lengths[one] == self.lengths[other])


def encode_choices(examples: Sequence[Example], backbone: Backbone, task: Task) -> EncodedChoices | None:
    """Tokenise the choices of a split; None for a task whose answers are written.

    A classification has its labels in every row. Raises UserError for a choice without any token, for a label that
    could never be answered, and where the backbone's chat template cannot be used.
    """
    if not task.is_ranked:
        return None
    form = make_form(task, backbone)
    by_row = [example.choices if task.kind == "choice" else tuple(task.targets) for example in examples]
    # many texts stand in many rows, so each is tokenised once; of a source its end decides what stands between the two
    keys = [(text, example.source[-1:]) for example, texts in zip(examples, by_row, strict=True) for text in texts]
    known = {key: form.choice_ids(*key) for key in set(keys)}
    for text, _ in (key for key in keys if not known[key]):
        problem = f"the choice {text!r} has no token in the vocabulary of '{backbone.name}'"
        raise UserError(problem, where=f"task '{task.name}'")
    if task.kind == "classification":
        for behind in {end for _, end in keys}:
            _require_rivals({text: known[text, behind] for text in task.targets}, task)
    ids, offsets = ragged([known[key] for key in keys])
    length = LENGTHS[task.choice_score]
    return EncodedChoices(
        ids,
        offsets,
        np.concatenate([[0], np.cumsum([len(texts) for texts in by_row])]).astype(np.int64),
        np.array([length(key[0], known[key]) for key in keys], np.float64),
        tuple(str(number) if task.kind == "choice" else text for texts in by_row for number, text in enumerate(texts)),
    )


def check_labels(task: Task, form: PromptForm) -> None:
    """Raise UserError where one of a task's labels could never be answered by likelihood."""
    if task.kind == "classification" and task.is_ranked:
        _require_rivals({text: form.choice_ids(text) for text in task.targets}, task)


def _require_rivals(labels: Mapping[str, Sequence[int]], task: Task) -> None:
    """Raise UserError where a label has the ids of another, or by `sum` those of another and more.

    Labels have no end, so the likelihood of "10" is that of "1" times that of "0": never above that of "1".
    """
    # a list that begins another stands right in front of one that it begins
    ordered = sorted((list(ids), text) for text, ids in labels.items() if ids)
    for (first, short), (second, long) in itertools.pairwise(ordered):
        hint = "Give words, or answered_by: writing."
        if first == second:
            problem = f"labels '{short}' and '{long}' are the same tokens, so by likelihood one of them could never win"
            raise UserError(problem, where=f"task '{task.name}'", hint=hint)
        if task.choice_score == "sum" and second[: len(first)] == first:
            problem = f"label '{short}' begins label '{long}', so by likelihood '{long}' could never win"
            raise UserError(problem, where=f"task '{task.name}'", hint=hint)


def join_choices(splits: Sequence[EncodedChoices | None], sizes: Sequence[int]) -> EncodedChoices | None:
    """Return the choices of one split of several tasks as one; `sizes` are their rows. None where no task has any."""
    if all(split is None for split in splits):
        return None
    parts = [split or _no_choices(size) for split, size in zip(splits, sizes, strict=True)]
    return EncodedChoices(
        np.concatenate([part.ids for part in parts]),
        joined_offsets([part.offsets for part in parts]),
        joined_offsets([part.row_offsets for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        tuple(answer for part in parts for answer in part.answers),
    )


def _no_choices(num_rows: int) -> EncodedChoices:
    empty = np.zeros(0, np.int64)
    return EncodedChoices(empty, np.zeros(1, np.int64), np.zeros(num_rows + 1, np.int64), np.zeros(0), ())
