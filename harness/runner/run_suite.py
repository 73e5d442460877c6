"""Run a suite: pack its missing cells into bundles, train them, store each result; then train the grids' winners."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness import stop
from harness.data import cell_rows
from harness.method import Method
from harness.results import NotStored, Result
from harness.runner.claimed_bundles import ClaimedBundles
from harness.runner.claims import Claims
from harness.runner.engines import Engine, LocalEngine
from harness.runner.plan import Plan, make_plan
from harness.runner.preflight import Misfits, check_cells, find_misfits, lines_of, refuse_namesakes, unfit_result
from harness.runner.progress import Progress, work
from harness.suite import Cell, Key, Overrides, find_suite
from harness.train import CellResult, describe_failure, failed_to_store

Rerun = Literal["none", "failed", "stale"]
Track = Literal["tensorboard", "wandb", "mlflow"]

SHORTEST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0
"""Pauses between two looks at what other processes have finished. Each pause is twice the one before: a cell that is
nearly done costs little waiting, and a run of hours reads the folder six times a minute."""


@dataclass(frozen=True)
class RunSummary:
    """What a run did, in numbers of cells."""

    results: Path
    """The results folder, for `load_results` and `report`."""
    num_trained: int
    """Trained by this process, failed ones included."""
    num_failed: int
    """Those that failed."""
    num_kept: int
    """Stored before the run and kept."""
    num_kept_failed: int
    """Failures among those; `rerun="failed"` trains them again."""
    num_stale: int
    """Stored results of another method file, other weights, rows or versions; `rerun="stale"` trains them again."""
    num_elsewhere: int = 0
    """Finished by other processes on the same folder during the run."""
    num_left: int = 0
    """Left to other processes, or to a later run, as `wait_s` was over."""
    unfit: tuple[str, ...] = ()
    """Table rows that do not fit a backbone, each with the reason; the table shows them without a score."""


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
    track: Track | None = None,
    wait_s: float | None = None,
) -> RunSummary:
    """Train every missing cell of a suite file and store the results.

    `suite` is a path, or the name of a suite that comes with the program. `settings` overrides the suite, as in
    {"recipe.steps": 300}. `protocol` is the name of a protocol. `data` is the folder of rows, by default that of the
    environment variable HARNESS_DATA. `engine` says where bundles run, by default in this process
    (`harness.runner.make_engine` makes others). `track` shows live curves in a tool. Its files go to a folder beside
    `results` with the same name and "-tracking" at the end. A run ends once other processes have had all that is left
    for `wait_s` seconds; by default it stays to the end, to go on should one of them die.

    Raises UserError for a user's mistake, before anything is written; NotStored if the results folder cannot be written
    any more; Stopped, which is a KeyboardInterrupt, on SIGINT or SIGTERM.
    """
    progress = Progress(quiet=quiet) if track is None else tracked(track, Path(f"{Path(results)}-tracking"), quiet)
    overrides = Overrides(methods, tasks, backbones, seeds, settings or {}, protocol)
    data_dir = str(data) if data is not None else os.environ.get("HARNESS_DATA")
    with stop.on_signals():
        path = find_suite(suite) if isinstance(suite, str) else suite
        plan = make_plan(path, overrides, results, data_dir, [str(folder) for folder in method_dirs])
        return _Run(plan, rerun, engine or LocalEngine(), progress, wait_s).run()


def tracked(tool: Track, folder: Path, quiet: bool) -> Progress:
    """A display that also feeds a tracking tool. Raises UserError if the tool's package is not installed."""
    from harness.runner.tracking import TrackedProgress

    return TrackedProgress(tool, folder, quiet)


