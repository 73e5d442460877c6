"""The published rows of a declared layout, which stand below its measured rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.data import METRICS, all_tasks
from harness.report.declared.lines import Slot
from harness.report.published import Number, PublishedRecord, common_note, origin_of_numbers, record_spelling
from harness.report.table_cells import DASH, Cell, Table
from harness.suite import Condition, Value, Where, spelled


def published_rows(
    name: str, where: Where, rows: Sequence[Slot], columns: Sequence[Slot], record: PublishedRecord,
    labels: Mapping[str, str], table: Table,
) -> tuple[list[list[Cell]], list[dict[str, object]]]:  # fmt: skip
    """Return a table row for each row of the layout that has a number in the record, and the numbers for CSV and JSON.

    `where` holds the conditions of the whole layout. `labels` is task -> metric of our own scores: a number in another
    metric gets a footnote.
    """
    below: list[list[Cell]] = []
    records: list[dict[str, object]] = []
    start, section = len(table.rows), ""
    for row in rows:
        by_column = [_numbers(where, row, column, record) for column in columns]
        shown = [(column, numbers[0]) for column, numbers in zip(columns, by_column, strict=True) if numbers]
        if not shown:
            continue
        if row.group != section:
            table.sections[start + len(below)] = section = row.group
        numbers_shown = [number for _, number in shown]
        common, origin = common_note(numbers_shown), origin_of_numbers(numbers_shown)
        title = ", ".join(filter(None, (row.titles[0], "published")))
        heads = [Cell(title, notes=(table.note(f"published: {origin}"),)), *map(Cell, row.titles[1:])]
        cells = zip(columns, by_column, strict=True)
        below.append([*heads, *(_cell(row, column, numbers, common, labels, table) for column, numbers in cells)])
        records += [_as_record(name, row, column, number) for column, number in shown]
    return below, records


def _numbers(where: Where, row: Slot, column: Slot, record: PublishedRecord) -> list[Number]:
    """The record's numbers for one cell. A score cell shows the first, a cell of parameters the counts of all."""
    asked = {**where, **row.where, **column.where}
    method, tasks = row.published or column.published, row.mean_over or column.mean_over
    if method is None:
        return []
    backbone = asked.get("backbone")
    found = [
        number
        for number in record.numbers
        if number.method == method
        and (backbone is None or number.backbone in {record_spelling(str(name)) for name in _listed(backbone)})
        and _fits(number.k_shot, asked.get("few_shot.k"))
    ]
    if (row.show or column.show or "score") != "score":
        return found
    metric = row.metric or column.metric
    if tasks:  # the printed average stands for the mean over tasks only if these are the tasks of one benchmark
        known = all_tasks()
        benchmarks = {known[task].benchmark for task in tasks if task in known}
        return [number for number in found if number.task == "average" and {number.benchmark} == benchmarks]
    return [
        number
        for number in found
        if number.task == asked.get("task") and number.split == "test" and metric in (None, number.metric)
    ]


def _fits(k_shot: int | None, condition: Condition) -> bool:
    """Whether a number has the k asked for; without a condition (None) that is the whole training split."""
    return spelled(k_shot) in map(spelled, _listed(condition))


def _listed(condition: Condition) -> list[Value]:
    return condition if isinstance(condition, list) else [condition]


def _cell(
    row: Slot, column: Slot, numbers: Sequence[Number], common: str, labels: Mapping[str, str], table: Table
) -> Cell:
    show = row.show or column.show or "score"
    if show == "params":
        return Cell(", ".join(dict.fromkeys(number.params for number in numbers if number.params)))
    if show != "score" or not numbers:
        return Cell()
    number = numbers[0]
    notes = [table.note(f"published: {number.note}")] if number.note not in ("", common) else []
    label = METRICS[number.metric].label if number.metric in METRICS else ""
    if label and labels.get(number.task, label) != label:
        notes.append(table.note(f"published as {label}, not in the metric of our scores"))
    spread = f"{number.std:g}" if number.std is not None else ""
    return Cell(DASH if number.value is None else f"{number.value:z.1f}", spread=spread, notes=tuple(notes))


def _as_record(name: str, row: Slot, column: Slot, number: Number) -> dict[str, object]:
    is_score = (row.show or column.show or "score") == "score"
    return {
        "table": name,
        "section": row.group,
        "row": " ".join(filter(None, row.titles)),
        "group": column.group,
        "column": column.titles[0],
        "origin": f"published: {number.source}, {number.table}",
        "value": number.value if is_score else None,
        "text": f"{number.value:g}" if is_score and number.value is not None else number.params,
        "num_runs": None,
        "num_failed": None,
    }
