"""The settings of one table entry: layers merged from weakest to strongest, then each grid point validated.

The layers, weakest first: the method file's defaults, the protocol, the suite's recipe, the method's block in the
suite, the exceptions, --set. `sweeps` finds sweeps and crosses them to the points of a grid; `search` draws points from
sweeps and ranges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.errors import UserError
from harness.suite.adapter_folder import ADAPTER_CONFIG, read_adapter, without_notes
from harness.suite.file_schema import ADAPTER, ExceptionRule, MethodSpec, Recipe, SourceChoice, Tuning
from harness.suite.init_from import GRID_KEY, INIT_FROM, check_num_sources, read_sources, sources_title
from harness.suite.protocol import Protocol, Scope
from harness.suite.ranges import Range
from harness.suite.search import Search, corners
from harness.suite.sweeps import Point, Space, every_point, find_space, is_searched, size_of, with_point
from harness.suite.trained_adapter import TrainedAdapter, find_adapter
from harness.validation import field_names, validate_settings, whole_numbers
from harness.yaml_lines import Document

ANSWERING = ("precision", "backbone_dropout", "quantization", "max_source_length", "head", "pooling", "label_tokens",
             "forgetting_text")  # fmt: skip
"""Settings of a recipe that an answer depends on, or that decide which cells share a pass. A row that is trained
elsewhere takes no others: a grid of learning rates would score it as often."""
ENCODER_RECIPE = {"head": "linear", "pooling": "first"}
"""The weakest settings where the backbone is an encoder; `docs/protocol.md` has the reason."""


@dataclass
class SettingsLayer:
    """The settings merged so far, and where each was written."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def update(self, values: Mapping[str, Any], document: Document, *key: str | int, origin: str | None = None) -> None:
        """Let `values` replace the settings of the same names; they come from `origin`, else from the document.

        Of a setting that is a mapping, its values replace those of the same keys.
        """
        for name, value in values.items():
            before = self.values.get(name)
            inside = value if isinstance(value, dict) and not is_searched(value) else {}
            is_joined = bool(inside) and isinstance(before, dict) and not is_searched(before)
            self.values[name] = {**before, **inside} if is_joined and before is not None else value
            self.origins[name] = origin or document.where(*key, name)
            self.origins |= {f"{name}.{part}": origin or document.where(*key, name, part) for part in inside}

    def locate(self, *key: str | int) -> str:
        """Return where a setting was written; for a setting that nobody set, where any other one was.

        Of a setting that is a mapping, the last two parts of `key` may name a value.
        """
        names = [".".join(map(str, key[-count:])) for count in (2, 1) if len(key) >= count]
        if len(key) > 1:
            names.append(str(key[-2]))
        return next(filter(None, (self.origins.get(name) for name in names)), next(iter(self.origins.values()), ""))


@dataclass(frozen=True)
class TaskSpec:
    """What is needed of a task to resolve settings; a whole task record would import more than a suite may."""

    name: str
    version: int
    max_source_length: int
    benchmark: str
    num_train: int | None
    """Published number of training rows; None where it is not known. It decides between few and many steps."""
    num_parts: int = 0
    """Number of tasks in a mixture; 0 for a single task."""
    title: str = ""
    """The task's name in tables."""


@dataclass(frozen=True)
class EntrySettings:
    """Everything that decides the settings of one table entry: one method on one task and backbone."""

    document: Document
    label: str
    spec: MethodSpec
    protocol: Protocol
    recipe: Mapping[str, Any]
    """The suite's shared recipe."""
    own: Mapping[str, Any]
    """The method's block in the suite."""
    exceptions: Mapping[int, ExceptionRule]
    """The exceptions that apply here, by their index in the suite file."""
    overrides: Mapping[str, Any]
    """From --set, e.g. {"recipe.steps": 300}."""
    task: TaskSpec
    backbone: str
    block: Literal["methods", "sources"] = "methods"
    """Which block of the suite file declares the row."""
    few_shot: bool = False
    is_encoder: bool = False
    """Whether the backbone only reads, so that answers are read off it by a linear head."""
    tuning: Tuning = field(default_factory=Tuning)