class _Run:
    """One run of a plan by this process; others may work on the same results folder."""

    def __init__(
        self, plan: Plan, rerun: Rerun, engine: Engine, progress: Progress, wait_s: float | None = None
    ) -> None:
        self.plan = plan
        self.wait_s = wait_s
        self.num_left = 0
        self.engine = engine
        self.progress = progress
        self.replaced, self.num_stale = _forget(plan, rerun)
        self.stored = list({r.key: r for results in plan.results for r in results.values()}.values())
        self.counts = {"done": 0, "failed": 0}
        self.num_found = 0
        self.unfit: list[str] = []
        self.judged: set[Key] = set()
        """Cells of which it is known whether they fit."""

    def run(self) -> RunSummary:
        """Check, claim and train until every cell has a result, from this process or another."""
        plan = self.plan
        pending = plan.pending()
        refuse_namesakes(plan)
        misfits: Misfits = {}
        if pending:
            misfits = check_cells(plan, plan.asked(), weights=self.engine.in_process)
            self.judged = {cell.key for cell in plan.asked()}
            plan.store.ensure_writable()
            _warn_of_duplicates(plan, plan.asked(), self.progress)
        self._explain()
        if pending:
            with Claims(plan.store.root) as self.claims, self.progress, self.engine:
                self.bundles = ClaimedBundles(
                    plan, self.claims, {**plan.refused, **self.replaced}, self._found, self.progress.say
                )
                try:
                    self._refuse(misfits)
                    self._train()
                except OSError as error:  # from claims and checkpoints; an error of a bundle is recorded with its cells
                    raise self._unusable(error) from None
                self.bundles.tidy()
        old_failures = sum(result.status == "failed" for result in self.stored)
        return RunSummary(
            results=plan.store.root,
            num_trained=sum(self.counts.values()),
            num_failed=self.counts["failed"],
            num_kept=len(self.stored),
            num_kept_failed=old_failures,
            num_stale=self.num_stale,
            num_elsewhere=self.num_found,
            num_left=self.num_left,
            unfit=tuple(self.unfit),
        )

    def _refuse(self, misfits: Misfits) -> None:
        """Store for the report which cells do not fit, and why. A stored result that says the same is left alone."""
        lines = [line for line in lines_of(misfits) if line not in self.unfit]
        self.unfit += lines
        for cell in [cell for cell in self.plan.asked() if cell.key in misfits]:
            result, old = unfit_result(self.plan, cell, misfits[cell.key]), self.plan.refused.get(cell.key)
            if old is not None and (old.failure, old.method_sha256) == (result.failure, result.method_sha256):
                result = old
            elif self.claims.take(cell):
                result = self._written(CellResult(result, [], None))
                self.claims.release(cell)
            self.plan.record(result)
        for line in lines:
            self.progress.say(f"left out: {line}")

    def _refuse_new(self) -> None:
        """Judge the cells that a search has asked for since the run began."""
        while new := [cell for cell in self.plan.asked() if cell.key not in self.judged]:
            self.judged |= {cell.key for cell in new}
            self._refuse(find_misfits(self.plan, new))

    def _train(self) -> None:
        """Train round after round until nothing is pending; wait while other processes have all that is left, for at
        most `wait_s` seconds.

        A round ends when its bundles do: only then is it known which grid points won, and what can start from what.
        """
        wait, idle_since = SHORTEST_WAIT_S, time.monotonic()
        while self.plan.pending():
            self._refuse_new()
            _tell_what_is_left(self.plan, self.progress)
            before = self.num_found + sum(self.counts.values())
            self.engine.run(self.bundles.round(), self.progress, self._store)
            left = {cell.key for cell in self.plan.pending()}
            assert not left & self.bundles.given, "a cell was run and left no result"
            if left and before == self.num_found + sum(self.counts.values()):
                if self.wait_s is not None and time.monotonic() - idle_since >= self.wait_s:
                    self.num_left = len(left)
                    return
                self.progress.waiting(len(left))
                stop.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_S)
            else:
                wait, idle_since = SHORTEST_WAIT_S, time.monotonic()

    def _unusable(self, error: OSError) -> NotStored:
        """The message for a results folder in which claims or checkpoints cannot be written."""
        hint = "What is stored stays; once the folder can be written, the same command continues."
        reason = f"the results folder cannot be used: {error.strerror or error}"
        return NotStored(reason, where=str(self.plan.store.root), hint=hint)

    def _store(self, product: CellResult) -> None:
        """Store what a cell has left, unless another process has taken the cell over; give its claim back."""
        cell = product.result.cell
        try:
            is_ours = self.claims.holds(cell)
        except OSError as error:
            raise self._unusable(error) from None
        if not is_ours:
            self.progress.say(f"{cell.label} {cell.task}: slept too long, another process has taken this cell over")
            self.bundles.given.discard(cell.key)
            return
        result = self._written(product)
        with contextlib.suppress(OSError):  # the result is there, so nobody will ask for its claim
            self.claims.release(cell)
        self.plan.record(result)
        self.counts[result.status] += 1
        self.progress.cell_done(result)

    def _written(self, product: CellResult) -> Result:
        """Store the files of a cell and return its result.

        If there is no room for them, a failure is stored instead, which takes little. Raises NotStored if even that
        cannot be written.
        """
        store, result = self.plan.store, product.result
        try:
            return store.write(result, product.predictions, product.tensors)
        except OSError as error:
            failure = describe_failure(error)
        try:
            return store.write(failed_to_store(result, failure), [], None)
        except OSError as error:
            hint = "What is stored stays; make room, and the same command continues."
            reason = f"the result could not be stored: {error.strerror or error}"
            raise NotStored(reason, where=str(store.path(result.cell)), hint=hint) from None

    def _found(self, result: Result) -> None:
        """Count and show a result that another process has stored."""
        self.num_found += 1
        self.progress.found(result)

    def _explain(self) -> None:
        """Tell the user which stored results are kept although a run would make them differently today."""
        others = {result.cell.protocol.title for result in self.stored}
        others -= {self.plan.suite.protocol.reference.title}
        if others:
            titles = " and ".join(sorted(others))
            self.progress.say(f"stored results of protocol {titles} fit as they are and are kept")
        if self.num_stale:
            self.progress.say(
                f"{self.num_stale} stored results are stale (method, weights, rows, an adapter, or the version of task "
                "or protocol changed): harness plan names them, --rerun stale makes them again"
            )


