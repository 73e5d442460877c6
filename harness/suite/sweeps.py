"""Sweeps: `{sweep: [...]}` in a suite's settings, the space that sweeps and ranges span, and all points of a grid.

`lr: {sweep: [0.1, 0.3]}` stands for two grid points. Several sweeps are crossed: each value of one with each of the
others. A setting may hold a range instead (`ranges`); `search` draws points from both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from harness.errors import UserError
from harness.suite.ranges import Range, read_range

Space = dict[str, list[Any] | Range]
"""Searched setting -> the values to try, or their range, e.g. {"recipe.lr": [0.1, 0.3], "hp.rank": [4, 8]}."""
Point = dict[str, Any]
"""One point of a space: swept setting -> its value there, e.g. {"recipe.lr": 0.3, "hp.rank": 4}."""


def is_searched(value: Any) -> bool:
    """Whether a value stands for several: a sweep or a range."""
    return isinstance(value, dict) and ("sweep" in value or "range" in value)


def find_space(values: Mapping[str, Any], origins: Mapping[str, str], block: str, shown: str) -> Space:
    """Return the sweeps and ranges among `values`, named `block.setting`. Raises UserError for a malformed one.

    `origins` says where each setting was written, `shown` is how messages name the block.
    """
    found: Space = {}
    for name, value in values.items():
        if is_searched(value):
            found[f"{block}.{name}"] = _values(value, origins[name], f"{shown}.{name}")
        elif isinstance(value, dict):  # a setting that is a mapping: each of its values may be searched
            for key, item in value.items():
                if is_searched(item):
                    path = f"{name}.{key}"
                    where = origins.get(path, origins[name])
                    found[f"{block}.{path}"] = _values(item, where, f"{shown}.{path}")
    return found


def with_point(values: Mapping[str, Any], point: Point, block: str) -> dict[str, Any]:
    """Return the settings of one block, "recipe" or "hp", with what a grid point sets in it."""
    made = dict(values)
    for key, value in point.items():
        of, _, name = key.partition(".")
        if of == block:
            set_path(made, name, value)
    return made


def set_path(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a setting, or with a name such as `config.r` one value of a setting that is a mapping.

    The mapping is copied, since other grid points hold the same one.
    """
    setting, _, key = name.partition(".")
    if key and isinstance(values.get(setting), dict):
        values[setting] = {**values[setting], key: value}
    else:
        values[name] = value


def without_path(values: dict[str, Any], name: str) -> None:
    """Take out what `set_path` sets."""
    setting, _, key = name.partition(".")
    if key and isinstance(values.get(setting), dict):
        values[setting] = {k: v for k, v in values[setting].items() if k != key}
    else:
        values.pop(name, None)


def _values(value: Mapping[str, Any], where: str, field: str) -> list[Any] | Range:
    return read_range(value, where, field) if "range" in value else _swept_values(value, where, f"{field}.sweep")


def _swept_values(sweep: Mapping[str, Any], where: str, field: str) -> list[Any]:
    values = sweep["sweep"]
    if set(sweep) != {"sweep"}:
        raise UserError("takes no other key beside it", where=where, field=field)
    if not isinstance(values, list):
        raise UserError(f"expected a list of the values to try, got {values}", where=where, field=field)
    if not values:
        raise UserError("is empty; a sweep lists the values to try", where=where, field=field)
    if any(item is None for item in values):
        raise UserError("lists an empty value", where=where, field=field)
    # a value listed twice would be trained twice and could win twice
    if len({_hashable(item) for item in values}) < len(values):
        raise UserError(f"lists a value twice: {values}", where=where, field=field)
    return values


def _hashable(value: Any) -> Any:
    """Return an equal-comparing stand-in for plain data that can be put into a set."""
    if isinstance(value, dict):
        return frozenset((key, _hashable(item)) for key, item in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def size_of(space: Mapping[str, list[Any] | Range]) -> int | None:
    """Return how many points a space holds; None if a range of it is not counted."""
    sizes = [item.size if isinstance(item, Range) else len(item) for item in space.values()]
    return math.prod(size for size in sizes if size) if None not in sizes else None


def every_point(space: Mapping[str, list[Any] | Range]) -> list[Point]:
    """Return all points of a space that can be counted. The last setting varies fastest; an empty space has one."""
    axes = [[*range(int(item.low), int(item.high) + 1)] if isinstance(item, Range) else item for item in space.values()]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]