@dataclass(frozen=True)
class GridPoint:
    """One grid point with its complete recipe and hp, defaults filled in."""

    point: Point
    recipe: Recipe
    hp: dict[str, Any]
    init_from: tuple[SourceChoice, ...] = ()


def resolve_entry(entry: EntrySettings) -> tuple[list[GridPoint], Search | None]:
    """Return every grid point, validated, and how they are drawn. Raises UserError for anything unknown or impossible.

    Of a search by `tpe` these are the points that need no result; `resolve_points` makes the others. There is no search
    for a grid, also a whole one of at most `trials` points.
    """
    recipe, hp, space = _merge_and_find_space(entry)
    search = _search(entry, space)
    if any(isinstance(item, Range) for item in space.values()):
        _check_corners(entry, recipe, hp, space)
    points = search.first_points() if search else every_point(space)
    return [_resolve_point(entry, recipe, hp, point) for point in points], search


def resolve_points(entry: EntrySettings, points: Sequence[Point]) -> list[GridPoint]:
    """Return these points of an entry's space, validated. Raises UserError."""
    recipe, hp, _ = _merge_and_find_space(entry)
    return [_resolve_point(entry, recipe, hp, point) for point in points]


def num_points(entry: EntrySettings) -> int:
    """Return how many points will be made in all. Raises UserError for a malformed sweep or range.

    No point is made, so that a suite with a grid of billions is refused at once (see `cell_limit`).
    """
    space = _merge_and_find_space(entry)[-1]
    search = _search(entry, space)
    return search.trials if search else size_of(space) or 0


def _search(entry: EntrySettings, space: Space) -> Search | None:
    tuning, size = entry.tuning, size_of(space)
    if tuning.trials is None or (size is not None and size <= tuning.trials):
        return None
    strategy: Literal["random", "tpe"] = "tpe" if tuning.strategy == "tpe" else "random"
    return Search(strategy, space, tuning.trials, tuning.seed, tuning.startup, tuning.batch)


def _merge_and_find_space(entry: EntrySettings) -> tuple[SettingsLayer, SettingsLayer, Space]:
    """Return the merged recipe and hp of an entry, and the sweeps and ranges in both."""
    recipe, hp = _merge(entry)
    if entry.spec.is_rule:  # a rule such as majority trains nothing, so no recipe applies to it
        recipe = SettingsLayer()
    if entry.spec.answers_from_files:
        recipe.values = {name: value for name, value in recipe.values.items() if name in ANSWERING}
    recipe.values = whole_numbers(Recipe, recipe.values)
    if entry.spec.error is None:
        hp.values = whole_numbers(entry.spec.hp_type, hp.values)
    if "config" in hp.values:  # so that a cell is the same one where the method's file is read and not imported
        hp.values["config"] = without_notes(hp.values["config"])
    shown = f"{entry.block}.{entry.label}"
    space = find_space(recipe.values, recipe.origins, "recipe", "recipe")
    space |= find_space(hp.values, hp.origins, "hp", shown)
    for key, item in space.items():
        name = key.split(".")[-1]
        where, field_name = (recipe if key.startswith("recipe.") else hp).locate(*key.split(".")[1:]), key
        if key.startswith("hp."):
            field_name = f"{shown}.{key.removeprefix('hp.')}"
        if isinstance(item, Range) and not entry.tuning.draws:
            problem = f"takes a list of values, since tuning.strategy is {entry.tuning.strategy}"
            hint = "Write {sweep: [...]}, or search the range with tuning: {strategy: tpe, trials: 16}."
            raise UserError(problem, where=where, field=f"{field_name}.range", hint=hint)
        if name == INIT_FROM and (isinstance(item, Range) or entry.tuning.strategy == "tpe"):
            problem = "names cells, not numbers" if isinstance(item, Range) else "cannot be searched by tpe"
            raise UserError(problem, where=where, field=field_name, hint="Sweep it with strategy grid or random.")
    return recipe, hp, space


