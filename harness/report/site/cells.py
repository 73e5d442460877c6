"""What the page of one cell says: everything that its result holds, and a sample of its answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from pydantic import BaseModel

from harness.durable import read_bounded
from harness.errors import UserError
from harness.metrics import METRICS
from harness.report.layout import DASH
from harness.report.stored import MAX_BYTES
from harness.results import predictions_path, tensors_path
from harness.schema import Result, SplitScore

SAMPLE = 20
"""Test rows whose answers a page shows."""


@dataclass(frozen=True)
class Facts:
    """A heading and what is known under it, as (name, text) pairs."""

    title: str
    items: list[tuple[str, str]]


@dataclass(frozen=True)
class Sample:
    """The first answers on test, as (row, references, prediction); a problem where they cannot be shown.

    A row of a mixture is named by its task too.
    """

    rows: list[tuple[str, list[str], str]]
    total: int = 0
    problem: str = ""


def facts_of(path: Path, result: Result) -> list[Facts]:
    """Everything about a result that is no score and no curve."""
    cell = result.cell
    swept = {"swept": ", ".join(cell.grid), "grid point": cell.grid_index} if cell.grid else {}
    settings = {"hp": cell.hp, "recipe": cell.recipe, "task": cell.task_rules, "few_shot": cell.few_shot, **swept}
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
        Facts("Data", _items(leaves(result.data))),
        Facts("The task as the suite declares it", _items(leaves(cell.definition))),
        Facts("Backbone", _items(leaves(result.backbone))),
        Facts("Provenance", _items({**made, **leaves(result.provenance)})),
        Facts("Files", _items(files)),
    ]
    return [facts for facts in found if facts.items]


def scores_of(result: Result) -> list[tuple[str, str, str]]:
    """(metric, dev, test) of the selected checkpoint, the reported score first; those of a mixture's tasks behind."""
    splits = (result.dev, result.test)
    if not any(splits):
        return []
    rows = _split_scores(*splits)
    for part in result.cell.mixture.parts if result.cell.mixture else ():
        of_part = [split.parts.get(part.task) if split else None for split in splits]
        rows += [(f"{part.task}: {name}", dev, test) for name, dev, test in _split_scores(*of_part)]
    return rows


def _split_scores(*splits: SplitScore | None) -> list[tuple[str, str, str]]:
    extra = dict.fromkeys(name for split in splits if split for name in split.metrics)
    rows = [("score", *(_score(split, None) for split in splits))]
    rows += [(METRICS[n].label if n in METRICS else n, *(_score(split, n) for split in splits)) for n in extra]
    counts = ("rows", "num_rows"), ("unreadable answers", "num_unreadable")
    rows += [(title, *(f"{getattr(s, kind):,}" if s else DASH for s in splits)) for title, kind in counts]
    return [(name, dev, test) for name, dev, test in rows]


def sample_of(path: Path, result: Result) -> Sample:
    """The first answers on test, if the file beside the result is the one that the run stored."""
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
    """`12`, or of a mixture `cb 12`, since each of its tasks has a row 12."""
    return f"{item['split'].partition(':')[2]} {item['row']}".strip()


def history_of(result: Result) -> Markup:
    """The rows of the table of dev scores; numbers alone, so nothing to escape."""
    rows = [
        f'<tr><th scope="row">{show(item.step)}{" (selected)" if item.step == result.selected_step else ""}</th>'
        f"<td>{item.selection:.2f}</td>"
        f"<td>{DASH if item.train_loss is None else format(item.train_loss, '.4f')}</td></tr>\n"
        for item in result.dev_history
    ]
    return Markup("".join(rows))


def listed(items: Iterable[tuple[str, str]]) -> Markup:
    """Names and texts as entries of a list; in one piece, for there may be ten thousand pages of a hundred each."""
    return Markup("".join(f"<div><dt>{escape(n)}</dt><dd>{escape(text)}</dd></div>\n" for n, text in items))


def show(value: Any) -> str:
    """A value as text: numbers as they are written in files, anything nested as JSON."""
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
    """What a model, a mapping or a list of such holds, at any depth: {"few_shot.k": 16, "parts.1.task": "cb"}.

    A list of plain values is one value.
    """
    if isinstance(value, BaseModel):
        value = value.__dict__  # no copy of a whole result, for there may be ten thousand
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
    return DASH if value is None else f"{value:.2f}"


def distinct(texts: Iterable[str]) -> list[str]:
    """Each text once, in the order of the first."""
    return list(dict.fromkeys(texts))
