"""Ranges: `{range: [1e-5, 1], log: true}` in a suite's settings, for the strategies that draw values from a span."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import UserError

SIGNIFICANT_DIGITS = 4
"""Digits to which values are rounded. Logarithms differ in the last of 16 digits between platforms, and a cell's id is
made from the value; four digits are steps of at most 0.1 %, far finer than a dev score can tell apart."""


@dataclass(frozen=True)
class Range:
    """A span of numbers, both ends included. Two whole numbers span whole numbers."""

    low: float
    high: float
    log: bool = False
    """Whether every decade is as likely as any other, and not every number."""

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are in it."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def size(self) -> int | None:
        """How many values it holds; None where they are not counted."""
        return int(self.high) - int(self.low) + 1 if self.is_whole else None

    def at(self, share: float) -> float:
        """The value at a share of the span, from 0 up to 1; uniform shares give values as `log` asks for."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.is_whole else (self.low, self.high)
        value = low * math.exp(share * math.log(high / low)) if self.log else low + share * (high - low)
        return self.rounded(value)

    def holds(self, value: Any) -> bool:
        """Whether a value is one that this range gives: a number inside of it, with few digits."""
        return _is_number(value) and self.low <= value <= self.high and self.rounded(value) == value

    def rounded(self, value: float) -> float:
        """A value with few digits, as a cell holds it, and inside the range."""
        if self.is_whole:
            return int(min(max(round(value), self.low), self.high))
        size = abs(value) if self.log else self.high - self.low
        digits = SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(size or 1.0))
        return float(min(max(round(float(value), digits), self.low), self.high))


def read_range(value: Mapping[str, Any], where: str, field: str) -> Range:
    """Return the range that a suite writes. Raises UserError for one that is malformed, reversed or not finite."""
    if "sweep" in value:
        raise UserError("takes a sweep or a range, not both", where=where, field=field)
    unknown = next((key for key in value if key not in ("range", "log")), None)
    if unknown is not None:
        raise UserError("unknown", where=where, field=f"{field}.{unknown}", value=unknown, choices=["range", "log"])
    ends, log = value["range"], value.get("log", False)
    inner = f"{field}.range"
    if not isinstance(log, bool):
        raise UserError(f"expected true or false, got {log}", where=where, field=f"{field}.log")
    if not (isinstance(ends, list) and len(ends) == 2 and all(_is_number(end) for end in ends)):
        raise UserError(f"expected [lowest, highest], two numbers, got {ends}", where=where, field=inner)
    low, high = ends
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"needs finite ends, got {ends}", where=where, field=inner)
    if low >= high:
        hint = "For one value write the value itself." if low == high else f"Did you mean [{high}, {low}]?"
        raise UserError(
            f"must rise from its lowest to its highest value, got {ends}", where=where, field=inner, hint=hint
        )
    if log and low <= 0:
        raise UserError(f"must lie above 0 to be searched by its logarithm, got {ends}", where=where, field=inner)
    return Range(low, high, log)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
