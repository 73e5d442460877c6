"""Bundles on the processes of a Ray cluster: on the GPUs of this machine, or on many machines.

This process, the driver, holds the claims and writes every result; workers train and send what comes of it. What a
worker had not sent when it died is trained again elsewhere, from its checkpoint where the folder is shared.
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
from harness.bundle import MOST_DEATHS, Bundle
from harness.checkpoint import new_marker
from harness.errors import UserError
from harness.method import load_file
from harness.placement import gpu_share, is_rule, memory_need, on_a_share
from harness.products import Circumstances, OnProduct, Product, failed_product
from harness.progress import Progress, Running
from harness.ray_cluster import Cluster, Hand, Place, check_address, import_ray
from harness.ray_parcel import Parcels
from harness.ray_worker import News
from harness.schema import Failure

WAIT_S = 0.5
FULL = 1 + 1e-9


@dataclass(eq=False)
class Job:
    """A bundle on its way through the cluster; `bundle.cells` are those without a result."""

    bundle: Bundle
    num_cells: int
    """Cells of the bundle as it was packed."""
    is_rule: bool
    need: int
    """Bytes on a GPU."""
    best_step: int = 0
    deaths: int = 0
    """Workers lost since it last got further."""

    @property
    def backbone(self) -> tuple[str, str, str]:
        recipe = self.bundle.cells[0].recipe
        return self.bundle.backbone, recipe.precision, recipe.quantization


@dataclass(eq=False)
class Shift:
    """A worker at a job."""

    hand: Hand
    job: Job
    answer: Any
    """Ray's reference to the next news."""
    shown: Running | None = None
    """Its line in the display, once the worker has answered."""


