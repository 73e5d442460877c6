"""The forms that a table can be written in, by name; apart from the writers, which need scipy and pandas."""

from __future__ import annotations

from typing import Literal

Format = Literal["terminal", "markdown", "latex", "html", "csv", "json"]
