"""From a suite file to groups of cells: names checked, filters and overrides applied."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.declarations import ProtocolReference
from harness.draws import draws_of
from harness.errors import UserError, require_choice
from harness.protocol import Place, Protocol, resolve
from harness.report_layouts import check_block
from harness.schema import Cell
from harness.settings import MAX_CELLS, Entry, TaskSpec, resolve_entry
from harness.suite_file import MAX_SEED, SLUG, SUITE_FORMAT, ExceptionRule, MethodSpec, Recipe, SuiteFile
from harness.validation import field_names, validate_model
from harness.yaml12 import Document, read_document


@dataclass(frozen=True)
class Overrides:
    """What the command line adds to a suite file; None leaves the file's own list."""

    methods: Sequence[str] | None = None
    tasks: Sequence[str] | None = None
    backbones: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    protocol: str | None = None


@dataclass(frozen=True)
class Group:
    """One entry of the final table: a method on a task and backbone, over grid points and seeds."""

    label: str
    method: str
    task: str
    backbone: str
    points: tuple[dict[str, Any], ...]
    seeds: tuple[int, ...]
    cells: dict[tuple[int, int], Cell]
    """(index of the grid point, seed) -> cell."""
    k: int | None = None
    """Labelled rows that a few-shot entry asks for; None stands for all."""


@dataclass(frozen=True)
class Suite:
    """A suite file with the command line's overrides applied."""

    file: SuiteFile
    document: Document
    backbone_sources: dict[str, str]
    """Short name, as used in results -> what the user gave (known name, hub id or path)."""
    overrides: Overrides
    protocol: Protocol

    @property
    def folder(self) -> str:
        """Where the suite file lies; the paths that it declares are relative to it."""
        return str(Path(self.document.path).parent)


def load_suite(path: str | Path, overrides: Overrides) -> Suite:
    """Read and validate a suite file. Raises UserError with file and line."""
    document = read_document(path)
    data = dict(document.data)
    for key, value in overrides.settings.items():
        _check_setting_key(key)
        if key.split(".")[0] in ("tuning", "execution"):
            _assign(data, key, value)
    file = validate_model(SuiteFile, data, document.where)
    if file.version != SUITE_FORMAT:
        problem = f"suite version {file.version} is not known here; this program reads version {SUITE_FORMAT}"
        raise UserError(problem, where=document.where("version"), field="version")
    for label in file.methods:
        _check_slug(label, "method", document.where("methods", label))
    check_block(file.report, document)
    _check_override_lists(overrides)
    backbones = list(overrides.backbones) if overrides.backbones else file.backbones
    return Suite(file, document, _short_names(backbones, document), overrides, _protocol(file, document, overrides))


def _protocol(file: SuiteFile, document: Document, overrides: Overrides) -> Protocol:
    """The suite's protocol, with what --protocol and --set protocol.KEY=VALUE change."""
    reference, where = file.protocol, document.where("protocol")
    if overrides.protocol:
        reference, where = ProtocolReference(name=overrides.protocol), "--protocol"
    found = resolve(reference, where)
    settings = {k.removeprefix("protocol."): v for k, v in overrides.settings.items() if k.startswith("protocol.")}
    for key, value in settings.items():
        changed = {**found.reference.overrides, key: value}
        found = resolve(found.reference.model_copy(update={"overrides": changed}), f"--set protocol.{key}")
    return found


def expand(suite: Suite, methods: Mapping[str, MethodSpec], tasks: Mapping[str, TaskSpec]) -> list[Group]:
    """Return every group of the suite after filters. Raises UserError on any unknown name or setting."""
    labels = _labels(suite, methods)
    names = _task_names(suite, tasks)
    _check_exceptions(suite, tasks, labels)
    groups: list[Group] = []
    num_cells = 0
    shots = suite.file.few_shot.k if suite.file.few_shot else [None]
    for backbone, task, k in itertools.product(suite.backbone_sources, names, shots):
        for label, method in labels.items():
            groups.append(_group(suite, label, methods[method], tasks[task], backbone, k))
            num_cells += len(groups[-1].cells)
            if num_cells > MAX_CELLS:
                raise UserError(f"declares more than {MAX_CELLS:,} cells", where=suite.document.path)
    return groups


