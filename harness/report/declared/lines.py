"""Expands the lines of a declared layout: a line with `over` becomes one row or column per value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.suite import Line, Show, TableLayout, Value, Where, spelled


@dataclass(frozen=True)
class Slot:
    """One row or one column of the table; see `report_declarations.Line` for the fields."""

    titles: tuple[str, ...]
    group: str
    where: Where
    show: Show | None
    metric: str | None
    mean_over: tuple[str, ...]
    published: str | None
    only_published: bool


def slots(lines: Sequence[Line], num_titles: int = 1) -> list[Slot]:
    """Return all rows, or all columns, that `lines` stand for, in order; each with `num_titles` titles."""
    return [slot for line in lines for slot in _of_line(line, num_titles)]


def _of_line(line: Line, num_titles: int) -> list[Slot]:
    if line.over is None:
        return [_slot(line, line.title, {}, num_titles, line.mean_over)]
    values = line.values
    named: Iterable[tuple[Value, str]] = (
        values.items() if isinstance(values, dict) else [(item, spelled(item)) for item in values]
    )
    made = [_slot(line, _insert(line.title, title), {line.over: value}, num_titles) for value, title in named]
    if line.average is not None:
        tasks = [str(value) for value, _ in named]
        made.append(_slot(line, _insert(line.title, line.average), {}, num_titles, tasks))
    return made


def _slot(line: Line, title: str | list[str], where: Where, num_titles: int, mean_over: Sequence[str] = ()) -> Slot:
    texts = [title] if isinstance(title, str) else title
    padded = (*texts, *[""] * (num_titles - len(texts)))
    return Slot(
        padded, line.group, {**line.where, **where}, line.show, line.metric, tuple(mean_over), line.published,
        line.only_published,
    )  # fmt: skip


def _insert(title: str | list[str], value: str) -> str | list[str]:
    """Put the title of a value where a line's title says {value}; an empty title becomes the value's."""
    if isinstance(title, str):
        return title.replace("{value}", value) if title else value
    return [part.replace("{value}", value) for part in title]


def keys_of(layout: TableLayout) -> set[str]:
    """Names of all settings that a layout asks for."""
    lines = [*layout.rows, *layout.columns]
    return {*layout.where, *(key for line in lines for key in line.where), *(line.over for line in lines if line.over)}
