"""From one flat row to an example: the source text that a model reads, its target, and the accepted answers."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.data.choice_labels import ChoiceMatcher
from harness.data.file_formats import LocatedRow
from harness.data.label_matching import LabelMatcher
from harness.data.messages import Messages, read_messages
from harness.data.record import DataRecord
from harness.data.tasks.task import EDITS, Prepare, Row, Task
from harness.errors import UserError

NO_ANSWER = "<unk>"
"""Target of a row without answers that is copied once per answer, as T5's code does for ReCoRD."""


@dataclass(frozen=True)
class Example:
    """One row as the model sees it."""

    source: str
    """The text that the model reads."""
    target: str
    """The text that it is trained to write."""
    references: tuple[str, ...]
    """The texts that count as right when an answer is scored; the target is the first of them.

    Of a choice it is the number of the right one, from 0: two equal texts stay two choices.
    """
    messages: Messages = ()
    """(role, content) of a conversation before the answer, or empty; `source` is the last of these texts then."""
    choices: tuple[str, ...] = ()
    """The texts among which a choice is made; empty for any other row."""
    group: str = ""
    """Hash of what rows that belong together have in common (`Task.together`); empty where rows stand for themselves.

    Statistics draw such rows together. Nothing else looks at it."""

    @property
    def read_texts(self) -> tuple[str, ...]:
        """All that the model reads: the source, behind it the roles and texts of what stood in front."""
        return (self.source, *(text for message in self.messages[:-1] for text in message))


