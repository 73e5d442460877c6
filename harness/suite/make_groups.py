"""From a suite file to groups of cells: names checked, filters and overrides applied."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from harness.errors import UserError, nearest, require_choice
from harness.suite.cell_limit import CellLimit
from harness.suite.file_schema import MethodSpec, Recipe
from harness.suite.groups import Group, GroupBuilder, method_of_row
from harness.suite.load import Suite, load_suite, short_name
from harness.suite.overrides import Overrides
from harness.suite.resolve_settings import TaskSpec
from harness.validation import field_names

__all__ = ["Group", "Overrides", "Suite", "expand_suite", "load_suite", "short_name"]


def expand_suite(suite: Suite, methods: Mapping[str, MethodSpec], tasks: Mapping[str, TaskSpec]) -> list[Group]:
    """Return every group of the suite after filters, then those that they start from.

    Raises UserError on any unknown name or setting, for cells that start from each other, and for more cells than
    `execution.max_cells`.
    """
    labels = _labels(suite, methods)
    names = _task_names(suite, tasks)
    _check_exceptions(suite, tasks, labels)
    _check_row_limits(suite, tasks)
    shots = suite.file.few_shot.k if suite.file.few_shot else [None]
    limit = CellLimit(suite)
    once = {label for label, method in labels.items() if methods[method].answers_from_files}
    limit.require_entries(len(suite.backbones), len(names), len(shots), len(labels), len(once))
    rows = [
        ((label, task, backbone), None if label in once else k)
        for backbone, task, k, label in itertools.product(suite.backbones, names, shots, labels)
        if k == shots[0] or label not in once  # no number of training rows changes what was trained elsewhere
    ]
    family = GroupBuilder(suite, methods, tasks, labels, rows, limit)
    times = {label: suite.file.repeats if _can_differ(methods[method]) else 1 for label, method in labels.items()}
    limit.require_table([family.count(place, k) for place, k in rows for _ in range(times[place[0]])])
    groups = [family.row(place, k) for place, k in rows]
    repeated = [[group.repeated(n) for n in range(2, times[group.label] + 1)] for group in groups]
    table = [one for group, more in zip(groups, repeated, strict=True) for one in (group, *more)]
    return [*table, *family.sources.values()]


def _can_differ(method: MethodSpec) -> bool:
    """Whether two runs of one cell may differ: repeats of what takes no step would be copies."""
    return not (method.is_rule or method.answers_from_files)


def _labels(suite: Suite, methods: Mapping[str, MethodSpec]) -> dict[str, str]:
    """Row label -> method name, in the order asked for."""
    labels = {}
    for label in suite.overrides.methods or suite.file.methods:
        listed = label in suite.file.methods
        method = method_of_row(suite.file.methods[label], label, methods) if listed else label
        where = suite.document.where("methods", label) if listed else "--methods"
        choices = sorted({*methods, *([] if listed else suite.file.methods)})
        if not isinstance(method, str) or method not in methods:
            hint = None if nearest(method, choices) else "A method file of your own needs --methods-dir FOLDER."
            raise UserError(f"unknown method '{method}'", where=where, value=method, choices=choices, hint=hint)
        labels[label] = method
    for key in suite.overrides.settings:
        if key.startswith("methods."):
            require_choice(key.split(".")[1], {*labels, *suite.file.sources}, kind="method", where=f"--set {key}")
    return labels


def _task_names(suite: Suite, tasks: Mapping[str, TaskSpec]) -> list[str]:
    where = "--tasks" if suite.overrides.tasks else suite.document.where("tasks")
    names = list(suite.overrides.tasks or suite.file.tasks)
    if suite.overrides.tasks:
        names = [name if name in tasks else _by_title(name, tasks) for name in names]
    if len(set(names)) < len(names):
        raise UserError(f"lists a task twice: {', '.join(names)}", where=where)
    return [require_choice(name, tasks, kind="task", where=where) for name in names]


def _by_title(title: str, tasks: Mapping[str, TaskSpec]) -> str:
    """The one task that tables show under a title, e.g. SST-2; the title itself where that is none or several."""
    found = [name for name, task in tasks.items() if task.title and _plain(task.title) == _plain(title)]
    return found[0] if len(found) == 1 else title


def _plain(title: str) -> str:
    return "".join(char for char in title.lower() if char.isalnum())


def _check_row_limits(suite: Suite, tasks: Mapping[str, TaskSpec]) -> None:
    """Raise UserError where `rows` names no task, or one whose rows a mixture takes whole."""
    mixtures = suite.file.define_mixtures
    for name in suite.file.rows:
        where = suite.document.where("rows", name)
        require_choice(name, [task for task in tasks if task not in mixtures], kind="task", where=where)
        if takers := [mixture for mixture, declared in mixtures.items() if name in declared.tasks]:
            problem = (
                f"mixture '{takers[0]}' takes all rows of '{name}'; a suite with mixtures cannot use a part of them"
            )
            raise UserError(problem, where=where, field=name)


def _check_exceptions(suite: Suite, tasks: Mapping[str, TaskSpec], labels: Mapping[str, str]) -> None:
    backbones = [*suite.file.backbones, *suite.backbone_sources]
    known = {
        "tasks": list(tasks),
        "methods": sorted({*suite.file.methods, *suite.file.sources, *labels}),
        "backbones": sorted({*backbones, *map(short_name, backbones)}),
    }
    for index, rule in enumerate(suite.file.exceptions):
        for key in rule.recipe:  # here, since one that applies to no cell is merged into nothing
            if key not in field_names(Recipe):
                raise UserError("unknown", where=suite.document.where("exceptions", index, "recipe", key),
                                field=f"exceptions.{index}.recipe.{key}", value=key,
                                choices=field_names(Recipe))  # fmt: skip
        where = suite.document.where("exceptions", index)
        for axis, choices in known.items():
            for name in getattr(rule.where, axis):
                require_choice(name, choices, kind=axis.removesuffix("s"), where=where)
