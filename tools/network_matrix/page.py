"""The matrix as tables of a page: a table per kind of network, a row per method, and the reasons below."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tabulate import tabulate

from tools.network_matrix.checkpoints import ARCHITECTURES
from tools.network_matrix.matrix import Pair

BEGIN, END = "<!-- networks:begin -->", "<!-- networks:end -->"
TITLES = {"encoder-decoder": "Encoder-decoders", "decoder": "Decoder-only networks", "encoder": "Encoders"}
BROKEN = "**fails**"


def render(pairs: Sequence[Pair], made: str) -> str:
    """The tables of all kinds that `pairs` hold; `made` says when and with what they were made."""
    parts = []
    for kind, title in TITLES.items():
        of_kind = [pair for pair in pairs if ARCHITECTURES[pair.architecture].kind == kind]
        if of_kind:
            parts.append(_table(title, of_kind))
    return "\n\n".join([*parts, made])


def read(page: str) -> dict[tuple[str, str], bool]:
    """(architecture, method) -> whether the page says that it trains."""
    found: dict[tuple[str, str], bool] = {}
    header: list[str] = []
    for line in page.partition(BEGIN)[2].partition(END)[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "method":
            header = cells
        elif line.startswith("|") and not line.startswith("|:"):
            for name, cell in zip(header[1:], cells[1:], strict=True):
                found[name, cells[0].strip("`")] = cell == "yes"
    return found


def _table(title: str, pairs: Sequence[Pair]) -> str:
    names = list(dict.fromkeys(pair.architecture for pair in pairs))
    methods = sorted({pair.method for pair in pairs})
    found = {(pair.architecture, pair.method): pair for pair in pairs}
    notes: dict[str, int] = {}
    rows = []
    for method in methods:
        row = {"method": f"`{method}`"}
        for name in names:
            pair = found[name, method]
            row[name] = "yes"
            if pair.outcome == "broken":
                row[name] = BROKEN
            elif pair.outcome == "refused":
                row[name] = f"[{notes.setdefault(_plain(pair.reason), len(notes) + 1)}]"
        rows.append(row)
    lines = [f"[{number}] {reason}  " for reason, number in notes.items()]
    return "\n".join([f"### {title}", "", tabulate(rows, headers="keys", tablefmt="pipe"), "", *lines]).rstrip()


def _plain(reason: str) -> str:
    """A reason without the name of the tiny checkpoint, so that equal reasons share a note."""
    return re.sub(r"^does not fit backbone '[^']*': ", "", reason)
