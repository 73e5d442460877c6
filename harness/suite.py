"""From a suite file to groups of cells: layers of settings, sweeps, exceptions, filters."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError, require_choice
from harness.schema import Cell, ExceptionRule, MethodSpec, Recipe, SuiteFile
from harness.validation import field_names, validate_model, validate_settings
from harness.yaml12 import Document, read_document

MAX_CELLS = 100_000


@dataclass(frozen=True)
class TaskSpec:
    """What suites need to know of a task."""

    name: str
    version: int
    max_source_length: int


@dataclass(frozen=True)
class Overrides:
    """What the command line adds to a suite file; None leaves the file's own list."""

    methods: Sequence[str] | None = None
    tasks: Sequence[str] | None = None
    backbones: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """One cell of the final table: a method on a task and backbone, over grid points and seeds."""

    label: str
    method: str
    task: str
    backbone: str
    points: tuple[dict[str, Any], ...]
    seeds: tuple[int, ...]
    cells: dict[tuple[int, int], Cell]
    """(index of the grid point, seed) -> cell."""

    @property
    def group_id(self) -> str:
        return self.cells[(0, self.seeds[0])].group_id


@dataclass(frozen=True)
class Suite:
    """A suite file with the command line's overrides applied."""

    file: SuiteFile
    document: Document
    backbone_sources: dict[str, str]
    """Short name, as used in results -> what the user gave (known name, hub id or path)."""
    overrides: Overrides


@dataclass
class _Layered:
    """Settings merged so far, and the place each came from."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def update(self, values: Mapping[str, Any], document: Document, *key: str | int, origin: str | None = None) -> None:
        for name, value in values.items():
            self.values[name] = value
            self.origins[name] = origin or document.where(*key, name)

    def locate(self, *key: str | int) -> str:
        return self.origins.get(str(key[-1]) if key else "", "") or next(iter(self.origins.values()), "")


def load_suite(path: str | Path, overrides: Overrides) -> Suite:
    """Read and validate a suite file. Raises UserError with file and line."""
    document = read_document(path)
    data = dict(document.data)
    for key, value in overrides.settings.items():
        _check_setting_root(key)
        if key.split(".")[0] not in ("recipe", "methods"):
            _assign(data, key.split("."), value)
    file = validate_model(SuiteFile, data, document.where)
    if file.version != 1:
        raise UserError(
            f"suite version {file.version} is not known here; this program reads version 1",
            where=document.where("version"),
            field="version",
        )
    backbones = list(overrides.backbones) if overrides.backbones else file.backbones
    return Suite(file, document, _short_names(backbones, document), overrides)


def expand(suite: Suite, methods: Mapping[str, MethodSpec], tasks: Mapping[str, TaskSpec]) -> list[Group]:
    """Return every group of the suite after filters. Raises UserError on any unknown name or setting."""
    labels = _labels(suite, methods)
    names = _task_names(suite, tasks)
    _check_exceptions(suite, tasks, labels)
    _check_method_settings(suite, labels)
    groups = [
        _group(suite, label, methods[method], tasks[task], backbone)
        for backbone in suite.backbone_sources
        for task in names
        for label, method in labels.items()
    ]
    num_cells = sum(len(group.cells) for group in groups)
    if num_cells > MAX_CELLS:
        raise UserError(f"declares {num_cells:,} cells, more than {MAX_CELLS:,}", where=suite.document.path)
    return groups


def _group(suite: Suite, label: str, spec: MethodSpec, task: TaskSpec, backbone: str) -> Group:
    recipe, hp = _layers(suite, label, spec, task.name, backbone)
    if spec.hp_type is type(None) and not spec.error:  # a rule such as majority trains nothing: no recipe applies
        recipe = _Layered()
    sweeps = _sweeps(recipe, "recipe", suite) | _sweeps(hp, f"methods.{label}", suite)
    points = [dict(zip(sweeps, values, strict=True)) for values in itertools.product(*sweeps.values())]
    grid = [{_public(key): value for key, value in point.items()} for point in points]
    seeds = tuple(suite.overrides.seeds or suite.file.seeds)
    resolved = [_resolve(recipe, hp, point, label, spec, task) for point in points]
    cells = {
        (index, seed): Cell(
            suite=suite.file.suite,
            label=label,
            method=spec.name,
            hp=resolved[index][1],
            task=task.name,
            task_version=task.version,
            backbone=backbone,
            seed=seed,
            recipe=resolved[index][0],
            grid=grid[index],
            grid_index=index,
            search_seed=seed if suite.file.tuning.seeds == "each" else seeds[0],
        )
        for index in range(len(points))
        for seed in seeds
    }
    return Group(label, spec.name, task.name, backbone, tuple(grid), seeds, cells)


def _layers(suite: Suite, label: str, spec: MethodSpec, task: str, backbone: str) -> tuple[_Layered, _Layered]:
    """Merge, weakest first: the method's defaults, the suite, the method in the suite, exceptions, --set."""
    document, recipe, hp = suite.document, _Layered(), _Layered()
    file_name = f"methods/{spec.name}.py"
    recipe.update(spec.defaults.recipe, document, origin=file_name)
    hp.update(spec.defaults.hp, document, origin=file_name)
    recipe.update(suite.file.recipe, document, "recipe")
    own = suite.file.methods.get(label, {})
    recipe.update(_mapping(own, "recipe", document, label), document, "methods", label, "recipe")
    hp.update({k: v for k, v in own.items() if k not in ("recipe", "method")}, document, "methods", label)
    for index, rule in enumerate(suite.file.exceptions):
        if _applies(rule, label, task, backbone):
            recipe.update(rule.recipe, document, "exceptions", index, "recipe")
            hp.update(rule.hp, document, "exceptions", index, "hp")
    for key, value in sorted(suite.overrides.settings.items(), key=lambda item: item[0].startswith("methods.")):
        _apply_setting(key, value, label, recipe, hp, document)
    return recipe, hp


