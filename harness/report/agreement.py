"""Decides whether one of our rows has the method and settings of a published number, so that both may be compared.

A record gives method names and notes in words. What they state is read here and held against the cells; what they
do not state cannot be checked.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from harness.report.boards import BoardRow, Entry
from harness.report.published import FOLDER, Number, PublishedRecord
from harness.suite import Cell, ProtocolReference, Scope, protocol_names, resolve_protocol

TOLERANCE = 0.1
"""Share by which numbers of parameters may differ. Printed ones are rounded, and some count more than we do, such as
LoRA's biases (7 %). Another prompt length or rank, mostly half or twice as large, differs by far more than 10 %."""
STATED = {
    "hp.prompt_length": re.compile(r"\b(?:prompt|params fit) (\d+)\b"),
    "hp.rank": re.compile(r"\brank (\d+)\b"),
    "recipe.max_source_length": re.compile(r"\b(\d+) tokens\b"),
}
"""Setting -> the words by which notes of records state it."""
BY_PROTOCOL = "prompt_length"
"""A setting that the protocol of the same name gives if the note does not."""
MULTI_TASK = "multi-task training"
"""What notes say of numbers from training on several tasks at once."""
UNITS = {"K": 1e3, "M": 1e6, "B": 1e9}
"""Letter after a printed number of parameters -> factor."""


def is_same_method(row: BoardRow, published: str) -> bool:
    """Whether a source's name of a method means the method file of a row."""
    file = _file_of(published)
    return any(file in (name, _stem(name)) for name in _methods(row))


def is_unaltered(row: BoardRow) -> bool:
    """Whether the row is labelled with its method's plain name. Suites give other labels to variants of a method."""
    return {row.label} == _methods(row)


def disagreements(entry: Entry, number: Number, record: PublishedRecord | None) -> list[str]:
    """Sentences on the settings in which an entry and a published number differ; empty if none is known to.

    Backbone and metric are not looked at: `Record.rows` has chosen numbers that agree in both.
    """
    ours = {record.shots_of(run) if record else None for run in entry.runs}
    found = []
    if ours != {number.k_shot}:
        texts = sorted(_shots_text(k) for k in ours)
        found.append(f"trained on {' and '.join(texts)}, published for {_shots_text(number.k_shot)}")
    (file,) = {run.cell.method for run in entry.runs}
    for name, wanted in _stated(number, record, file).items():
        values = {value for run in entry.runs if (value := _value(run.cell, name)) is not None}
        if values and values != {wanted}:
            found.append(f"{name} is {' and '.join(sorted(map(str, values)))}, published with {wanted}")
    if any((run.cell.mixture is not None) != (MULTI_TASK in number.note) for run in entry.runs):
        found.append("one of the two was trained on several tasks at once")
    return [*found, *_params_disagreement(entry, number)]


def _shots_text(k: int | None) -> str:
    return "all rows" if k is None else f"k={k}"


def _params_disagreement(entry: Entry, number: Number) -> list[str]:
    """A sentence if the printed number of parameters is neither that of training nor that kept for inference."""
    printed = parse_count(number.params)
    counts = [run.params for run in entry.runs if run.params]
    kinds: tuple[Literal["num_trained", "num_kept"], ...] = ("num_trained", "num_kept")
    ours = sorted({params.per_task(kind) for params in counts for kind in kinds})
    if printed is None or not ours or any(abs(count - printed) <= TOLERANCE * printed for count in ours):
        return []
    return [f"{' or '.join(f'{count:,}' for count in ours)} parameters, published with {number.params}"]


def parse_count(text: str) -> float | None:
    """A printed number of parameters: "76.8K" -> 76,800. None if the source prints none."""
    match = re.fullmatch(r"([\d.,]+)([KMB]?)", text)
    return float(match[1].replace(",", "")) * UNITS.get(match[2], 1) if match else None


def _stated(number: Number, record: PublishedRecord | None, method: str) -> dict[str, int]:
    """Setting -> value that the record states for a number: in its note, else by its protocol.

    The protocol counts only for numbers that the paper measured itself: others were made with settings of their own.
    """
    stated = {name: int(found[1]) for name, pattern in STATED.items() if (found := pattern.search(number.note))}
    if record is not None and not number.cited:
        scope = Scope(number.task, number.benchmark, method, number.backbone)
        given = _protocol_hp(record.name.partition(":")[0], scope).get(BY_PROTOCOL)
        if isinstance(given, int):
            stated.setdefault(f"hp.{BY_PROTOCOL}", given)
    return stated


@functools.cache
def _protocol_hp(name: str, scope: Scope) -> Mapping[str, Any]:
    """The hp that the protocol `name` sets; empty if the record has no protocol of its name."""
    return resolve_protocol(ProtocolReference(name=name)).hp(scope) if name in protocol_names() else {}


def _value(cell: Cell, name: str) -> Any:
    part, _, key = name.partition(".")
    return cell.hp.get(key) if part == "hp" else getattr(cell.recipe, key)


def _methods(row: BoardRow) -> set[str]:
    return {run.cell.method for entry in row.entries.values() for run in entry.runs}


@functools.cache
def _file_of(published: str) -> str:
    """The method file that a source's name means; `published/methods.json` lists those that differ in spelling."""
    known = json.loads((FOLDER / "methods.json").read_text(encoding="utf-8"))
    return str(known.get(published, _stem(published)))


def _stem(name: str) -> str:
    """A method's name without what spellings differ in: `Fine-tuning` and `finetune` -> `finetun`."""
    return re.sub("(ing|e)$", "", re.sub("[^a-z0-9]", "", name.lower()))
