"""The record of a task: where its rows come from, how they become text, how splits are cut and answers scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.suite import AnsweredBy, ChoiceScore, Form, TaskSpec

Row = Mapping[str, Any]
Prepare = Callable[[Row], Iterable[Row]]
EDITS = "*edits*"
"""Key of a row under which a task's `prepare` may put what it repaired, a tuple of short texts; results count them."""
Kind = Literal["classification", "regression", "text", "choice"]
SplitRule = Literal[
    "given", "halve_validation", "hold_out_1000", "official_test", "mismatched_dev", "cut_train", "cut_dev"
]

SPLIT_RULES: dict[str, str] = {
    "given": "train, dev and test as published",
    "halve_validation": "train whole; validation cut in two by torch.randperm(n), seed 42: first half dev, second test",
    "hold_out_1000": "1,000 training rows (half of fewer than 2,000) chosen by torch.randperm(n), seed 42, are dev; "
    "validation is test",
    "official_test": "validation is dev, the published test split is test",
    "mismatched_dev": "validation_mismatched is dev, validation_matched is test",
    "cut_train": "dev, then test, cut from train in the order of torch.randperm(n), seed 42; the rest is train",
    "cut_dev": "dev, at most half of train, cut from it as torch.randperm(n), seed 42, orders; test is the published",
}
NEEDED_SPLITS: dict[str, tuple[str, ...]] = {
    "given": ("train", "validation", "test"),
    "halve_validation": ("train", "validation"),
    "hold_out_1000": ("train", "validation"),
    "official_test": ("train", "validation", "test"),
    "mismatched_dev": ("train", "validation_mismatched", "validation_matched"),
    "cut_train": ("train",),
    "cut_dev": ("train", "test"),
}
"""Split rule -> the published splits it needs, named as on the hub. Three of them are train, dev and test in order."""


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face hub, loadable without a script."""

    path: str
    config: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return self.path + (f":{self.config}" if self.config else "")


@dataclass(frozen=True)
class Source:
    """Where one published split comes from, of a task whose splits are of several data sets.

    Splits of one data set, which is told by `hub` and `folders`, come from the same copy of it.
    """

    split: str
    """Name of the split in its own data set."""
    hub: tuple[Hub, ...] = ()
    folders: tuple[str, ...] = ()
    stems: tuple[str, ...] = ()
    """Further names of its file, relative to the folder."""
    keep: Callable[[Row], bool] | None = None
    """Whether a row is taken, asked before `prepare`; None takes all."""
    left_out: str = ""
    """In words, which rows `keep` leaves out: "with more than 1,300 characters"."""
    prepare: Prepare | None = None
    """For the rows of this split, instead of the task's."""
    num_drawn: int | None = None
    """Take so many of its rows: the first that numpy.random.RandomState(0) shuffles to the front."""


