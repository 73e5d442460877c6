"""The Ray cluster as the engine sees it: a connection, and places in which workers run.

A place is one GPU or several, or on machines without any the processors of one worker. Ray reserves it as a placement
group, so that the engine decides which bundles share a GPU.
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
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.ray_worker import Worker

OBJECT_STORE_BYTES = 200 * 2**20
"""Results on their way to the driver; what is larger goes through the disk."""
REFRESH_S = 1.0
CONNECT_S = 5.0
PASSED_ON = ("HARNESS_CACHE", "HF_HUB_OFFLINE")
"""Variables of the driver's environment that workers get too."""


def import_ray() -> Any:
    """The ray module. Raises UserError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # the driver's workers are few and known; Ray need not start some in advance
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        missing = f"--engine ray needs Ray, which is not installed ({error})"
        raise UserError(missing, hint="pip install 'peft-harness[ray]'") from None


def check_address(address: str) -> None:
    """Raise UserError for an address of a wrong form, or where nothing answers."""
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
class Spec:
    """What a place takes of a machine."""

    gpus: int
    cpus: int


@dataclass(eq=False)
class Place:
    """The GPUs of one worker, or of several that share one; or the processors of one worker."""

    spec: Spec
    group: Any
    """Ray's placement group."""
    node: str | None = None
    """Ray's id of its machine; None while there is none."""
    gpu_bytes: int | None = None
    asked: Any = None
    """Ray's answer to how large the GPU is, while it is on its way."""

    @property
    def is_gpu(self) -> bool:
        return self.spec.gpus > 0

    @property
    def key(self) -> str:
        return str(self.group.id.hex())


@dataclass(eq=False)
class Hand:
    """A worker process as the driver holds it."""

    actor: Any
    place: Place
    share: float
    """Part of its place."""
    backbone: tuple[str, str, str] | None = None
    """What it has loaded: (source, precision)."""
    name: str = ""
    """Its machine and process number; empty until it has answered."""


@dataclass
class Cluster:
    """A connection to Ray; `connect` before anything else, `disconnect` at the end."""

    ray: Any
    address: str | None
    cpus: int
    """Processors of a worker."""
    gpus: int
    """GPUs of a worker, on machines that have any."""
    places: list[Place] = field(default_factory=list)
    hands: list[Hand] = field(default_factory=list)
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
                    package = {"py_modules": [str(Path(__file__).resolve().parent)], "excludes": ["**/__pycache__"]}
                    self.ray.init(address=self.address, runtime_env=package, **quiet)
        except (self.ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            where = "on this machine" if self.address is None else f"at {self.address}"
            raise UserError(f"Ray {where} cannot be used: {lines[0]}", field="--address", hint=_HOW) from None
        self.refresh()
        if not self.places:
            kind = "GPU" if self._has_gpus() else "CPU"
            most = max((int(node.get(kind, 0)) for node in self._nodes()), default=0)
            self.disconnect()
            wanted, option = (self.gpus, "--gpus-per-bundle") if kind == "GPU" else (self.cpus, "--cpus-per-bundle")
            raise UserError(f"no machine of the cluster has {wanted} {kind}s; the largest has {most}", field=option)
        if self.gpus > 1 and not self._has_gpus():
            self.disconnect()
            raise UserError(f"got {self.gpus}, and no machine of the cluster has a GPU", field="--gpus-per-bundle")

    def disconnect(self) -> None:
        """End all workers, give the places back."""
        for hand in list(self.hands):
            self.end(hand)
        with contextlib.suppress(Exception):  # a cluster that is gone holds nothing any more
            for place in self.places:
                self.ray.util.remove_placement_group(place.group)
        self.places.clear()
        with _own_handlers():
            self.ray.shutdown()

    def refresh(self) -> None:
        """Reserve what machines have joined, and see which places are there; now and then."""
        if time.monotonic() - self._looked < REFRESH_S:
            return
        self._looked = time.monotonic()
        for spec in (self._wanted() - Counter(place.spec for place in self.places)).elements():
            resources = {name: amount for name, amount in (("GPU", spec.gpus), ("CPU", spec.cpus)) if amount}
            self.places.append(Place(spec, self.ray.util.placement_group([resources])))
        table = self.ray.util.placement_group_table()
        for place in self.places:
            entry = table.get(place.key, {})
            created = entry.get("state") == "CREATED"
            node = entry["bundles_to_node_id"][0] if created else None
            if node != place.node:
                place.node, place.gpu_bytes, place.asked = node, None, None
            if created and place.is_gpu and place.gpu_bytes is None:
                self._measure(place)

    def ready(self) -> list[Place]:
        """Places in which a worker can start at once; none while GPUs are measured, or the first would get all work."""
        if any(place.asked is not None for place in self.places):
            return []
        return [place for place in self.places if place.node and (not place.is_gpu or place.gpu_bytes is not None)]

    def start(self, place: Place, share: float) -> Hand:
        """Start a worker on a part of a place."""
        env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        env |= {"OMP_NUM_THREADS": str(self.cpus), "TOKENIZERS_PARALLELISM": "false"}
        needs = (
            {"num_cpus": 0, "num_gpus": _rounded(share * place.spec.gpus)} if place.is_gpu else {"num_cpus": self.cpus}
        )
        actor = self._remote(Worker, place, runtime_env={"env_vars": env}, **needs).remote(self.cpus, share)
        hand = Hand(actor, place, share)
        self.hands.append(hand)
        return hand

    def end(self, hand: Hand) -> None:
        """End a worker at once."""
        self.hands.remove(hand)
        with contextlib.suppress(Exception):  # it may be dead already
            self.ray.kill(hand.actor)

    def _remote(self, what: Any, place: Place, **options: Any) -> Any:
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        strategy = strategies.PlacementGroupSchedulingStrategy(place.group, 0)
        return self.ray.remote(what).options(scheduling_strategy=strategy, **options)

    def _measure(self, place: Place) -> None:
        """Ask how large a place's GPU is; 0 where PyTorch does not see it."""
        if place.asked is None:
            place.asked = self._remote(gpu_bytes, place, num_cpus=0, num_gpus=0.01).remote()
        done, _ = self.ray.wait([place.asked], timeout=0)
        if done:
            with contextlib.suppress(self.ray.exceptions.RayError):  # asked again at the next look
                place.gpu_bytes = self.ray.get(place.asked)
            place.asked = None

    def _wanted(self) -> Counter[Spec]:
        """What to reserve on the machines there are: the GPUs, or without any the processors."""
        wanted: Counter[Spec] = Counter()
        if self._has_gpus():
            for node in self._nodes():
                if (count := int(node.get("GPU", 0)) // self.gpus) >= 1:
                    wanted[Spec(self.gpus, min(self.cpus, int(node.get("CPU", 0)) // count))] += count
        else:
            wanted[Spec(0, self.cpus)] = sum(int(node.get("CPU", 0)) // self.cpus for node in self._nodes())
        return +wanted

    def _nodes(self) -> list[dict[str, float]]:
        """What each machine that is alive has."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _has_gpus(self) -> bool:
        return any(node.get("GPU", 0) >= 1 for node in self._nodes())


def gpu_bytes() -> int:
    """Memory of the GPU that this process sees; 0 where it sees none."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 0


def _rounded(share: float) -> float:
    """Down to four places, as Ray counts."""
    return math.floor(share * 10_000) / 10_000


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep this process's handlers of signals, which Ray replaces by its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
