"""What `harness table` and `harness figures` do with declared layouts."""

from __future__ import annotations

from collections.abc import Sequence

from harness.cli.options import Format
from harness.errors import UserError
from harness.results import Gathered, PredictionFiles
from harness.suite import (
    SETTINGS,
    Bold,
    FigureLayout,
    ReportBlock,
    ReportSeeds,
    Where,
    figure_names,
    find_figure,
    find_suite,
    find_table,
    table_names,
)


def list_layouts(suite: str | None) -> str:
    """One line for each table that can be asked for."""
    block = _block(suite)
    own = block.define_tables if block else {}
    names = [*own, *(name for name in table_names() if name not in own)]
    return "".join(f"{name:<12} {find_table(name, block).title}\n" for name in names)


def layout_tables(
    names: str, suite_file: str | None, where: Where, found: Gathered, style: Format,
    bold: Bold = "ties", report_seeds: ReportSeeds = "all",
) -> str:  # fmt: skip
    """Results in the shapes of some layouts; `all` are those that the suite file names."""
    from harness.report import EntryIndex, fill_layout, find_published, keys_of, render_tables

    block = _block(suite_file)
    read = PredictionFiles(found.scanned).test_answers
    results = [result for _, result in found.scanned]
    filled = []
    for name in _asked_names(names, block):
        layout = find_table(name, block)
        record = find_published(layout.published) if layout.published else None
        filled.append(
            fill_layout(name, layout, EntryIndex(results, keys_of(layout), report_seeds), record, where, bold, read)
        )
    for table, _ in filled:
        table.remarks += [f"{text}." for text in found.notes]
    return render_tables([table for table, _ in filled], [item for _, records in filled for item in records], style)


def figure_layouts(suite_file: str | None) -> dict[str, FigureLayout]:
    """The figures that a suite file names, or else all that ship with the program."""
    block = _block(suite_file)
    names = block.figures if block else figure_names()
    return {name: find_figure(name, block) for name in names}


def conditions(pairs: Sequence[str] | None, suites: str | None) -> Where:
    """What wins over a layout's own conditions: --where, and the suites that --suite names."""
    chosen: Where = {} if suites is None else {"suite": [name.strip() for name in suites.split(",")]}
    return {**chosen, **read_where(pairs)}


def read_where(pairs: Sequence[str] | None) -> Where:
    """`["backbone=t5-small"]` -> {"backbone": "t5-small"}; values are YAML. Raises UserError on anything else."""
    from harness.yaml_lines import parse_value

    where: Where = {}
    for pair in pairs or []:
        key, sign, text = pair.partition("=")
        first = key.split(".")[0]
        if not sign:
            raise UserError(f"expected KEY=VALUE, got '{pair}'", field="--where")
        if first not in SETTINGS:
            raise UserError("no setting of a cell", where=f"--where {pair}", value=first, choices=SETTINGS)
        value = parse_value(text, f"--where {key}")
        if isinstance(value, dict):
            raise UserError("expected a value or a list of values", where=f"--where {pair}")
        where[key] = value
    return where


def _asked_names(names: str, block: ReportBlock | None) -> list[str]:
    if names != "all":
        return [name.strip() for name in names.split(",") if name.strip()]
    if block is None or not block.tables:
        raise UserError("no suite file names tables", field="all", hint="Give one with --layouts SUITE.")
    return list(block.tables)


def block_of(suite: str | None) -> ReportBlock:
    """The `report` block of a suite file; the defaults without one."""
    return _block(suite) or ReportBlock()


def _block(suite: str | None) -> ReportBlock | None:
    """The `report` block of a suite file, or of a shipped suite."""
    from harness.suite import Overrides, load_suite

    return None if suite is None else load_suite(find_suite(suite), Overrides()).file.report
