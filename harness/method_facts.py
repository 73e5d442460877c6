"""What a method file states of itself without a tensor: paper, published counts, grids, bounds of settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

Found = TypeVar("Found")


@dataclass(frozen=True)
class Paper:
    """Where a method comes from, and the trainable parameters its paper claims per backbone."""

    key: str
    url: str
    params: dict[str, int] = field(default_factory=dict)
    params_note: str = ""
    """Why a published figure is not the count with the default settings, in words."""


def explain_figure(figure: int, trained: int, kept: int, tasks: int = 1) -> str:
    """How a published figure comes from the counts, in words; empty if it does not.

    With several `tasks` the counts are those of one task: all numbers over all tasks.
    A figure of one or two significant digits, such as 220M, is taken as rounded, any other as exact.
    """
    share = f" over its {tasks} tasks" if tasks > 1 else ""
    for count, what in ((trained, f"the number trained{share}"), (kept, f"the number kept for inference{share}")):
        if figure == count:
            return f"It is {what}."
    digits = len(str(figure).rstrip("0"))
    for count, what in ((trained, f"the number trained{share}"), (kept, f"the number kept for inference{share}")):
        if digits <= 2 and float(f"{count:.{digits - 1}e}") == figure:
            return f"It is {what}, rounded."
    return ""


def sweep(*values: Any) -> dict[str, list[Any]]:
    """Mark a grid in `Defaults`, as `{sweep: [...]}` does in a suite file."""
    return {"sweep": list(values)}


def require_positive(hp: Any, *names: str) -> None:
    """Raise ValueError, which the suite reports as a user's mistake, unless each setting is None or >= 1."""
    for name in names:
        value = getattr(hp, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def called(function: Callable[[], Found]) -> Found:
    """Call a method's own code from a property; PyTorch takes an AttributeError there for a missing property.

    Raises RuntimeError in its place, from the same line.
    """
    try:
        return function()
    except AttributeError as error:
        raise RuntimeError(str(error)).with_traceback(error.__traceback__) from None
