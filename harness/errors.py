"""The one exception that means "the user can mend this", and the nearest match it offers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user wrote or passed: printed as one message, exit code 2, no traceback."""

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
            message += f" {self.hint}" if message.endswith((".", ")")) else f". {self.hint}"
        return message


def nearest(value: object, choices: Iterable[str]) -> str | None:
    """Return the choice that looks most like `value`, or None where nothing comes close."""
    if not isinstance(value, str):
        return None
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(value.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def require_choice(value: str, choices: Iterable[str], *, kind: str, where: str | None = None) -> str:
    """Return `value` if it is one of `choices`; raise UserError naming the nearest one otherwise."""
    known = sorted(choices)
    if value not in known:
        raise UserError(f"unknown {kind} '{value}'", where=where, value=value, choices=known)
    return value
