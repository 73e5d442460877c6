"""Validation with pydantic whose findings become one UserError: file, line, field, value, nearest match."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError

from harness.errors import SettingError, UserError

Model = TypeVar("Model", bound=BaseModel)
LocateKey = Callable[..., str]
"""Returns `file:line` for a key path."""


def validate_model(model: type[Model], data: Any, locate: LocateKey) -> Model:
    """Validate plain data as `model`. Raises UserError for the first finding.

    4.0 stands for 4 where a whole number is expected, as in JSON Schema.
    """
    # as JSON: strict models take a list for a tuple and 1 for 1.0 from JSON, and not from Python data
    text = json.dumps(data, allow_nan=True)
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        found, told = error, json.loads(text)
    # only once something is wrong: nearly every file is right as it stands
    if sum(_make_whole(told, item) for item in found.errors(include_url=False)):
        try:
            return model.model_validate_json(json.dumps(told, allow_nan=True))
        except ValidationError as error:
            found = error
    raise _user_error(found, model, locate, ()) from None


def _make_whole(data: Any, finding: Mapping[str, Any]) -> bool:
    """Write 4.0 in `data` as 4 where pydantic has missed a whole number; whether that was so."""
    *way, last = finding["loc"] or ("",)
    if not finding["type"].startswith("int_") or not _is_whole(finding["input"]):
        return False
    try:
        for key in way:
            data = data[key]
        data[last] = int(data[last])
    except (KeyError, IndexError, TypeError, ValueError):  # of a choice of types pydantic names the branch
        return False
    return True


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


def whole_numbers(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with 4.0 as 4 where the field of `kind`, a dataclass or pydantic model, is a whole number.

    Values of a sweep and both ends of a range count too.
    """
    whole = _whole_fields(kind)
    return {name: _as_whole(value) if name in whole else value for name, value in values.items()}


@functools.cache
def _whole_fields(kind: type) -> frozenset[str]:
    """Return the fields of a dataclass or pydantic model that take whole numbers alone.

    Kept, since a plan asks for every entry, and looking the types up took longer than all the rest of it.
    """
    hints = get_type_hints(kind) if dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel) else {}
    return frozenset(name for name, hint in hints.items() if _is_integer(hint))


def _is_integer(hint: Any) -> bool:
    """Whether a field takes whole numbers, and no others."""
    kinds = [hint]
    for each in kinds:
        kinds += get_args(each)
    return int in kinds and float not in kinds


def _as_whole(value: Any) -> Any:
    if _is_whole(value):
        return int(value)
    if isinstance(value, dict) and isinstance(value.get("sweep"), list):
        return {**value, "sweep": [int(item) if _is_whole(item) else item for item in value["sweep"]]}
    if isinstance(value, dict) and isinstance(value.get("range"), list):
        ends = value["range"]
        is_whole = all(_is_whole(end) or isinstance(end, int) for end in ends)
        return {**value, "range": [int(end) if _is_whole(end) else end for end in ends]} if is_whole else value
    return value


def validate_settings(
    kind: type, values: Mapping[str, Any], locate: LocateKey, prefix: tuple[str, ...]
) -> dict[str, Any]:
    """Validate a method's hp or a recipe, and return every field with defaults filled in.

    `kind` is a dataclass or a pydantic model. Raises UserError that names `prefix` and the field.
    """
    names = field_names(kind)
    # checked here, since pydantic ignores unknown keys of a plain dataclass: `ranks: 8` would train the default rank
    for name, value in values.items():
        if name not in names:
            raise UserError(
                "unknown",
                where=locate(*prefix, name),
                field=".".join((*prefix, name)),
                value=name,
                choices=names,
            )
        if isinstance(value, dict) and not _is_mapping(kind, name):
            where, field, key = locate(*prefix, name), ".".join((*prefix, name)), next(iter(value), "")
            raise UserError(f"expected a value, {{sweep: [...]}} or {{range: [low, high]}}, got {_short(value)}",
                            where=where, field=field, value=str(key), choices=["sweep", "range"])  # fmt: skip
    typed = _adapter(kind)
    try:
        checked = typed.validate_json(json.dumps(dict(values)), strict=True)
    except ValidationError as error:
        raise _user_error(error, kind, locate, prefix) from None
    dumped = typed.dump_python(checked, mode="json")
    assert isinstance(dumped, dict)
    return dumped


@functools.cache
def _is_mapping(kind: type, name: str) -> bool:
    """Whether a setting is declared as a mapping, so that its value may be one."""
    return get_origin(get_type_hints(kind).get(name)) is dict


@functools.cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    """Return pydantic's validator for a class. Kept, since a grid validates the same class at each of its points."""
    return TypeAdapter(kind)


