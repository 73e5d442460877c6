"""The Ray cluster as the engine sees it: a connection, and slots in which workers run.

A slot is one GPU or several; on machines without GPUs, it is the processors of one worker. Ray reserves each slot as a
placement group of its own. Otherwise Ray, and not the engine, would decide which bundles share a GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from harness.errors import UserError
from harness.runner.ray.worker import Worker
from harness.shipped import PACKAGE

OBJECT_STORE_BYTES = 200 * 2**20
"""Memory for results on their way to the driver. Ray takes 30 % of a machine by default; results are a few megabytes,
and what does not fit goes through the disk."""
REFRESH_S = 1.0
"""Seconds between two looks at the cluster: often enough for machines that join, without a request in each round."""
CONNECT_S = 5.0
"""Seconds to wait for an answer at an address, so that a wrong one is told before Ray's own, much longer, attempts."""
PASSED_ON = ("HARNESS_CACHE", "HF_HUB_OFFLINE")
"""Variables of the driver's environment that workers get too."""


def import_ray() -> Any:
    """Import Ray. Raises UserError if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # the driver's workers are few and known; Ray need not start some in advance
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        missing = f"--engine ray needs Ray, which is not installed ({error})"
        raise UserError(missing, hint="pip install 'peft-harness[ray]'") from None


def check_address(address: str) -> None:
    """Raise UserError for an address of a wrong form, and if nothing answers there."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if "/" in address or not (colon and host and port.isdigit() and 0 < int(port) < 65_536):
        problem = f"expected auto or HOST:PORT, got '{address}'"
        raise UserError(problem, field="--address", hint="ray start --head prints the address.")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"nothing answers at {address} ({reason})", field="--address", hint=_HOW) from None


_HOW = (
    "Start Ray with ray start --head; on the machine of this command, Ray must be running too. "
    "A cluster with a token needs RAY_AUTH_MODE=token and the token in ~/.ray/auth_token."
)


@dataclass(frozen=True)
class SlotSize:
    """The numbers of GPUs and processors of a slot."""

    gpus: int
    cpus: int


@dataclass(eq=False)
class Slot:
    """Part of a machine that is reserved for workers: GPUs, which several workers may share, or one's processors."""

    spec: SlotSize
    group: Any
    """Ray's placement group."""
    node: str | None = None
    """Ray's id of its machine; None while it has none."""
    gpu_bytes: int | None = None
    """Memory of its GPU; None until it is measured, 0 if PyTorch does not see a GPU."""
    asked: Any = None
    """Ray's reference to the answer to that, while it is awaited."""

    @property
    def is_gpu(self) -> bool:
        return self.spec.gpus > 0

    @property
    def key(self) -> str:
        return str(self.group.id.hex())


@dataclass(eq=False)
class WorkerHandle:
    """The driver's handle of a worker process."""

    actor: Any
    """Ray's actor of `Worker`."""
    slot: Slot
    share: float
    """Part of the slot that is the worker's."""
    backbone: tuple[str, str, str] | None = None
    """The backbone that it has loaded: (name or path, precision, quantization)."""
    name: str = ""
    """Its machine and process number; empty until it has answered."""