class Converter:
    """Turns the rows of one task into examples. What is the same for all rows is worked out once, here."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.edits: Counter[str] = Counter()
        """Kind of repair by the task's `prepare` -> number of rows with it."""
        self._pieces: list[tuple[str, str | None]] = []
        if not task.messages:
            self._pieces = _template_pieces(task) if task.template else _field_pieces(task)
        self._targets = task.targets
        self._matcher = LabelMatcher(task.name, task.label, task.labels, task.label_words)
        self._choice_matcher = ChoiceMatcher(task.name, task.label, task.choices)
        self._stop = () if task.is_ranked else task.stop

    def read(self, rows: Iterable[LocatedRow], prepare: Prepare | None = None) -> list[list[Example]]:
        """Convert rows of any layout. Each inner list holds the examples of one flat row, which are split together.

        `prepare` turns a row into flat ones; None takes the task's. Raises UserError at the first row that is wrong.
        """
        converted: list[list[Example]] = []
        prepare = prepare or self.task.prepare
        for where, row in rows:
            try:
                flat = list(prepare(row)) if prepare else [row]
            except ValueError as error:
                raise UserError(str(error), where=where) from None
            # `prepare` is written for official rows; on any other it may fail with a KeyError, a TypeError and so on
            except Exception as error:
                raise UserError(f"has not the fields of task '{self.task.name}': {error!r}", where=where) from None
            self.edits.update(edit for item in flat for edit in item.get(EDITS, ()))
            converted.extend(self._grouped(where, item) for item in flat)
        return converted

    def _grouped(self, where: str, row: Row) -> list[Example]:
        """The examples of a flat row, with the group that they belong to, if the task has groups."""
        made = self.examples(where, row)
        if not self.task.together:
            return made
        common = json.dumps([str(self._value(where, row, column)) for column in self.task.together])
        return [replace(example, group=hashlib.sha256(common.encode()).hexdigest()[:16]) for example in made]

    def examples(self, where: str, row: Row) -> list[Example]:
        """Convert one flat row.

        Raises UserError, at `where`, if a field is missing, a label unknown, or an answer one that is never written.
        """
        if self.task.messages:
            column = self.task.messages
            (*earlier, (role, text)), label, unread = read_messages(self._value(where, row, column), where, column)
            self.edits.update(f"{key!r} of messages left out" for key in unread)
            source = _prefix(self.task) + text
            made = self._labelled(source, label, row, where)
            made = [replace(example, messages=(*earlier, (role, source))) for example in made]
        else:
            made = self._labelled(self._source(where, row), self._value(where, row, self.task.label), row, where)
        for example in made if self._stop else ():
            self._check_answer(example.target.strip(), where)
        return made

    def _check_answer(self, answer: str, where: str) -> None:
        """Raise UserError if writing would end inside an answer, which then could never be given."""
        stop = next((text for text in self._stop if text in answer), None)
        if stop is not None:
            problem = f"the answer {answer!r:.60} holds the stop text {stop!r}, at which writing would end"
            raise UserError(problem, where=where, hint="Name another stop text, or take it out of the answers.")

    def _labelled(self, source: str, label: object, row: Row, where: str) -> list[Example]:
        """Return the examples of a row whose answer is `label`, as the task's kind takes it."""
        if self.task.kind == "text":
            return self._answered(source, label, where)
        if self.task.kind == "choice":
            choices, names = self._choices(where, row)
            right = self._choice_matcher.match(label, choices, names, where)
            if not self.task.ids_are_documented:
                self._check_alone(right, choices, where)
            return [Example(source, choices[right], (str(right),), choices=choices)]
        if self.task.kind == "classification":
            target = self._targets[self._matcher.match(label, where)]
        else:
            target = self._number(label, where)
        return [Example(source, target, (target,))]

    def check(self) -> None:
        """Call after all splits were read. Raises UserError if the labels of all rows together look wrong."""
        self._matcher.check()
        self._choice_matcher.check()

    def _choices(self, where: str, row: Row) -> tuple[tuple[str, ...], list[str]]:
        """Return the texts of a row's choices, without outer blanks, and what the row calls them, if it does.

        They stand in one column each, or as a list in one column: a list of texts, or {"text": [...], "label": [...]}
        as data sets of the hub have it. Raises UserError for fewer than two choices, and for one that is no text.
        """
        columns = self.task.choices
        names: list[str] = []
        found: object = [self._value(where, row, column) for column in columns]
        if len(columns) == 1:
            found = self._value(where, row, columns[0])
            if isinstance(found, dict) and isinstance(found.get("label", []), list):
                names, found = [str(name) for name in found.get("label", [])], found.get("text")
            if not isinstance(found, list):
                problem = f"field '{columns[0]}' holds no list of choices but {type(found).__name__} {found!r:.60}"
                raise UserError(problem, where=where, hint="Columns of one choice each: choices: [COLUMN, COLUMN].")
        assert isinstance(found, list)
        if len(found) < 2 or (names and len(names) != len(found)):
            counted = f"{len(found)} choice{'' if len(found) == 1 else 's'}"
            problem = f"has {counted} and {len(names)} names of them" if names else f"has {counted}, and needs two"
            raise UserError(problem, where=where, field=columns[0])
        texts = tuple(self._choice(where, number, value) for number, value in enumerate(found))
        return texts, names

    def _choice(self, where: str, number: int, value: object) -> str:
        """Return the text of one choice. Raises UserError if it is empty, or a list or mapping."""
        if isinstance(value, (dict, list)):
            raise UserError(f"choice {number} is no text but {type(value).__name__} {value!r:.60}", where=where)
        text = "" if _is_missing(value) else str(value).strip()
        if not text:  # no token would be left to compute a likelihood of
            columns = self.task.choices
            hint = "Rows with different numbers of choices hold them as a list in one column."
            raise UserError(f"choice {number} is empty", where=where, field=columns[min(number, len(columns) - 1)],
                            hint=hint if len(columns) > 1 else None)  # fmt: skip
        return space_punctuation(text) if self.task.space_punctuation else text

    def _check_alone(self, right: int, choices: Sequence[str], where: str) -> None:
        """Raise UserError if another choice has the text of the right one: the first of equal scores wins.

        Shipped tasks are not asked: their rows are scored as published, as lm-evaluation-harness does.
        """
        twin = next((i for i, text in enumerate(choices) if text == choices[right] and i != right), None)
        if twin is not None:
            first, second = sorted((right, twin))
            problem = (
                f"choices {first} and {second} have the same text {choices[right]!r:.60}, and one of them is right"
            )
            raise UserError(problem, where=where, field=self.task.label, hint="Take one of the two out.")

    def _source(self, where: str, row: Row) -> str:
        parts = []
        for literal, column in self._pieces:
            found = self._value(where, row, column) if column is not None else ""
            if isinstance(found, (dict, list)):  # str() of it would train on brackets and quotes
                raise UserError(f"field '{column}' holds no text but {type(found).__name__} {found!r:.60}", where=where)
            value = str(found)
            parts.append(literal + (space_punctuation(value) if self.task.space_punctuation else value))
        return "".join(parts)

    def _value(self, where: str, row: Row, column: str) -> object:
        """Return what a row holds in `column`, or in the first of its other names that the row has."""
        value: object = row.get(column)
        if not _is_missing(value):  # the usual case, answered before other names are tried
            return value
        names = (column, *self.task.aliases.get(column, ()))
        name = next((name for name in names if name in row), None)
        if name is None:
            raise UserError(
                f"field '{column}' is missing", where=where, value=column, choices=list(row), hint=_separator_hint(row)
            )
        value = row[name]
        if _is_missing(value):
            raise UserError(f"field '{name}' is empty", where=where)
        return value

    def _number(self, label: object, where: str) -> str:
        """Return the number that a row is labelled with, as the text that is trained on and scored against."""
        try:
            value = float(str(label))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"label {label!r} is not a number", where=where)
        return round_number(value, self.task.number_step)

    def _answered(self, source: str, label: object, where: str) -> list[Example]:
        """Return the examples of a text task's row: one, or one per answer where the task says so."""
        spaced = space_punctuation if self.task.space_punctuation else str
        if self.task.stringify_answers:
            target = spaced(str(label))
            return [Example(source, target, (target,))]
        # an answer that annotators gave twice counts once; the order stays, since the first becomes the target
        answers = list(dict.fromkeys(spaced(answer) for answer in _answers(label, where, self.task.label)))
        # without an answer nothing could be right: most likely the column is the wrong one
        if not answers and not self.task.copy_per_answer:
            hint = 'Where no answer is right, write [""].'
            raise UserError(f"'{self.task.label}' holds no answer text", where=where, hint=hint)
        targets = (answers or [NO_ANSWER]) if self.task.copy_per_answer else answers[:1]
        others = answers if self.task.references == "all" else []
        return [Example(source, target, tuple(dict.fromkeys([target, *others]))) for target in targets]


