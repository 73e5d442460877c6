"""Fills a declared layout: each cell of the table is looked up among the results by the settings that it asks for.

A cell without a result is empty. A cell for which several results fit shows a dash and says in what they differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from harness.data import mean_score, sample_std
from harness.report.boards import Entry, median_step_seconds, metric_labels
from harness.report.declared.find_entries import EntryIndex, FoundEntry
from harness.report.declared.line_marks import LineScore, mark_line
from harness.report.declared.lines import Slot, slots
from harness.report.declared.published import published_rows
from harness.report.leaderboard_table import CHOSEN, LEFT_OUT, entry_cell, head_note
from harness.report.marks import NO_TESTS, Marks
from harness.report.published import PublishedRecord
from harness.report.table_cells import DASH, Cell, Column, Table, span_of
from harness.report.writers.csv_json import MARK_NAMES
from harness.report.yardstick import Reader
from harness.results import COMMON_TO_A_COLUMN, Result, data_notes, find_differences, origin_of, overlaps
from harness.suite import Bold, TableLayout, Where

TableRows = list[dict[str, object]]
"""What CSV and JSON hold of a table: one mapping per cell."""
READING = (
    "Test score of the checkpoint and grid point chosen by dev score: mean ± standard deviation over seeds (number of "
    "runs)."
)
READING_PUBLISHED = "Rows marked published are figures of the named source: not measured here, not ranked."


@dataclass(frozen=True)
class Score:
    """One cell of the table, with what is needed to rank it and to write footnotes."""

    cell: Cell
    value: float | None = None
    """The score, 0-100; None if there is none, or if the cell shows something else."""
    results: tuple[Result, ...] = ()
    is_score: bool = True
    """False where the cell shows parameters, time or memory."""
    entries: tuple[tuple[str, Entry], ...] = ()
    """(task, entry) for each entry behind the score; the task is "" for the score of one."""
    is_reported: bool = True
    """False where a metric is shown that the layout names."""


@dataclass
class Filler:
    """Fills the cells of one layout."""

    layout: TableLayout
    pool: EntryIndex
    table: Table
    where: Where = field(default_factory=dict)
    """Conditions that replace the layout's own, from the command line."""

    def score(self, row: Slot, column: Slot) -> Score:
        """Find what stands in one cell.

        Of conditions on the same setting the command line's counts, else the column's, the row's, the layout's.
        """
        where = {**self.layout.where, **row.where, **column.where, **self.where}
        show = row.show or column.show or "score"
        tasks = row.mean_over or column.mean_over
        if show != "score":
            return self._fact(show, where, tasks)
        metric = row.metric or column.metric
        return self._mean(where, tasks, metric) if tasks else self._single(where, metric)

    def _single(self, where: Where, metric: str | None) -> Score:
        """The score of the one entry that meets the conditions; a dash with a footnote where several do."""
        found = self.pool.find(where)
        if len(found) != 1:
            return Score(Cell(DASH, notes=(self.table.note(_ambiguity(found)),)) if found else Cell())
        entry, results = found[0].entry, tuple(found[0].results)
        cell = entry_cell(entry, self.table)
        if metric is None or entry.mean is None:
            return Score(cell, entry.mean, results, entries=(("", entry),))
        values = [run.test.metrics[metric] for run in entry.runs if run.test and metric in run.test.metrics]
        if len(values) < len(entry.scores):  # a mean over some of the runs would pass for one over all
            return Score(Cell(DASH, notes=(self.table.note(f"{metric} was not computed"),)), None, results)
        spread, mean = sample_std(values), mean_score(values)
        text = "" if spread is None else f"{spread:z.1f}"
        shown = replace(cell, text=f"{mean:z.1f}", spread=text)
        return Score(shown, mean, results, entries=(("", entry),), is_reported=False)

    def _mean(self, where: Where, tasks: Sequence[str], metric: str | None) -> Score:
        """The mean score over tasks; a dash with a footnote where some of them have none."""
        scores = [self._single({**where, "task": task}, metric) for task in tasks]
        results = tuple(result for score in scores for result in score.results)
        values = [score.value for score in scores if score.value is not None]
        if len(values) == len(tasks):
            mean = mean_score(values)
            entries = tuple((task, entry) for task, s in zip(tasks, scores, strict=True) for _, entry in s.entries)
            return Score(Cell(f"{mean:z.1f}"), mean, results, entries=entries, is_reported=metric is None)
        if not values:
            return Score(Cell(DASH) if results else Cell(), None, results)
        note = self.table.note("no mean without a score on each of its tasks")
        return Score(Cell(DASH, notes=(note,)), None, results)

    def _fact(self, show: str, where: Where, tasks: Sequence[str]) -> Score:
        """Parameters, time or memory over all entries that meet the conditions; empty where nothing is known."""
        found = self.pool.find({**where, "task": list(tasks)} if tasks else where)
        runs = [run for item in found for run in item.entry.runs]
        peaks = [run.usage.peak_memory_bytes for run in runs if run.usage and run.usage.num_steps]
        seconds = median_step_seconds(runs)
        text = ""
        if show in ("params", "kept") and runs:
            kind: Literal["num_trained", "num_kept"] = "num_trained" if show == "params" else "num_kept"
            text = span_of(sorted({run.params.per_task(kind) for run in runs if run.params}))
        elif show == "ms/step" and seconds is not None:
            text = f"{1000 * seconds:.3g}"
        elif show == "peak MiB" and peaks:
            text = f"{max(peaks) / 2**20:,.0f}"
        return Score(Cell(text), None, tuple(runs), is_score=False)