def _apply_setting(key: str, value: Any, label: str, recipe: _Layered, hp: _Layered, document: Document) -> None:
    parts = key.split(".")
    if parts[0] == "recipe":
        recipe.update({parts[1]: value}, document, origin=f"--set {key}")
    elif parts[0] == "methods" and parts[1] == label:
        target = recipe if parts[2] == "recipe" else hp
        target.update({parts[-1]: value}, document, origin=f"--set {key}")


def _resolve(
    recipe: _Layered, hp: _Layered, point: Mapping[tuple[str, str], Any], label: str, spec: MethodSpec, task: TaskSpec
) -> tuple[Recipe, dict[str, Any]]:
    """Validate one grid point; fill in the lengths that depend on the task."""
    recipe_values = recipe.values | {name: value for (part, name), value in point.items() if part == "recipe"}
    hp_values = hp.values | {name: value for (part, name), value in point.items() if part == "hp"}
    filled = {"max_source_length": task.max_source_length} | {k: v for k, v in recipe_values.items() if v is not None}
    checked = Recipe.model_validate(validate_settings(Recipe, filled, recipe.locate, ("recipe",)))
    if spec.error:
        return checked, hp_values
    if spec.hp_type is type(None):
        if hp_values:
            name = next(iter(hp_values))
            raise UserError(
                "unknown; this method has no settings", where=hp.locate(name), field=f"methods.{label}.{name}"
            )
        return checked, {}
    if "source_length" in field_names(spec.hp_type) and hp_values.get("source_length") is None:
        hp_values["source_length"] = checked.max_source_length
    return checked, validate_settings(spec.hp_type, hp_values, hp.locate, ("methods", label))


def _sweeps(layer: _Layered, part: str, suite: Suite) -> dict[tuple[str, str], list[Any]]:
    """Take `{sweep: [...]}` values out of a layer's settings."""
    kind = "recipe" if part == "recipe" else "hp"
    found: dict[tuple[str, str], list[Any]] = {}
    for name, value in layer.values.items():
        if not (isinstance(value, dict) and "sweep" in value):
            continue
        where, field_name, values = layer.origins[name], f"{part}.{name}.sweep", value["sweep"]
        if set(value) != {"sweep"}:
            raise UserError("takes no other key beside it", where=where, field=field_name)
        if not isinstance(values, list) or not values:
            raise UserError("is empty; a sweep lists the values to try", where=where, field=field_name)
        if any(values.count(item) > 1 for item in values):
            raise UserError(f"lists a value twice: {values}", where=where, field=field_name)
        found[(kind, name)] = values
    return found


