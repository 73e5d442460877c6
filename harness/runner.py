"""Run a suite: what is missing is packed into bundles, trained, stored; then the grids' winners follow."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.bundle import Product
from harness.caches import cached_task
from harness.engines import Engine, LocalEngine
from harness.errors import UserError
from harness.packing import pack
from harness.planning import Plan, check_fit, make_plan
from harness.progress import Progress, work
from harness.schema import Cell
from harness.suite import Overrides

Rerun = Literal["none", "failed", "stale"]


@dataclass(frozen=True)
class RunSummary:
    """What a run did. `results` is the folder that `load_results` and `report` read."""

    results: Path
    num_trained: int
    num_failed: int
    num_kept: int
    num_kept_failed: int
    """Failures among the stored results; `rerun="failed"` trains them again."""
    num_stale: int
    """Stored results that were made with other method sources, weights or rows, and were left as they are."""


def run(
    suite: str | Path,
    *,
    methods: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    backbones: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    settings: dict[str, object] | None = None,
    results: str | Path = "results",
    data: str | Path | None = None,
    method_dirs: Sequence[str | Path] = (),
    protocol: str | None = None,
    rerun: Rerun = "none",
    quiet: bool = False,
    engine: Engine | None = None,
) -> RunSummary:
    """Train every missing cell of a suite file and store the results.

    `settings` are overrides such as {"recipe.steps": 300}; `protocol` is the name of one. `data` falls back to
    the environment variable HARNESS_DATA. Raises UserError for anything the user can mend, before anything is written.
    """
    overrides = Overrides(methods, tasks, backbones, seeds, settings or {}, protocol)
    data_dir = str(data) if data is not None else os.environ.get("HARNESS_DATA")
    plan = make_plan(suite, overrides, results, data_dir, [str(folder) for folder in method_dirs])
    stale = _forget(plan, rerun)
    return _train(plan, stale, engine or LocalEngine(), Progress(quiet=quiet))


def _forget(plan: Plan, rerun: Rerun) -> int:
    """Drop the stored results that shall be made again; return the number of stale ones left."""
    stale = 0
    # all are judged before any is dropped: whether a cell is stale depends on the cells that it starts from
    for results, judged in [(found, [plan.is_stale(r) for r in found.values()]) for found in plan.results]:
        for (key, result), is_stale in zip(list(results.items()), judged, strict=True):
            if (rerun == "failed" and result.status == "failed") or (rerun == "stale" and is_stale):
                del results[key]
            else:
                stale += is_stale
    return stale


def _train(plan: Plan, num_stale: int, engine: Engine, progress: Progress) -> RunSummary:
    pending = plan.pending()
    stored = [result for results in plan.results for result in results.values()]
    old_failures = sum(result.status == "failed" for result in stored)
    if pending:
        check_fit(plan, plan.asked())
        plan.store.ensure_writable()
        _warn_of_duplicates(plan, plan.asked(), progress)
    counts = {"done": 0, "failed": 0}

    def store(product: Product) -> None:
        try:
            result = plan.store.write(product.result, product.predictions, product.tensors)
        except OSError as error:
            where = str(plan.store.path(product.result.cell))
            raise UserError(f"the result could not be stored: {error.strerror or error}", where=where) from None
        plan.record(result)
        counts[result.status] += 1
        progress.cell_done(result)

    others = {result.cell.protocol.title for result in stored} - {plan.suite.protocol.reference.title}
    if others:
        progress.say(f"stored results of protocol {' and '.join(sorted(others))} fit as they are and are kept")
    if num_stale:
        progress.say(f"{num_stale} stored results are stale (method, weights or rows changed): harness plan names them")
    with progress:
        _expect_all(plan, progress)
        while pending:
            engine.run(pack(plan, pending), progress, store)
            left = plan.pending()
            assert not set(map(_place, left)) & set(map(_place, pending)), "a cell was run and left no result"
            pending = left
    num_trained = counts["done"] + counts["failed"]
    return RunSummary(plan.store.root, num_trained, counts["failed"], len(stored), old_failures, num_stale)


def _place(cell: Cell) -> tuple[str, str, str]:
    """What tells a cell from its namesakes: two rows may hold the same cell."""
    return cell.suite, cell.label, cell.cell_id


def _warn_of_duplicates(plan: Plan, cells: Iterable[Cell], progress: Progress) -> None:
    """Say which tasks have dev or test rows that also stand in train: such rows reward memory."""
    for name, cell in sorted({cell.task: cell for cell in cells}.items()):
        record = cached_task(cell, plan.data_dir, plan.suite.folder).record
        if record.num_duplicates:
            total = record.num_dev + record.num_test
            progress.say(f"{name}: {record.num_duplicates:,} of {total:,} dev and test rows also stand in train")


def _expect_all(plan: Plan, progress: Progress) -> None:
    """Announce the whole run, the winners' further seeds included, so that the time left is honest."""
    for group, results in zip(plan.groups, plan.results, strict=True):
        count = max(0, plan.num_cells(group) - len(results))
        rule = plan.methods[group.method].spec.is_rule
        progress.expect(count, 0 if rule else count * work(group.cells[(0, group.seeds[0])]))
