"""What a method file says about its method without any tensor: paper, published counts, grids, bounds of settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Paper:
    """The paper that a method comes from, and the parameter counts that it claims."""

    key: str
    """A BibTeX key, empty for a baseline that no paper introduced."""
    url: str
    params: dict[str, int] = field(default_factory=dict)
    """Published number of parameters by backbone, as printed: 76_800, or 220_000_000 for "220M"."""
    params_note: str = ""
    """Why a published figure is not the count with the default settings, in words."""


def explain_figure(figure: int, trained: int, kept: int, tasks: int = 1) -> str:
    """Say in words how a published figure follows from our counts; return an empty string if it does not.

    `trained` and `kept` are our counts. With several `tasks` they are the share of one task: all numbers / tasks.
    A figure of one or two significant digits, such as 220M, may be rounded. Any other has to be the count itself: with
    three digits, rounding would let counts that differ by half a percent pass as the same.
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
    """Make the grid of a setting for `Defaults`, as `{sweep: [...]}` does in a suite file."""
    return {"sweep": list(values)}


def span(low: float, high: float, log: bool = False) -> dict[str, Any]:
    """Make the range of a setting for `Defaults(search=...)`, as `{range: [low, high], log: true}` in a suite file."""
    return {"range": [low, high], "log": log}


def require_positive(hp: Any, *names: str) -> None:
    """Raise ValueError unless each of the named settings is None or at least 1.

    A suite reports a ValueError of a method's HP as the user's mistake, with file and line.
    """
    for name in names:
        value = getattr(hp, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
