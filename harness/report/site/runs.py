"""Every result as one line: for the lists of runs on the pages, and as CSV and JSON for download."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from harness.report.boards import Board
from harness.report.site import names
from harness.results import Result, dev_selection, results_by_task

SHOWN = "in the table"
"""Status of a run that counts in a leaderboard."""
REPEATED = "trained again: in the spread of re-runs alone"
"""Status of a further training of a run that counts."""
LEFT_OUT = "left out: its dev score chose the grid point"
"""Status of a run that a report of the other seeds leaves out."""


@dataclass(frozen=True)
class Run:
    """One result in short."""

    suite: str
    backbone: str
    row: str
    """Label of the leaderboard's row."""
    method: str
    task: str
    seed: int
    repeat: int
    """1 for the training that counts, more for further ones with the same seed."""
    grid: str
    """Its grid point: "lr=0.3, rank=4"."""
    status: str
    """SHOWN, or why the run does not count in a leaderboard."""
    dev: float | None
    """Selection metric on dev of the selected checkpoint; None if there is none or the run stopped early."""
    test: float | None
    """Test score."""
    num_trained: int | None
    train_s: float | None
    cell_id: str
    file: str
    """Its JSON, relative to the results folder; behind the folder's name where several were read."""
    page: str
    """Address of its page, from the root of the site."""


def list_runs(scanned: Sequence[tuple[Path, Result]], boards: Iterable[Board], folders: Sequence[Path]) -> list[Run]:
    """One `Run` per result, in the order of the scan. `folders` are the results folders."""
    rows = [row for board in boards for row in board.rows]
    # compared by key and not as objects: boards hold a copy of a mixture's result for each of its tasks
    statuses = {run.key: LEFT_OUT for row in rows for entry in row.entries.values() for run in entry.left_out}
    reruns = [run for row in rows for entry in row.entries.values() for same in entry.reruns for run in same[1:]]
    statuses |= {run.key: REPEATED for run in reruns}
    statuses |= {run.key: SHOWN for row in rows for entry in row.entries.values() for run in entry.runs}
    return [_run(result, _file(path, folders), statuses.get(result.key)) for path, result in scanned]


def runs_by_task(scanned: Sequence[tuple[Path, Result]], runs: Sequence[Run]) -> dict[str, list[tuple[Result, Run]]]:
    """Task -> its results and runs. The result of a mixture stands under the mixture and under each of its tasks."""
    found: dict[str, list[tuple[Result, Run]]] = defaultdict(list)
    for (_, result), run in zip(scanned, runs, strict=True):
        found[run.task].append((result, run))
        for on_task in results_by_task(result) if result.cell.mixture else ():
            test = on_task.test.score if on_task.test else None
            found[on_task.cell.task].append((on_task, replace(run, task=on_task.cell.task, test=test)))
    return dict(sorted(found.items()))


def as_csv(runs: Iterable[Run]) -> str:
    """Runs as CSV, with a line of column names first."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(Run.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(run) for run in runs)
    return out.getvalue()


def as_json(runs: Iterable[Run]) -> str:
    """Runs as a JSON list of objects."""
    return json.dumps([asdict(run) for run in runs], indent=1) + "\n"


def _file(path: Path, folders: Sequence[Path]) -> Path:
    root = next(folder for folder in folders if path.is_relative_to(folder))
    return path.relative_to(root) if len(folders) == 1 else path


def _run(result: Result, file: Path, status: str | None) -> Run:
    cell = result.cell
    return Run(
        suite=cell.suite,
        backbone=cell.backbone,
        row=cell.label,
        method=cell.method,
        task=cell.task,
        seed=cell.seed,
        repeat=cell.repeat,
        grid=", ".join(f"{key.split('.', 1)[-1]}={value}" for key, value in cell.grid.items()),
        status=status or _why_not(result),
        dev=dev_selection(result) if result.selected_step is not None and result.raced_out_at is None else None,
        test=result.test.score if result.test else None,
        num_trained=result.params.num_trained if result.params else None,
        train_s=result.usage.train_s if result.usage else None,
        cell_id=result.cell_id,
        file=file.as_posix(),
        page=names.cell_page(result),
    )


def _why_not(result: Result) -> str:
    """Why a run does not count in a leaderboard."""
    if result.status == "unfit":
        return "does not fit the backbone"
    if result.status == "failed":
        return f"failed: {result.failure.type}" if result.failure else "failed"
    if result.raced_out_at is not None:
        return f"left the search at step {result.raced_out_at:,}"
    return "another grid point won on dev"
