"""What strict types ask of tests that read optional fields."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def present(value: T | None) -> T:
    """Return a value that the test knows to be there; fail where it is None."""
    assert value is not None
    return value
