"""Finds the layout of a table or figure by its name.

A layout is declared in the `report:` block of a suite file, or ships with the program in `suite/report_layouts/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from harness.errors import UserError, require_choice
from harness.suite.blocks import Strict
from harness.suite.cell import Cell
from harness.suite.report_block import FigureLayout, ReportBlock, TableLayout, Where
from harness.validation import LocateKey, validate_model
from harness.yaml_lines import Document, read_document

FOLDER = Path(__file__).parent / "report_layouts"
SETTINGS = sorted(
    {*Cell.model_fields, "benchmark", "few_shot"} - {"grid", "grid_index", "search_seed", "study", "seed", "definition"}
)
"""What a layout may ask for: names of settings, or what stands before their first dot (`hp` of `hp.rank`).

Left out are the fields in which the runs of one table entry differ (seed, grid point), and the text of a declared task.
"""
DERIVED = "size"
"""The number of parameters of the backbone: a figure may have it on its x axis although no cell sets it."""

Layout = TypeVar("Layout", bound=Strict)


def table_names() -> list[str]:
    """Names of the table layouts that ship with the program."""
    return _names("tables")


def figure_names() -> list[str]:
    """Names of the figure layouts that ship with the program."""
    return _names("figures")


def find_table(name: str, block: ReportBlock | None = None, where: str = "harness table") -> TableLayout:
    """The table layout `name`: the one in a suite's `report` block, else the shipped one.

    Raises UserError naming the choices if there is neither.
    """
    own = block.define_tables if block else {}
    return own[name] if name in own else _load(TableLayout, "tables", name, own, where)


def find_figure(name: str, block: ReportBlock | None = None, where: str = "--figure") -> FigureLayout:
    """The figure layout `name`: the one in a suite's `report` block, else the shipped one.

    Raises UserError naming the choices if there is neither.
    """
    own = block.define_figures if block else {}
    return own[name] if name in own else _load(FigureLayout, "figures", name, own, where)


def check_block(block: ReportBlock, document: Document) -> None:
    """Check the `report` block of a suite file before anything is trained.

    Raises UserError if it names a layout that does not exist, or declares one that asks for an unknown setting.
    """
    kinds = (("tables", block.define_tables, table_names()), ("figures", block.define_figures, figure_names()))
    for kind, own, shipped in kinds:
        for index, name in enumerate(getattr(block, kind)):
            where = document.where("report", kind, index)
            require_choice(name, [*own, *shipped], kind=f"{kind.removesuffix('s')} layout", where=where)
        for name, layout in own.items():
            _check_settings(layout, lambda *key, k=kind, n=name: document.where("report", f"define_{k}", n, *key))


def _names(kind: str) -> list[str]:
    return sorted((path.stem for path in (FOLDER / kind).glob("*.yaml")), key=_natural_order)


def _natural_order(name: str) -> list[str | int]:
    """Sort key that puts accept-2 before accept-10."""
    head, _, last = name.rpartition("-")
    return [head, int(last), ""] if last.isdigit() else [name, -1, ""]


def _load(model: type[Layout], kind: str, name: str, own: Mapping[str, object], where: str) -> Layout:
    require_choice(name, [*own, *_names(kind)], kind=f"{kind.removesuffix('s')} layout", where=where)
    document = read_document(FOLDER / kind / f"{name}.yaml")
    layout = validate_model(model, document.data, document.where)
    _check_settings(layout, document.where)
    return layout


def _check_settings(layout: Strict, locate: LocateKey) -> None:
    # a misspelt setting would match no result, and the table would be empty without a word
    for key, name in _settings_asked(layout):
        if name != DERIVED and name.split(".")[0] not in SETTINGS:
            part = name.split(".")[0]
            raise UserError("no setting of a cell", where=locate(*key), field=name, value=part, choices=SETTINGS)


def _settings_asked(layout: Strict) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """(keys that lead to it in the YAML file, name) of each setting that a layout asks for."""
    lists = {part: getattr(layout, part) for part in ("rows", "columns", "curves") if hasattr(layout, part)}
    wheres: list[tuple[tuple[str | int, ...], Where]] = [(("where",), getattr(layout, "where", {}))]
    wheres += [((part, i, "where"), line.where) for part, lines in lists.items() for i, line in enumerate(lines)]
    if isinstance(layout, FigureLayout) and layout.categories:
        panels = enumerate(layout.categories.panels)
        wheres += [(("categories", "panels", i, "where"), panel.where) for i, panel in panels]
    for path, where in wheres:
        yield from (((*path, name), name) for name in where)
    for part, lines in lists.items():
        yield from (((part, i, "over"), line.over) for i, line in enumerate(lines) if getattr(line, "over", None))
    if isinstance(layout, FigureLayout) and layout.x:
        yield ("x", "setting"), layout.x.setting
    if isinstance(layout, FigureLayout) and layout.categories:
        yield ("categories", "setting"), layout.categories.setting
