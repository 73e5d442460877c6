"""Content of the page of one cell: everything that its result holds, and its first answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from pydantic import BaseModel

from harness.data import METRICS
from harness.errors import UserError
from harness.files import read_bounded
from harness.report.table_cells import DASH
from harness.results import MAX_BYTES, Result, SplitScore, predictions_path, tensors_path

SAMPLE = 20
"""Test rows whose answers a page shows: enough to see what a method writes. All of them are in the file beside it."""


@dataclass(frozen=True)
class Facts:
    """A heading and (name, text) pairs below it."""

    title: str
    items: list[tuple[str, str]]


@dataclass(frozen=True)
class Sample:
    """The first answers on test, as (name of the row, references, prediction); or why they cannot be shown."""

    rows: list[tuple[str, list[str], str]]
    total: int = 0
    """Test rows in the file."""
    problem: str = ""
    """Why there are no rows; empty if there are."""


def facts_of(path: Path, result: Result) -> list[Facts]:
    """Everything in a result but scores and curves, under headings; empty headings are left out."""
    cell = result.cell
    swept = {"swept": ", ".join(cell.grid), "grid point": cell.grid_index} if cell.grid else {}
    settings = {"hp": cell.hp, "recipe": cell.recipe, "task": cell.task_rules, "few_shot": cell.few_shot, **swept}
    settings |= {"row_limit": cell.row_limit} if cell.row_limit else {}
    settings |= {"search": cell.study} if cell.study else {}
    settings |= {"repeat": cell.repeat} if cell.repeat > 1 else {}
    settings["protocol"] = cell.protocol.title
    counts = {**leaves(result.params), "selection rule": result.selection_rule}
    made = {"started": result.started_at, "finished": result.finished_at, "method's SHA-256": result.method_sha256}
    made["group of the cell"] = result.group_id
    starts = {start.title: start for start in cell.init_from}
    taken = {f"{start.title}, taken": start for start in result.starts}
    files = {
        f"{path.name}": "this result",
        predictions_path(path).name: _checksum(result.files.predictions),
        tensors_path(path).name: _checksum(result.files.tensors),
    }
    found = [
        Facts("Settings", _items(leaves(settings), keep_empty=True)),
        Facts("What it starts from", _items(leaves({**starts, **taken}))),
        Facts("The mixture", _items(leaves(cell.mixture))),
        Facts(f"Protocol {cell.protocol.title}", _items(leaves(result.protocol), keep_empty=True)),
        Facts("Selection and parameters", _items(counts)),
        Facts("Metrics", _items(leaves(result.metrics))),
        Facts("What it cost", _items(leaves(result.usage))),
        Facts("What answering costs", _items(leaves(result.answering))),
        Facts("Forgetting", _items(leaves(result.forgetting))),
        Facts("Data", _items(leaves(result.data))),
        Facts("The task as the suite declares it", _items(leaves(cell.definition))),
        Facts("Backbone", _items(leaves(result.backbone))),
        Facts("Provenance", _items({**made, **leaves(result.provenance)})),
        Facts("Files", _items(files)),
    ]
    return [facts for facts in found if facts.items]


def scores_of(result: Result) -> list[tuple[str, str, str]]:
    """(metric, dev, test) of the selected checkpoint as texts: the reported score first, tasks of a mixture last."""
    splits = (result.dev, result.test)
    if not any(splits):
        return []
    rows = _split_scores(*splits)
    for member in result.cell.mixture.parts if result.cell.mixture else ():
        of_task = [split.parts.get(member.task) if split else None for split in splits]
        rows += [(f"{member.task}: {name}", dev, test) for name, dev, test in _split_scores(*of_task)]
    return rows


def _split_scores(*splits: SplitScore | None) -> list[tuple[str, str, str]]:
    extra = dict.fromkeys(name for split in splits if split for name in split.metrics)
    rows = [("score", *(_score(split, None) for split in splits))]
    rows += [(METRICS[n].label if n in METRICS else n, *(_score(split, n) for split in splits)) for n in extra]
    counts = ("rows", "num_rows"), ("unreadable answers", "num_unreadable")
    rows += [(title, *(f"{getattr(s, kind):,}" if s else DASH for s in splits)) for title, kind in counts]
    return [(name, dev, test) for name, dev, test in rows]


def sample_of(path: Path, result: Result) -> Sample:
    """The first answers on test. They are shown only if the SHA-256 of the file is the one that the run stored."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if result.files.predictions is None:
        return Sample([], problem="The run stored no predictions.")
    try:
        content = read_bounded(predictions_path(path), MAX_BYTES, "predictions")
        if hashlib.sha256(content).hexdigest() != result.files.predictions:
            return Sample([], problem="The predictions are not those that the run stored: their SHA-256 is another.")
        columns = ["split", "row", "references", "prediction"]
        table = pq.ParquetFile(pa.BufferReader(content)).read(columns, use_threads=False)
        split = table["split"].cast(pa.string())
        # a mixture has a test split of each of its tasks
        test = pc.indices_nonzero(pc.or_(pc.equal(split, "test"), pc.starts_with(split, "test:")))
        first = table.take(test[:SAMPLE]).to_pylist()
    except (OSError, KeyError, UserError, pa.ArrowException) as error:
        return Sample([], problem=f"The predictions cannot be read: {type(error).__name__}.")
    return Sample([(_row_name(item), item["references"], item["prediction"]) for item in first], len(test))


