"""The settings of one table entry: layers merged, sweeps taken out, each grid point validated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.errors import UserError
from harness.lineage import GRID_KEY, INIT_FROM, check_number, read_choices, title_of
from harness.protocol import Place, Protocol
from harness.suite_file import ExceptionRule, MethodSpec, Recipe, SourceChoice
from harness.validation import field_names, validate_settings
from harness.yaml12 import Document


@dataclass
class Layered:
    """Settings merged so far, and the place each came from."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def update(self, values: Mapping[str, Any], document: Document, *key: str | int, origin: str | None = None) -> None:
        """Lay `values` over what is there; their place is `origin`, or where the document holds them."""
        for name, value in values.items():
            self.values[name] = value
            self.origins[name] = origin or document.where(*key, name)

    def locate(self, *key: str | int) -> str:
        """Place of a setting, or of any setting where that one is not set."""
        return self.origins.get(str(key[-1]) if key else "", "") or next(iter(self.origins.values()), "")


@dataclass(frozen=True)
class TaskSpec:
    """What suites need to know of a task, under the suite's protocol."""

    name: str
    version: int
    max_source_length: int
    benchmark: str
    num_train: int | None
    """Published training rows."""
    num_parts: int = 0
    """Tasks of a mixture; 0 for a single task."""
    title: str = ""
    """Its name in tables."""


@dataclass(frozen=True)
class Entry:
    """What decides the settings of one method on one task and backbone."""

    document: Document
    label: str
    spec: MethodSpec
    protocol: Protocol
    recipe: Mapping[str, Any]
    """The suite's shared recipe."""
    own: Mapping[str, Any]
    """The method's block in the suite."""
    exceptions: Mapping[int, ExceptionRule]
    """Those that apply here, by their place in the suite."""
    overrides: Mapping[str, Any]
    """From --set, e.g. {"recipe.steps": 300}."""
    task: TaskSpec
    backbone: str
    block: Literal["methods", "sources"] = "methods"
    """Where the suite file holds the row."""
    few_shot: bool = False


Point = dict[str, Any]
"""Swept settings of one grid point, e.g. {"recipe.lr": 0.3, "hp.rank": 4}."""


@dataclass(frozen=True)
class Resolved:
    """One grid point with everything that it sets."""

    point: Point
    recipe: Recipe
    hp: dict[str, Any]
    init_from: tuple[SourceChoice, ...] = ()


def resolve_entry(entry: Entry) -> list[Resolved]:
    """Return every grid point, validated. Raises UserError for anything unknown or impossible."""
    recipe, hp, sweeps = _spanned(entry)
    points = [dict(zip(sweeps, values, strict=True)) for values in itertools.product(*sweeps.values())]
    return [_resolve(entry, recipe, hp, point) for point in points]


def num_points(entry: Entry) -> int:
    """How many points `resolve_entry` will make, without making any. Raises UserError for a sweep that is none."""
    return math.prod(len(values) for values in _spanned(entry)[2].values())


def _spanned(entry: Entry) -> tuple[Layered, Layered, dict[str, list[Any]]]:
    """Recipe and hp of an entry, and what of them is swept, as the names of a point."""
    recipe, hp = _merge(entry)
    if entry.spec.is_rule:  # a rule such as majority trains nothing: no recipe applies
        recipe = Layered()
    return recipe, hp, _sweeps(recipe, "recipe", "recipe") | _sweeps(hp, "hp", f"{entry.block}.{entry.label}")


def _merge(entry: Entry) -> tuple[Layered, Layered]:
    """Weakest first: the method's defaults, protocol, suite, the method in the suite, exceptions, --set."""
    document, label, recipe, hp = entry.document, entry.label, Layered(), Layered()
    file_name = f"methods/{entry.spec.name}.py"
    recipe.update(entry.spec.defaults.recipe, document, origin=file_name)
    hp.update(entry.spec.defaults.hp, document, origin=file_name)
    place = Place(entry.task.name, entry.task.benchmark, entry.spec.name, entry.backbone, entry.few_shot)
    origin = f"protocol {entry.protocol.reference.name}"
    recipe.update(entry.protocol.recipe(place, entry.task.num_train), document, origin=origin)
    hp.update(entry.protocol.hp(place), document, origin=origin)
    recipe.update(entry.recipe, document, "recipe")
    own_recipe = entry.own.get("recipe", {})
    if not isinstance(own_recipe, dict):
        where = document.where(entry.block, label, "recipe")
        raise UserError("expected a mapping", where=where, field=f"{entry.block}.{label}.recipe")
    recipe.update(own_recipe, document, entry.block, label, "recipe")
    hp.update({k: v for k, v in entry.own.items() if k not in ("recipe", "method")}, document, entry.block, label)
    for index, rule in entry.exceptions.items():
        recipe.update(rule.recipe, document, "exceptions", index, "recipe")
        hp.update(rule.hp, document, "exceptions", index, "hp")
    _merge_overrides(entry, recipe, hp)
    return recipe, hp


