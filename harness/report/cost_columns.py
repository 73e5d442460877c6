"""The columns of costs of a leaderboard: a step, the search budget, what answering costs, and forgetting."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from harness.report.boards import Board, BoardRow
from harness.report.budgets import row_budget
from harness.report.table_cells import DASH, Cell, Column, Table, span_of
from harness.results import AnsweringCost

COST_COLUMNS = ("ms/step", "peak MiB")
"""A run's share of its bundle's training time, and the bundle's peak memory (on a CPU, the whole process's)."""
BUDGET_COLUMNS = ("steps searched", "samples searched", "device s searched")
"""What one choice of a row's settings took per task: training steps, training samples, seconds of the device; with the
source cells that the row starts from."""
WITHOUT_SOURCES = "without source cells that the row starts from and whose results are not here"
FORMS = ("bare", "beside", "merged")
ANSWERING_COLUMNS = ("ms/answer", "answer MiB", "disk MiB")
"""What answering costs: the bare backbone, the method beside it, merged into it; on disk the last two."""
FORGETTING_COLUMN = "forgetting"
"""Rise of the loss on a general text; a column of costs where some run was asked for it."""


def cost_columns(board: Board, table: Table) -> list[Column]:
    """The heads of the columns: a step, the search budget, and what was measured beside scores."""
    columns = [Column(name) for name in (*COST_COLUMNS, *BUDGET_COLUMNS)]
    if any(row.answering() for row in board.rows):
        columns += [Column(name) for name in ANSWERING_COLUMNS]
    if not board.general_texts:
        return columns
    differ = "measured on different texts: not comparable"
    notes = (table.note(differ),) if len(board.general_texts) > 1 else ()
    return [*columns, Column(FORGETTING_COLUMN, notes=notes)]


def cost_cells(row: BoardRow, board: Board, table: Table) -> list[Cell]:
    """The cells of a row in these columns."""
    budget = row_budget(row)
    spent = (budget.steps, budget.samples, budget.device_s) if budget else (None, None, None)
    lacking = (table.note(WITHOUT_SOURCES),) if budget and budget.num_unknown else ()
    seconds, memory = row.step_seconds(), row.peak_memory()
    cells = [
        Cell(DASH if seconds is None else f"{1000 * seconds:.3g}"),
        Cell(DASH if memory is None else f"{memory / 2**20:,.0f}"),
        *(Cell(DASH if value is None else f"{value:,.0f}", notes=lacking) for value in spent),
    ]
    if any(other.answering() for other in board.rows):
        cells += _answering(row, table)
    if board.general_texts:
        rise = row.forgetting()
        problems = tuple(table.note(f"forgetting: {problem}") for problem in row.forgetting_problems())
        cells.append(Cell(DASH if rise is None else f"{rise:z.3f}", notes=problems))
    return cells


def costs_caption(board: Board) -> str:
    """Sentences above a table on what its columns of costs hold, each behind a blank."""
    text = " ms/step is a run's share of its bundle's time, so cells that trained together share it."
    text += (
        " The columns searched are what one choice of a row's settings took, as a mean over tasks: all points of the "
        "grid or search, failed ones included, and the source cells that they start from, without the winner's further "
        "seeds."
    )
    if measured := [cost for row in board.rows for cost in row.answering()]:
        text += f" ms/answer and answer MiB: bare backbone / method beside it / merged into it ({_how(measured)}); "
        text += "disk MiB: what has to be stored beside the backbone / merged."
    if board.general_texts:
        text += (
            f" {FORGETTING_COLUMN} is the rise of the loss on a general text against the bare backbone, in nats per "
            "token, as a mean over runs and tasks."
        )
    return text


def _answering(row: BoardRow, table: Table) -> list[Cell]:
    """Medians over the row's runs: bare / beside / merged, and on disk beside / merged."""
    found = row.answering()
    if not found:
        return [Cell(DASH)] * len(ANSWERING_COLUMNS)
    forms = {name: [own for cost in found if (own := getattr(cost, name)) is not None] for name in FORMS}
    reasons = sorted({cost.not_merged for cost in found if cost.not_merged})
    notes = tuple(table.note(f"not merged: {reason}") for reason in reasons)
    time = [_median([own.ms_per_row for own in forms[name]], "{:.3g}", 1) for name in FORMS]
    memory = [_median([own.peak_bytes for own in forms[name]], "{:,.1f}", 2**20) for name in FORMS]
    disk = [_median([own.disk_bytes for own in forms[name]], "{:,.2f}", 2**20) for name in FORMS[1:]]
    return [Cell(" / ".join(time), notes=notes), Cell(" / ".join(memory)), Cell(" / ".join(disk))]


def _median(values: Sequence[float], form: str, unit: int) -> str:
    return form.format(statistics.median(values) / unit) if values else DASH


def _how(measured: Sequence[AnsweringCost]) -> str:
    """How answers were timed: rows, rounds and batches, each as a span where runs differ."""
    parts = {name: span_of(sorted({getattr(cost, name) for cost in measured}))
             for name in ("num_rows", "num_rounds", "batch_tokens")}  # fmt: skip
    return (
        f"median of {parts['num_rounds']} rounds in alternation over {parts['num_rows']} dev rows in batches of "
        f"{parts['batch_tokens']} tokens"
    )