def _public(key: tuple[str, str]) -> str:
    return f"{key[0]}.{key[1]}"


def _labels(suite: Suite, methods: Mapping[str, MethodSpec]) -> dict[str, str]:
    """Row label -> method name, in the order asked for."""
    labels = {}
    for label in suite.overrides.methods or suite.file.methods:
        if label in suite.file.methods:
            method = suite.file.methods[label].get("method", label)
            where = suite.document.where("methods", label)
        else:
            method, where = label, "--methods"
        known = list(methods) if where != "--methods" else [*suite.file.methods, *methods]
        if method not in methods:
            raise UserError(f"unknown method '{method}'", where=where, value=str(method), choices=sorted(set(known)))
        labels[label] = str(method)
    return labels


def _task_names(suite: Suite, tasks: Mapping[str, TaskSpec]) -> list[str]:
    where = "--tasks" if suite.overrides.tasks else suite.document.where("tasks")
    names = list(suite.overrides.tasks or suite.file.tasks)
    return [require_choice(name, tasks, kind="task", where=where) for name in names]


def _check_exceptions(suite: Suite, tasks: Mapping[str, TaskSpec], labels: Mapping[str, str]) -> None:
    known = {"tasks": list(tasks), "methods": [*suite.file.methods, *labels]}
    for index, rule in enumerate(suite.file.exceptions):
        for axis, choices in known.items():
            for name in getattr(rule.where, axis):
                require_choice(
                    name, choices, kind=axis.removesuffix("s"), where=suite.document.where("exceptions", index)
                )


def _check_method_settings(suite: Suite, labels: Mapping[str, str]) -> None:
    for key in suite.overrides.settings:
        parts = key.split(".")
        if parts[0] == "methods":
            require_choice(parts[1], labels, kind="method", where=f"--set {key}")


def _check_setting_root(key: str) -> None:
    parts = key.split(".")
    where = f"--set {key}"
    require_choice(parts[0], SuiteFile.model_fields, kind="key", where=where)
    if parts[0] == "recipe" and len(parts) == 2:
        require_choice(parts[1], field_names(Recipe), kind="recipe key", where=where)
    elif parts[0] == "methods" and (len(parts) == 3 or (len(parts) == 4 and parts[2] == "recipe")):
        pass
    elif parts[0] in ("recipe", "methods", "exceptions") or len(parts) > 2:
        raise UserError(
            "expected recipe.KEY, methods.NAME.KEY, methods.NAME.recipe.KEY, tuning.KEY or execution.KEY", where=where
        )


def _assign(data: dict[str, Any], parts: list[str], value: Any) -> None:
    if len(parts) == 1:
        data[parts[0]] = value
    else:
        data[parts[0]] = {**(data.get(parts[0]) or {}), parts[1]: value}


def _applies(rule: ExceptionRule, label: str, task: str, backbone: str) -> bool:
    where = rule.where
    return (
        (not where.tasks or task in where.tasks)
        and (not where.methods or label in where.methods)
        and (not where.backbones or backbone in where.backbones)
    )


def _mapping(own: Mapping[str, Any], key: str, document: Document, label: str) -> dict[str, Any]:
    value = own.get(key, {})
    if not isinstance(value, dict):
        raise UserError(
            "expected a mapping", where=document.where("methods", label, key), field=f"methods.{label}.{key}"
        )
    return value


def _short_names(given: Sequence[str], document: Document) -> dict[str, str]:
    """Name results by the last part of a path or hub id; two sources may not share one."""
    names: dict[str, str] = {}
    for source in given:
        short = source.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
        if short in (".", "..", ""):
            short = Path(source).resolve().name
        if short in names:
            raise UserError(
                f"'{source}' and '{names[short]}' would both be called '{short}' in the results; rename one",
                where=document.where("backbones"),
            )
        names[short] = source
    return names