def _merge_overrides(entry: Entry, recipe: Layered, hp: Layered) -> None:
    """Apply --set; what names a method wins over what does not."""
    for key, value in sorted(entry.overrides.items(), key=lambda item: item[0].startswith("methods.")):
        parts = key.split(".")
        if parts[0] == "recipe":
            recipe.update({parts[1]: value}, entry.document, origin=f"--set {key}")
        elif parts[0] == "methods" and parts[1] == entry.label:
            target = recipe if parts[2] == "recipe" else hp
            target.update({parts[-1]: value}, entry.document, origin=f"--set {key}")


def _sweeps(layer: Layered, part: str, shown: str) -> dict[str, list[Any]]:
    """Take `{sweep: [...]}` values out of a layer's settings."""
    found: dict[str, list[Any]] = {}
    for name, value in layer.values.items():
        if not (isinstance(value, dict) and "sweep" in value):
            continue
        where, field_name, values = layer.origins[name], f"{shown}.{name}.sweep", value["sweep"]
        if set(value) != {"sweep"}:
            raise UserError("takes no other key beside it", where=where, field=field_name)
        if not isinstance(values, list):
            raise UserError(f"expected a list of the values to try, got {values}", where=where, field=field_name)
        if not values:
            raise UserError("is empty; a sweep lists the values to try", where=where, field=field_name)
        if any(item is None for item in values):
            raise UserError("lists an empty value", where=where, field=field_name)
        if len({_hashable(item) for item in values}) < len(values):
            raise UserError(f"lists a value twice: {values}", where=where, field=field_name)
        found[f"{part}.{name}"] = values
    return found


def _hashable(value: Any) -> Any:
    """Plain data such that equal values stay equal and others differ."""
    if isinstance(value, dict):
        return frozenset((key, _hashable(item)) for key, item in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _resolve(entry: Entry, recipe: Layered, hp: Layered, point: Point) -> Resolved:
    """Validate one grid point; fill in what depends on the task and on the sources."""
    recipe_values = recipe.values | _of_part(point, "recipe")
    hp_values = hp.values | _of_part(point, "hp")
    if recipe_values.get("max_source_length") is None:
        recipe_values["max_source_length"] = entry.task.max_source_length
    shown = (entry.block, entry.label, "recipe") if entry.own.get("recipe") else ("recipe",)
    checked = Recipe.model_validate(validate_settings(Recipe, recipe_values, recipe.locate, shown))
    if entry.spec.error:
        return Resolved(point, checked, hp_values)
    if entry.spec.is_rule:
        _refuse_settings(entry, hp)
        return Resolved(point, checked, {})
    field_name = f"{entry.block}.{entry.label}.{INIT_FROM}"
    where = hp.origins.get(INIT_FROM) or entry.document.where(entry.block, entry.label)
    init_from = read_choices(hp_values.pop(INIT_FROM, None), where, field_name)
    check_number(init_from, entry.spec, where, field_name)
    _fill_source_length(entry, hp, hp_values, checked.max_source_length or entry.task.max_source_length)
    _fill_number(entry, hp, hp_values, "num_sources", len(init_from))
    _fill_number(entry, hp, hp_values, "num_tasks", entry.task.num_parts or 1)
    values = validate_settings(entry.spec.hp_type, hp_values, hp.locate, (entry.block, entry.label))
    return Resolved(_with_title(point, init_from), checked, values, init_from)


def _with_title(point: Point, init_from: Sequence[SourceChoice]) -> Point:
    """A swept source as its name, which tables and results can show."""
    key = f"hp.{INIT_FROM}"
    return {(GRID_KEY if k == key else k): (title_of(init_from) if k == key else v) for k, v in point.items()}


def _fill_number(entry: Entry, hp: Layered, values: dict[str, Any], name: str, number: int) -> None:
    """Tensors that exist once per source or task: as many as the suite names."""
    if name not in field_names(entry.spec.hp_type):
        return
    given = values.setdefault(name, number)
    if given != number:
        where, field_name = hp.locate(name), f"{entry.block}.{entry.label}.{name}"
        raise UserError(f"{given}, but the suite names {number}", where=where, field=field_name, hint="Leave it out.")


def _of_part(point: Point, part: str) -> dict[str, Any]:
    return {key.split(".", 1)[1]: value for key, value in point.items() if key.split(".", 1)[0] == part}


def _refuse_settings(entry: Entry, hp: Layered) -> None:
    for name in hp.values:
        field_name = f"{entry.block}.{entry.label}.{name}"
        raise UserError("unknown; this method has no settings", where=hp.locate(name), field=field_name)


def _fill_source_length(entry: Entry, hp: Layered, values: dict[str, Any], length: int) -> None:
    """Position-indexed tables need a row for every token that a text may have."""
    if "source_length" not in field_names(entry.spec.hp_type):
        return
    given = values.get("source_length")
    if given is None:
        values["source_length"] = length
    elif isinstance(given, int) and given < length:
        raise UserError(
            f"{given} is less than the {length} tokens that a source text may have",
            where=hp.locate("source_length"),
            field=f"{entry.block}.{entry.label}.source_length",
            hint="Leave it out to follow the task, or lower recipe.max_source_length too.",
        )
