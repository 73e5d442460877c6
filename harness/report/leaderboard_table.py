"""Lays a leaderboard out as a table of texts and footnotes, which the writers then put into a format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.report.boards import Board, BoardRow, Entry, peers
from harness.report.budgets import unequal_budgets
from harness.report.cost_columns import cost_cells, cost_columns, costs_caption
from harness.report.marks import NO_TESTS, UNTESTED, Marks, mark_board
from harness.report.published import Number, PublishedRow
from harness.report.statistics.intervals import LEVEL
from harness.report.statistics.significance import AVERAGE, ONE_RUN, Significance
from harness.report.table_cells import DASH, TIED, Cell, Column, Table, span_of
from harness.results import Result, data_notes

SPREAD_COLUMNS = ("± seeds", "± re-runs")
"""Columns of a board on which some cell was trained again with the same seed."""
CHOSEN = (
    "the seed whose dev score chose the grid point is among the runs, which flatters their mean; --report-seeds others "
    "leaves it out"
)
"""Footnote on the grid runs of a row."""
LEFT_OUT = "The seed that chose a grid point is left out (--report-seeds others)"
"""Sentence above a table."""


def lay_out(
    board: Board, costs: bool = False, significance: Significance | None = None, marks: Marks | None = None
) -> Table:
    """Return the table of a board: a row per method, a column per task, published rows last.

    `costs` adds columns of time, memory and, if it was measured, forgetting; `significance` intervals and ties. `marks`
    says what is bold; None marks by `significance`.
    """
    marks = marks or mark_board(board, significance)
    table = Table(f"{board.suite} on {board.backbone}", _caption(board, significance, costs, marks), [])
    tasks = [_column(board, task, table, significance, marks) for task in board.tasks]
    heads = [Column("method"), Column("params"), Column("grid runs")]
    cost_heads = cost_columns(board, table) if costs else []
    average = Column("average", notes=_empty_notes(AVERAGE, table, marks))
    spreads = [*map(Column, SPREAD_COLUMNS)] if has_reruns(board) else []
    table.columns = [*heads, *tasks, average, *spreads, *cost_heads]
    for row in board.rows:
        cells = [_name(row, table), Cell(_params(row)), _grid_runs(row, table)]
        cells += [_cell(row, task, table, significance, marks) for task in board.tasks]
        cells.append(_average(row, board, table, significance, marks))
        cells += _spreads(row)[: len(spreads)]
        table.rows.append([*cells, *(cost_cells(row, board, table) if costs else ())])
    if board.published:
        table.apart = len(table.rows)
    unmeasured = [Cell()] * (len(spreads) + len(cost_heads))
    table.rows += [[*_published_row(row, board, table), *unmeasured] for row in board.published]
    untested = NO_TESTS if marks.rule == "ties" and not marks.has_tests and len(board.rows) > 1 else ""
    below = [untested, board.published_note, *_statements(significance), *board.folders, board.origin]
    table.remarks = [f"{text}." for text in below if text]
    return table


def _caption(board: Board, significance: Significance | None, costs: bool, marks: Marks) -> str:
    text = (
        "Test score of the checkpoint and grid point chosen by dev score: mean ± standard deviation over seeds "
        "(number of runs). "
    )
    text += marks.reading("of a column" + (" among rows of one k" if len(peers(board.rows)) > 1 else ""))
    if has_reruns(board):
        text += (
            f" {' and '.join(SPREAD_COLUMNS)}: standard deviation of the test score between seeds, and between "
            "trainings of one cell with one seed (in brackets how many beside the first), pooled over tasks; only the "
            "first counts."
        )
    if board.leaves_out_choosers:
        text += f" {LEFT_OUT}."
    if significance is not None:
        text += (
            f" In brackets the {1 - LEVEL:.0%} interval over test rows and seeds; {TIED} cannot be told from "
            f"the best of the column{' with its k' if len(peers(board.rows)) > 1 else ''}. An entry without it is not "
            f"the best, unless a footnote says that it cannot be told ({LEVEL:.0%} for any false claim of the table)."
        )
    text += costs_caption(board) if costs else ""
    if board.published:
        text += " Rows marked published are figures of the named source: not measured here, not ranked."
    unequal = unequal_budgets(board)
    return f"{text} {unequal}" if unequal else text


def _empty_notes(column: str, table: Table, marks: Marks) -> tuple[int, ...]:
    """Footnotes that say why nothing in a column is bold."""
    return tuple(map(table.note, marks.empty.get(column, ())))


def _column(board: Board, task: str, table: Table, significance: Significance | None, marks: Marks) -> Column:
    """The head of a task's column, with footnotes on what makes its scores hard to compare."""
    notes = [*_empty_notes(task, table, marks)]
    if kinds := board.differences.get(task):
        notes.append(table.note(f"rows of this column were made with different {' and '.join(kinds)}: not comparable"))
    if task in board.overlaps:
        notes.append(table.note(board.overlaps[task]))
    if significance is not None and task in significance.warnings:
        notes.append(table.note(significance.warnings[task]))
    runs = [run for row in board.rows if task in row.entries for run in row.entries[task].runs]
    notes += [table.note(text) for text in data_notes(runs)]
    return Column(f"{task} ({board.metrics.get(task, '?')})", board.benchmarks[task], tuple(notes), task)


