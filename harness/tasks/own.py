"""The task that a cell trains on: a record, or a suite file's own declaration, under the cell's protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.declarations import ProtocolReference, TaskFile
from harness.errors import UserError, require_choice
from harness.metrics import FOREIGN, METRICS
from harness.protocol import Protocol, resolve
from harness.suite import Suite
from harness.tasks import all_tasks
from harness.tasks.record import Hub, Task

BENCHMARK = "Own"
METRICS_OF = {
    "classification": {"accuracy", "f1", "macro_f1", "matthews"},
    "regression": {"pearson", "spearman"},
    "text": {"token_f1", "exact_match", "accuracy"},
}
USUAL_METRICS = {"classification": ("accuracy",), "regression": ("pearson",), "text": ("token_f1",)}


def suite_tasks(suite: Suite) -> dict[str, Task]:
    """Every task that a suite may name, under its protocol. Raises UserError for a declaration that cannot be."""
    shipped = all_tasks()
    own = {}
    for name, definition in suite.file.define_tasks.items():
        where = suite.document.where("define_tasks", name)
        if name.lower() in shipped:
            raise UserError(f"a shipped task is called '{name}' already; choose another name", where=where)
        own[name] = declared_task(name, definition, suite.folder, where)
    return {name: under_protocol(task, suite.protocol) for name, task in {**shipped, **own}.items()}


def under_protocol(task: Task, protocol: Protocol) -> Task:
    """The task with what the protocol says of its text, splits and metrics."""
    changes = dict(protocol.task_fields(task.name, task.benchmark))
    if changes.get("prefix") == "NAME":
        changes["prefix"] = task.name
    if "reported" in changes:
        changes["reported"] = tuple(changes["reported"])
        changes["extra"] = tuple(dict.fromkeys((*task.extra, *task.reported)))
    return replace(task, **changes)


def declared_task(name: str, definition: TaskFile, folder: str, where: str = "") -> Task:
    """A suite file's declaration as a task record; paths are relative to `folder`. Raises UserError."""
    _check(name, definition, where)
    reported = tuple(definition.metrics) or USUAL_METRICS[definition.kind]
    return Task(
        name=name,
        title=name,
        benchmark=BENCHMARK,
        kind=definition.kind,
        fields=tuple(definition.fields.items()),
        template=definition.template or "",
        label=definition.label,
        labels=tuple(map(str, definition.labels)),
        reported=reported,
        extra=tuple(definition.extra_metrics),
        selection=definition.selection or reported[0],
        split=definition.split,
        dev_share=definition.dev_share,
        test_share=definition.test_share,
        max_source_length=definition.max_source_length,
        max_target_length=definition.max_target_length,
        files=_files(definition.files, folder),
        hub=(_hub(definition),) if definition.hub else (),
        version=definition.version,
    )


def _files(given: str | Mapping[Any, str] | None, folder: str) -> dict[str, str]:
    """Split -> path; one path stands for the training rows, or for a folder that holds all splits."""
    by_split = {"train": given} if isinstance(given, str) else dict(given or {})
    return {str(split): str(Path(folder) / path) for split, path in by_split.items()}


def _hub(definition: TaskFile) -> Hub:
    path, _, config = str(definition.hub).partition(":")
    return Hub(path, config or None, definition.revision)


def _check(name: str, definition: TaskFile, where: str) -> None:
    """Raise UserError for a declaration that names no rows, no text, or labels that do not fit its kind."""
    field = f"define_tasks.{name}"
    if (definition.files is None) == (definition.hub is None):
        raise UserError("give either files or hub, where the rows are", where=where, field=field)
    if bool(definition.fields) == bool(definition.template):
        raise UserError("give either fields or template, which make the source text", where=where, field=field)
    if len({str(label).lower() for label in definition.labels}) < len(definition.labels):
        raise UserError("lists a label twice", where=where, field=f"{field}.labels")
    if definition.template is not None and "{" not in definition.template:
        raise UserError("names no column; write {column} in it", where=where, field=f"{field}.template")
    if isinstance(definition.files, dict):
        for split in definition.files:
            require_choice(split, ("train", "validation", "dev", "test"), kind="split", where=where)
    if definition.kind == "classification" and len(definition.labels) < 2:
        raise UserError("a classification lists at least two different labels", where=where, field=f"{field}.labels")
    if definition.kind != "classification" and definition.labels:
        raise UserError("only a classification has labels", where=where, field=f"{field}.labels")
    chosen = [definition.selection] if definition.selection else []
    fitting = METRICS_OF[definition.kind] - ({"f1"} if len(definition.labels) > 2 else set())
    for metric in [*definition.metrics, *definition.extra_metrics, *chosen]:
        if not metric.startswith(FOREIGN):  # those of another library are loaded before a run
            require_choice(metric, METRICS, kind="metric", where=where)
            require_choice(metric, fitting, kind=f"metric of a {definition.kind} with these labels", where=where)


def cell_task(name: str, reference: ProtocolReference, definition: TaskFile | None, folder: str) -> Task:
    """The task that a cell trains on, from what the cell stores; `folder` is that of its suite file."""
    task = declared_task(name, definition, folder) if definition else all_tasks()[name]
    return under_protocol(task, resolve(reference))