def _forget(plan: Plan, rerun: Rerun) -> tuple[dict[Key, Result], int]:
    """Take the results that shall be made again out of the plan; return them, and how many stale ones are left in it.

    Their files stay until a new result takes their place.
    """
    replaced: dict[Key, Result] = {}
    if rerun == "stale":
        plan.superseded.clear()
    num_stale = len(plan.superseded)
    # all are judged before any is taken out: whether a cell is stale depends on the cells that it starts from
    for results, judged in [(stored, [plan.is_stale(r) for r in stored.values()]) for stored in plan.results]:
        for (point, result), is_stale in zip(list(results.items()), judged, strict=True):
            if (rerun == "failed" and result.status == "failed") or (rerun == "stale" and is_stale):
                replaced[result.key] = results.pop(point)
            else:
                num_stale += is_stale
    return replaced, num_stale


def _warn_of_duplicates(plan: Plan, cells: Iterable[Cell], progress: Progress) -> None:
    """Name the tasks of which dev or test rows are also in train: a method could answer those from memory."""
    for name, cell in sorted({cell.task: cell for cell in cells}.items()):
        try:
            record = cell_rows(cell, plan.data_dir, plan.suite.folder).record
        except Exception:  # its cells will say so
            continue
        if record.num_duplicates:
            total = record.num_dev + record.num_test
            progress.say(f"{name}: {record.num_duplicates:,} of {total:,} dev and test rows also stand in train")


def _tell_what_is_left(plan: Plan, progress: Progress) -> None:
    """Tell the display how much is left, the winners' further seeds included, so that its time left is true.

    It is told again each round: only a finished search shows whether its winner's further seeds are there already.
    """
    num_cells, rows = 0, 0.0
    for index, group in enumerate(plan.groups):
        old = sum(cell.key in plan.superseded for cell in group.own_cells().values())
        count = max(0, plan.num_missing(index) - old)
        cls = plan.methods[group.method].cls
        trains = cls is None or (issubclass(cls, Method) and cls.trains)
        num_cells += count
        rows += count * work(group.cells[(0, group.seeds[0])]) if trains else 0
    progress.expect(num_cells, rows)