def _cell(row: BoardRow, task: str, table: Table, significance: Significance | None, marks: Marks) -> Cell:
    """The score of a row on a task; empty if nothing was run."""
    entry = row.entries.get(task)
    if entry is None:
        return Cell()
    cell = entry_cell(entry, table, marks.of(row.name, task))
    if entry.mean is None:
        return cell
    notes = (*cell.notes, *_doubt(row, task, table, significance, marks))
    if significance is None:
        return replace(cell, notes=notes)
    interval, tied = _interval_and_tie(row, task, significance, marks)
    return replace(cell, interval=interval, tied=tied, notes=notes)


def _doubt(
    row: BoardRow, column: str, table: Table, significance: Significance | None, marks: Marks
) -> tuple[int, ...]:
    """The footnote on why an entry cannot be told from the best, if so."""
    reason = marks.untested.get((row.name, column))
    verdict = significance.verdicts.get((row.name, column)) if significance else None
    if marks.rule == "best" and verdict is not None and verdict.kind == "cannot tell" and verdict.reason != ONE_RUN:
        reason = UNTESTED + verdict.reason
    return () if reason is None else (table.note(reason),)


def entry_cell(entry: Entry, table: Table, rank: str = "") -> Cell:
    """An entry's score with footnotes on its runs; a dash if no run has a score."""
    notes = tuple(table.note(text) for text in _entry_notes(entry))
    if entry.mean is None:
        return Cell(DASH, notes=notes)
    spread = f"{entry.std:z.1f}" if entry.std is not None else ""
    return Cell(f"{entry.mean:z.1f}", rank, spread, str(len(entry.runs)), notes=notes)


def _interval_and_tie(row: BoardRow, column: str, significance: Significance | None, marks: Marks) -> tuple[str, bool]:
    """The interval as text, and whether the tests cannot tell the entry from the best of its column."""
    if significance is None:
        return "", False
    span = significance.intervals.get((row.name, column))
    text = "" if span is None else f"[{span[0]:z.1f}, {span[1]:z.1f}]"
    is_tied = (row.name, column) in significance.ties
    return text, is_tied and (marks.rule == "best" or marks.of(row.name, column) == "best")