class RayEngine:
    """Runs bundles on a Ray cluster: one of its own on this machine, or the one at `address` (HOST:PORT or auto).

    `cpus` is the number of processors, and threads, of a worker, `gpus` that of its GPUs. Use as a context to keep
    workers from one run to the next; a run opens and closes it otherwise. Raises UserError where Ray is missing or
    nothing answers.
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
        self._shifts: list[Shift] = []
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

    def run(self, bundles: Iterable[Bundle], progress: Progress, on_product: OnProduct) -> None:
        """Compute every bundle. Raises UserError for what a machine lacks, Stopped after a request to stop."""
        with self, self._cleared():
            self.progress, self.on_product = progress, on_product
            self._parcels = Parcels(self.cluster.ray)
            try:
                self._run(iter(bundles))
            except stop.Stopped as request:
                self._wind_down(request.signum)
                raise

    def _run(self, bundles: Iterator[Bundle]) -> None:
        waiting: list[Job] = []
        is_all = False
        while not (is_all and not waiting and not self._shifts):
            stop.check()
            self.cluster.refresh()
            while not is_all and not waiting and self._has_room():
                bundle = next(bundles, None)
                is_all = bundle is None
                waiting += [] if bundle is None else [self._job(bundle)]
                waiting = [job for job in waiting if not self._begin(job)]
            waiting = [job for job in waiting if not self._begin(job)]
            waiting += self._hear()

    def _job(self, bundle: Bundle) -> Job:
        if bundle.processes > self.cluster.gpus and any(place.is_gpu for place in self.cluster.places):
            problem = f"execution.processes is {bundle.processes}, and a worker has {self.cluster.gpus} GPUs"
            raise UserError(problem, field="--gpus-per-bundle", hint="Every process needs a GPU of its own.")
        need = memory_need(bundle) if any(place.is_gpu for place in self.cluster.places) else 0
        return Job(bundle, len(bundle.cells), is_rule(bundle), need)

    def _has_room(self) -> bool:
        """Whether some place could take a small bundle at once."""
        return any(self._load(place) + _share(0, place) <= FULL for place in self.cluster.ready())

    def _load(self, place: Place) -> float:
        """The part of a place that is at work."""
        return sum(shift.hand.share for shift in self._shifts if shift.hand.place is place)

    def _begin(self, job: Job) -> bool:
        """Send a job to the place with most room, if one has enough; return whether one had."""
        shares = {place: _share(job.need, place) for place in self.cluster.ready()}
        fit = [place for place, share in shares.items() if self._load(place) + share <= FULL]
        if not fit:
            return False
        place = min(fit, key=lambda place: (self._load(place), self._is_cold(place, job), self._busy_there(place)))
        hand = self._hand(place, shares[place], job)
        hand.backbone = hand.backbone if job.is_rule else job.backbone
        self._send(hand, job)
        return True

    def _busy_there(self, place: Place) -> int:
        return sum(shift.hand.place.node == place.node for shift in self._shifts)

    def _is_cold(self, place: Place, job: Job) -> bool:
        return not any(hand.place is place and _suits(hand, job) for hand in self._idle())

    def _idle(self) -> list[Hand]:
        busy = {id(shift.hand) for shift in self._shifts}
        return [hand for hand in self.cluster.hands if id(hand) not in busy]

    def _hand(self, place: Place, share: float, job: Job) -> Hand:
        """An idle worker that has the backbone, or a new one in the room of those that are idle for nothing."""
        idle = [hand for hand in self._idle() if hand.place is place]
        for hand in idle:
            if hand.share == share and _suits(hand, job):
                return hand
        for hand in idle:
            if sum(other.share for other in self.cluster.hands if other.place is place) + share > FULL:
                self.cluster.end(hand)
        return self.cluster.start(place, share)

    def _send(self, hand: Hand, job: Job) -> None:
        bundle = on_a_share(job.bundle) if hand.share < 1 else job.bundle
        hand.actor.start.remote(self._parcels.parcel(bundle, job.is_rule, self._marker(bundle)))
        self._shifts.append(Shift(hand, job, hand.actor.poll.remote()))

    def _hear(self) -> list[Job]:
        """Take in what workers tell; return the jobs of those that died."""
        if not self._shifts:
            time.sleep(WAIT_S / 5)  # until there is a place
            return []
        ray, answers = self.cluster.ray, {shift.answer: shift for shift in self._shifts}
        ray.wait(list(answers), timeout=WAIT_S)
        done, _ = ray.wait(list(answers), num_returns=len(answers), timeout=0)
        lost = []
        for shift in [answers[answer] for answer in done]:
            try:
                news = ray.get(shift.answer)
            except ray.exceptions.RayError as error:
                lost += self._lost(shift, _reason(error))
            else:
                lost += self._take_in(shift, news)
        for shift in list(self._shifts):
            if not shift.hand.name and shift.hand.place.node is None:
                lost += self._lost(shift, "its machine is gone")
        return lost

    def _take_in(self, shift: Shift, news: News) -> list[Job]:
        job, hand = shift.job, shift.hand
        hand.name, self._bad_starts = news.worker, 0
        if shift.shown is None:
            shift.shown = self.progress.start_bundle(job.bundle.cells, hand.name)
        for line in news.lines:
            self.progress.say(f"{hand.name}: {line}")
        for product in news.products:
            self.on_product(_of_this_commit(product))
            left = tuple(cell for cell in job.bundle.cells if cell != product.result.cell)
            job.bundle, job.deaths = replace(job.bundle, cells=left), 0
        if news.step is not None:
            self.progress.step(*news.step, shift.shown)
            job.deaths = 0 if news.step[0] > job.best_step else job.deaths
            job.best_step = max(job.best_step, news.step[0])
        if news.refused is not None:
            raise news.refused
        if news.crash is not None:
            return self._lost(shift, f"{news.crash.type}: {news.crash.message}")
        if news.ended:
            self._leave(shift)
        else:
            shift.answer = hand.actor.poll.remote(self._signum)
        return []

    def _lost(self, shift: Shift, reason: str) -> list[Job]:
        """A worker is gone: its job for another one, unless too many have died of it."""
        job, hand = shift.job, shift.hand
        self.cluster.end(hand)
        self._leave(shift)
        if not job.bundle.cells or self._signum is not None:
            return []
        if not hand.name:
            self._bad_starts += 1
            if self._bad_starts >= MOST_DEATHS:
                raise UserError(f"workers do not start: {reason}", field="--engine ray")
            return [job]
        job.deaths += 1
        count = len(job.bundle.cells)
        if job.deaths < MOST_DEATHS:
            self.progress.say(f"worker {hand.name} died ({reason}); {count} cells of its bundle go to another")
            return [job]
        failure = Failure(type="WorkerDied", message=f"{job.deaths} workers died at its bundle: {reason}", traceback="")
        sources = {name: load_file(path).spec.source_sha256 for name, path in job.bundle.method_files.items()}
        bundle = job.bundle
        common = Circumstances(
            provenance.now(), bundle.suite_folder, sources, job.num_cells, bundle.starts, bundle.processes
        )
        for cell in job.bundle.cells:
            self.on_product(failed_product(cell, failure, common))
        return []

    def _leave(self, shift: Shift) -> None:
        self._shifts.remove(shift)
        if shift.shown is not None:
            self.progress.end_bundle(shift.shown)

    def _wind_down(self, signum: int) -> None:
        """Ask every worker to stop after its step and to keep its state; wait for that, but not for ever."""
        self._signum = signum
        end = time.monotonic() + stop.GRACE_S + stop.CLOSING_S
        try:
            for shift in [shift for shift in self._shifts if not shift.hand.name]:
                self._lost(shift, "stopped")  # it has not begun to train
            while self._shifts and time.monotonic() < end:
                self._hear()
        finally:
            self._signum = None
            for hand in list(self.cluster.hands):
                self.cluster.end(hand)  # they have been asked to stop, and would stop again

    def _marker(self, bundle: Bundle) -> Path | None:
        """A file beside the checkpoints, by which a worker sees whether it has the same folder."""
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
        """Leave no worker at work and no marker behind, however the run ends."""
        try:
            yield
        finally:
            for shift in list(self._shifts):
                self.cluster.end(shift.hand)
                self._leave(shift)
            for marker in self._markers:
                with contextlib.suppress(OSError):
                    marker.unlink(missing_ok=True)
                    marker.parent.rmdir()  # only where it is empty
            self._markers.clear()


def _share(need: int, place: Place) -> float:
    """Part of a place for a bundle that needs `need` bytes; several GPUs are never shared."""
    return 1.0 if place.spec.gpus > 1 else gpu_share(need, place.gpu_bytes or None)


def _suits(hand: Hand, job: Job) -> bool:
    """Whether a worker can do a job without loading another backbone beside the one that it has."""
    return job.is_rule or hand.backbone in (None, job.backbone)


def _of_this_commit(product: Product) -> Product:
    """A worker that was sent the code does not know which commit it is; the driver does."""
    made = product.result.provenance
    if made.get("commit") is not None:
        return product
    own = provenance.collect("driver")
    known = {**made, **{name: own[name] for name in ("harness", "commit", "dirty")}}
    return replace(product, result=product.result.model_copy(update={"provenance": known}))


def _reason(error: BaseException) -> str:
    """The line of Ray's account that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "exit" in line.lower()]
    return (telling or lines or [type(error).__name__])[-1][:300]
