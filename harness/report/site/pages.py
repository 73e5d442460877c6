"""Content of each page, as the variables that its template is filled with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.data import SPLIT_RULES, Task, all_tasks
from harness.report.boards import Board, Entry
from harness.report.figures.colours import method_looks
from harness.report.site import names
from harness.report.site.cells import Facts, distinct, facts_of, history_of, sample_of, scores_of, show
from harness.report.site.grids import Grid, Item, board_grid, plain_grid
from harness.report.site.method_files import MethodFile
from harness.report.site.plots import curve, scatter
from harness.report.site.runs import Run, runs_by_task
from harness.report.statistics.significance import Significance
from harness.report.table_cells import Cell, Column
from harness.report.tuning import lay_out_tuning, tuning_records
from harness.results import Result, notes_on
from harness.suite import Bold

Page = tuple[str, str, dict[str, Any]]
"""(address from the root of the site, name of the template, its variables)"""


@dataclass(frozen=True)
class Material:
    """Everything that the pages are made of."""

    scanned: Sequence[tuple[Path, Result]]
    boards: Sequence[Board]
    verdicts: Sequence[Significance | None]
    runs: Sequence[Run]
    """One per result, in the order of `scanned`."""
    methods: Mapping[str, MethodFile]
    bold: Bold = "ties"


def pages(material: Material) -> Iterator[Page]:
    """The pages of leaderboards, methods and tasks. Those of cells are made one by one, see `cell_context`."""
    styles = method_looks(run.method for run in material.runs)
    grids = [board_grid(b, v, styles, material.bold) for b, v in zip(material.boards, material.verdicts, strict=True)]
    by_method, tasks = _by_method(material.runs), runs_by_task(material.scanned, material.runs)
    yield "index.html", "index.html", {
        "boards": [
            {"grid": grid, "plot": scatter(board, verdict, styles), "benchmarks": _benchmarks(board)}
            for grid, board, verdict in zip(grids, material.boards, material.verdicts, strict=True)
        ],
        "tunings": [_tuning(board) for board in material.boards if tuning_records(board)],
        "methods": [(name, names.method_page(name), styles[name], _summary(material, name)) for name in by_method],
        "tasks": [(name, names.task_page(name), _title(name)) for name in tasks],
        "num_runs": len(material.runs),
        "num_failed": sum(run.status.startswith("failed") for run in material.runs),
    }  # fmt: skip
    results = [result for _, result in material.scanned]
    for name, runs in by_method.items():
        made = [result for result in results if result.cell.method == name]
        context = _method_context(material, name, made)
        yield names.method_page(name), "method.html", {**context, "look": styles[name], "runs": runs}
    for name, items in tasks.items():
        context = _task_context(name, [result for result, _ in items])
        tables = [_task_grid(*item, name) for item in zip(material.boards, grids, strict=True) if name in item[0].tasks]
        yield names.task_page(name), "task.html", {**context, "tables": tables, "runs": [run for _, run in items]}


def cell_context(path: Path, result: Result, run: Run) -> dict[str, Any]:
    """The variables of the page of a cell. `path` is the JSON of its result."""
    return {
        "run": run,
        "result": result,
        "method_page": names.method_page(run.method),
        "task_page": names.task_page(run.task),
        "scores": scores_of(result),
        "curve": curve(result),
        "history": history_of(result),
        "facts": facts_of(path, result),
        "sample": sample_of(path, result),
    }


def _method_context(material: Material, name: str, results: Sequence[Result]) -> dict[str, Any]:
    """The variables of the page of a method; `results` are all of its own."""
    file = material.methods.get(name)
    used: dict[str, list[str]] = defaultdict(list)
    for result in results:
        for key, value in result.cell.hp.items():
            used[key] = distinct([*used[key], show(value)])
    declared = {item.name: item for item in file.settings} if file else {}
    settings = [(key, declared.get(key), used.get(key, [])) for key in distinct([*declared, *used])]
    # runs of another version of the file: the page then says that the settings it shows may not be theirs
    others = {result.method_sha256 for result in results} - ({file.sha256} if file else set())
    rows = [
        (board, row, [(task, names.task_page(task), row.entries.get(task, Entry())) for task in board.tasks])
        for board in material.boards
        for row in board.rows
        if row.method == name
    ]
    return {
        "name": name,
        "file": file,
        "settings": settings,
        "is_changed": file is not None and bool(others),
        "standings": [(names.board_id(b), b, r, r.average(b.tasks), entries) for b, r, entries in rows],
    }


def _task_context(name: str, results: Sequence[Result]) -> dict[str, Any]:
    """The variables of the page of a task or a mixture; `results` are all on it."""
    own = next((result.cell.definition for result in results if result.cell.definition), None)
    wholes = [result.cell.mixture for result in results if result.cell.mixture and result.cell.task == name]
    mixed = distinct(part.task for mixture in wholes for part in mixture.parts if part.task != name)
    record = None if own or mixed else all_tasks().get(name)
    return {
        "name": name,
        "title": "" if mixed else _title(name),
        "facts": _record_facts(record) if record else None,
        "own": own,
        "mixed": [(task, names.task_page(task)) for task in mixed],
        "data": distinct(_sentence(result) for result in results if result.data),
    }


def _record_facts(task: Task) -> Facts:
    named = zip(task.sizes or (), ("train", "dev", "test"), strict=False)
    sizes = ", ".join(f"{size:,} {split}" for size, split in named if size is not None)
    source = task.template or " ".join(f"{tag}: {{{column}}}" for tag, column in task.fields)
    items = {
        "benchmark": task.benchmark,
        "kind": task.kind,
        "source text": f"{task.prefix} {source}".strip(),
        "labels": ", ".join(task.labels),
        "score": " and ".join(task.reported) + (", their mean" if len(task.reported) > 1 else ""),
        "also computed": ", ".join(task.extra),
        "checkpoint chosen by": task.selection,
        "splits": SPLIT_RULES[task.split],
        "published sizes": sizes,
        "tokens of the source text, at most": task.max_source_length,
        "on the hub": ", ".join(map(str, task.hub)),
        "version": task.version,
        "licence": task.licence,
        "citation": task.citation,
        "notes": task.notes,
    }
    return Facts("The task", [(key, show(value)) for key, value in items.items() if value != ""])


def _sentence(result: Result) -> str:
    """The rows that a run saw: where they come from, how many, fingerprint, and what to know about them."""
    data = result.data
    assert data is not None
    text = f"{data.source}{f' at {data.revision}' if data.revision else ''}: {data.num_train:,} training, "
    text += f"{data.num_dev:,} dev and {data.num_test:,} test rows, fingerprint {data.fingerprint}"
    text += f", {data.num_duplicates:,} of dev and test also in training" if data.num_duplicates else ""
    return "; ".join([text, *notes_on(result.cell.task, data)])


def _task_grid(board: Board, grid: Grid, task: str) -> Grid:
    """A leaderboard's column of one task, with a link to each run behind its entries."""
    wanted = [i for i, c in enumerate(grid.columns) if i == 0 or c.task == task or c.title in ("params", "grid runs")]
    made = grid.select(wanted)
    for row in made.rows:
        for i, item in enumerate(row[1:], 1):
            row[i] = replace(item, href="")
    entries = [row.entries.get(task) for row in board.rows]
    links = [_links(entry) if entry else () for entry in entries] + [()] * len(board.published)
    made.insert(len(made.columns), Column("runs"), [Item(Cell(), links=item) for item in links])
    made.row_ids = [names.row_id(board, row.name) for row in board.rows] + [""] * len(board.published)
    present = [entry is not None for entry in entries] + [task in row.numbers for row in board.published]
    rows = [row for row, is_here in zip(made.rows, present, strict=True) if is_here]
    row_ids = [row_id for row_id, is_here in zip(made.row_ids, present, strict=True) if is_here]
    caption = "Test score: mean ± standard deviation over seeds (number of runs), and every run behind it."
    apart = sum(present[: made.apart])
    return replace(made, rows=rows, row_ids=row_ids, caption=caption, remarks=[], apart=apart)


def _links(entry: Entry) -> tuple[tuple[str, str], ...]:
    return tuple((_seed(result), names.cell_page(result)) for result in (*entry.runs, *entry.left_out, *entry.failed))


def _seed(result: Result) -> str:
    """The text of a link to a run: "seed 42: 71.2"."""
    failed = result.status in ("failed", "unfit")
    score = f"{result.test.score:z.1f}" if result.test else result.status if failed else "no test score"
    draw = f", draw {result.cell.few_shot.seed}" if result.cell.few_shot else ""
    again = f", repeat {result.cell.repeat}" if result.cell.repeat > 1 else ""
    return f"seed {result.cell.seed}{draw}{again}: {score}"


def _tuning(board: Board) -> Grid:
    return plain_grid(lay_out_tuning(board), f"tuning.{names.board_id(board)}")


def _benchmarks(board: Board) -> list[str]:
    found = distinct(name for name in board.benchmarks.values() if name)
    return found if len(set(board.benchmarks.values())) > 1 else []


def _summary(material: Material, name: str) -> str:
    return material.methods[name].summary if name in material.methods else ""


def _title(name: str) -> str:
    return all_tasks()[name].title if name in all_tasks() else ""


def _by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[run.method].append(run)
    return dict(sorted(found.items()))
