"""Protocols: named sets of rules under which scores are made, each rule with its reason, read from `protocols/*.yaml`.

Papers and their code contradict each other; a protocol decides each such question (docs/protocol.md). It gives defaults
for the recipe, for methods' hp and for tasks. A suite's own settings win over it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import UserError, require_choice
from harness.suite.blocks import ProtocolReference
from harness.suite.file_schema import MAX_SEED, checked_text
from harness.yaml_lines import read_document

FOLDER = Path(__file__).parent / "protocols"
DEFAULT_PROTOCOL = "accept-2024"
Kind = Literal["integer", "number", "grid", "choice", "text", "texts", "general text", "recorded"]
MOST_TEXT = 10_000
"""Characters of a value that is a text."""


@dataclass(frozen=True)
class Scope:
    """What decides whether a key acts on a cell; methods and backbones have their names in results."""

    task: str
    benchmark: str
    method: str = ""
    backbone: str = ""
    few_shot: bool = False


@dataclass(frozen=True)
class ProtocolKey:
    """One question that a protocol decides, and the cells that it is about; empty bounds mean all cells."""

    name: str
    rows: tuple[int, ...]
    """Numbers of the contradictions between papers and code that it settles, as docs/protocol.md lists them."""
    about: str
    kind: Kind
    sets: str = ""
    """The setting that takes the key's value, as "recipe.lr", "hp.init", "task.prefix" or "seeds"."""
    choices: Mapping[str, Mapping[str, Any]] | None = None
    """For a key of kind "choice": value -> the settings it stands for."""
    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    minimum: int = 1
    """Smallest value of an integer."""
    maximum: int | None = None
    """Largest value of an integer."""
    unset: str | None = None
    """A word that stands in place of a value and sets nothing, as "task" where each task says it itself."""
    few_shot: bool = False
    """Whether it acts on few-shot cells only."""

    @property
    def acts_on(self) -> str:
        """The settings that the key sets, for listings."""
        if self.kind == "recorded":
            return "recorded only"
        targets = [self.sets] if self.sets else sorted({t for effect in (self.choices or {}).values() for t in effect})
        return ", ".join(targets)

    def concerns(self, place: Scope) -> bool:
        """Return whether the key acts on such cells."""
        # a task is meant by its own name or by its benchmark's
        here = not (self.tasks or self.benchmarks) or place.task in self.tasks or place.benchmark in self.benchmarks
        # methods and backbones bound it further: all bounds have to allow the cell
        bounds = ((place.method, self.methods), (place.backbone, self.backbones))
        here = here and (place.few_shot or not self.few_shot)
        return here and all(not allowed or name in allowed for name, allowed in bounds)

    def effects(self, value: Any) -> Mapping[str, Any]:
        """Return setting -> value for a value of this key; a grid becomes a sweep."""
        if self.choices is not None:
            return self.choices[value]
        if not self.sets or (self.unset is not None and value == self.unset):
            return {}
        # seeds are a list that is used whole, every other grid is searched
        return {self.sets: {"sweep": value} if self.kind == "grid" and self.sets != "seeds" else value}

    def checked(self, value: Any, where: str) -> Any:
        """Return `value` if the key can have it; raise UserError otherwise."""
        if self.kind == "recorded":
            raise UserError("is recorded only; nothing here varies it", where=where, field=f"protocol.{self.name}")
        if self.choices is not None:
            return require_choice(str(value), self.choices, kind=f"value of protocol.{self.name}", where=where)
        if self.unset is not None and value == self.unset:
            return value
        if self.kind == "texts":
            return _checked_texts(value, f"protocol.{self.name}", where)
        if self.kind == "text":
            if not isinstance(value, str) or len(value) > MOST_TEXT:
                problem = f"expected a text of at most {MOST_TEXT:,} characters, got {value!r:.60}"
                raise UserError(problem, where=where, field=f"protocol.{self.name}")
            return value
        if self.kind == "general text":
            try:
                return checked_text(str(value))
            except ValueError as error:
                raise UserError(str(error), where=where, field=f"protocol.{self.name}") from None
        items = value if self.kind == "grid" else [value]
        wanted = int if self.kind == "integer" or self.sets == "seeds" else (int, float)
        if wanted is int and isinstance(items, list):  # 4.0 is 4, as everywhere in a suite
            items = [int(item) if isinstance(item, float) and item.is_integer() else item for item in items]
            value = items if self.kind == "grid" else items[0]
        valid = isinstance(items, list) and items and all(_is_number(item, wanted) for item in items)
        # < inf also refuses NaN, which compares as false
        lowest = self.minimum if self.kind == "integer" else 0
        highest = math.inf if self.maximum is None else self.maximum + 1
        valid = valid and all(lowest <= item < highest for item in items)
        if valid and self.sets == "seeds":
            valid = len(set(items)) == len(items) and all(0 <= item < MAX_SEED for item in items)
        if not valid:
            form = {
                "integer": f"an integer of at least {self.minimum}"
                if self.maximum is None
                else f"an integer from {self.minimum} to {self.maximum}",
                "number": "a number of at least 0",
                "grid": "a list of numbers",
            }[self.kind]
            form = "a list of different seeds" if self.sets == "seeds" else form
            form += "" if self.unset is None else f", or '{self.unset}'"
            raise UserError(f"expected {form}, got {value!r}", where=where, field=f"protocol.{self.name}")
        return value


