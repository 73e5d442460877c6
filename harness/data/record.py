"""Which rows a cell used and how they were answered: sizes, fingerprints, few-shot draws."""

from __future__ import annotations

from typing import Literal

from harness.suite import Strict

ResolvedForm = Literal["suffix", "plain", "chat"]


class DrawRecord(Strict):
    """The rows of a few-shot draw, by their place in the task's training split, and the labels that selection saw."""

    rows: list[int]
    class_counts: dict[str, int]
    """Rows by class; one class "" where a task has none."""
    fingerprint: str
    """Of the drawn rows' text, for comparison across methods and machines."""
    num_selection_labels: int
    selection_rows: list[int] | None = None
    """Training rows that chose checkpoint and grid point; None where the whole dev split did."""


class Cuts(Strict):
    """Rows by split whose texts were longer than a limit, in tokens."""

    source_limit: int
    target_limit: int
    sources: dict[str, int]
    targets: dict[str, int]
    cuts_references: bool
    """Whether the references of dev and test were cut like the targets."""
    unwritten: dict[str, int] = {}
    """Rows by split whose targets are longer than an answer may be; empty where the task sets no `max_new_tokens`."""


class PromptRecord(Strict):
    """How source texts became what a network reads."""

    form: ResolvedForm = "suffix"
    """`auto` is resolved here."""
    template: str | None = None
    """Hash of the tokenizer's chat template and of the tokens that it is given; None in other forms."""
    system: str = ""
    """Text in front of every conversation that has no system message of its own."""


class WritingRecord(Strict):
    """How answers were written."""

    max_new_tokens: int
    """Most tokens of an answer, its end included."""
    end_ids: list[int]
    """Tokens at the first of which an answer ended."""
    num_beams: int
    stop: list[str]
    """Texts at the first of which it ended."""


class DataRecord(Strict):
    """Which rows a cell used."""

    source: str
    revision: str
    split_rule: str
    num_train: int
    num_dev: int
    num_test: int
    whole: dict[str, int] = {}
    """Split -> all its rows, where the suite's `rows` took a part of them; the numbers above are what was used."""
    num_duplicates: int = 0
    """Rows of dev and test whose source text also stands in train."""
    one_class: dict[str, str] = {}
    """Split -> label, of each split of a classification whose rows all have the same."""
    cuts: Cuts | None = None
    """None where nothing was tokenised, as for a rule."""
    choice_tokens: dict[str, int] = {}
    """Split -> tokens of all choices of its rows, where the likeliest is the answer."""
    prompt: PromptRecord = PromptRecord()
    writing: WritingRecord | None = None
    """None where no answer was written: by a rule, a head or a ranking, and in results of older versions."""
    fingerprint: str
    """Of all rows of the task's splits, drawn or not."""
    parts: dict[str, DataRecord] = {}
    """The tasks of a mixture, whose own numbers are sums."""
    few_shot: DrawRecord | None = None

    @property
    def prompts(self) -> list[PromptRecord]:
        """The prompt form of the task, or of each task of a mixture."""
        return [prompt for part in self.parts.values() for prompt in part.prompts] or [self.prompt]
