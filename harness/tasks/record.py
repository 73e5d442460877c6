"""What a task is: where its rows come from, how they become text, how answers are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.settings import TaskSpec

Row = Mapping[str, Any]
EDITS = "*edits*"
"""Key under which a task's `prepare` may say what it repaired in a row, a tuple of short texts; they are counted."""
Kind = Literal["classification", "regression", "text"]
SplitRule = Literal["given", "halve_validation", "hold_out_1000", "official_test", "mismatched_dev", "cut_train"]

SPLIT_RULES: dict[str, str] = {
    "given": "train, dev and test as published",
    "halve_validation": "train whole; validation cut in two by torch.randperm(n), seed 42: first half dev, second test",
    "hold_out_1000": "1,000 training rows (half of fewer than 2,000) chosen by torch.randperm(n), seed 42, are dev; "
    "validation is test",
    "official_test": "validation is dev, the published test split is test",
    "mismatched_dev": "validation_mismatched is dev, validation_matched is test",
    "cut_train": "dev, then test, cut from train in the order of torch.randperm(n), seed 42; the rest is train",
}
NEEDED_SPLITS: dict[str, tuple[str, ...]] = {
    "given": ("train", "validation", "test"),
    "halve_validation": ("train", "validation"),
    "hold_out_1000": ("train", "validation"),
    "official_test": ("train", "validation", "test"),
    "mismatched_dev": ("train", "validation_mismatched", "validation_matched"),
    "cut_train": ("train",),
}
"""Splits of the source, by their names on the hub, that a rule is made from: train, dev and test in this order."""


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face hub, loadable without a script."""

    path: str
    config: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return self.path + (f":{self.config}" if self.config else "")


@dataclass(frozen=True)
class Task:
    """One task, complete; `version` rises when a correction can move a score."""

    name: str
    title: str
    benchmark: str
    kind: Kind
    fields: tuple[tuple[str, str], ...]
    """(tag, column) in the order of the source text: `tag: value` joined by one blank."""
    label: str
    """Column of the label, number, answer text or list of accepted answers."""
    template: str = ""
    """Source text with column names in braces, used instead of `fields` where it is set."""
    prefix: str = ""
    """Put in front of the source text with one blank."""
    labels: tuple[str, ...] = ()
    """Class names in the order of their ids; the target text is the id as a digit."""
    target_words: tuple[str, ...] = ()
    """Label words after T5, where they differ from `labels`."""
    target_style: Literal["digits", "words"] = "digits"
    number_step: float = 0.1
    """A regression's targets are multiples of this, written with one decimal."""
    class_cut: float | None = None
    """Up to this number a regression's rows are one class of two where few rows are drawn by class."""
    space_punctuation: bool = False
    """Whether fields and answers get blanks around punctuation, as in the papers' code for question answering."""
    references: Literal["first", "all"] = "all"
    """Which answers of a text task are accepted: all of them, whole, or the first alone, cut like the target.

    The second is a rule of the papers' code; their tasks have it by a protocol or by their record.
    """
    stringify_answers: bool = False
    """Whether the target is the whole answer field as Python prints it, a slip of the papers' code for SQuAD."""
    copy_per_answer: bool = False
    """Whether a row becomes one example per distinct answer (`<unk>` where there is none), after the split is cut."""
    reported: tuple[str, ...] = ("accuracy",)
    """Metrics whose mean is the task's score."""
    extra: tuple[str, ...] = ()
    selection: str = "accuracy"
    """Metric that chooses the checkpoint."""
    split: SplitRule = "halve_validation"
    max_source_length: int = 256
    """Tokens of the source text, cut on the right."""
    max_target_length: int = 20
    """Tokens of a text target, its end mark included."""
    dev_share: float | int = 0.1
    """For `cut_train`: a float is a share of the rows, an integer a number of rows."""
    test_share: float | int = 0.1
    sizes: tuple[int, int, int] | None = None
    """Published sizes of train, dev and test."""
    hub: tuple[Hub, ...] = ()
    folders: tuple[str, ...] = ()
    """Folders looked for below --data, in this order; folders named as on the hub follow by themselves."""
    shared_folders: tuple[str, ...] = ()
    """Folders that hold other tasks too, so that only `stems` count there."""
    stems: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further names of a split's file in the official download, relative to the folder, with or without suffix."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The user's own data: split -> file or folder. Goes before --data and the hub."""
    tsv_columns: tuple[str, ...] = ()
    """Columns of an official TSV file without header."""
    skips_broken_rows: bool = False
    """Whether rows of an official TSV file that lack cells are left out, as the hub copy does, and counted."""
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Other names of a column in other layouts, tried in this order."""
    prepare: Callable[[Row], Iterable[Row]] | None = None
    """Bring one official or hub row to flat columns; may yield several. Raises ValueError for what cannot be done."""
    generate: Callable[[str], list[dict[str, Any]]] | None = None
    """Makes the rows of a split ("train", "validation", "test") of a generated task."""
    version: int = 1
    licence: str = ""
    citation: str = ""
    notes: str = ""
    label_words: Mapping[str, int] = field(default_factory=dict)
    """Further spellings of a label in official downloads."""
    ids_are_documented: bool = True
    """Whether the data is known to number its classes from 0; otherwise the rows have to show it."""
    parts: tuple[Task, ...] = ()
    """The tasks of a mixture, which has neither rows nor metrics of its own."""

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec(
            self.name,
            self.version,
            self.max_source_length,
            self.benchmark,
            self.sizes[0] if self.sizes else None,
            len(self.parts),
            self.title,
        )

    @property
    def split_rule(self) -> str:
        """In words, where its train, dev and test rows come from."""
        return "each task of the mixture by its own rule" if self.parts else SPLIT_RULES[self.split]

    @property
    def is_here(self) -> bool:
        """Whether its rows need neither --data nor a download."""
        if self.parts:
            return all(part.is_here for part in self.parts)
        return bool(self.generate or self.files)

    @property
    def targets(self) -> list[str]:
        """Target texts of a classification, in label order."""
        if self.target_style == "words":
            return list(self.target_words or self.labels)
        return [str(index) for index in range(len(self.labels))]

    @property
    def metrics(self) -> list[str]:
        """Every metric computed, the reported ones first."""
        return list(dict.fromkeys([*self.reported, *self.extra, self.selection]))