def _separator_hint(row: Row) -> str | None:
    """Return a hint where the only column is the head of a table that has another separator."""
    first = next(iter(row), "")
    found = [name for mark, name in ((";", "semicolons"), ("\t", "tabs"), (",", "commas")) if mark in str(first)]
    if len(row) != 1 or not found:
        return None
    return f"Its columns seem to be separated by {found[0]}; a .csv has commas, a .tsv tabs."


def _is_missing(value: object) -> bool:
    """Return whether a value is None, or the NaN that pandas writes instead."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def round_number(value: float, step: float) -> str:
    """Return the nearest multiple of `step`, with one decimal.

    With step 0.1 it is the label with one decimal: the papers' code rounds to fifths and then undoes that. Coarser
    steps are counted in 32-bit floats, ties to the even count, as T5's code does for 0.2 (Raffel et al. 2020).
    """
    label = np.float32(value)  # labels are 32-bit floats on the hub, so a file of decimals has to round alike
    if step == 0.1:
        return f"{float(label):.1f}"
    return f"{float(np.rint(label * np.float32(1 / step))) * step:.1f}"


@functools.lru_cache(maxsize=256)  # the questions on one context follow each other, so a few contexts are enough
def space_punctuation(text: str) -> str:
    """Put blanks around every character but letters, marks, digits, `_` and white space; join runs of white space.

    Leading and trailing blanks are dropped; T5's tokenizer would drop them too.
    """
    replacement = r" \g<0> " if text.isascii() else _spaced_unless_mark
    return " ".join(re.sub(r"[^\w\s]", replacement, text).split())


def _spaced_unless_mark(match: re.Match[str]) -> str:
    # combining marks are part of a letter, though Python's \w leaves them out
    return match[0] if unicodedata.category(match[0]).startswith("M") else f" {match[0]} "


def _field_pieces(task: Task) -> list[tuple[str, str | None]]:
    """Return (text before, column) for each field of the task. Raises UserError for a task without any."""
    if not task.fields:
        raise UserError("has neither fields nor a template", where=f"task '{task.name}'")
    pieces: list[tuple[str, str | None]] = [(f" {tag}: ", column) for tag, column in task.fields]
    first = pieces[0][0].lstrip()
    return [(_prefix(task) + first, pieces[0][1]), *pieces[1:]]


def _template_pieces(task: Task) -> list[tuple[str, str | None]]:
    """Return (text before, column) for each column in the template. Raises UserError for a template that is broken."""
    try:
        parsed = list(string.Formatter().parse(task.template))
    except ValueError as error:
        raise UserError(f"{task.template!r}: {error}", where=f"task '{task.name}'", field="template") from None
    # `{}`, `{x:3}` and `{x!r}` mean something to str.format, and nothing here
    if any(column == "" or spec or conversion for _, column, spec, conversion in parsed):
        problem = f"{task.template!r}: braces may hold a column name and nothing else"
        raise UserError(problem, where=f"task '{task.name}'", field="template")
    return [(_prefix(task), None), *((literal, column) for literal, column, _, _ in parsed)]


def _prefix(task: Task) -> str:
    return f"{task.prefix.strip()} " if task.prefix.strip() else ""


def _answers(value: object, where: str, column: str) -> list[str]:
    """Return the accepted answers in a text, a list of texts, or SQuAD's {"text": [...]}."""
    texts = value.get("text") if isinstance(value, dict) else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        given = next((text for text in texts if not isinstance(text, str)), None) if isinstance(texts, list) else value
        problem = f"'{column}' holds no answer text but {type(given).__name__} {given!r:.60}"
        is_number = isinstance(given, (int, float))
        raise UserError(problem, where=where, hint=f'Write it as text: "{given}".' if is_number else None)
    return texts


@dataclass(frozen=True)
class TaskData:
    """The three splits of a task, and the record of where they came from."""

    task: Task
    train: list[Example]
    dev: list[Example]
    test: list[Example]
    record: DataRecord
    parts: tuple[TaskData, ...] = ()
    """For a mixture, its tasks; the splits of the mixture are theirs, one after the other."""

    def split(self, name: str) -> list[Example]:
        """Return "train", "dev" or "test"."""
        splits: dict[str, list[Example]] = {"train": self.train, "dev": self.dev, "test": self.test}
        return splits[name]


def count_duplicates(train: Sequence[Example], others: Sequence[Example]) -> int:
    """Return the number of rows in `others` (dev and test) whose source text also stands in train."""
    seen = {example.read_texts for example in train}
    return sum(example.read_texts in seen for example in others)