@dataclass
class Cluster:
    """A connection to Ray, its slots and its workers. Call `connect` first and `disconnect` at the end."""

    ray: Any
    address: str | None
    cpus: int
    """Processors of a worker."""
    gpus: int
    """GPUs of a worker, on machines that have any."""
    slots: list[Slot] = field(default_factory=list)
    handles: list[WorkerHandle] = field(default_factory=list)
    _looked: float = 0.0

    def connect(self) -> None:
        """Start Ray on this machine, or join the cluster at the address. Raises UserError."""
        quiet = {"log_to_driver": False, "logging_level": "error"}
        try:
            with _own_handlers():
                if self.address is None:
                    own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
                    self.ray.init(address="local", **own, **quiet)
                else:
                    package = {"py_modules": [str(PACKAGE)], "excludes": ["**/__pycache__"]}
                    self.ray.init(address=self.address, runtime_env=package, **quiet)
        except (self.ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            where = "on this machine" if self.address is None else f"at {self.address}"
            raise UserError(f"Ray {where} cannot be used: {lines[0]}", field="--address", hint=_HOW) from None
        self.refresh()
        if not self.slots:
            kind = "GPU" if self._has_gpus() else "CPU"
            most = max((int(node.get(kind, 0)) for node in self._nodes()), default=0)
            self.disconnect()
            wanted, option = (self.gpus, "--gpus-per-bundle") if kind == "GPU" else (self.cpus, "--cpus-per-bundle")
            raise UserError(f"no machine of the cluster has {wanted} {kind}s; the largest has {most}", field=option)
        if self.gpus > 1 and not self._has_gpus():
            self.disconnect()
            raise UserError(f"got {self.gpus}, and no machine of the cluster has a GPU", field="--gpus-per-bundle")

    def disconnect(self) -> None:
        """End all workers and give all slots back."""
        for handle in list(self.handles):
            self.end(handle)
        with contextlib.suppress(Exception):  # a cluster that is gone holds nothing any more
            for slot in self.slots:
                self.ray.util.remove_placement_group(slot.group)
        self.slots.clear()
        with _own_handlers():
            self.ray.shutdown()

    def refresh(self) -> None:
        """Reserve slots on machines that have joined, and see which slots exist; at most once in REFRESH_S seconds."""
        if time.monotonic() - self._looked < REFRESH_S:
            return
        self._looked = time.monotonic()
        for spec in (self._wanted() - Counter(slot.spec for slot in self.slots)).elements():
            resources = {name: amount for name, amount in (("GPU", spec.gpus), ("CPU", spec.cpus)) if amount}
            self.slots.append(Slot(spec, self.ray.util.placement_group([resources])))
        table = self.ray.util.placement_group_table()
        for slot in self.slots:
            entry = table.get(slot.key, {})
            created = entry.get("state") == "CREATED"
            node = entry["bundles_to_node_id"][0] if created else None
            if node != slot.node:
                slot.node, slot.gpu_bytes, slot.asked = node, None, None
            if created and slot.is_gpu and slot.gpu_bytes is None:
                self._measure(slot)

    def ready(self) -> list[Slot]:
        """Slots in which a worker can start at once.

        There are none while a GPU is being measured: else the first one measured would get all the work.
        """
        if any(slot.asked is not None for slot in self.slots):
            return []
        return [slot for slot in self.slots if slot.node and (not slot.is_gpu or slot.gpu_bytes is not None)]

    def start(self, slot: Slot, share: float) -> WorkerHandle:
        """Start a worker on a share of a slot."""
        env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        env |= {"OMP_NUM_THREADS": str(self.cpus), "TOKENIZERS_PARALLELISM": "false"}
        needs = (
            {"num_cpus": 0, "num_gpus": _rounded(share * slot.spec.gpus)} if slot.is_gpu else {"num_cpus": self.cpus}
        )
        actor = self._remote(Worker, slot, runtime_env={"env_vars": env}, **needs).remote(self.cpus, share)
        handle = WorkerHandle(actor, slot, share)
        self.handles.append(handle)
        return handle

    def end(self, handle: WorkerHandle) -> None:
        """End a worker at once."""
        self.handles.remove(handle)
        with contextlib.suppress(Exception):  # it may be dead already
            self.ray.kill(handle.actor)

    def _remote(self, what: Any, slot: Slot, **options: Any) -> Any:
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        strategy = strategies.PlacementGroupSchedulingStrategy(slot.group, 0)
        return self.ray.remote(what).options(scheduling_strategy=strategy, **options)

    def _measure(self, slot: Slot) -> None:
        """Ask how large a slot's GPU is; 0 where PyTorch does not see it."""
        if slot.asked is None:
            slot.asked = self._remote(gpu_bytes, slot, num_cpus=0, num_gpus=0.01).remote()
        done, _ = self.ray.wait([slot.asked], timeout=0)
        if done:
            with contextlib.suppress(self.ray.exceptions.RayError):  # asked again at the next look
                slot.gpu_bytes = self.ray.get(slot.asked)
            slot.asked = None

    def _wanted(self) -> Counter[SlotSize]:
        """How many slots of each kind the machines have room for: GPU slots, or on a cluster without GPUs CPU slots."""
        wanted: Counter[SlotSize] = Counter()
        if self._has_gpus():
            for node in self._nodes():
                if (count := int(node.get("GPU", 0)) // self.gpus) >= 1:
                    wanted[SlotSize(self.gpus, min(self.cpus, int(node.get("CPU", 0)) // count))] += count
        else:
            wanted[SlotSize(0, self.cpus)] = sum(int(node.get("CPU", 0)) // self.cpus for node in self._nodes())
        return +wanted

    def _nodes(self) -> list[dict[str, float]]:
        """The resources of each machine that is alive."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _has_gpus(self) -> bool:
        return any(node.get("GPU", 0) >= 1 for node in self._nodes())


def gpu_bytes() -> int:
    """Bytes of memory of the GPU that this process sees; 0 if it sees none."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 0


def _rounded(share: float) -> float:
    """Rounded down to four decimal places, the finest share that Ray counts; up, the shares could exceed 1."""
    return math.floor(share * 10_000) / 10_000


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """Put this process's signal handlers back afterwards; Ray replaces them by its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
