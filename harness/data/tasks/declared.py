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
    "text": {
        "token_f1",
        "exact_match",
        "accuracy",
        "numeric_match",
        "rouge1",
        "rouge2",
        "rougeL",
        "rougeLsum",
        "bleu",
        "chrf",
    },
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
    for name in own:
        where = suite.document.where("define_tasks", name)
        _check_form(single[name], where)
        if single[name].is_ranked:
            refuse_writing(suite.file.define_tasks[name], "its answers are ranked", where, f"define_tasks.{name}")
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
    known = [part.sizes for part in parts if part.sizes is not None]
    training = [size[0] for size in known if size[0] is not None]
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
        sizes=(sum(training), sum(s[1] for s in known), sum(s[2] for s in known))
        if len(training) == len(parts)
        else None,
        parts=tuple(parts),
    )


def under_protocol(task: Task, protocol: Protocol) -> Task:
    """Return the task with the text, splits and metrics that the protocol prescribes."""
    changes = dict(protocol.task_fields(task.name, task.benchmark))
    if changes.get("prefix") == "NAME":
        changes["prefix"] = task.name
    if "target_words" in changes:  # a list in a file of keys
        changes["target_words"] = tuple(changes["target_words"])
    if "reported" in changes:  # what is no longer reported is still computed and stored
        changes["reported"] = tuple(changes["reported"])
        changes["extra"] = tuple(dict.fromkeys((*task.extra, *task.reported)))
    if "stop" in changes:
        changes["stop"] = tuple(changes["stop"])
    if task.kind in ("regression", "text"):  # of a suite's own tasks any may be: these have no labels to choose from
        changes.pop("answered_by", None)
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
        target_words=tuple(definition.words),
        target_style="words" if definition.words else "digits",
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
    if sum(map(bool, (definition.fields, definition.template, definition.messages))) != 1:
        problem = "give either fields or template, which make the source text, or messages, which are a conversation"
        raise UserError(problem, where=where, field=field)
    if definition.messages and definition.kind == "choice":
        problem = "a conversation holds one answer and no choices; give fields or template"
        raise UserError(problem, where=where, field=f"{field}.messages")
    if definition.messages and definition.label != TaskFile.model_fields["label"].default:
        problem = f"'{definition.label}' is not read; the last message of a conversation is its answer"
        raise UserError(problem, where=where, field=f"{field}.label")
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
    _check_choices(definition, where, field)
    require_stop_texts(definition.stop, where, f"{field}.stop")
    chosen = [definition.selection] if definition.selection else []
    fitting = METRICS_OF[definition.kind] - ({"f1"} if len(definition.labels) > 2 else set())
    for metric in [*definition.metrics, *definition.extra_metrics, *chosen]:
        if not metric.startswith(FOREIGN):  # those of another library are loaded before a run
            require_choice(metric, METRICS, kind="metric", where=where)
            require_choice(metric, fitting, kind=f"metric of a {definition.kind} with these labels", where=where)


def _check_choices(definition: TaskFile, where: str, field: str) -> None:
    """Raise UserError for choices, words or a way of answering that the kind of the task does not have."""
    columns = [definition.choices] if isinstance(definition.choices, str) else definition.choices
    is_choice = definition.kind == "choice"
    if is_choice and not columns:
        raise UserError("names no column of choices", where=where, field=f"{field}.choices")
    if columns and not is_choice:
        raise UserError("only a task of kind choice has them", where=where, field=f"{field}.choices")
    if isinstance(definition.choices, list) and len(set(columns)) < max(2, len(columns)) and is_choice:
        problem = "lists a column twice" if len(columns) > 1 else "lists one column, and a choice needs two"
        hint = f"A column that holds a list: choices: {columns[0]}." if len(columns) == 1 else None
        raise UserError(problem, where=where, field=f"{field}.choices", hint=hint)
    if definition.answered_by == "likelihood" and definition.kind in ("regression", "text"):
        problem = f"a {definition.kind} has no labels to choose from; its answers are written"
        raise UserError(problem, where=where, field=f"{field}.answered_by")
    if definition.choice_score != "sum" and not is_choice and definition.answered_by != "likelihood":
        raise UserError("answers are written, so nothing is ranked", where=where, field=f"{field}.choice_score",
                        hint="Say answered_by: likelihood.")  # fmt: skip
    words = [word.strip() for word in definition.words]
    if words and (len(words) != len(definition.labels) or len(set(words)) < len(words) or not all(words)):
        raise UserError("lists one word for each label, all different", where=where, field=f"{field}.words")


def refuse_writing(definition: TaskFile, reason: str, where: str, field: str) -> None:
    """Raise UserError if a task whose answers nobody writes, for this `reason`, says how they are written."""
    said = {
        "num_beams": definition.num_beams > 1,
        "stop": bool(definition.stop),
        "max_new_tokens": definition.max_new_tokens is not None,
    }
    for setting, is_said in said.items():
        if is_said:
            raise UserError(f"{reason}, so '{setting}' has nothing to act on", where=where, field=f"{field}.{setting}")


def _check_form(task: Task, where: str) -> None:
    """Raise UserError where a task under its protocol has a conversation or a system text, and no form for them."""
    if task.form == "suffix" and (task.messages or task.system):
        what = "messages" if task.messages else "system"
        problem = f"'{what}' goes with form: chat, plain or auto; form: suffix has no place for a conversation"
        raise UserError(problem, where=where, field=f"define_tasks.{task.name}.form", hint="Say form: auto.")


def cell_mixture(mixture: Mixture, name: str, reference: ProtocolReference, folder: str) -> Task:
    """Return the mixture that a cell trains on, from what the cell stores."""
    return mixture_of(name, [cell_task(part.task, reference, part.definition, folder) for part in mixture.parts])


def cell_task(name: str, reference: ProtocolReference, definition: TaskFile | None, folder: str) -> Task:
    """Return the task that a cell trains on, from what the cell stores; `folder` is that of its suite file."""
    task = declared_task(name, definition, folder) if definition else all_tasks()[name]
    return under_protocol(task, resolve_protocol(reference))
