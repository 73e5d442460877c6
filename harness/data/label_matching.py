"""Which class of a task a label in the data stands for: a name, a number, or an id with a stored name.

A wrong guess here would train on swapped classes and show only as a low score. So a label counts only if exactly one
class fits, and numbers are refused if the rows together show that they may be counted otherwise.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

from harness.data.class_names import ClassName
from harness.errors import UserError

_WHOLE = re.compile(r"([+-]?[0-9]{1,18})(?:\.0*)?")  # 18 digits fit into 64 bits
_TRUTH = {"false": "0", "true": "1"}  # JSON and Parquet files hold BoolQ's labels as true and false


class LabelMatcher:
    """Matches the labels of one task. It serves all splits, so that two files cannot mean different things by one id.

    A label is looked for among the task's labels: first as it is written, then without regard to case, then as a number
    (1, 1.0 and true are the same). Each step counts only if exactly one label fits. A whole number that is no label is
    the index of one, counted from 0, unless the labels are numbers themselves. An id with a stored name counts by the
    name.
    """

    def __init__(self, task: str, column: str, labels: Sequence[str], words: Mapping[str, int]) -> None:
        self.task, self.column, self.labels = task, column, labels
        pairs = [*((name, index) for index, name in enumerate(labels)), *words.items()]
        self._levels = [(form, _only_class(form, pairs)) for form in (_written, _caseless, _number)]
        self._has_places = all(_number(name) is None for name in labels)
        self._known: dict[object, int] = {}
        """Value met so far (its text, or stored names and id) -> its class. Many rows have few different labels."""
        self._place = ""
        """Where a number was first taken for the index of a label."""
        self._places: set[int] = set()
        """All numbers that were taken for indices of labels."""
        self._moved: tuple[str, ClassName] | None = None
        """The first row, and its label, whose stored names have another order than the task's labels."""
        self._ordered: tuple[str, ...] = ()
        """The stored names of the first file, for a task that lists ids as its labels."""

    def match(self, label: object, where: str) -> int:
        """Return the index of the class. Raises UserError, at `where`, for an unknown or a contradicting label."""
        key = (label.names, label.id) if isinstance(label, ClassName) else str(label)
        found = self._known.get(key)
        if found is None:
            found = self._named(label, where) if isinstance(label, ClassName) else self._plain(str(label), where)
            self._known[key] = found
        return found

    def check(self) -> None:
        """Raise UserError if numbers were taken for indices although they seem to count from 1: no row had a 0."""
        # rows counted from 0 that happen to lack class 0 are refused too: rarer than data counted from 1
        if self._places and 0 not in self._places:
            numbers = ", ".join(map(str, sorted(self._places)))
            raise UserError(
                f"holds the numbers {numbers} and never 0; a number is the place of a label, counted from 0",
                where=self._place,
                field=self.column,
                hint=self._counted_from_one(),
            )

    def _plain(self, text: str, where: str) -> int:
        found = self._by_name(text)
        if found is None:
            found = self._by_place(text, where)
        if found is None:
            raise self._unknown(text, where)
        return found

    def _by_name(self, text: str) -> int | None:
        """Return the class whose label this is. A form is tried only if no stricter one fits."""
        for form, classes in self._levels:
            key = form(text)
            if key in classes:
                return classes[key]
        return None

    def _by_place(self, text: str, where: str) -> int | None:
        number = None if text.strip().lower() in _TRUTH else _number(text)
        if number is None or not self._has_places or int(number) not in range(len(self.labels)):
            return None
        self._place = self._place or where
        self._places.add(int(number))
        self._refuse_contradiction()
        return int(number)

    def _named(self, label: ClassName, where: str) -> int:
        found = self._by_name(label)
        if found is None and label.names == tuple(map(str, range(len(label.names)))):
            return self._plain(label, where)  # the names are the ids
        if found is None and not any(self._by_name(name) is not None for name in label.names):
            found = self._by_id(label, where)
        if found is None:
            names = ", ".join(label.names)
            raise UserError(
                f"class {label.id} is called '{label}' in the data, which is no label of task '{self.task}'; "
                f"stored there are {names}",
                where=where,
                field=self.column,
                value=str(label),
                choices=self.labels,
                hint=f"List the names as the data has them: labels: [{names}].",
            )
        if found != label.id and self._by_name(label) is not None:
            self._moved = self._moved or (where, label)
            self._refuse_contradiction()
        return found

    def _by_id(self, label: ClassName, where: str) -> int | None:
        """Return the class of an id that the task lists as a label. Raises UserError if files name ids differently."""
        found = self._by_name(str(label.id))
        if found is None:
            return None
        self._ordered = self._ordered or label.names
        if self._ordered != label.names:
            here, there = ", ".join(label.names), ", ".join(self._ordered)
            problem = f"the ids stand for {here} here and for {there} in another file"
            raise UserError(problem, where=where, field=self.column, hint="List the names under labels, not the ids.")
        return found

    def _refuse_contradiction(self) -> None:
        """Raise UserError if one file has numbers without names and another names the classes in another order."""
        if self._moved is not None and self._places:
            where, label = self._moved
            raise UserError(
                f"holds numbers without names, but {where} names its classes {', '.join(label.names)}, "
                f"in another order than labels: [{', '.join(self.labels)}]; what a number stands for is not known",
                where=self._place,
                field=self.column,
                hint="Write names in place of numbers.",
            )

    def _unknown(self, text: str, where: str) -> UserError:
        hint = None
        if text.strip() == "-1":
            hint = "Hidden test labels (-1) cannot be scored."
        elif not text.strip():
            hint = "The cell is empty."
        elif self._has_places and text.strip().lower() in _TRUTH and len(self.labels) == 2:
            hint = (
                "If false and true are the classes, list them as they stand: labels: [false, true], or [true, false]."
            )
        elif self._has_places and _number(text) == str(len(self.labels)):
            hint = f"A number is the place of a label, counted from 0. {self._counted_from_one()}"
        return UserError(
            f"label {text!r} is not one of task '{self.task}'",
            where=where,
            field=self.column,
            value=text,
            choices=self.labels,
            hint=hint,
        )

    def _counted_from_one(self) -> str:
        numbers = ", ".join(map(str, range(1, len(self.labels) + 1)))
        return f"If the data counts from 1, list the numbers as they stand: labels: [{numbers}]."


def _written(text: str) -> str:
    # NFC: an accented letter can be one character or two, and looks the same
    return unicodedata.normalize("NFC", text.strip())


def _caseless(text: str) -> str:
    return _written(text).casefold()


def _number(text: str) -> str | None:
    """Return the whole number that `1`, `1.0`, `01` or `True` spells, as plain digits; None for any other text."""
    text = text.strip()
    found = _WHOLE.fullmatch(text)
    return str(int(found[1])) if found else _TRUTH.get(text.lower())


def _only_class(form: Callable[[str], str | None], pairs: Iterable[tuple[str, int]]) -> dict[str | None, int]:
    """Return form -> class, for the forms that exactly one class has."""
    classes: dict[str | None, set[int]] = {}
    for name, index in pairs:
        classes.setdefault(form(name), set()).add(index)
    return {key: min(found) for key, found in classes.items() if key is not None and len(found) == 1}
