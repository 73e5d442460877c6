"""Which of a row's choices a label stands for: the text of one, a letter from A, a number from 0, or a column's name.

As in `label_matching`, a wrong guess would train on wrong answers and show only as a low score. So a label counts only
where all that it may mean is one choice, and numbers are refused where the rows together show that they count from 1.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence

from harness.data.class_names import ClassName
from harness.errors import UserError

_NUMBER = re.compile(r"([+-]?[0-9]{1,18})(?:\.0*)?")  # 18 digits fit into 64 bits


class ChoiceMatcher:
    """Matches the labels of one task. It serves all splits, so that two files cannot count from different numbers.

    `columns` are the columns of the choices where each has one of its own; a label may name one of them.
    """

    def __init__(self, task: str, column: str, columns: Sequence[str]) -> None:
        self.task, self.column = task, column
        self._columns = columns if len(columns) > 1 else ()
        self._place = ""
        """Where a number first decided which choice is right."""
        self._numbers: set[int] = set()
        """All numbers that did."""

    def match(self, label: object, choices: Sequence[str], names: Sequence[str], where: str) -> int:
        """Return the number of the right choice, from 0.

        `names` are what the row itself calls its choices, if it does: then only these count. Raises UserError, at
        `where`, for a label that stands for no choice, or for one as well as for another.
        """
        if names:
            return self._named(str(label), names, where)
        is_id = isinstance(label, ClassName) and label.names == tuple(map(str, range(len(label.names))))
        is_number = is_id or (isinstance(label, (int, float)) and not isinstance(label, bool))
        text = _written(str(label))
        number = None if isinstance(label, bool) else _number(text)
        # a number in JSON or Parquet is no text
        found = set() if is_number else {*_texts(text, choices), *_letter(text, len(choices)), *self._own_column(text)}
        by_number = set() if number is None else {number} & set(range(len(choices)))
        if len(found | by_number) > 1:
            raise self._ambiguous(text, sorted(found | by_number), where)
        if by_number and not found:
            self._place = self._place or where
            self._numbers |= by_number
        if not found | by_number:
            raise self._unknown(text, number, choices, where)
        return int((found | by_number).pop())

    def check(self) -> None:
        """Raise UserError if numbers decided, and none of them was 0: they seem to count from 1."""
        if self._numbers and 0 not in self._numbers:
            numbers = ", ".join(map(str, sorted(self._numbers)))
            problem = f"holds the numbers {numbers} and never 0; the number of a choice counts from 0"
            raise UserError(problem, where=self._place, field=self.column, hint=FROM_ONE)

    def _named(self, text: str, names: Sequence[str], where: str) -> int:
        found = [index for index, name in enumerate(names) if _written(name) == _written(text)]
        if len(found) != 1:
            problem = f"label {text!r} is {'no' if not found else 'more than one'} name of a choice in this row"
            raise UserError(problem, where=where, field=self.column, value=text, choices=names)
        return found[0]

    def _own_column(self, text: str) -> set[int]:
        return {index for index, column in enumerate(self._columns) if column == text}

    def _ambiguous(self, text: str, found: Sequence[int], where: str) -> UserError:
        meant = " and ".join(_ordinal(index) for index in found)
        problem = f"label {text!r} may stand for the {meant} choice: by its text, its letter or its number"
        hint = "Write letters (A is the first choice) or numbers from 0 that are no texts of choices."
        return UserError(problem, where=where, field=self.column, hint=hint)

    def _unknown(self, text: str, number: int | None, choices: Sequence[str], where: str) -> UserError:
        count = len(choices)
        if not text:
            return UserError(f"the label of task '{self.task}' is empty", where=where, field=self.column)
        hint: str | None = FROM_ONE if number == count else None
        if number == -1:
            problem, hint = f"label {text!r} is none of {count} choices", "Hidden test labels (-1) cannot be scored."
        elif number is not None or (len(text) == 1 and text in string.ascii_letters):
            last = f"{count - 1}, or from A to {string.ascii_uppercase[min(count, 26) - 1]}"
            problem = f"label {text!r} is out of range: {count} choices go from 0 to {last}"
        else:
            problem = f"label {text!r} is the text, the letter or the number of no choice"
            return UserError(problem, where=where, field=self.column, value=text, choices=choices)
        return UserError(problem, where=where, field=self.column, hint=hint)


FROM_ONE = "If the data counts from 1, write letters (A is the first choice), or the text of the choice."


def _written(text: str) -> str:
    # NFC: an accented letter can be one character or two, and looks the same
    return unicodedata.normalize("NFC", text.strip())


def _texts(text: str, choices: Sequence[str]) -> list[int]:
    """Return the choices with this text; without regard to case where none has it as it stands."""
    exact = [index for index, choice in enumerate(choices) if _written(choice) == text]
    return exact or [index for index, choice in enumerate(choices) if _written(choice).casefold() == text.casefold()]


def _letter(text: str, count: int) -> list[int]:
    index = string.ascii_uppercase.find(text.upper()) if len(text) == 1 else -1
    return [index] if 0 <= index < count else []


def _number(text: str) -> int | None:
    """Return the whole number that `1`, `1.0` or `01` spells; None for any other text."""
    found = _NUMBER.fullmatch(text)
    return int(found[1]) if found else None


def _ordinal(index: int) -> str:
    return {0: "1st", 1: "2nd", 2: "3rd"}.get(index, f"{index + 1}th")