def fill_layout(
    name: str, layout: TableLayout, pool: EntryIndex, record: PublishedRecord | None = None,
    where: Where | None = None, bold: Bold = "ties", read: Reader | None = None,
) -> tuple[Table, TableRows]:  # fmt: skip
    """Return a layout's table, and what CSV and JSON hold of it: a mapping for each cell, measured and published.

    `where` replaces conditions of the layout, e.g. {"backbone": "t5-small"}. `read` gives the test answers of a run, on
    which the tests behind the rule `ties` rest; without it nothing is tested.
    """
    rows, columns = slots(layout.rows, len(layout.heads)), slots(layout.columns)
    marked = "" if layout.best == "none" else Marks(bold).reading(f"of a {layout.best}")
    caption = " ".join(filter(None, (layout.caption, READING, marked, READING_PUBLISHED if record else "")))
    table = Table(layout.title, caption, [], num_heads=len(layout.heads))
    filler = Filler(layout, pool, table, where or {})
    measured = [row for row in rows if not row.only_published]
    unmarked = [[filler.score(row, column) for column in columns] for row in measured]
    grid, empty = _ranked(unmarked, layout.best, bold, read, table)
    # footnotes on what is not comparable stand at the line along which scores are compared: a column, or a row
    by_row = layout.best == "row"
    across = list(zip(*grid, strict=True)) if by_row else grid
    found = [(*some, *more) for some, more in zip(_notes(across, table), empty or [()] * len(columns), strict=True)]
    _write_heads(table, layout, columns, [()] * len(columns) if by_row else found)
    row_notes = found if by_row else [()] * len(measured)
    for row, scores, notes in zip(measured, grid, row_notes, strict=True):
        _write_row(table, row, [score.cell for score in scores], notes)
    records = [_as_record(name, row, column, score) for row, scores in zip(measured, grid, strict=True)
               for column, score in zip(columns, scores, strict=True)]  # fmt: skip
    if record is not None:
        asked, labels = {**layout.where, **filler.where}, metric_labels(_shown_results(grid))
        below, extra = published_rows(name, asked, rows, columns, record, labels, table)
        table.apart = len(table.rows) if below else None
        table.rows += below
        records += extra
    if bold == "ties" and read is None and layout.best != "none":
        table.remarks.append(f"{NO_TESTS}.")
    _write_remarks(table, measured, grid)
    return table, records


def _ranked(
    grid: list[list[Score]], along: str, bold: Bold, read: Reader | None, table: Table
) -> tuple[list[list[Score]], list[tuple[int, ...]]]:
    """Mark the scores of each column or row; return them, and for each line footnotes on why nothing in it is bold."""
    if along == "none" or not grid:
        return grid, [()] * (len(grid[0]) if grid else 0)
    lines = grid if along == "row" else [list(line) for line in zip(*grid, strict=True)]
    marked, empty = [], []
    for line in lines:
        made = mark_line([_in_line(score) for score in line], bold, read)
        empty.append(tuple(map(table.note, made.empty)))
        marked.append(
            [
                replace(s, cell=replace(s.cell, rank=rank, notes=(*s.cell.notes, *map(table.note, notes))))
                for s, rank, notes in zip(line, made.ranks, made.notes, strict=True)
            ]
        )
    return marked if along == "row" else [list(line) for line in zip(*marked, strict=True)], empty


def _in_line(score: Score) -> LineScore | None:
    return None if score.value is None else LineScore(score.value, score.entries, score.is_reported)