def short_name(source: str) -> str:
    """Name of a backbone in results: the last part of a path or hub id."""
    last = source.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    return Path(source).resolve().name if last in (".", "..", "") else last


def _group(suite: Suite, label: str, spec: MethodSpec, task: TaskSpec, backbone: str, k: int | None) -> Group:
    per_seed = suite.file.tuning.seeds == "each"
    place = Place(task.name, task.benchmark, spec.name, backbone, k is not None)
    own_seeds = suite.file.seeds or suite.protocol.seeds(place)
    seeds = tuple(suite.overrides.seeds or own_seeds)
    where = suite.document.where("few_shot", "draw_seeds")
    draws = draws_of(suite.file.few_shot, k, suite.protocol.draw_rule, own_seeds, seeds, where)
    points = resolve_entry(_entry(suite, label, spec, task, backbone))
    cells = {
        (index, seed): Cell(
            suite=suite.file.suite,
            label=label,
            method=spec.name,
            hp=hp,
            task=task.name,
            task_version=task.version,
            backbone=backbone,
            seed=seed,
            protocol=suite.protocol.reference,
            task_rules=suite.protocol.task_fields(task.name, task.benchmark),
            definition=suite.file.define_tasks.get(task.name),
            few_shot=draws[seed],
            recipe=recipe,
            grid=point,
            grid_index=index,
            search_seed=seed if per_seed else seeds[0],
        )
        for index, (point, recipe, hp) in enumerate(points)
        for seed in seeds
    }
    repeated = [item for item, count in Counter(cell.cell_id for cell in cells.values()).items() if count > 1]
    if repeated:
        where = suite.document.where("methods", label)
        raise UserError("two points of its grid are the same cell", where=where, field=label)
    return Group(label, spec.name, task.name, backbone, tuple(point for point, _, _ in points), seeds, cells, k)


def _entry(suite: Suite, label: str, spec: MethodSpec, task: TaskSpec, backbone: str) -> Entry:
    applying = {i: r for i, r in enumerate(suite.file.exceptions) if _applies(r, label, task.name, backbone)}
    return Entry(
        document=suite.document,
        label=label,
        spec=spec,
        protocol=suite.protocol,
        recipe=suite.file.recipe,
        own=suite.file.methods.get(label, {}),
        exceptions=applying,
        overrides=suite.overrides.settings,
        task=task,
        backbone=backbone,
        few_shot=suite.file.few_shot is not None,
    )


def _labels(suite: Suite, methods: Mapping[str, MethodSpec]) -> dict[str, str]:
    """Row label -> method name, in the order asked for."""
    labels = {}
    for label in suite.overrides.methods or suite.file.methods:
        listed = label in suite.file.methods
        method = suite.file.methods[label].get("method", label) if listed else label
        where = suite.document.where("methods", label) if listed else "--methods"
        choices = sorted({*methods, *([] if listed else suite.file.methods)})
        if not isinstance(method, str) or method not in methods:
            raise UserError(f"unknown method '{method}'", where=where, value=method, choices=choices)
        labels[label] = method
    for key in suite.overrides.settings:
        if key.startswith("methods."):
            require_choice(key.split(".")[1], labels, kind="method", where=f"--set {key}")
    return labels


def _task_names(suite: Suite, tasks: Mapping[str, TaskSpec]) -> list[str]:
    where = "--tasks" if suite.overrides.tasks else suite.document.where("tasks")
    names = list(suite.overrides.tasks or suite.file.tasks)
    return [require_choice(name, tasks, kind="task", where=where) for name in names]


