"""File names and links of the pages: whatever a task, method or suite is called, its page stays in the folder."""

from __future__ import annotations

import hashlib
import re

from harness.report.aggregate import Board
from harness.schema import Result

LONGEST = 60


def slug(name: str) -> str:
    """A name that is safe in file names, addresses and ids on every system; different for different names.

    A plain name (a-z, 0-9, - and _) is kept. Any other gets the start of its SHA-256, and so does a plain name that
    looks as if it had one already.
    """
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:LONGEST]
    if plain == name and not re.search(r"-[0-9a-f]{12}$", name):
        return name
    return f"{plain or 'x'}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:12]}"


def method_page(name: str) -> str:
    """Address of a method's page from the root of the site, as of the others below."""
    return f"methods/{slug(name)}.html"


def task_page(name: str) -> str:
    return f"tasks/{slug(name)}.html"


def cell_page(result: Result) -> str:
    """Rows of one suite may share a cell, so the cell_id alone would not tell pages apart."""
    return f"cells/{'/'.join(map(slug, result.key))}.html"


def board_id(board: Board) -> str:
    """Id of a board's section on a page. Slugs have no dots, so no id is the start of another's and a part of it."""
    return f"board.{slug(board.suite)}.{slug(board.backbone)}"


def row_id(board: Board, name: str) -> str:
    """Id of a board's row on the page of a task."""
    return f"{board_id(board)}.row.{slug(name)}"