def _check_corners(entry: EntrySettings, recipe: SettingsLayer, hp: SettingsLayer, space: Space) -> None:
    """Raise UserError if a setting refuses an end of its range: also one that takes no numbers, or whole ones only."""
    ranges = [key for key, item in space.items() if isinstance(item, Range)]
    for point in corners(space):
        try:
            _resolve_point(entry, recipe, hp, point)
        except UserError as error:
            named = f".{error.field}"
            key = next((key for key in ranges if named.endswith(f".{key.partition('.')[2]}")), None)
            if key is None:
                raise
            problem = f"cannot be searched over this range: at {point[key]}, {error.problem}"
            raise UserError(problem, where=error.where, field=error.field, choices=error.choices) from None


def _merge(entry: EntrySettings) -> tuple[SettingsLayer, SettingsLayer]:
    """Merge the layers into a recipe and an hp, the weakest layer first (see the top of this file)."""
    document, label, recipe, hp = entry.document, entry.label, SettingsLayer(), SettingsLayer()
    file_name = f"methods/{entry.spec.name}.py"
    if entry.is_encoder:
        recipe.update(ENCODER_RECIPE, document, origin=f"encoder {entry.backbone}")
    recipe.update(entry.spec.defaults.recipe, document, origin=file_name)
    hp.update(entry.spec.defaults.hp, document, origin=file_name)
    for key, value in entry.spec.defaults.search.items() if entry.tuning.draws else ():
        block, _, name = key.partition(".")
        (recipe if block == "recipe" else hp).update({name: value}, document, origin=file_name)
    place = Scope(entry.task.name, entry.task.benchmark, entry.spec.name, entry.backbone, entry.few_shot)
    origin = f"protocol {entry.protocol.reference.name}"
    recipe.update(entry.protocol.recipe(place, entry.task.num_train), document, origin=origin)
    hp.update(entry.protocol.hp(place), document, origin=origin)
    recipe.update(entry.recipe, document, "recipe")
    own_recipe = entry.own.get("recipe", {})
    if not isinstance(own_recipe, dict):
        where = document.where(entry.block, label, "recipe")
        raise UserError("expected a mapping", where=where, field=f"{entry.block}.{label}.recipe")
    recipe.update(own_recipe, document, entry.block, label, "recipe")
    if ADAPTER_CONFIG in entry.own:
        # the row has no key for what the file holds, so the file is named beside the line
        origin = f"{document.where(entry.block, label, ADAPTER_CONFIG)} ({entry.own[ADAPTER_CONFIG]})"
        hp.update({"config": _adapter(entry)}, document, origin=origin)
    _merge_trained(entry, hp)
    own = {k: v for k, v in entry.own.items() if k not in ("recipe", "method", ADAPTER_CONFIG, ADAPTER)}
    hp.update(own, document, entry.block, label)
    for index, rule in entry.exceptions.items():
        recipe.update(rule.recipe, document, "exceptions", index, "recipe")
        hp.update(rule.hp, document, "exceptions", index, "hp")
    _merge_overrides(entry, recipe, hp)
    _require_config(entry, hp)
    return recipe, hp


def _require_config(entry: EntrySettings, hp: SettingsLayer) -> None:
    """Raise UserError for a row that trains an adapter of PEFT and says nothing of it."""
    spec, start = entry.spec, entry.own.get(INIT_FROM)
    given = bool(hp.values.get("config")) or (isinstance(start, dict) and ADAPTER in start)
    trains = not (spec.error or spec.is_rule or spec.answers_from_files)
    if given or not trains or "config" not in field_names(spec.hp_type):
        return
    where = entry.document.where(entry.block, entry.label)
    hint = f"Write config: {{peft_type: LORA, r: 8}}, or {ADAPTER_CONFIG}: FOLDER with an adapter_config.json."
    raise UserError("is missing: it names the adapter that is trained", where=where,
                    field=f"{entry.block}.{entry.label}.config", hint=hint)  # fmt: skip


