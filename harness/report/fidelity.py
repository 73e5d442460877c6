"""The table of `harness fidelity`: our scores beside published ones, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from harness.data import mean_score, round_score
from harness.report.agreement import disagreements, is_same_method, is_unaltered
from harness.report.boards import Board, BoardRow, Entry
from harness.report.leaderboard_table import LEFT_OUT
from harness.report.published import Number, PublishedRow
from harness.report.table_cells import Cell, Column, Table
from harness.report.yardstick import kinds_apart


@dataclass(frozen=True)
class Comparison:
    """A published score and ours on the same task, 0-100."""

    suite: str
    backbone: str
    method: str
    """Name of our row."""
    published_method: str
    task: str
    metric: str
    published: float
    published_std: float | None
    ours: float
    ours_std: float | None
    difference: float
    """Ours minus theirs."""
    num_runs: int
    source: str


@dataclass(frozen=True)
class Fidelity:
    """The comparisons of a board with a published record, and what could not be compared."""

    comparisons: list[Comparison]
    left_out: list[str]
    """One line per pair of rows with the same method that differ in their settings: why they are not compared."""


def fidelity_of(board: Board) -> Fidelity:
    """Compare each published score with our one row that has the same method and settings; in the order of the board.

    If several of our rows fit, the one with the method's plain name counts. If none of them has it, or several do, none
    counts. The record does not say which one it means, and to choose the nearest would flatter us.
    """
    found: dict[tuple[int, int, int], Comparison] = {}
    left_out: dict[str, None] = {}
    for rank, published in enumerate(board.published):
        named = [(i, row) for i, row in enumerate(board.rows) if is_same_method(row, published.method)]
        for column, task in enumerate(board.tasks):
            number = published.numbers.get(task)
            if number is None or number.value is None:
                continue
            scored = [(i, row, entry) for i, row in named if (entry := row.entries.get(task)) and entry.scores]
            fitting = []  # our rows with the same method and settings
            for i, row, entry in scored:
                apart = kinds_apart(entry.runs)
                reasons = [f"its runs were scored with different {' and '.join(apart)}"] if apart else []
                if reasons := [*reasons, *disagreements(entry, number, board.record)]:
                    left_out[f"{row.name} beside {published.name}: {', '.join(reasons)}"] = None
                else:
                    fitting.append((i, row, entry))
            # several rows may fit, for example two learning rates
            plain = [item for item in fitting if is_unaltered(item[1])]
            chosen = fitting if len(fitting) == 1 else plain if len(plain) == 1 else []
            for i, row, entry in chosen:
                found[i, rank, column] = _comparison(board, row, entry, published, number)
            for _, row, _ in (item for item in fitting if item not in chosen):
                reason = "several rows of this method fit, and the record does not say which one it means"
                left_out[f"{row.name} beside {published.name}: {reason}"] = None
    return Fidelity([found[key] for key in sorted(found)], list(left_out))


def compare_with_published(board: Board) -> list[Comparison]:
    """The comparisons of `fidelity_of`."""
    return fidelity_of(board).comparisons


def lay_out_fidelity(board: Board) -> Table:
    """The comparisons as a table, or a sentence that says why there are none."""
    names = ("method", "published as", "task", "published", "ours", "difference", "runs")
    caption = "Test scores beside published ones: ours is the mean ± standard deviation over seeds, difference is ours "
    caption += "less theirs."
    caption += f" {LEFT_OUT}." if board.leaves_out_choosers else ""
    table = Table(f"{board.suite} on {board.backbone}: fidelity", caption, [Column(name) for name in names])
    made = fidelity_of(board)
    found = made.comparisons
    for item in found:
        overlap = (table.note(board.overlaps[item.task]),) if item.task in board.overlaps else ()
        theirs = "" if item.published_std is None else f"{item.published_std:g}"
        table.rows.append(
            [
                Cell(item.method),
                Cell(item.published_method, notes=(table.note(f"published: {item.source}"),)),
                Cell(f"{item.task} ({item.metric})", notes=overlap),
                Cell(f"{item.published:z.1f}", spread=theirs),
                Cell(f"{item.ours:z.1f}", spread="" if item.ours_std is None else f"{item.ours_std:z.1f}"),
                Cell(f"{item.difference:+z.1f}"),
                Cell(str(item.num_runs)),
            ]
        )
    if found:
        gaps = [item.difference for item in found]
        table.remarks.append(
            f"{len(gaps)} cell{'s' if len(gaps) > 1 else ''}: ours are {mean_score(gaps):+z.1f} points from theirs on "
            f"average, {mean_score(map(abs, gaps)):z.1f} whatever the sign."
        )
    elif made.left_out:
        table.remarks.append("No measured row was made with the settings of a published one.")
    else:
        table.remarks.append(f"{board.published_note or 'No measured method is among the published ones'}.")
    table.remarks += [f"Not compared: {text}." for text in made.left_out]
    table.remarks += [f"{text}." for text in (*board.folders, board.origin)]
    return table


def fidelity_rows(boards: Sequence[Board]) -> list[dict[str, object]]:
    """The comparisons of all boards, for CSV and JSON."""
    return [asdict(item) for board in boards for item in compare_with_published(board)]


def _comparison(board: Board, row: BoardRow, entry: Entry, published: PublishedRow, number: Number) -> Comparison:
    assert entry.mean is not None
    assert number.value is not None
    return Comparison(
        suite=board.suite,
        backbone=board.backbone,
        method=row.name,
        published_method=published.name,
        task=number.task,
        metric=board.metrics[number.task],
        published=number.value,
        published_std=number.std,
        ours=entry.mean,
        ours_std=entry.std,
        difference=round_score(entry.mean - number.value),
        num_runs=len(entry.runs),
        source=published.origin,
    )
