"""The settings of a cell as one flat mapping, to say in what two cells differ."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from harness.suite import NOT_IDENTITY, Cell

GRID_PLACE = NOT_IDENTITY - {"suite", "protocol"}
"""Fields of a cell that say where it stands in a table and a search, and set nothing."""


def flat_settings(cell: Cell, without: Collection[str] = ()) -> dict[str, Any]:
    """Return what was resolved for a cell, its place and the fields in `without` left out: path of a setting -> value.

    Mappings are unfolded ("recipe.lr"); lists are values.
    """
    return dict(_leaves(cell.model_dump(mode="json", exclude=GRID_PLACE | set(without)), ()))


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ; a key that one side lacks has None there."""
    return [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    else:
        yield ".".join(path), value