@dataclass(frozen=True)
class Task:
    """All about one task. Its `version` rises when a correction can move a score, which makes older results stale."""

    name: str
    title: str
    benchmark: str
    kind: Kind
    fields: tuple[tuple[str, str], ...]
    """(tag, column) in the order of the source text, which is `tag: value tag: value`."""
    label: str
    """Column of the label, number, answer text or list of accepted answers."""
    template: str = ""
    """Source text with column names in braces. If set, it is used instead of `fields`."""
    prefix: str = ""
    """Put in front of the source text, followed by one blank."""
    messages: str = ""
    """Column of a conversation, a list of {role, content}, instead of `fields`; its last answer is the target."""
    form: Form = "suffix"
    """How the source text becomes a prompt (`harness.data.prompt_form`)."""
    system: str = ""
    """What stands in front of a text, or of a conversation that has no system message itself; not with `suffix`."""
    choices: tuple[str, ...] = ()
    """Columns of a choice's texts in order, or the one column that holds a list of them. Kind `choice` alone."""
    answered_by: AnsweredBy = "writing"
    """Whether a label is written, or the likeliest of the labels is taken. A `choice` is always answered so."""
    choice_score: ChoiceScore = "sum"
    """What ranks the choices: their log-likelihood, or that divided by their length."""
    num_beams: int = 1
    """Beams of a search for the likeliest answer; 1 is greedy."""
    stop: tuple[str, ...] = ()
    """Texts at the first of which a written answer ends; they are no part of it."""
    max_new_tokens: int | None = None
    """Most tokens of a written answer; None takes `max_target_length` less one."""
    labels: tuple[str, ...] = ()
    """Class names in the order of their ids. The target text is the id as a digit, unless `target_style` is "words"."""
    target_words: tuple[str, ...] = ()
    """Target texts for `target_style` "words", as T5 has them, if they differ from `labels`."""
    target_style: Literal["digits", "words"] = "digits"
    number_step: float = 0.1
    """A regression's targets are multiples of this, written with one decimal."""
    class_cut: float | None = None
    """For few-shot draws by class from a regression: rows up to this number are one class, the others the second."""
    space_punctuation: bool = False
    """Whether fields and answers get blanks around punctuation, as in the papers' code for question answering."""
    references: Literal["first", "all"] = "all"
    """Which answers of a text task count as right: all of them, or only the first, cut like the target.

    "first" is how the papers' code scores. A task has it by its record or by the protocol.
    """
    joins_references: bool = False
    """Whether rows of dev and test with the same source text are one row, for which all their answers are right."""
    stringify_answers: bool = False
    """Whether the target is the whole answer field as Python prints it: a slip of the papers' code for SQuAD."""
    copy_per_answer: bool = False
    """Whether a row becomes one example per distinct answer, `<unk>` if it has none. Splits are cut before that."""
    together: tuple[str, ...] = ()
    """Columns that rows which belong together have in common, such as the answers to one question. The statistics of a
    report draw such rows together; nothing else looks at it."""
    reported: tuple[str, ...] = ("accuracy",)
    """Metrics whose mean is the task's score."""
    extra: tuple[str, ...] = ()
    """Metrics that are computed and stored, and do not count for the score."""
    selection: str = "accuracy"
    """Metric that chooses the checkpoint."""
    split: SplitRule = "halve_validation"
    max_source_length: int = 256
    """Most tokens of a source text; a longer one is cut on the right."""
    max_target_length: int = 20
    """Most tokens of a text target, its end token included. DePT's code takes 20."""
    dev_share: float | int = 0.1
    """Dev rows under split rules `cut_train` and `cut_dev`: a float is a share of train, an integer a number."""
    test_share: float | int = 0.1
    """Test rows under `cut_train`, in the same way."""
    sizes: tuple[int | None, int, int] | None = None
    """Published sizes of train, dev and test; None for a number of training rows that nobody states."""
    hub: tuple[Hub, ...] = ()
    folders: tuple[str, ...] = ()
    """Folders to look for below --data, in this order; those named as on the hub need no entry and come last."""
    shared_folders: tuple[str, ...] = ()
    """Folders that hold several tasks: a file named `train` there may be another task's, so only `stems` count."""
    stems: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Split -> further names of its file in the official download, relative to the folder, with or without suffix."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    """Published split -> where it comes from, if not from `hub` and `folders`; then for each split that is needed."""
    download: str = ""
    """Address of the official files, for a data set of which the hub holds no copy."""
    label_files: str = ""
    """Ending of official files that hold the labels of the file beside them, one a line: "-labels.lst"."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Split -> file or folder of the user's own data, which is taken before --data and the hub."""
    tsv_columns: tuple[str, ...] = ()
    """Names of the columns, for an official TSV file without header."""
    skips_broken_rows: bool = False
    """Whether rows of an official TSV file that lack cells are left out, as the hub copy does, and counted."""
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> its names in other layouts, tried in this order."""
    prepare: Prepare | None = None
    """Turns one official or hub row into flat rows, one or several. Raises ValueError for a row that it cannot turn."""
    generate: Callable[[str], list[dict[str, Any]]] | None = None
    """For a generated task, makes the rows of "train", "validation" or "test"."""
    version: int = 1
    licence: str = ""
    citation: str = ""
    notes: str = ""
    label_words: Mapping[str, int] = field(default_factory=dict)
    """Further spelling of a label in official downloads -> the class id."""
    ids_are_documented: bool = True
    """Whether the data is known to number its classes from 0. Otherwise the rows have to show it (`label_matching`)."""
    parts: tuple[Task, ...] = ()
    """The tasks of a mixture. A mixture has neither rows nor metrics of its own."""

    @property
    def spec(self) -> TaskSpec:
        """What the suite needs to know of the task to resolve settings."""
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
        """Where train, dev and test rows come from, in words."""
        return "each task of the mixture by its own rule" if self.parts else SPLIT_RULES[self.split]

    @property
    def is_here(self) -> bool:
        """Whether the rows need neither --data nor a download."""
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
    def is_ranked(self) -> bool:
        """Whether an answer is the likeliest of some texts: a row's choices, or the labels."""
        return self.kind == "choice" or self.answered_by == "likelihood"

    @property
    def target_limit(self) -> int | None:
        """Tokens at which a target is cut. A label or a choice never is: two could become the same tokens."""
        return None if self.kind in ("classification", "choice") else self.max_target_length

    @property
    def metrics(self) -> list[str]:
        """Every metric computed, the reported ones first."""
        return list(dict.fromkeys([*self.reported, *self.extra, self.selection]))
