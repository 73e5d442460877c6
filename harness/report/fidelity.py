"""How near our numbers come to published ones, in every cell that both have."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from harness.report.aggregate import Board, BoardRow
from harness.report.layout import Cell, Column, Table
from harness.report.published import FOLDER, PublishedRow


@dataclass(frozen=True)
class Comparison:
    """One cell of a published table and ours; scores in percent points."""

    suite: str
    backbone: str
    method: str
    """Our row."""
    published_method: str
    task: str
    metric: str
    published: float
    published_std: float | None
    ours: float
    ours_std: float | None
    difference: float
    """Ours less theirs."""
    num_runs: int
    source: str


def compare_with_published(board: Board) -> list[Comparison]:
    """Every cell that a measured and a published row of `board` have in common, in the order of the board."""
    return [
        item
        for row in board.rows
        for published in board.published
        if _is_same(row, published)
        for item in _common_cells(board, row, published)
    ]


def lay_out_fidelity(board: Board) -> Table:
    """The comparisons as a table; a sentence where there are none."""
    names = ("method", "published as", "task", "published", "ours", "difference", "runs")
    caption = "Test scores beside published ones: ours is the mean ± standard deviation over seeds, difference is ours "
    caption += "less theirs."
    table = Table(f"{board.suite} on {board.backbone}: fidelity", caption, [Column(name) for name in names])
    found = compare_with_published(board)
    for item in found:
        theirs = "" if item.published_std is None else f"{item.published_std:g}"
        table.rows.append(
            [
                Cell(item.method),
                Cell(item.published_method, notes=(table.note(f"published: {item.source}"),)),
                Cell(f"{item.task} ({item.metric})"),
                Cell(f"{item.published:.1f}", spread=theirs),
                Cell(f"{item.ours:.1f}", spread="" if item.ours_std is None else f"{item.ours_std:.1f}"),
                Cell(f"{item.difference:+.1f}"),
                Cell(str(item.num_runs)),
            ]
        )
    if found:
        gaps = [item.difference for item in found]
        table.remarks.append(
            f"{len(gaps)} cells: ours are {statistics.fmean(gaps):+.1f} points from theirs on average, "
            f"{statistics.fmean(map(abs, gaps)):.1f} whatever the sign."
        )
    else:
        table.remarks.append(f"{board.published_note or 'No measured method is among the published ones'}.")
    table.remarks.append(f"{board.origin}.")
    return table


def records(boards: Sequence[Board]) -> list[dict[str, object]]:
    """The comparisons of all boards, for programs."""
    return [asdict(item) for board in boards for item in compare_with_published(board)]


def _common_cells(board: Board, row: BoardRow, published: PublishedRow) -> Iterator[Comparison]:
    for task in board.tasks:
        number, entry = published.numbers.get(task), row.entries.get(task)
        if number is None or number.value is None or entry is None or entry.mean is None:
            continue
        yield Comparison(
            suite=board.suite,
            backbone=board.backbone,
            method=row.name,
            published_method=published.name,
            task=task,
            metric=board.metrics[task],
            published=number.value,
            published_std=number.std,
            ours=entry.mean,
            ours_std=entry.std,
            difference=entry.mean - number.value,
            num_runs=len(entry.runs),
            source=published.origin,
        )


def _is_same(row: BoardRow, published: PublishedRow) -> bool:
    """Whether a source's name of a method means the file that a row was made with."""
    known = json.loads((FOLDER / "methods.json").read_text(encoding="utf-8"))
    file = known.get(published.method, _stem(published.method))
    used = {run.cell.method for entry in row.entries.values() for run in entry.runs}
    return any(file in (name, _stem(name)) for name in used)


def _stem(name: str) -> str:
    """`Fine-tuning` and `finetune` -> `finetun`."""
    return re.sub("(ing|e)$", "", re.sub("[^a-z0-9]", "", name.lower()))
