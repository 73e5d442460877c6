"""What a suite file may declare beside its grid: a protocol with changes, tasks of its own, few-shot draws."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator


class Strict(BaseModel):
    """Base of everything read from a file: no unknown keys, no silent conversion, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ProtocolReference(Strict):
    """Which protocol, in which version, with which keys changed."""

    name: str = "accept-2024"
    """Name of the protocol."""
    version: int | None = None
    """Any other version is refused; None takes the one that is shipped."""
    overrides: dict[str, Any] = {}
    """Keys that differ, with their values."""

    @property
    def title(self) -> str:
        """Name for tables: "accept-2024", or with the keys that were changed."""
        changed = ", ".join(f"{key}={value}" for key, value in sorted(self.overrides.items()))
        return f"{self.name} with {changed}" if changed else self.name


Share = Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


Form = Literal["suffix", "plain", "chat", "auto"]
"""`suffix` is that of the papers: a decoder reads the text and " Label : ". `plain` is the text, a blank, the answer.
`chat` is the tokenizer's own template, `auto` that where there is one, else `plain`."""
AnsweredBy = Literal["writing", "likelihood"]
ChoiceScore = Literal["sum", "per_character", "per_byte", "per_token"]


class TaskFile(Strict):
    """A user's own task, declared in a suite file under `define_tasks`."""

    kind: Literal["classification", "regression", "text", "choice"] = "classification"
    """What an answer is: one of the labels, a number, a text, or one of the row's own choices."""
    files: str | dict[str, str] | None = None
    """A file of training rows, a folder of splits, or a file for each split; relative to the suite file."""
    hub: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+(:[\w.-]+)?$")
    """Hub id, with ":CONFIG" where it has several."""
    revision: str | None = None
    """Commit of the hub's data set; None takes the newest and records it."""
    fields: dict[str, str] = {}
    """Tag -> column, in the order of the source text "tag: value tag: value"."""
    template: str | None = None
    """The source text with {column} in it, instead of `fields`."""
    messages: str | None = None
    """Column of conversations, instead of both: a list of {role, content}, whose last message is the answer."""
    form: Form = "suffix"
    """How the source text becomes a prompt: " Label : " behind it, plain, or in the tokenizer's chat template."""
    system: str = ""
    """System message in front of each conversation."""
    choices: str | list[str] = []
    """For a choice: the column that holds a list of texts, or the columns that hold one each."""
    answered_by: AnsweredBy = "writing"
    """Whether a label is written, or the likeliest label is taken."""
    choice_score: ChoiceScore = "sum"
    """What ranks choices: their log-likelihood, or that divided by their length."""
    num_beams: int = Field(1, ge=1, le=64)
    """Beams of a search for the likeliest answer; 1 is greedy."""
    stop: list[str] = Field([], max_length=16)
    """Texts at the first of which a written answer ends."""
    max_new_tokens: int | None = Field(None, ge=1, le=10_000)
    """Most tokens of a written answer; None takes `max_target_length` less one."""
    label: str = "label"
    """Column of the label, the number, the answer, or of the right choice: its number from 0, a letter, or its text."""
    labels: list[str | int | bool | FiniteFloat] = []
    """Class names in the order of their digits."""
    words: list[str] = []
    """Texts that stand for the labels in answers, in their order; empty takes the digits."""
    metrics: list[str] = Field([], max_length=20)
    """The reported ones; empty takes the usual of the kind."""
    extra_metrics: list[str] = []
    """Metrics that are computed and stored beside the reported ones."""
    selection: str | None = None
    """Metric that chooses the checkpoint; None takes the first reported."""
    split: Literal["given", "halve_validation", "hold_out_1000", "cut_train", "cut_dev"] = "cut_train"
    """How train, dev and test are made of the rows."""
    dev_share: Share = 0.1
    """For `cut_train` and `cut_dev`: the part of the training rows that is dev, as a share or as a number of rows."""
    test_share: Share = 0.1
    """For `cut_train`: the same for test."""
    max_source_length: int = Field(256, ge=4, le=1_000_000)
    """Tokens of the source text; longer ones are cut on the right."""
    max_target_length: int = Field(20, ge=2, le=10_000)
    """Tokens of the answer; longer ones are cut on the right in training, and no longer one is written."""
    version: int = 1
    """Raise it when the rows or their meaning change."""


DrawRule = Literal["balanced", "unbalanced", "strict"]
DrawSeed = Annotated[int, Field(ge=0, lt=2**32)]


class FewShot(Strict):
    """The `few_shot` block of a suite: every entry is trained on k labelled rows, once for each k."""

    k: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    """Numbers of labelled rows; each gives rows of their own in the table."""
    draw: DrawRule | None = None
    """How rows are drawn; None takes the protocol's `fewshot.sampling`."""
    draw_seeds: list[DrawSeed] | None = Field(None, min_length=1)
    """One for all training seeds, or one for each; None draws with the training seed, as the papers' code does."""
    select_with: Literal["dev", "k"] = "dev"
    """Whether checkpoints and grid points are chosen with the whole dev split, or with k more training rows."""

    @field_validator("k")
    @classmethod
    def _no_repeats(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value):
            raise ValueError("lists a number twice")
        return value


class RowLimit(Strict):
    """One entry of the `rows` block: at most so many rows of each split of a task; the others are left out."""

    train: int | None = Field(None, ge=1)
    """Training rows; None takes all."""
    dev: int | None = Field(None, ge=1)
    """Rows that choose checkpoints and grid points."""
    test: int | None = Field(None, ge=1)
    """Rows that are scored."""

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.train is None and self.dev is None and self.test is None:
            raise ValueError("limits nothing; give train, dev or test")
        return self


class Draw(Strict):
    """Which k rows of the training split a cell sees, and which labels choose its checkpoint."""

    k: int
    rule: DrawRule
    seed: int
    select_with: Literal["dev", "k"] = "dev"
