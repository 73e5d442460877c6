"""UserError, the exception for a mistake that the user can mend, and the nearest match that it offers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_SHOWN = 2_000
"""Characters of a message, some 25 lines of a terminal: a value quoted from a file may be of any length."""
MOST_OF_LINE = 160
"""Characters of the file's line shown beneath a message: two lines of a terminal 80 wide."""


class Location(str):
    """`file:line`, with the text of that line, which is shown beneath a message."""

    text: str

    def __new__(cls, place: str, text: str = "") -> Location:
        made = super().__new__(cls, place)
        made.text = text
        return made


class UserError(Exception):
    """A mistake in what the user wrote or passed. It is printed as one message, without traceback; exit code 2.

    `where` is a file and line or an option, `field` the key there, `choices` what is allowed; of these the one nearest
    to `value` is offered. `hint` is a sentence on what to do.
    """

    def __init__(
        self,
        problem: str,
        *,
        where: str | None = None,
        field: str | None = None,
        value: object = None,
        choices: Iterable[object] = (),
        hint: str | None = None,
    ) -> None:
        self.problem = problem
        self.where = where
        self.field = field
        self.value = value
        self.choices = [str(choice) for choice in choices]
        self.hint = hint
        super().__init__(self._message())

    def _message(self) -> str:
        place = ": ".join(part for part in (self.where, self.field) if part)
        message = f"{place}: {self.problem}" if place else self.problem
        match = nearest(self.value, self.choices)
        if match:
            message += f"; did you mean {match}?"
        if self.choices:
            message += f" (allowed: {', '.join(self.choices)})"
        if self.hint:
            message += f" {self.hint}" if message.endswith((".", "?", "!")) else f". {self.hint}"
        return printable(shortened(message, MOST_SHOWN)) + self._line()

    def _line(self) -> str:
        """Return the line of the file that the message is about, with its number; "" if it is not known."""
        if not isinstance(self.where, Location) or not self.where.text.strip():
            return ""
        number = self.where.rpartition(":")[2]
        return f"\n{number:>6} | {printable(shortened(self.where.text.rstrip(), MOST_OF_LINE))}"


class SettingError(ValueError):
    """A method's own judgement of one of its settings: `key` is the path of the setting, e.g. `config.r`.

    Where the settings come from a suite it becomes a UserError at the setting's line.
    """

    def __init__(self, key: str, problem: str, *, value: object = None, choices: Iterable[object] = ()) -> None:
        self.key = key
        self.problem = problem
        self.value = value
        self.choices = list(choices)
        super().__init__(f"{key}: {problem}")


def printable(text: str) -> str:
    """Return the text with escapes for characters that steer a terminal or cannot be encoded.

    A name in a stranger's file could otherwise clear the screen or hide a part of the message.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else _escape(char) for char in text)


def _escape(char: str) -> str:
    return "  " if char == "\t" else char.encode("unicode_escape").decode()


def shortened(text: str, most: int) -> str:
    """Return at most `most` characters of a text: of a longer one the middle is left out."""
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def nearest(value: object, choices: Iterable[str]) -> str | None:
    """Return the choice that looks most like `value`, or None where nothing comes close."""
    if not isinstance(value, str):
        return None
    by_lower = {choice.lower(): choice for choice in choices}
    # 0.6 is difflib's own default: `ranks` finds `rank`, while words that share a few letters find nothing
    found = difflib.get_close_matches(value.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def require_choice(value: str, choices: Iterable[str], *, kind: str, where: str | None = None) -> str:
    """Return `value` if it is one of `choices`; raise UserError naming the nearest one otherwise."""
    known = sorted(choices)
    if value not in known:
        raise UserError(f"unknown {kind} '{value}'", where=where, value=value, choices=known)
    return value
