"""Layouts by name: those that ship with the program, in `report/layouts/`, and those that a suite file declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from harness.declarations import Strict
from harness.errors import UserError, require_choice
from harness.report_declarations import FigureLayout, ReportBlock, TableLayout, Where
from harness.schema import Cell
from harness.validation import Locate, validate_model
from harness.yaml12 import Document, read_document

FOLDER = Path(__file__).parent / "report" / "layouts"
SETTINGS = sorted(
    {*Cell.model_fields, "benchmark", "few_shot"} - {"grid", "grid_index", "search_seed", "seed", "definition"}
)
"""First parts of the settings by which a layout can find its entries."""
DERIVED = "size"
"""What a figure can have on its x axis although no cell sets it."""

Layout = TypeVar("Layout", bound=Strict)


def table_names() -> list[str]:
    """Names of the shipped layouts of tables."""
    return _names("tables")


def figure_names() -> list[str]:
    """Names of the shipped layouts of figures."""
    return _names("figures")


def find_table(name: str, block: ReportBlock | None = None, where: str = "harness table") -> TableLayout:
    """The layout of a table, a suite's own before a shipped one. Raises UserError naming the choices."""
    own = block.define_tables if block else {}
    return own[name] if name in own else _load(TableLayout, "tables", name, own, where)


def find_figure(name: str, block: ReportBlock | None = None, where: str = "--figure") -> FigureLayout:
    """The layout of a figure, a suite's own before a shipped one. Raises UserError naming the choices."""
    own = block.define_figures if block else {}
    return own[name] if name in own else _load(FigureLayout, "figures", name, own, where)


def check_block(block: ReportBlock, document: Document) -> None:
    """Raise UserError if a suite names a layout that does not exist, or one of its own asks for an unknown setting."""
    kinds = (("tables", block.define_tables, table_names()), ("figures", block.define_figures, figure_names()))
    for kind, own, shipped in kinds:
        for index, name in enumerate(getattr(block, kind)):
            where = document.where("report", kind, index)
            require_choice(name, [*own, *shipped], kind=f"{kind.removesuffix('s')} layout", where=where)
        for name, layout in own.items():
            _check_settings(layout, lambda *key, k=kind, n=name: document.where("report", f"define_{k}", n, *key))


def _names(kind: str) -> list[str]:
    return sorted((path.stem for path in (FOLDER / kind).glob("*.yaml")), key=_in_order)


def _in_order(name: str) -> list[str | int]:
    """accept-2 before accept-10."""
    head, _, last = name.rpartition("-")
    return [head, int(last), ""] if last.isdigit() else [name, -1, ""]


def _load(model: type[Layout], kind: str, name: str, own: Mapping[str, object], where: str) -> Layout:
    require_choice(name, [*own, *_names(kind)], kind=f"{kind.removesuffix('s')} layout", where=where)
    document = read_document(FOLDER / kind / f"{name}.yaml")
    layout = validate_model(model, document.data, document.where)
    _check_settings(layout, document.where)
    return layout


def _check_settings(layout: Strict, locate: Locate) -> None:
    for key, name in _asked(layout):
        if name != DERIVED and name.split(".")[0] not in SETTINGS:
            part = name.split(".")[0]
            raise UserError("no setting of a cell", where=locate(*key), field=name, value=part, choices=SETTINGS)


def _asked(layout: Strict) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Each setting that a layout names, with the place where it does."""
    lists = {part: getattr(layout, part) for part in ("rows", "columns", "curves") if hasattr(layout, part)}
    wheres: list[tuple[tuple[str | int, ...], Where]] = [(("where",), getattr(layout, "where", {}))]
    wheres += [((part, i, "where"), line.where) for part, lines in lists.items() for i, line in enumerate(lines)]
    if isinstance(layout, FigureLayout) and layout.categories:
        panels = enumerate(layout.categories.panels)
        wheres += [(("categories", "panels", i, "where"), panel.where) for i, panel in panels]
    for place, where in wheres:
        yield from (((*place, name), name) for name in where)
    for part, lines in lists.items():
        yield from (((part, i, "over"), line.over) for i, line in enumerate(lines) if getattr(line, "over", None))
    if isinstance(layout, FigureLayout) and layout.x:
        yield ("x", "setting"), layout.x.setting
    if isinstance(layout, FigureLayout) and layout.categories:
        yield ("categories", "setting"), layout.categories.setting
