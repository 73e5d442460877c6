"""What is known of where results may come from: shipped method files, fingerprints of rows and of weights.

`known_fingerprints.json` holds the fingerprints; `python -m tools.known_fingerprints` makes it. What it does not hold
is unknown, and that is told apart from what differs.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from harness.data import DataRecord, all_tasks
from harness.provenance import sha256_file
from harness.results.schema import Result
from harness.shipped import shipped_methods
from harness.suite import Cell, Part

FILE = Path(__file__).parent / "known_fingerprints.json"
OriginDoubt = tuple[Literal["differs", "unknown"], Literal["method", "rows", "weights"], str]
"""(how it stands, what it is about, a sentence)"""


def judge_origins(result: Result, methods: Mapping[str, str]) -> Iterator[OriginDoubt]:
    """Yield what of a result's origin differs from what is known, and what is not known.

    `methods` is method -> SHA-256 of its file, for methods that are known beside the shipped ones.
    """
    yield from _judge_method(result, {**shipped_hashes(), **methods})
    if result.data is not None:
        cell = result.cell
        if cell.mixture is None:
            yield from _judge_rows(cell, result.data, is_few_shot=cell.few_shot is not None)
        else:
            for part in cell.mixture.parts:
                if part.task in result.data.parts:
                    yield from _judge_rows(part, result.data.parts[part.task], is_few_shot=False)
    if result.backbone is not None and result.backbone.num_params:
        yield from _judge_weights(result.cell.backbone, result.backbone.fingerprint)


@functools.cache
def shipped_hashes() -> dict[str, str]:
    """Return method -> SHA-256 of each shipped method file."""
    return {path.stem: sha256_file(path) for path in shipped_methods().glob("*.py")}


@functools.cache
def known_fingerprints() -> dict[str, Any]:
    """Return the record: `rows`, a list of task, version, rules and fingerprint; `weights`, name -> fingerprint."""
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def _judge_method(result: Result, known: Mapping[str, str]) -> Iterator[OriginDoubt]:
    name, sha256 = result.cell.method, result.method_sha256
    if name not in known:
        yield "unknown", "method", f"method {name} is none that is known here; its file has the SHA-256 {sha256[:16]}"
    elif known[name] != sha256:
        yield "differs", "method", f"the file of method {name} was another: {sha256[:16]}, known is {known[name][:16]}"


def _judge_rows(cell: Cell | Part, record: DataRecord, is_few_shot: bool) -> Iterator[OriginDoubt]:
    """Judge the rows of a task: by the recorded fingerprints, or else by the published sizes."""
    task = all_tasks().get(cell.task)
    if cell.definition is not None or task is None:
        yield "unknown", "rows", f"task {cell.task} is the submitter's own; its rows are {record.fingerprint}"
        return
    known = [
        item["fingerprint"]
        for item in known_fingerprints()["rows"]
        if (item["task"], item["version"], item["rules"]) == (cell.task, cell.task_version, cell.task_rules)
    ]
    if known and record.fingerprint not in known:
        yield "differs", "rows", f"the rows of {cell.task} are {record.fingerprint}, known is {' or '.join(known)}"
    elif not known:
        sizes = (None if is_few_shot else record.num_train, record.num_dev, record.num_test)
        # a protocol that cuts splits in another way makes other sizes
        published = task.sizes if task.version == cell.task_version and "split" not in cell.task_rules else None
        pairs = [pair for pair in zip(sizes, published or (), strict=False) if None not in pair]
        if any(size != wanted for size, wanted in pairs):
            yield (
                "differs",
                "rows",
                f"{cell.task} has {_spelled(sizes)} rows, published are {_spelled(published or ())}",
            )
        else:
            yield (
                "unknown",
                "rows",
                f"no fingerprint of the rows of {cell.task} is recorded; they are {record.fingerprint}",
            )


def _spelled(sizes: tuple[int | None, ...]) -> str:
    return "/".join("?" if size is None else f"{size:,}" for size in sizes)


def _judge_weights(name: str, fingerprint: str) -> Iterator[OriginDoubt]:
    # weights that were quantised have the fingerprint of the whole ones in front of a plus sign
    known = known_fingerprints()["weights"].get(name, [])
    if known and fingerprint.split("+")[0] not in known:
        yield "differs", "weights", f"the weights of {name} are {fingerprint}, known is {' or '.join(known)}"
    elif not known:
        yield "unknown", "weights", f"no fingerprint of the weights of {name} is recorded; they are {fingerprint}"