def _adapter(entry: EntrySettings) -> dict[str, Any]:
    """Return the configuration that a row names by the folder of an adapter. Raises UserError."""
    where = entry.document.where(entry.block, entry.label, ADAPTER_CONFIG)
    field_name = f"{entry.block}.{entry.label}.{ADAPTER_CONFIG}"
    if not entry.spec.error and "config" not in field_names(entry.spec.hp_type):
        raise UserError(f"unknown; '{entry.spec.name}' takes no adapter of PEFT", where=where, field=field_name)
    return read_adapter(entry.own[ADAPTER_CONFIG], Path(entry.document.path).parent, where, field_name)


def _merge_trained(entry: EntrySettings, hp: SettingsLayer) -> None:
    """Take over the configuration of an adapter that was trained elsewhere, which the row answers with or starts from.

    A row that starts from one may write another type of PEFT in its own `config`, which then stands alone.
    """
    document, said, start = entry.document, entry.own.get(ADAPTER), entry.own.get(INIT_FROM)
    if said is not None:
        where, field_name = document.where(entry.block, entry.label, ADAPTER), f"{entry.block}.{entry.label}.{ADAPTER}"
        _require_answering(entry, where, field_name)
        choice = {ADAPTER: said} if isinstance(said, str) else _as_choice(said, where, field_name)
        found = find_adapter(choice[ADAPTER], Path(document.path).parent, where, field_name)
        hp.update({"config": found.to_answer()}, document, origin=_origin(where, found))
        hp.update({INIT_FROM: choice}, document, origin=where)
    elif isinstance(start, dict) and ADAPTER in start and "config" in field_names(entry.spec.hp_type):
        where, field_name = (
            document.where(entry.block, entry.label, INIT_FROM),
            f"{entry.block}.{entry.label}.{INIT_FROM}",
        )
        found = find_adapter(start[ADAPTER], Path(document.path).parent, where, field_name)
        own = entry.own.get("config")
        own_type = own.get("peft_type") if isinstance(own, dict) else None
        if found.to_train() and (own_type is None or str(own_type).upper() == found.kind):
            hp.update({"config": found.to_train()}, document, origin=_origin(where, found))


def _origin(where: str, found: TrainedAdapter) -> str:
    """Where a setting of an adapter's folder is written; the row has no key for it."""
    return f"{where} ({found.named})"


def _as_choice(said: Any, where: str, field_name: str) -> dict[str, Any]:
    """`{folder: ..., base_model: any}` as a source. Raises UserError for anything else."""
    if not isinstance(said, dict) or "folder" not in said or not set(said) <= {"folder", "base_model"}:
        problem = f"expected the path of a folder, or {{folder: ..., base_model: any}}, got {said!r}"
        raise UserError(problem, where=where, field=field_name)
    return {ADAPTER: said["folder"], **{key: value for key, value in said.items() if key != "folder"}}


def _require_answering(entry: EntrySettings, where: str, field_name: str) -> None:
    """Raise UserError for settings of a row that names an adapter to answer with, and for a method that trains."""
    if entry.spec.error is None and not entry.spec.answers_from_files:
        hint = f"Leave the method out, or go on training with {INIT_FROM}: {{adapter: ...}}."
        raise UserError(f"is scored without training, and '{entry.spec.name}' trains", where=where, field=field_name,
                        hint=hint)  # fmt: skip
    for key in entry.own:
        if key not in (ADAPTER, "method", "recipe"):
            place = entry.document.where(entry.block, entry.label, key)
            problem = f"cannot be set beside {ADAPTER}: the folder decides"
            raise UserError(problem, where=place, field=f"{entry.block}.{entry.label}.{key}")


