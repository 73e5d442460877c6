"""What a task is: where its rows come from, how they become text, how answers are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.settings import TaskSpec

Row = Mapping[str, Any]
Kind = Literal["classification", "regression", "text"]
SplitRule = Literal["given", "halve_validation", "hold_out_1000"]

SPLIT_RULES: dict[str, str] = {
    "given": "train, dev and test as published",
    "halve_validation": "train whole; validation cut in two by torch.randperm(n), seed 42: first half dev, second test",
    "hold_out_1000": "1,000 training rows chosen by torch.randperm(n), seed 42, are dev; validation is test",
}


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
    labels: tuple[str, ...] = ()
    """Class names in the order of their ids; the target text is the id as a digit."""
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
    sizes: tuple[int, int, int] | None = None
    """Published sizes of train, dev and test."""
    hub: tuple[Hub, ...] = ()
    folders: tuple[str, ...] = ()
    """Folders looked for below --data, in this order."""
    prepare: Callable[[Row], Iterable[Row]] | None = None
    """Bring one official or hub row to flat columns; may yield several."""
    generate: Callable[[str], list[dict[str, Any]]] | None = None
    """Makes the rows of a split ("train", "validation", "test") of a generated task."""
    version: int = 1
    licence: str = ""
    citation: str = ""
    notes: str = ""
    label_words: Mapping[str, int] = field(default_factory=dict)
    """Further spellings of a label in official downloads."""

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec(
            self.name, self.version, self.max_source_length, self.benchmark, self.sizes[0] if self.sizes else None
        )

    @property
    def targets(self) -> list[str]:
        """Target texts of a classification, in label order."""
        return [str(index) for index in range(len(self.labels))]

    @property
    def metrics(self) -> list[str]:
        """Every metric computed, the reported ones first."""
        return list(dict.fromkeys([*self.reported, *self.extra, self.selection]))
