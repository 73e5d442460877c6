"""Class names that are stored with the data, and rows in which they replace the ids.

`datasets` stores the features of a table with it: in the metadata of a Parquet file, in a saved folder, on the hub. A
column of type ClassLabel holds ids, and only its feature says what an id means. Two files may order the same names
differently, so ids alone could swap two classes without a sign.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from harness.errors import UserError

METADATA_KEY = b"huggingface"
"""Key under which `datasets` writes the features into the schema of an Arrow table."""

Features = Mapping[str, Any]
"""Column -> feature, as `datasets.Features.to_dict` writes it, for columns that hold classes."""


class ClassName(str):
    """The name of a class, with the id that stood in the data and all names that were stored there."""

    id: int
    names: tuple[str, ...]

    def __new__(cls, id: int, names: tuple[str, ...]) -> ClassName:
        made = super().__new__(cls, names[id])
        made.id, made.names = id, names
        return made


def class_features(features: Mapping[str, Any]) -> Features:
    """Return those of `features` that hold classes with names, at any depth."""
    return {column: feature for column, feature in features.items() if _holds_classes(feature)}


def metadata_features(metadata: Mapping[bytes, bytes] | None, where: str) -> Features:
    """Return the class features in the metadata of an Arrow schema. Raises UserError if they cannot be read."""
    if not metadata or METADATA_KEY not in metadata:
        return {}
    try:
        features = json.loads(metadata[METADATA_KEY])["info"]["features"]
        return class_features(features) if features else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        problem = "holds metadata of the library datasets that cannot be read, so names of classes may be lost"
        raise UserError(problem, where=where) from None


def name_classes(row: dict[str, Any], features: Features, where: str) -> dict[str, Any]:
    """Return the row with class names instead of ids. Raises UserError for an id that has no name."""
    named = {column: _named(row[column], features[column], where, column) for column in features if column in row}
    return {**row, **named} if named else row


def _named(value: Any, feature: Any, where: str, column: str) -> Any:
    if value is None or not _holds_classes(feature):
        return value
    if isinstance(value, list):
        inner = _item(feature)
        return [_named(item, inner, where, column) for item in value]
    if _is_class(feature):
        return _name_of(value, _names(feature), where, column)
    inner = _item(feature)
    if isinstance(value, dict) and isinstance(inner, Mapping):  # a sequence of structs is stored as lists, by key
        return {key: _named(item, inner.get(key), where, column) for key, item in value.items()}
    return value


def _name_of(value: Any, names: tuple[str, ...], where: str, column: str) -> Any:
    if isinstance(value, str) or (not isinstance(value, int) and value != value):
        return value  # a name already, or the NaN of a missing value
    if value == -1:
        return value  # `datasets` writes -1 where a label is hidden
    if value not in range(len(names)):
        problem = f"class id {value!r} has no name; stored with the data are {', '.join(names)}"
        raise UserError(problem, where=where, field=column)
    return ClassName(int(value), names)


def _item(feature: Any) -> Any:
    """Return the feature of a list's items; any other feature as it is."""
    if isinstance(feature, list):
        return feature[0] if feature else None
    return feature["feature"] if isinstance(feature, Mapping) and _kind(feature) and "feature" in feature else feature


def _kind(feature: Mapping[str, Any]) -> str:
    """Return "ClassLabel", "Sequence", "Value" and so on; "" for a struct, whose keys are columns."""
    kind = feature.get("_type")
    return kind if isinstance(kind, str) else ""


def _is_class(feature: Any) -> bool:
    return isinstance(feature, Mapping) and _kind(feature) == "ClassLabel" and bool(_names(feature))


def _names(feature: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names in the order of their ids. Dataset cards of the hub write them as a mapping from id to name."""
    names = feature.get("names") or ()
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(map(str, names))


def _holds_classes(feature: Any) -> bool:
    if _is_class(feature):
        return True
    inner = _item(feature)
    if inner is not feature:
        return _holds_classes(inner)
    is_struct = isinstance(feature, Mapping) and not _kind(feature)
    return is_struct and any(_holds_classes(item) for item in feature.values())
