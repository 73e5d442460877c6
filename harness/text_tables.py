"""Rows of values as a plain table on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from harness.screen import on_screen


def text_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as a plain table; lists joined by commas, integers with thousands separators."""
    body = [[on_screen(_show(row.get(column, ""))) for column in columns] for row in rows]
    return tabulate(body, [column.replace("_", " ") for column in columns], tablefmt="simple", disable_numparse=True)


def _show(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