def _notes(grid: Sequence[Sequence[Score]], table: Table) -> list[tuple[int, ...]]:
    """For each column of `grid`, footnotes: in what its runs differ, and test rows that also stand in train."""
    notes: list[tuple[int, ...]] = []
    for line in zip(*grid, strict=True):
        by_task: dict[str, list[Result]] = defaultdict(list)
        for score in line:
            for result in score.results if score.is_score else ():
                by_task[result.cell.task].append(result)
        kinds = {kind for results in by_task.values() for kind in find_differences(results, COMMON_TO_A_COLUMN)}
        named = " and ".join(kind for kind in COMMON_TO_A_COLUMN if kind in kinds)
        texts = [f"compared here although made with different {named}"] if kinds else []
        texts += overlaps(result for results in by_task.values() for result in results).values()
        notes.append(tuple(map(table.note, texts)))
    return notes


def _write_heads(table: Table, layout: TableLayout, columns: Sequence[Slot], notes: Sequence[tuple[int, ...]]) -> None:
    table.columns = [Column(head) for head in layout.heads]
    table.columns += [Column(c.titles[0], c.group, note) for c, note in zip(columns, notes, strict=True)]


def _write_row(table: Table, row: Slot, cells: Sequence[Cell], notes: tuple[int, ...]) -> None:
    """Add a row, and the title of its section if the row above is of another."""
    last = next(reversed(table.sections.values()), "")
    if row.group != last:
        table.sections[len(table.rows)] = row.group
    heads = [Cell(text) for text in row.titles]
    heads[0] = replace(heads[0], notes=notes)
    table.rows.append([*heads, *cells])


def _head_notes(rows: Sequence[Slot], grid: Sequence[Sequence[Score]]) -> list[str]:
    """A sentence for each kind of head: in which rows answers were read off by it, and not written."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for row, line in zip(rows, grid, strict=True):
        for result in _shown_results([line]):
            if result.cell.recipe.has_head:
                found[result.cell.recipe.head][" ".join(filter(None, row.titles))] = None
    return [f"{', '.join(named)}: {head_note(head)}" for head, named in sorted(found.items())]


def _write_remarks(table: Table, rows: Sequence[Slot], grid: Sequence[Sequence[Score]]) -> None:
    scores = [score for line in grid for score in line if score.is_score]
    results = _shown_results(grid)
    num_there = sum(score.value is not None for score in scores)
    table.remarks.append(f"{num_there} of {len(scores)} scores are there; an empty cell has no result.")
    table.remarks += [f"Metrics: {_metrics(metric_labels(results))}."] if num_there else []
    table.remarks += [f"{text}." for text in (*_head_notes(rows, grid), *data_notes(results))]
    entries = [entry for line in grid for score in line for _, entry in score.entries]
    if any(entry.left_out for entry in entries):
        table.remarks.append(f"{LEFT_OUT}.")
    elif any(entry.choosers for entry in entries):
        table.remarks.append(f"Where a grid was searched, {CHOSEN}.")
    table.remarks += [f"{origin_of(results)}."] if results else []


def _shown_results(grid: Sequence[Sequence[Score]]) -> list[Result]:
    """The results behind all scores, each once: an average shows those of its tasks again."""
    results = [result for line in grid for score in line if score.is_score for result in score.results]
    return list({id(result): result for result in results}.values())


def _metrics(labels: dict[str, str]) -> str:
    """`labels` is task -> metric: "accuracy of boolq, rte; F1 of cb"."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for task, label in labels.items():
        by_label[label].append(task)
    return "; ".join(f"{label} of {', '.join(tasks)}" for label, tasks in sorted(by_label.items()))


def _ambiguity(found: Sequence[FoundEntry]) -> str:
    """Footnote of a cell for which several entries fit: the first three settings in which they differ."""
    # a protocol has dozens of keys; its title, the setting `protocol`, says as much
    keys = sorted({key for item in found for key in item.texts if not key.startswith("protocol.")})
    values = {key: list(dict.fromkeys(item.texts.get(key) or "none" for item in found)) for key in keys}
    differing = [f"{key} {' or '.join(texts)}" for key, texts in values.items() if len(texts) > 1][:3]
    return f"{len(found)} results fit this cell ({'; '.join(differing)}): choose with --suite or --backbone"


def _as_record(name: str, row: Slot, column: Slot, score: Score) -> dict[str, object]:
    return {
        "table": name,
        "section": row.group,
        "row": " ".join(filter(None, row.titles)),
        "group": column.group,
        "column": column.titles[0],
        "origin": "measured",
        "value": score.value,
        "text": score.cell.text,
        "mark": MARK_NAMES[score.cell.rank],
        "num_runs": sum(result.status == "done" for result in score.results) if score.is_score else None,
        "num_failed": sum(result.status == "failed" for result in score.results) if score.is_score else None,
    }
