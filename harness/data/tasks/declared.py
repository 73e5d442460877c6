"""The tasks of a suite: shipped ones, those it declares itself, and its mixtures, all under its protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.data.foreign_metrics import FOREIGN
from harness.data.metrics import METRICS
from harness.data.tasks import all_tasks
from harness.data.tasks.task import Hub, Task
from harness.errors import UserError, require_choice
from harness.suite import (
    Mixture,
    Protocol,
    ProtocolReference,
    Suite,
    TaskFile,
    require_stop_texts,
    resolve_protocol,
)

BENCHMARK = "Own"
"""Benchmark under which tables group the tasks that a suite declares."""
MIXTURES = "Mixtures"
"""Benchmark of mixtures."""
MIXTURE_METRIC = "mean"
"""Selection metric of a mixture: the mean of its tasks' selection metrics."""
METRICS_OF = {
    "classification": {"accuracy", "f1", "macro_f1", "matthews"},
    "regression": {"pearson", "spearman"},
    "text": {"token_f1", "exact_match", "accuracy"},
    "choice": {"accuracy"},
}
USUAL_METRICS = {
    "classification": ("accuracy",),
    "regression": ("pearson",),
    "text": ("token_f1",),
    "choice": ("accuracy",),
}


def suite_tasks(suite: Suite) -> dict[str, Task]:
    """Return every task that a suite may name, under its protocol. Raises UserError for an impossible declaration."""
    shipped = all_tasks()
    own = {}
    for name, definition in suite.file.define_tasks.items():
        where = suite.document.where("define_tasks", name)
        if name.lower() in shipped:
            raise UserError(f"a shipped task is called '{name}' already; choose another name", where=where)
        own[name] = declared_task(name, definition, suite.folder, where)
    single = {name: under_protocol(task, suite.protocol) for name, task in {**shipped, **own}.items()}
    mixed = {}
    for name, mixture in suite.file.define_mixtures.items():
        where = suite.document.where("define_mixtures", name)
        if name in single:
            raise UserError(f"a task is called '{name}' already; choose another name", where=where)
        mixed[name] = mixture_of(name, [single[require_choice(part, single, kind="task", where=where)]
                                        for part in mixture.tasks])  # fmt: skip
    return single | mixed


def mixture_of(name: str, parts: Sequence[Task]) -> Task:
    """Return a mixture as one task: limits on length that hold for all its tasks, dev score the mean of theirs."""
    sizes = [part.sizes for part in parts]
    known = [size for size in sizes if size is not None]
    return Task(
        name=name,
        title=name,
        benchmark=MIXTURES,
        kind="text",
        fields=(),
        label="",
        reported=(MIXTURE_METRIC,),
        selection=MIXTURE_METRIC,
        split="given",
        max_source_length=max(part.max_source_length for part in parts),
        max_target_length=max(part.max_target_length for part in parts),
        sizes=(sum(s[0] for s in known), sum(s[1] for s in known), sum(s[2] for s in known))
        if len(known) == len(parts)
        else None,
        parts=tuple(parts),
    )


def under_protocol(task: Task, protocol: Protocol) -> Task:
    """Return the task with the text, splits and metrics that the protocol prescribes."""
    changes = dict(protocol.task_fields(task.name, task.benchmark))
    if changes.get("prefix") == "NAME":
        changes["prefix"] = task.name
    if "reported" in changes:  # what is no longer reported is still computed and stored
        changes["reported"] = tuple(changes["reported"])
        changes["extra"] = tuple(dict.fromkeys((*task.extra, *task.reported)))
    if "stop" in changes:
        changes["stop"] = tuple(changes["stop"])
    return replace(task, **changes)


def declared_task(name: str, definition: TaskFile, folder: str, where: str = "") -> Task:
    """Return a suite file's declaration as a task; paths are relative to `folder`. Raises UserError if impossible."""
    _check(name, definition, where)
    reported = tuple(definition.metrics) or USUAL_METRICS[definition.kind]
    return Task(
        name=name,
        title=name,
        benchmark=BENCHMARK,
        kind=definition.kind,
        fields=tuple(definition.fields.items()),
        template=definition.template or "",
        messages=definition.messages or "",
        form=definition.form,
        system=definition.system,
        choices=(definition.choices,) if isinstance(definition.choices, str) else tuple(definition.choices),
        answered_by=definition.answered_by,
        choice_score=definition.choice_score,
        num_beams=definition.num_beams,
        stop=tuple(definition.stop),
        max_new_tokens=definition.max_new_tokens,
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
        ids_are_documented=False,
    )


def _files(given: str | Mapping[Any, str] | None, folder: str) -> dict[str, str]:
    """Return split -> path. A single path is the training rows, or a folder that holds all splits."""
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
    if len({str(label).strip() for label in definition.labels}) < len(definition.labels):
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
    require_stop_texts(definition.stop, where, f"{field}.stop")
    chosen = [definition.selection] if definition.selection else []
    fitting = METRICS_OF[definition.kind] - ({"f1"} if len(definition.labels) > 2 else set())
    for metric in [*definition.metrics, *definition.extra_metrics, *chosen]:
        if not metric.startswith(FOREIGN):  # those of another library are loaded before a run
            require_choice(metric, METRICS, kind="metric", where=where)
            require_choice(metric, fitting, kind=f"metric of a {definition.kind} with these labels", where=where)


def cell_mixture(mixture: Mixture, name: str, reference: ProtocolReference, folder: str) -> Task:
    """Return the mixture that a cell trains on, from what the cell stores."""
    return mixture_of(name, [cell_task(part.task, reference, part.definition, folder) for part in mixture.parts])


def cell_task(name: str, reference: ProtocolReference, definition: TaskFile | None, folder: str) -> Task:
    """Return the task that a cell trains on, from what the cell stores; `folder` is that of its suite file."""
    task = declared_task(name, definition, folder) if definition else all_tasks()[name]
    return under_protocol(task, resolve_protocol(reference))