def _row_name(item: Mapping[str, Any]) -> str:
    """`12`; in a mixture `cb 12`, since each of its tasks has a row 12."""
    return f"{item['split'].partition(':')[2]} {item['row']}".strip()


def history_of(result: Result) -> Markup:
    """The rows of the table of dev scores as HTML; they hold numbers alone, so nothing is escaped."""
    rows = [
        f'<tr><th scope="row">{show(item.step)}{" (selected)" if item.step == result.selected_step else ""}</th>'
        f"<td>{item.selection:z.2f}</td>"
        f"<td>{DASH if item.train_loss is None else format(item.train_loss, '.4f')}</td></tr>\n"
        for item in result.dev_history
    ]
    return Markup("".join(rows))


def listed(items: Iterable[tuple[str, str]]) -> Markup:
    """Names and texts as HTML list entries.

    Made here and not in the template: ten thousand pages have a hundred each, and a loop in a template is slower.
    """
    return Markup("".join(f"<div><dt>{escape(n)}</dt><dd>{escape(text)}</dd></div>\n" for n, text in items))


def show(value: Any) -> str:
    """A value as text; nested values as JSON, no value as a dash."""
    if value is None or value == "":
        return DASH
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, ensure_ascii=False, default=str)


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """All values in a model, mapping or list of these under dotted names: {"few_shot.k": 16, "parts.1.task": "cb"}.

    A list of plain values is one value. Lists count from 1.
    """
    if isinstance(value, BaseModel):
        value = value.__dict__  # `model_dump` would copy the whole result, for each of ten thousand pages
    if isinstance(value, list | tuple) and any(isinstance(item, BaseModel | Mapping) for item in value):
        value = {str(i): item for i, item in enumerate(value, 1)}
    if not isinstance(value, Mapping):
        return {name: value} if name else {}
    start = f"{name}." if name else ""
    found: dict[str, Any] = {} if value or not name else {name: value}
    for key, item in value.items():
        found |= leaves(item, f"{start}{key}")
    return found


def _items(values: Mapping[str, Any], keep_empty: bool = False) -> list[tuple[str, str]]:
    return [(name, show(value)) for name, value in values.items() if keep_empty or value not in (None, {}, [], "")]


def _checksum(sha256: str | None) -> str:
    return "not stored" if sha256 is None else f"SHA-256 {sha256}"


def _score(split: SplitScore | None, metric: str | None) -> str:
    if split is None:
        return DASH
    value = split.score if metric is None else split.metrics.get(metric)
    return DASH if value is None else f"{value:z.2f}"


def distinct(texts: Iterable[str]) -> list[str]:
    """Each text once, in the order in which they come."""
    return list(dict.fromkeys(texts))