def _entry_notes(entry: Entry) -> list[str]:
    """Footnotes on everything that a reader has to know about the runs of an entry."""
    flags = _failure_notes(entry)
    if entry.num_grid_unfit and not entry.failed:
        flags.append(f"{entry.num_grid_unfit} of {entry.num_grid_runs} grid points do not fit the backbone")
    if entry.has_hidden_grid_failures:
        flags.append(f"{entry.num_grid_failed} of {entry.num_grid_runs} grid runs failed")
    if entry.mixed:
        flags.append(f"runs differ in {' and '.join(entry.mixed)}; rerun them with --rerun stale")
    if entry.commits:
        flags.append(f"runs were made at {len(entry.commits)} commits of the harness: {', '.join(entry.commits)}")
    if entry.stale:
        flags.append(f"stale: {' and '.join(entry.stale)} changed since; rerun with --rerun stale")
    if entry.apart and entry.mean is not None:
        flags.append(entry.apart)
    if entry.left_out and not entry.runs:
        flags.append("only the seed that chose the grid point was run, and it is left out")
    if entry.num_unreadable:
        flags.append(f"{entry.num_unreadable:,} of {entry.num_answers:,} answers unreadable, so wrong")
    return flags


def _failure_notes(entry: Entry) -> list[str]:
    """Footnotes on runs without a score: why the method does not fit; how many runs failed, and one error."""
    notes = list(dict.fromkeys(_reason(run) for run in entry.failed if run.status == "unfit"))
    failed = [run for run in entry.failed if run.status == "failed"]
    if failed:
        notes.append(f"{len(failed)} of {len(entry.failed) + len(entry.runs)} runs failed: {_reason(failed[0])}")
    return notes


def _reason(run: Result) -> str:
    """The last line of an error, under the name of its type unless it begins with one, as a Python traceback does."""
    failure = run.failure
    lines = (failure.message.strip().splitlines() if failure else []) or [""]
    named = run.status == "unfit" or lines[-1].partition(":")[0].endswith("Error")
    return (lines[-1] if named else f"{failure.type}: {lines[-1]}") if failure else "unknown"


def _average(row: BoardRow, board: Board, table: Table, significance: Significance | None, marks: Marks) -> Cell:
    average = row.average(board.tasks)
    if average is None:
        return Cell(DASH)
    notes = _doubt(row, AVERAGE, table, significance, marks)
    if row.comparable_score(AVERAGE, board.tasks) is None:
        notes += (table.note("an average with a score that is not ranked is not ranked"),)
    interval, tied = _interval_and_tie(row, AVERAGE, significance, marks)
    return Cell(f"{average:z.1f}", marks.of(row.name, AVERAGE), interval=interval, tied=tied, notes=notes)


def has_reruns(board: Board) -> bool:
    """Whether any cell of a board was trained more than once with the same seed."""
    return any(entry.num_reruns for row in board.rows for entry in row.entries.values())


def _spreads(row: BoardRow) -> list[Cell]:
    """The deviation between seeds, and between trainings of one cell and seed, as SPREAD_COLUMNS."""
    seeds, reruns = row.seed_std(), row.rerun_std()
    count = sum(entry.num_reruns for entry in row.entries.values())
    return [
        Cell(DASH if seeds is None else f"{seeds:z.2f}"),
        Cell(DASH) if reruns is None else Cell(f"{reruns:z.2f}", runs=str(count)),
    ]


def _name(row: BoardRow, table: Table) -> Cell:
    """The name of a row; with footnotes if it was not trained here, or its tasks ran under different protocols."""
    texts = [f"not trained here: {origin}" for origin in row.trained_elsewhere()]
    scored = [task for task, entry in row.entries.items() if entry.runs]
    texts += [head_note(head) + _on(tasks, scored) for head, tasks in row.heads().items()]
    if len(row.protocols) > 1:
        texts.append(f"tasks of this row were run under different protocols: {'; '.join(row.protocols)}")
    return Cell(row.name, notes=tuple(table.note(text) for text in texts))


def head_note(head: str) -> str:
    """What a footnote says of answers that are not written."""
    return f"answers are read off by a trained head (recipe.head: {head}), whose weights params leave out"