@dataclass(frozen=True)
class Protocol:
    """A protocol with a suite's overrides: the value of every key, and the reason for it."""

    reference: ProtocolReference
    description: str
    values: Mapping[str, Any]
    reasons: Mapping[str, str]

    def recipe(self, place: Scope, num_train: int | None) -> dict[str, Any]:
        """Return recipe settings for a task with `num_train` published training rows.

        Large tasks get more steps, as in the papers; a task whose size is not known counts as small.
        """
        found = self._settings("recipe.", place)
        is_large = num_train is not None and num_train >= self.values["steps.threshold"]
        # a key that sets recipe.steps for certain cells, as for few-shot ones, wins over both numbers
        return {"steps": self.values["steps.large" if is_large else "steps.small"], **found}

    def hp(self, place: Scope) -> dict[str, Any]:
        """Return settings of the method itself. A key for one method wins over a key for all."""
        return {**self._settings("hp.", place), **self._settings(f"methods.{place.method}.", place)}

    def task_fields(self, task: str, benchmark: str) -> dict[str, Any]:
        """Return the fields of the task that the protocol sets."""
        return self._settings("task.", Scope(task, benchmark))

    def seeds(self, place: Scope) -> list[int]:
        """Return the training seeds of a suite that names none."""
        return list(self._settings("seeds", place)[""])

    @property
    def draw_rule(self) -> str:
        """The rule by which few-shot rows are drawn if a suite names none."""
        return str(self.values["fewshot.sampling"])

    def acting(self, place: Scope) -> dict[str, Any]:
        """Return the keys that act on a cell, with their values. A suite's own settings may have won over them."""
        return {
            k.name: self.values[k.name] for k in protocol_keys().values() if k.kind != "recorded" and k.concerns(place)
        }

    def _settings(self, prefix: str, place: Scope) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, settings in self._under(prefix):
            if key.concerns(place):
                found |= settings
        return found

    def _under(self, prefix: str) -> list[tuple[ProtocolKey, dict[str, Any]]]:
        """The keys that set what begins with `prefix`, in their order, each with these settings and their values.

        A grid asks for the same few prefixes once for every cell.
        """
        if prefix not in self._known_effects:
            all_keys = protocol_keys().values()
            pairs = [(key, key.effects(self.values[key.name])) for key in all_keys]
            found = [(key, {t.removeprefix(prefix): v for t, v in effects.items() if t.startswith(prefix)})
                     for key, effects in pairs]  # fmt: skip
            self._known_effects[prefix] = [(key, settings) for key, settings in found if settings]
        return self._known_effects[prefix]

    @functools.cached_property
    def _known_effects(self) -> dict[str, list[tuple[ProtocolKey, dict[str, Any]]]]:
        """By prefix, what `_under` has found."""
        return {}


