"""File names, addresses and ids of the pages.

Names of tasks, methods and suites come from files of anybody. Whatever they hold, no page is written outside the
folder, and no two names share a page.
"""

from __future__ import annotations

import hashlib
import re

from harness.report.boards import Board
from harness.results import Result

LONGEST = 60
"""Letters kept of a name. File systems take 255 bytes; with the checksum and ending that is at most 78."""


def slug(name: str) -> str:
    """A name as it may stand in file names, addresses and ids on every system; different for different names.

    A short plain name (a-z, 0-9, - and _) is kept. Any other gets the first 12 digits of its SHA-256 behind it, and so
    does a plain name that ends as if it had some already.
    """
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:LONGEST]
    if plain == name and not re.search(r"-[0-9a-f]{12}$", name):
        return name
    return f"{plain or 'x'}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:12]}"


def method_page(name: str) -> str:
    """Address of the page of a method, from the root of the site."""
    return f"methods/{slug(name)}.html"


def task_page(name: str) -> str:
    """Address of the page of a task, from the root of the site."""
    return f"tasks/{slug(name)}.html"


def cell_page(result: Result) -> str:
    """Address of the page of a cell, from the root of the site."""
    # the whole key: rows of one suite may share a cell, so the cell_id alone would not tell pages apart
    return f"cells/{'/'.join(map(slug, result.key))}.html"


def board_id(board: Board) -> str:
    """Id of a board's section on a page. Slugs have no dots, so no two boards share an id."""
    return f"board.{slug(board.suite)}.{slug(board.backbone)}"


def row_id(board: Board, name: str) -> str:
    """Id of a board's row on the page of a task."""
    return f"{board_id(board)}.row.{slug(name)}"
