"""Folders that come with the program: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
"""The folder of the package itself; its parent is the checkout, where there is one."""


def shipped_methods() -> Path:
    """The folder of the method files."""
    return _shipped("methods")


def shipped_suites() -> Path:
    """The folder of the suite files."""
    return _shipped("suites")


def _shipped(name: str) -> Path:
    beside = PACKAGE.parent / name
    return beside if beside.is_dir() else PACKAGE / f"_{name}"