@functools.cache
def protocol_keys() -> Mapping[str, ProtocolKey]:
    """Return every key by name, in the order of the contradictions that they settle."""
    document = read_document(FOLDER / "keys.yaml")
    return {name: _key(name, entry) for name, entry in document.data["keys"].items()}


def protocol_names() -> list[str]:
    """Return the names of the shipped protocols."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "keys")


def resolve_protocol(reference: ProtocolReference, where: str = "") -> Protocol:
    """Read a protocol and apply the overrides. Raises UserError for an unknown name, key or value."""
    require_choice(reference.name, protocol_names(), kind="protocol", where=where)
    data = _read_protocol(reference.name)
    # a suite, or a stored cell, that names a version means the values which that version had
    if reference.version not in (None, data["version"]):
        problem = f"protocol {reference.name} has version {data['version']} here, not {reference.version}"
        raise UserError(problem, where=where, field="protocol")
    known = protocol_keys()
    values = {name: data["values"][name][0] for name in known}
    for name, value in reference.overrides.items():
        require_choice(name, known, kind="protocol key", where=where)
        values[name] = known[name].checked(value, where)
    changed = {name: values[name] for name in reference.overrides}
    exact = ProtocolReference(name=reference.name, version=data["version"], overrides=changed)
    reasons = {name: "set by the suite" if name in changed else data["values"][name][1] for name in known}
    return Protocol(exact, data["description"], values, reasons)


@functools.cache
def _read_protocol(name: str) -> Mapping[str, Any]:
    """Return the content of a shipped protocol, in which each value is [value, reason]."""
    return read_document(FOLDER / f"{name}.yaml").data


def protocol_values(protocol: Protocol) -> list[dict[str, Any]]:
    """Return one row per key, for listings."""
    return [
        {
            "key": key.name,
            "value": protocol.values[key.name],
            "reason": protocol.reasons[key.name],
            "acts on": key.acts_on,
            "rows": list(key.rows),
        }
        for key in protocol_keys().values()
    ]


def _key(name: str, entry: Mapping[str, Any]) -> ProtocolKey:
    kind: Kind = "recorded" if entry.get("recorded") else "choice" if "choices" in entry else entry["kind"]
    bounds: dict[str, Any] = {
        part: tuple(entry.get(part, ())) for part in ("methods", "tasks", "benchmarks", "backbones")
    }
    numbers = {part: entry[part] for part in ("minimum", "maximum", "unset") if part in entry}
    sets, choices = entry.get("sets", ""), entry.get("choices")
    few_shot = entry.get("few_shot", False)
    about, rows = entry["about"], tuple(entry["rows"])
    return ProtocolKey(name, rows, about, kind, sets, choices, **bounds, **numbers, few_shot=few_shot)


def _checked_texts(value: Any, field: str, where: str) -> list[str]:
    """Return `value` if it is a list of texts, none of them empty; raise UserError otherwise."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"expected a list of texts, or 'task', got {value!r}", where=where, field=field)
    require_stop_texts(value, where, field)
    return value


def require_stop_texts(texts: Sequence[str], where: str, field: str) -> None:
    """Raise UserError for an empty stop text: every answer holds it, so all would be empty."""
    if "" in texts:
        problem = "lists an empty text, which every answer holds at its first place"
        raise UserError(problem, where=where, field=field)


def _is_number(value: Any, kinds: type | tuple[type, ...]) -> bool:
    # True and False are integers to Python
    return isinstance(value, kinds) and not isinstance(value, bool)