def field_names(kind: type) -> list[str]:
    """Return the names of the fields of a dataclass or pydantic model."""
    if dataclasses.is_dataclass(kind):
        return [item.name for item in dataclasses.fields(kind)]
    assert issubclass(kind, BaseModel)
    return list(kind.model_fields)


def _user_error(error: ValidationError, kind: type, locate: LocateKey, prefix: tuple[str, ...]) -> UserError:
    errors = error.errors(include_url=False)
    judged = next((item["ctx"]["error"] for item in errors if "error" in item.get("ctx", {})), None)
    if isinstance(judged, SettingError):
        path = (*prefix, *judged.key.split("."))
        return UserError(judged.problem, where=locate(*path), field=".".join(path), value=judged.value,
                         choices=judged.choices)  # fmt: skip
    # a misspelt key is missing under its right name too; the misspelling is what helps
    found = next((item for item in errors if item["type"] == "extra_forbidden"), errors[0])
    key = tuple(found["loc"])
    if key and _is_branch(key[-1]):  # of a choice of types pydantic names the branch: our field stands before it
        key = key[:-1]
        branches = [item for item in errors if tuple(item["loc"])[:-1] == key]
        words = list(dict.fromkeys(_PLAIN.get(item["type"], item["msg"]) for item in branches))
        message = " or ".join(word.removeprefix("Input should be ").removeprefix("expected ") for word in words)
        field = ".".join((*prefix, *map(str, key)))
        return UserError(f"expected {message}, got {_short(found['input'])}", where=locate(*prefix, *key), field=field)
    path = (*prefix, *(str(part) for part in key))
    where, field = locate(*prefix, *key), ".".join(path)
    if found["type"] == "extra_forbidden":
        owner = _model_at(kind, key[:-1])
        return UserError("unknown", where=where, field=field, value=str(key[-1]), choices=field_names(owner or kind))
    if found["type"] == "missing":
        return UserError("is missing", where=where, field=field)
    message = _PLAIN.get(found["type"], found["msg"].removeprefix("Value error, "))
    if found["type"] == "too_short":
        message = f"lists too few; at least {found['ctx']['min_length']} needed"
    message = message[0].lower() + message[1:]
    if found["type"] == "value_error" and not key and message.split()[0] in field_names(kind):
        # a check of the whole class that names its field first, as require_positive does
        where, field = locate(*prefix, message.split()[0]), ".".join((*prefix, message.split()[0]))
    choices = _literal_choices(kind, key)
    is_of_block = found["type"] == "value_error" and isinstance(found["input"], dict)
    shown = "" if is_of_block else f", got {_short(found['input'])}"
    value = found["input"] if isinstance(found["input"], str) else None
    if choices:
        return UserError(f"unknown value{shown}", where=where, field=field, value=value, choices=choices)
    return UserError(message + shown, where=where, field=field or None)


def _is_branch(part: str | int) -> bool:
    """Whether a part of pydantic's location is no key of the user's but a type of a union, e.g. `literal['all']`."""
    return isinstance(part, str) and re.match(r"(literal\[|constrained-|(int|float|str|bool|none)$)", part) is not None


_PLAIN = {
    "list_type": "expected a list",
    "dict_type": "expected a mapping",
    "int_type": "expected an integer",
    "int_from_float": "expected an integer",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "string_type": "expected a text",
    "string_pattern_mismatch": "may hold only letters, digits and _ . + -, for it names a folder",
}
"""Pydantic's type of finding -> our words, for the findings that a beginner meets first."""


def _model_at(kind: type, key: Iterable[str | int]) -> type | None:
    """Return the model that holds `key`, through nested models, lists and mappings of models; None if there is none."""
    current: Any = kind
    for part in key:
        if get_origin(current) in (list, dict):  # the part is a place in the list, or a name in the mapping
            current = get_args(current)[-1]
            continue
        hints = get_type_hints(current) if isinstance(current, type) else {}
        current = _without_none(hints.get(str(part)))
    return current if isinstance(current, type) else None


def _without_none(hint: Any) -> Any:
    """Return `X` of `X | None`; any other hint as it is."""
    parts = [part for part in get_args(hint) if part is not type(None)]
    return parts[0] if len(parts) == 1 and type(None) in get_args(hint) else hint


def _literal_choices(kind: type, key: tuple[str | int, ...]) -> list[str]:
    """Return the values that a field of type Literal allows; nothing for any other field."""
    if not key:
        return []
    owner = _model_at(kind, key[:-1])
    hint = _without_none(get_type_hints(owner).get(str(key[-1]))) if owner else None
    return [str(choice) for choice in get_args(hint)] if str(get_origin(hint)) == "typing.Literal" else []


def _short(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