def _on(tasks: Sequence[str], scored: Sequence[str]) -> str:
    """On which tasks, if not on all."""
    return "" if set(tasks) == set(scored) else f", on {', '.join(tasks)}"


def _params(row: BoardRow) -> str:
    """Trained parameters; those kept for inference too, where they are fewer or more; the whole of a mixture."""
    trained, kept = row.params("num_trained"), row.params("num_kept")
    text = span_of(trained)
    text = text if kept == trained else f"{text} (kept {span_of(kept)})"
    return text + "".join(f" per task; {total:,} for {tasks} tasks" for total, tasks in row.mixture_params())


def _grid_runs(row: BoardRow, table: Table) -> Cell:
    """Grid points that were run per entry: how much tuning stands behind a row."""
    if row.trained_elsewhere():  # no step stands behind it here, and nobody knows how many do elsewhere
        return Cell("0")
    text = span_of(sorted({entry.num_grid_runs for entry in row.entries.values()}))
    notes = _search_notes(row)
    if raced_out := sum(entry.num_raced_out for entry in row.entries.values()):
        total = sum(entry.num_grid_runs for entry in row.entries.values() if entry.num_raced_out)
        notes.append(f"searched by halving: {raced_out} of {total} grid runs left early, by dev score")
    if any(entry.choosers and not entry.left_out for entry in row.entries.values()):
        notes.append(CHOSEN)
    return Cell(text, notes=tuple(map(table.note, notes)))


def _search_notes(row: BoardRow) -> list[str]:
    """Footnotes on searches that drew their points."""
    searches = [search for entry in row.entries.values() for search in entry.searches]
    kinds = {run.cell.study.partition("-")[0] for search in searches for run in search if run.cell.study}
    if not kinds:
        return []
    others = any(len({run.cell.study for run in search}) > 1 for search in searches)
    return [f"points drawn by {' and '.join(sorted(kinds))}" + (", and points of earlier searches" if others else "")]


def _published_row(row: PublishedRow, board: Board, table: Table) -> list[Cell]:
    name = Cell(f"{row.name}, published", notes=(table.note(f"published: {row.origin}"),))
    average = row.average(board.tasks)
    return [
        name,
        Cell(", ".join(row.params) or DASH),
        Cell(),
        *(_published_cell(row.numbers.get(task), row.common_note, table) for task in board.tasks),
        Cell(DASH if average is None else f"{average:z.1f}"),
    ]


def _published_cell(number: Number | None, common_note: str, table: Table) -> Cell:
    if number is None:
        return Cell()
    notes = (table.note(f"published: {number.note}"),) if number.note not in ("", common_note) else ()
    spread = f"{number.std:g}" if number.std is not None else ""
    return Cell(DASH if number.value is None else f"{number.value:z.1f}", spread=spread, notes=notes)


def _statements(significance: Significance | None) -> list[str]:
    """Sentences below the table: on entries with one run, and average ranks."""
    if significance is None:
        return []
    texts = []
    if significance.has_single_runs:
        texts.append(
            "Entries with one run are not compared: one run cannot speak of a method. Their intervals are over test "
            "rows and hold for that run alone: how far runs lie apart is not known"
        )
    if significance.ungrouped:
        tasks = ", ".join(sorted(significance.ungrouped))
        texts.append(
            f"Some predictions on {tasks} do not say which rows belong together (they are of an earlier version): "
            "these rows count as independent, which makes intervals too narrow"
        )
    for title, ranking in significance.rankings.items():
        order = sorted(ranking.ranks, key=ranking.ranks.__getitem__)
        listed = ", ".join(f"{name} {ranking.ranks[name]:z.1f}" for name in order)
        within = f" within {title}" if title else ""
        texts.append(
            f"Average ranks over {ranking.num_tasks} tasks{within}: {listed}; Friedman p = {ranking.p_value:.2g}; "
            f"ranks closer than {ranking.critical_difference:z.1f} are not separable (Nemenyi)"
        )
    return texts
