"""Folders that tests ask for."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
METHODS = ROOT / "methods"
SUITES = ROOT / "suites"
DOCS = ROOT / "docs"
