"""Boards as markdown, CSV, JSON or terminal text, in the shape of the papers' tables."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate

from harness.report.aggregate import Board, BoardRow, Entry
from harness.report.published import Number, PublishedRow

DASH = "–"
COST_COLUMNS = ("ms/step", "peak MiB")
"""A run's share of its bundle's training time, and the bundle's peak memory (on a CPU, the whole process's)."""
Mark = Callable[[str, str], str]
"""(text, "best" | "second" | "") -> marked text"""


@dataclass
class _Notes:
    """Footnotes of one table, numbered in the order they are met."""

    texts: list[str]

    def mark(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"


def render(boards: Sequence[Board], style: str, costs: bool = False) -> str:
    """Return all boards in one format: terminal, markdown, csv or json; with `costs`, also time and memory."""
    if style == "json":
        return json.dumps([_as_json(board) for board in boards], indent=1) + "\n"
    if style == "csv":
        return _csv(boards)
    layout = "pipe" if style == "markdown" else "simple_outline"
    parts = [_text_table(board, layout, _MARKS[style], costs) for board in boards]
    return "\n\n".join(parts) + "\n"


def _text_table(board: Board, layout: str, mark: Mark, costs: bool) -> str:
    notes = _Notes([])
    headers = [
        "method",
        "params",
        "grid runs",
        *(_column(board, task, notes) for task in board.tasks),
        "average",
        *(COST_COLUMNS if costs else ()),
    ]
    ranks = {
        task: _ranks([row.entries[task].mean if task in row.entries else None for row in board.rows])
        for task in board.tasks
    }
    average_ranks = _ranks([row.average(board.tasks) for row in board.rows])
    body = [
        [
            _name(row, notes),
            _params(row),
            _grid_runs(row, notes),
            *(_cell(row.entries.get(task), ranks[task][i], mark, notes) for task in board.tasks),
            _average(row, board, average_ranks[i], mark),
            *(_costs(row) if costs else ()),
        ]
        for i, row in enumerate(board.rows)
    ]
    unmeasured = [""] * (len(COST_COLUMNS) if costs else 0)
    body += [[*_published_row(row, board, notes), *unmeasured] for row in board.published]
    align = ["left", *["right"] * (len(headers) - 1)]
    table = tabulate(body, headers, tablefmt=layout, colalign=align, disable_numparse=True)
    lines = [_caption(board, layout, costs), "", table]
    if notes.texts:
        lines += ["", *(f"[{i}] {text}" + ("  " if layout == "pipe" else "") for i, text in enumerate(notes.texts, 1))]
    lines += [line for text in (board.published_note, board.origin) if text for line in ("", f"{text}.")]
    return "\n".join(lines)


def _column(board: Board, task: str, notes: _Notes) -> str:
    flags = [
        " " + notes.mark(f"rows of this column were made with different {' and '.join(kinds)}: not comparable")
        for kinds in [board.differences.get(task)]
        if kinds
    ]
    return f"{task} ({board.metrics.get(task, '?')}){''.join(flags)}"


def _caption(board: Board, layout: str, costs: bool) -> str:
    title = f"{board.suite} on {board.backbone}"
    text = (
        "Test score of the checkpoint and grid point chosen by dev score: mean ± standard deviation over seeds "
        "(number of runs). Best in bold, second underlined."
    )
    if costs:
        text += " ms/step is a run's share of its bundle's time, so input-side methods that trained together share it."
    if board.published:
        text += " Rows marked published are figures of the named source: not measured here, not ranked."
    return f"### {title}\n\n{text}" if layout == "pipe" else f"{title}\n{text}"


def _cell(entry: Entry | None, rank: str, mark: Mark, notes: _Notes) -> str:
    if entry is None:
        return ""
    flags = [notes.mark(_failure_note(entry))] if entry.failed else []
    if entry.num_grid_failed and not entry.failed:
        flags.append(notes.mark(f"{entry.num_grid_failed} of {entry.num_grid_runs} grid runs failed"))
    if entry.mixed:
        flags.append(notes.mark(f"runs differ in {' and '.join(entry.mixed)}; rerun them with --rerun stale"))
    if entry.num_unreadable:
        flags.append(notes.mark(f"{entry.num_unreadable:,} of {entry.num_answers:,} answers unreadable, so wrong"))
    if entry.mean is None:
        return " ".join([DASH, *flags])
    spread = f" ±{entry.std:.1f}" if entry.std is not None else ""
    return " ".join([f"{mark(f'{entry.mean:.1f}', rank)}{spread} ({len(entry.runs)})", *flags])


def _published_row(row: PublishedRow, board: Board, notes: _Notes) -> list[str]:
    average = row.average(board.tasks)
    return [
        f"{row.name}, published {notes.mark(f'published: {row.origin}')}",
        ", ".join(row.params) or DASH,
        "",
        *(_published_cell(row.numbers.get(task), row.common_note, notes) for task in board.tasks),
        DASH if average is None else f"{average:.1f}",
    ]


def _published_cell(number: Number | None, common_note: str, notes: _Notes) -> str:
    if number is None:
        return ""
    score = DASH if number.value is None else f"{number.value:.1f}"
    spread = f" ±{number.std:g}" if number.std is not None else ""
    flag = f" {notes.mark(f'published: {number.note}')}" if number.note not in ("", common_note) else ""
    return f"{score}{spread}{flag}"


def _failure_note(entry: Entry) -> str:
    failure = entry.failed[0].failure
    lines = (failure.message.strip().splitlines() if failure else []) or [""]
    named = lines[-1].partition(":")[0].endswith("Error")
    reason = (lines[-1] if named else f"{failure.type}: {lines[-1]}") if failure else "unknown"
    return f"{len(entry.failed)} of {len(entry.failed) + len(entry.runs)} runs failed: {reason}"


def _average(row: BoardRow, board: Board, rank: str, mark: Mark) -> str:
    average = row.average(board.tasks)
    return DASH if average is None else mark(f"{average:.1f}", rank)


def _name(row: BoardRow, notes: _Notes) -> str:
    if len(row.protocols) < 2:
        return row.name
    text = f"tasks of this row were run under different protocols: {'; '.join(row.protocols)}"
    return f"{row.name} {notes.mark(text)}"


def _costs(row: BoardRow) -> tuple[str, str]:
    seconds, memory = row.step_seconds(), row.peak_memory()
    return (
        DASH if seconds is None else f"{1000 * seconds:.3g}",
        DASH if memory is None else f"{memory / 2**20:,.0f}",
    )


def _params(row: BoardRow) -> str:
    trained, kept = row.params("num_trained"), row.params("num_kept")
    text = _span(trained)
    return text if kept == trained else f"{text} (kept {_span(kept)})"


def _span(counts: Sequence[int]) -> str:
    if not counts:
        return DASH
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,}{DASH}{counts[-1]:,}"


def _grid_runs(row: BoardRow, notes: _Notes) -> str:
    text = _span(sorted({entry.num_grid_runs for entry in row.entries.values()}))
    raced_out = sum(entry.num_raced_out for entry in row.entries.values())
    if not raced_out:
        return text
    total = sum(entry.num_grid_runs for entry in row.entries.values() if entry.num_raced_out)
    return f"{text} {notes.mark(f'searched by halving: {raced_out} of {total} grid runs left early, by dev score')}"


def _ranks(values: Sequence[float | None]) -> list[str]:
    """Mark the best and second best of what is printed, so that equal prints get equal marks."""
    printed = [None if value is None else round(value, 1) for value in values]
    order = sorted({value for value in printed if value is not None}, reverse=True)
    names = dict(zip(order, ("best", "second"), strict=False))
    return ["" if value is None else names.get(value, "") for value in printed]


def _markdown(text: str, rank: str) -> str:
    return {"best": f"**{text}**", "second": f"<u>{text}</u>"}.get(rank, text)


def _terminal(text: str, rank: str) -> str:
    """Bold and underline by escape codes, where someone sees them."""
    if not sys.stdout.isatty():
        return {"best": f"*{text}*", "second": f"_{text}_"}.get(rank, text)
    return {"best": f"\x1b[1m{text}\x1b[0m", "second": f"\x1b[4m{text}\x1b[0m"}.get(rank, text)


_MARKS: dict[str, Mark] = {"markdown": _markdown, "terminal": _terminal}


CSV_COLUMNS = (
    "suite", "backbone", "method", "origin", "num_trained", "num_kept", "task", "metric", "mean", "std", "num_runs",
    "num_grid_runs", "num_failed", "num_unreadable", "num_answers", "protocol",
)  # fmt: skip


def _csv(boards: Sequence[Board]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for board in boards:
        place = {"suite": board.suite, "backbone": board.backbone}
        for row in board.rows:
            head = {**place, "method": row.name, "origin": "measured"}
            for task, entry in sorted(row.entries.items()):
                metric = {"task": task, "metric": board.metrics.get(task, "")}
                writer.writerow({**head, **metric, **_entry_csv(entry)})
            writer.writerow({**head, "task": "average", "mean": _number(row.average(board.tasks))})
        for published in board.published:
            head = {**place, "method": published.name, "origin": f"published: {published.record}"}
            for task, number in sorted(published.numbers.items()):
                scores = {"mean": _number(number.value), "std": _number(number.std)}
                writer.writerow({**head, "task": task, "metric": board.metrics[task], **scores})
            writer.writerow({**head, "task": "average", "mean": _number(published.average(board.tasks))})
    return out.getvalue()


def _entry_csv(entry: Entry) -> dict[str, object]:
    return {
        "num_trained": _one(entry, "num_trained"),
        "num_kept": _one(entry, "num_kept"),
        "mean": _number(entry.mean),
        "std": _number(entry.std),
        "num_runs": len(entry.runs),
        "num_grid_runs": entry.num_grid_runs,
        "num_failed": len(entry.failed),
        "num_unreadable": entry.num_unreadable if entry.runs else "",
        "num_answers": entry.num_answers if entry.runs else "",
        "protocol": next((run.cell.protocol.title for run in (*entry.runs, *entry.failed)), ""),
    }


def _one(entry: Entry, kind: str) -> object:
    return getattr(entry.runs[0].params, kind) if entry.runs else ""


def _number(value: float | None) -> object:
    return "" if value is None else round(value, 4)


def _as_json(board: Board) -> dict[str, Any]:
    rows = [
        {
            "method": row.name,
            "label": row.label,
            "num_trained": row.params("num_trained"),
            "num_kept": row.params("num_kept"),
            "protocols": row.protocols,
            "step_seconds": row.step_seconds(),
            "peak_memory_bytes": row.peak_memory(),
            "average": row.average(board.tasks),
            "tasks": {task: _entry_json(entry) for task, entry in sorted(row.entries.items())},
        }
        for row in board.rows
    ]
    return {
        "suite": board.suite,
        "backbone": board.backbone,
        "tasks": board.tasks,
        "metrics": board.metrics,
        "differences": {task: kinds for task, kinds in board.differences.items() if kinds},
        "origin": board.origin,
        "rows": rows,
        "published": [_published_json(row, board) for row in board.published],
        "published_note": board.published_note,
    }


def _published_json(row: PublishedRow, board: Board) -> dict[str, Any]:
    return {
        "record": row.record,
        "method": row.name,
        "params": row.params,
        "average": row.average(board.tasks),
        "tasks": {task: asdict(number) for task, number in sorted(row.numbers.items())},
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {
        "mean": entry.mean,
        "std": entry.std,
        "scores": entry.scores,
        "num_grid_runs": entry.num_grid_runs,
        "num_grid_failed": entry.num_grid_failed,
        **({"num_raced_out": entry.num_raced_out} if entry.num_raced_out else {}),
        "num_unreadable": entry.num_unreadable,
        "num_answers": entry.num_answers,
        "grid": entry.grid,
        "cells": [run.cell_id for run in entry.runs],
        "mixed": entry.mixed,
        "failed": [{"cell": run.cell_id, "error": run.failure.message if run.failure else ""} for run in entry.failed],
    }
