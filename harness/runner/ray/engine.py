"""The Ray engine: trains bundles on the GPUs of this machine, or on many machines.

This process, the driver, holds the claims and writes every result. Workers train and send results. If a worker dies,
the cells of which it had sent no result go to another one, from their checkpoint if the results folder is shared.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from harness import provenance, stop
from harness.errors import UserError
from harness.method import load_file
from harness.results import Failure
from harness.runner.progress import Progress, Running
from harness.runner.ray.cluster import Cluster, Slot, WorkerHandle, check_address, import_ray
from harness.runner.ray.gpu_share import gpu_share, is_rule, memory_need, on_a_share
from harness.runner.ray.shipping import Parcels
from harness.runner.ray.worker import News
from harness.train import MOST_DEATHS, Bundle, BundleFacts, CellResult, OnCellResult, failed_result, new_marker

WAIT_S = 0.5
"""Seconds to wait for news of any worker before the driver looks after the cluster and signals again."""
FULL = 1 + 1e-9
"""Sum of shares that fills a slot; a little more than 1, so that rounding does not keep the last share out."""


@dataclass(eq=False)
class Job:
    """A bundle to be trained by some worker; `bundle.cells` are those that have no result yet."""

    bundle: Bundle
    num_cells: int
    """Cells of the bundle as it was packed."""
    is_rule: bool
    need: int
    """Bytes that it takes on a GPU; 0 without GPUs."""
    best_step: int = 0
    """The latest step that a worker has reported."""
    deaths: int = 0
    """Workers that died of it since it last got further."""

    @property
    def backbone(self) -> tuple[str, str, str]:
        recipe = self.bundle.cells[0].recipe
        return self.bundle.backbone, recipe.precision, recipe.quantization


@dataclass(eq=False)
class Assignment:
    """A job that a worker is training."""

    handle: WorkerHandle
    job: Job
    answer: Any
    """Ray's reference to the worker's next news."""
    shown: Running | None = None
    """Its line in the display, once the worker has answered."""


class RayEngine:
    """Trains bundles on a Ray cluster: a new one on this machine, or the one at `address` (HOST:PORT or auto).

    A worker has `cpus` processors, and as many threads, and `gpus` GPUs. Used as a context, it keeps its workers from
    one run to the next; otherwise each run starts and ends them. Raises UserError if Ray is not installed or nothing
    answers.
    """

    in_process: ClassVar[bool] = False

    def __init__(self, address: str | None = None, cpus: int = 1, gpus: int = 1) -> None:
        for option, value in (("--cpus-per-bundle", cpus), ("--gpus-per-bundle", gpus)):
            if value < 1:
                raise UserError(f"must be at least 1, got {value}", field=option)
        self.cluster = Cluster(import_ray(), address, cpus, gpus)
        if address is not None:
            check_address(address)
        self._depth = 0
        self._markers: set[Path] = set()
        self._assignments: list[Assignment] = []
        self._bad_starts = 0
        self._signum: int | None = None
        """The signal by which this run is being stopped."""

    def __enter__(self) -> RayEngine:
        if self._depth == 0:
            self.cluster.connect()
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.cluster.disconnect()

    def run(self, bundles: Iterable[Bundle], progress: Progress, on_product: OnCellResult) -> None:
        """Train every bundle. Raises UserError if a machine lacks rows or weights, Stopped after a request to stop."""
        with self, self._cleared():
            self.progress, self.on_product = progress, on_product
            self._parcels = Parcels(self.cluster.ray)
            try:
                self._run(iter(bundles))
            except stop.Stopped as request:
                self._wind_down(request.signum)
                raise

    def _run(self, bundles: Iterator[Bundle]) -> None:
        """Give out jobs and take in news until all is done. A bundle is taken, and so claimed, only if there is
        room."""
        waiting: list[Job] = []
        is_all = False
        while not (is_all and not waiting and not self._assignments):
            stop.raise_if_stopped()
            self.cluster.refresh()
            while not is_all and not waiting and self._has_room():
                bundle = next(bundles, None)
                is_all = bundle is None
                waiting += [] if bundle is None else [self._job(bundle)]
                waiting = [job for job in waiting if not self._begin(job)]
            waiting = [job for job in waiting if not self._begin(job)]
            waiting += self._hear()

    def _job(self, bundle: Bundle) -> Job:
        """The job of a bundle. Raises UserError if a worker has too few GPUs for the bundle's processes."""
        if bundle.processes > self.cluster.gpus and any(slot.is_gpu for slot in self.cluster.slots):
            problem = f"execution.processes is {bundle.processes}, and a worker has {self.cluster.gpus} GPUs"
            raise UserError(problem, field="--gpus-per-bundle", hint="Every process needs a GPU of its own.")
        need = memory_need(bundle) if any(slot.is_gpu for slot in self.cluster.slots) else 0
        return Job(bundle, len(bundle.cells), is_rule(bundle), need)

    def _has_room(self) -> bool:
        """Whether some slot could take a small bundle at once."""
        return any(self._load(slot) + _share(0, slot) <= FULL for slot in self.cluster.ready())

    def _load(self, slot: Slot) -> float:
        """Sum of the shares of a slot that are at work."""
        return sum(assignment.handle.share for assignment in self._assignments if assignment.handle.slot is slot)

    def _begin(self, job: Job) -> bool:
        """Send a job to a slot that has room for it; return whether there was one.

        The emptiest slot is chosen, then one with an idle worker that has the backbone loaded, then the machine with
        the fewest jobs.
        """
        shares = {slot: _share(job.need, slot) for slot in self.cluster.ready()}
        fit = [slot for slot, share in shares.items() if self._load(slot) + share <= FULL]
        if not fit:
            return False
        slot = min(fit, key=lambda slot: (self._load(slot), self._is_cold(slot, job), self._busy_there(slot)))
        handle = self._handle(slot, shares[slot], job)
        handle.backbone = handle.backbone if job.is_rule else job.backbone
        self._send(handle, job)
        return True

    def _busy_there(self, slot: Slot) -> int:
        """Number of jobs on the slot's machine."""
        return sum(assignment.handle.slot.node == slot.node for assignment in self._assignments)

    def _is_cold(self, slot: Slot, job: Job) -> bool:
        """Whether the slot has no idle worker for the job, so that a new one must load the backbone."""
        return not any(handle.slot is slot and _suits(handle, job) for handle in self._idle())

    def _idle(self) -> list[WorkerHandle]:
        busy = {id(assignment.handle) for assignment in self._assignments}
        return [handle for handle in self.cluster.handles if id(handle) not in busy]

    def _handle(self, slot: Slot, share: float, job: Job) -> WorkerHandle:
        """An idle worker that has the job's backbone, or a new one; idle workers that take its room are ended."""
        idle = [handle for handle in self._idle() if handle.slot is slot]
        for handle in idle:
            if handle.share == share and _suits(handle, job):
                return handle
        for handle in idle:
            if sum(other.share for other in self.cluster.handles if other.slot is slot) + share > FULL:
                self.cluster.end(handle)
        return self.cluster.start(slot, share)

    def _send(self, handle: WorkerHandle, job: Job) -> None:
        bundle = on_a_share(job.bundle) if handle.share < 1 else job.bundle
        handle.actor.start.remote(self._parcels.parcel(bundle, job.is_rule, self._marker(bundle)))
        self._assignments.append(Assignment(handle, job, handle.actor.poll.remote()))

    def _hear(self) -> list[Job]:
        """Take in the news of workers; return the jobs of those that died, for other workers."""
        if not self._assignments:
            time.sleep(WAIT_S / 5)  # no worker can be asked, so this is the wait for a slot
            return []
        ray, answers = self.cluster.ray, {assignment.answer: assignment for assignment in self._assignments}
        ray.wait(list(answers), timeout=WAIT_S)
        done, _ = ray.wait(list(answers), num_returns=len(answers), timeout=0)
        lost = []
        for assignment in [answers[answer] for answer in done]:
            try:
                news = ray.get(assignment.answer)
            except ray.exceptions.RayError as error:
                lost += self._lost(assignment, _reason(error))
            else:
                lost += self._take_in(assignment, news)
        for assignment in list(self._assignments):
            if not assignment.handle.name and assignment.handle.slot.node is None:
                lost += self._lost(assignment, "its machine is gone")
        return lost

    def _take_in(self, assignment: Assignment, news: News) -> list[Job]:
        """Store results, show steps and lines, and ask for the next news; return the job if its worker crashed."""
        job, handle = assignment.job, assignment.handle
        handle.name, self._bad_starts = news.worker, 0
        if assignment.shown is None:
            assignment.shown = self.progress.start_bundle(job.bundle.cells, handle.name)
        for line in news.lines:
            self.progress.say(f"{handle.name}: {line}")
        for product in news.products:
            self.on_product(_of_this_commit(product))
            left = tuple(cell for cell in job.bundle.cells if cell != product.result.cell)
            job.bundle, job.deaths = replace(job.bundle, cells=left), 0
        if news.step is not None:
            self.progress.step(*news.step, assignment.shown)
            job.deaths = 0 if news.step[0] > job.best_step else job.deaths
            job.best_step = max(job.best_step, news.step[0])
        if news.refused is not None:
            raise news.refused
        if news.crash is not None:
            return self._lost(assignment, f"{news.crash.type}: {news.crash.message}")
        if news.ended:
            self._leave(assignment)
        else:
            assignment.answer = handle.actor.poll.remote(self._signum)
        return []

    def _lost(self, assignment: Assignment, reason: str) -> list[Job]:
        """Handle the death of a worker; return its job for another one, unless too many workers have died of it.

        A job of which MOST_DEATHS workers died in a row fails. A worker that died before it answered did not die of its
        job; after as many of those, no worker can start, which is a mistake of the user's. Raises UserError then.
        """
        job, handle = assignment.job, assignment.handle
        self.cluster.end(handle)
        self._leave(assignment)
        if not job.bundle.cells or self._signum is not None:
            return []
        if not handle.name:
            self._bad_starts += 1
            if self._bad_starts >= MOST_DEATHS:
                raise UserError(f"workers do not start: {reason}", field="--engine ray")
            return [job]
        job.deaths += 1
        count = len(job.bundle.cells)
        if job.deaths < MOST_DEATHS:
            self.progress.say(f"worker {handle.name} died ({reason}); {count} cells of its bundle go to another")
            return [job]
        failure = Failure(type="WorkerDied", message=f"{job.deaths} workers died at its bundle: {reason}", traceback="")
        sources = {name: load_file(path).spec.source_sha256 for name, path in job.bundle.method_files.items()}
        bundle = job.bundle
        common = BundleFacts(
            provenance.utc_now(), bundle.suite_folder, sources, job.num_cells, bundle.starts, bundle.processes
        )
        for cell in job.bundle.cells:
            self.on_product(failed_result(cell, failure, common))
        return []

    def _leave(self, assignment: Assignment) -> None:
        """End an assignment; its worker is idle, or gone."""
        self._assignments.remove(assignment)
        if assignment.shown is not None:
            self.progress.end_bundle(assignment.shown)

    def _wind_down(self, signum: int) -> None:
        """Ask every worker to stop after its step and write a checkpoint; wait for that within a grace period."""
        self._signum = signum
        end = time.monotonic() + stop.GRACE_S + stop.CLOSING_S
        try:
            for assignment in [assignment for assignment in self._assignments if not assignment.handle.name]:
                self._lost(assignment, "stopped")  # it has not begun to train
            while self._assignments and time.monotonic() < end:
                self._hear()
        finally:
            self._signum = None
            for handle in list(self.cluster.handles):
                self.cluster.end(handle)  # they have been asked to stop, and would stop again

    def _marker(self, bundle: Bundle) -> Path | None:
        """A file beside the checkpoints; a worker that sees it has the same folder."""
        if bundle.checkpoint is None:
            return None
        folder = bundle.checkpoint.path.parent
        for marker in self._markers:
            if marker.parent == folder and marker.exists():
                return marker
        marker = new_marker(folder)
        with contextlib.suppress(OSError):  # without it there are no checkpoints, and nothing else changes
            folder.mkdir(parents=True, exist_ok=True)
            marker.touch()
            self._markers.add(marker)
        return marker

    @contextlib.contextmanager
    def _cleared(self) -> Iterator[None]:
        """However the run ends, end workers that are still training and remove the markers."""
        try:
            yield
        finally:
            for assignment in list(self._assignments):
                self.cluster.end(assignment.handle)
                self._leave(assignment)
            for marker in self._markers:
                with contextlib.suppress(OSError):
                    marker.unlink(missing_ok=True)
                    marker.parent.rmdir()  # only where it is empty
            self._markers.clear()


def _share(need: int, slot: Slot) -> float:
    """Part of a slot for a bundle that needs `need` bytes; a slot of several GPUs is never shared."""
    return 1.0 if slot.spec.gpus > 1 else gpu_share(need, slot.gpu_bytes or None)


def _suits(handle: WorkerHandle, job: Job) -> bool:
    """Whether a worker can train a job without loading another backbone than the one it has."""
    return job.is_rule or handle.backbone in (None, job.backbone)


def _of_this_commit(product: CellResult) -> CellResult:
    """Add the driver's commit to a result: a worker that was sent the code has no repository to read it from."""
    made = product.result.provenance
    if made.get("commit") is not None:
        return product
    own = provenance.collect_provenance("driver")
    known = {**made, **{name: own[name] for name in ("harness", "commit", "dirty")}}
    return replace(product, result=product.result.model_copy(update={"provenance": known}))


def _reason(error: BaseException) -> str:
    """The most telling line of an error of Ray's, whose message may have dozens of lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "exit" in line.lower()]
    return (telling or lines or [type(error).__name__])[-1][:300]