def _merge_overrides(entry: EntrySettings, recipe: SettingsLayer, hp: SettingsLayer) -> None:
    """Apply --set. A key that names a method is applied last, so it wins over one for all methods."""
    for key, value in sorted(entry.overrides.items(), key=lambda item: item[0].startswith("methods.")):
        parts = key.split(".")
        if parts[0] == "recipe":
            recipe.update({parts[1]: value}, entry.document, origin=f"--set {key}")
        elif parts[0] == "methods" and parts[1] == entry.label:
            target = recipe if parts[2] == "recipe" else hp
            is_inside = len(parts) == 4 and target is hp  # methods.NAME.config.KEY
            made = {parts[2]: {parts[3]: value}} if is_inside else {parts[-1]: value}
            target.update(made, entry.document, origin=f"--set {key}")


def _resolve_point(entry: EntrySettings, recipe: SettingsLayer, hp: SettingsLayer, point: Point) -> GridPoint:
    """Validate one grid point, and fill in the settings that follow from the task and from the source cells."""
    recipe_values = with_point(recipe.values, point, "recipe")
    hp_values = with_point(hp.values, point, "hp")
    # filled in here, so that the length is part of the cell's identity
    if recipe_values.get("max_source_length") is None:
        recipe_values["max_source_length"] = entry.task.max_source_length
    shown = (entry.block, entry.label, "recipe") if entry.own.get("recipe") else ("recipe",)
    checked = Recipe.model_validate(validate_settings(Recipe, recipe_values, recipe.locate, shown))
    if entry.spec.error:  # the method file could not be imported, so its hp cannot be checked; its cells will fail
        return GridPoint(point, checked, hp_values)
    if entry.spec.is_rule:
        _refuse_settings(entry, hp)
        return GridPoint(point, checked, {})
    field_name = f"{entry.block}.{entry.label}.{INIT_FROM}"
    where = hp.origins.get(INIT_FROM) or entry.document.where(entry.block, entry.label)
    init_from = read_sources(hp_values.pop(INIT_FROM, None), where, field_name)
    check_num_sources(init_from, entry.spec, where, field_name)
    _fill_source_length(entry, hp, hp_values, checked.max_source_length or entry.task.max_source_length)
    _fill_number(entry, hp, hp_values, "num_sources", len(init_from))
    _fill_number(entry, hp, hp_values, "num_tasks", entry.task.num_parts or 1)
    _fill_number(entry, hp, hp_values, "num_steps", checked.steps)
    values = validate_settings(entry.spec.hp_type, hp_values, hp.locate, (entry.block, entry.label))
    return GridPoint(_with_title(point, init_from), checked, values, init_from)


def _with_title(point: Point, init_from: Sequence[SourceChoice]) -> Point:
    """Return the point with a swept `init_from` replaced by its title, which tables and results can show."""
    key = f"hp.{INIT_FROM}"
    return {(GRID_KEY if k == key else k): (sources_title(init_from) if k == key else v) for k, v in point.items()}


def _fill_number(entry: EntrySettings, hp: SettingsLayer, values: dict[str, Any], name: str, number: int) -> None:
    """Set an hp that counts sources or tasks to the number that the suite names. Raises UserError for another."""
    if name not in field_names(entry.spec.hp_type):
        return
    given = values.setdefault(name, number)
    if given != number:  # one tensor per source or task: with another number some would never be trained
        where, field_name = hp.locate(name), f"{entry.block}.{entry.label}.{name}"
        raise UserError(f"{given}, but the suite names {number}", where=where, field=field_name, hint="Leave it out.")


def _refuse_settings(entry: EntrySettings, hp: SettingsLayer) -> None:
    for name in hp.values:
        field_name = f"{entry.block}.{entry.label}.{name}"
        raise UserError("unknown; this method has no settings", where=hp.locate(name), field=field_name)


def _fill_source_length(entry: EntrySettings, hp: SettingsLayer, values: dict[str, Any], length: int) -> None:
    """Set `source_length` to the task's maximum: a table indexed by position needs a row for every token of a text."""
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
