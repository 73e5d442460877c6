"""Draws the figures that layouts declare, as far as there are results for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from harness.report.declared.find_entries import EntryIndex
from harness.report.figures.base import STYLE, save, slug
from harness.report.figures.categories import draw_categories
from harness.report.figures.colours import method_looks
from harness.report.figures.gates import draw_gates
from harness.report.figures.sweep import draw_sweep
from harness.results import Result
from harness.suite import DERIVED, FigureLayout, ReportSeeds, Where


def draw_declared(
    layouts: Mapping[str, FigureLayout],
    scanned: Sequence[tuple[Path, Result]],
    folder: Path,
    where: Where,
    report_seeds: ReportSeeds = "all",
) -> list[Path]:
    """Draw the figures of `layouts` into `folder`; return the files. `where` replaces conditions of the layouts.

    Raises UserError if a file cannot be written, or tensors cannot be read.
    """
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figures = [
            item for name, layout in layouts.items() for item in _figures(name, layout, scanned, where, report_seeds)
        ]
        return [path for name, figure in figures for path in save(figure, folder, name)]


def _figures(
    name: str, layout: FigureLayout, scanned: Sequence[tuple[Path, Result]], where: Where, report_seeds: ReportSeeds
) -> Iterator[tuple[str, Figure]]:
    """(file name without ending, figure) of one layout: one figure, or one per suite and backbone."""
    results = [result for _, result in scanned]
    pool = EntryIndex(results, {layout.x.setting} if layout.x else (), report_seeds)
    files = {result.key: path for path, result in scanned}
    styles = method_looks({result.cell.method for result in results})
    if layout.categories:
        if figure := draw_categories(layout, pool, where, styles):
            yield name, figure
        return
    if layout.x and layout.x.setting == DERIVED:
        if figure := draw_sweep(layout, pool, where, styles):
            yield name, figure
        return
    # scores of two backbones, or of two suites unless the layout names its own, do not belong in one figure
    has_suite = "suite" in layout.where or "suite" in where
    for suite, backbone in sorted({("" if has_suite else r.cell.suite, r.cell.backbone) for r in results}):
        here: Where = {"backbone": backbone, **({} if has_suite else {"suite": suite}), **where}
        file_name = "-".join(filter(None, (name, slug(suite), slug(backbone))))
        # with another suite than the layout's own, the times are its own too
        if layout.x and (figure := draw_sweep(layout, pool, here, styles, timing=where)):
            yield file_name, figure
        if layout.gates:
            for label, figure in draw_gates(layout, pool, here, files).items():
                yield f"{file_name}-{slug(label)}", figure