def _check_exceptions(suite: Suite, tasks: Mapping[str, TaskSpec], labels: Mapping[str, str]) -> None:
    backbones = [*suite.file.backbones, *suite.backbone_sources]
    known = {
        "tasks": list(tasks),
        "methods": sorted({*suite.file.methods, *labels}),
        "backbones": sorted({*backbones, *map(short_name, backbones)}),
    }
    for index, rule in enumerate(suite.file.exceptions):
        where = suite.document.where("exceptions", index)
        for axis, choices in known.items():
            for name in getattr(rule.where, axis):
                require_choice(name, choices, kind=axis.removesuffix("s"), where=where)


def _applies(rule: ExceptionRule, label: str, task: str, backbone: str) -> bool:
    where = rule.where
    return (
        (not where.tasks or task in where.tasks)
        and (not where.methods or label in where.methods)
        and (not where.backbones or backbone in map(short_name, where.backbones))
    )


def _check_override_lists(overrides: Overrides) -> None:
    for name in ("methods", "tasks", "backbones", "seeds"):
        values = getattr(overrides, name)
        if values is not None and not values:
            raise UserError("is empty; leave it out to take the suite's own list", field=f"--{name}")
        if name == "seeds" and any(not 0 <= seed < MAX_SEED for seed in values or ()):
            raise UserError(f"must be from 0 to {MAX_SEED - 1}, got {values}", field="--seeds")
        repeated = [str(item) for item, count in Counter(values or ()).items() if count > 1]
        if repeated:
            raise UserError(f"lists {', '.join(repeated)} more than once", field=f"--{name}")


def _check_setting_key(key: str) -> None:
    parts, where = key.split("."), f"--set {key}"
    if parts[0] in ("methods", "tasks", "backbones", "seeds") and len(parts) == 1:
        raise UserError(f"use --{parts[0]} A,B,... instead", where=where)
    if parts[0] in field_names(Recipe) and len(parts) == 1:
        raise UserError(f"unknown key; did you mean recipe.{parts[0]}?", where=where)
    require_choice(parts[0], SuiteFile.model_fields, kind="key", where=where)
    if parts[0] == "protocol" and len(parts) > 1:
        return  # checked against the protocol's keys, whose names hold dots
    if parts[0] == "recipe" and len(parts) == 2:
        require_choice(parts[1], field_names(Recipe), kind="recipe key", where=where)
        return
    of_method = parts[0] == "methods" and (len(parts) == 3 or (len(parts) == 4 and parts[2] == "recipe"))
    of_block = parts[0] in ("tuning", "execution") and len(parts) == 2
    if not (of_method or of_block) or "" in parts:
        forms = "recipe.KEY, methods.NAME.KEY, methods.NAME.recipe.KEY, protocol.KEY, tuning.KEY or execution.KEY"
        raise UserError(f"expected {forms}", where=where)


def _assign(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a key of the `tuning` or `execution` block."""
    block, name = key.split(".")
    current = data.get(block) or {}
    if not isinstance(current, dict):
        raise UserError("expected a mapping", where=f"--set {key}", field=block)
    data[block] = {**current, name: value}


def _check_slug(name: str, kind: str, where: str) -> None:
    if not re.fullmatch(SLUG, name):
        raise UserError(f"'{name}' cannot name a {kind}: letters, digits and _ . + - only, for it names a folder",
                        where=where)  # fmt: skip


def _short_names(given: Sequence[str], document: Document) -> dict[str, str]:
    """Two sources may not share one name in the results."""
    names: dict[str, str] = {}
    for source in given:
        short, where = short_name(source), document.where("backbones")
        _check_slug(short, "backbone", where)
        if short in names:
            problem = f"'{source}' and '{names[short]}' would both be called '{short}' in the results; rename one"
            raise UserError(problem, where=where)
        names[short] = source
    return names
