"""Numbers on a benchmark's command line: nonsense is refused before anything is measured."""

from __future__ import annotations

import argparse


def whole(text: str) -> int:
    """A whole number from 1. Raises ArgumentTypeError for anything else, which argparse prints; exit code 2."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1")
    return int(text)


def over_zero(text: str) -> float:
    """A number over 0, "inf" too. Raises ArgumentTypeError for anything else."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not number > 0:  # nan is not either
        raise argparse.ArgumentTypeError(f"'{text}' is no number over 0")
    return number
