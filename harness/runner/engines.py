"""Engines: where bundles run, either one after another in this process or on the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import ClassVar, Literal, Protocol

from harness.errors import UserError
from harness.runner.progress import Progress
from harness.train import Bundle, BundleListener, OnCellResult, train_bundle

EngineName = Literal["local", "ray"]


class Engine(AbstractContextManager["Engine"], Protocol):
    """Trains bundles; enter it as a context first.

    Taking a bundle from `bundles` claims its cells, so an engine takes one only when it has room to train it: a claimed
    cell is closed to other processes.
    """

    in_process: ClassVar[bool]
    """Whether backbones are loaded in this process."""

    def run(self, bundles: Iterable[Bundle], progress: Progress, on_product: OnCellResult) -> None:
        """Train every bundle; call `on_product` with what is stored of each cell, as soon as the cell ends."""


class LocalEngine(AbstractContextManager["LocalEngine"]):
    """Trains bundles in this process, one after another, on the best device of this machine."""

    in_process: ClassVar[bool] = True

    def __exit__(self, *raised: object) -> None:
        """Nothing has to be closed."""

    def run(self, bundles: Iterable[Bundle], progress: Progress, on_product: OnCellResult) -> None:
        for bundle in bundles:
            shown = progress.start_bundle(bundle.cells)
            train_bundle(bundle, BundleListener(progress.step, on_product, progress.say))
            progress.end_bundle(shown)


def make_engine(
    name: EngineName = "local", address: str | None = None, cpus: int | None = None, gpus: int | None = None
) -> Engine:
    """Return the engine of this name.

    The other options are for Ray: `address` of a cluster (HOST:PORT or auto), `cpus` and `gpus` of each worker. Raises
    UserError if Ray is not installed, if nothing answers at the address, and for an option of Ray without Ray.
    """
    if name == "ray":
        from harness.runner.ray.engine import RayEngine  # ray is an extra

        return RayEngine(address, 1 if cpus is None else cpus, 1 if gpus is None else gpus)
    for option, value in (("--address", address), ("--cpus-per-bundle", cpus), ("--gpus-per-bundle", gpus)):
        if value is not None:
            raise UserError("says where Ray's workers run, and this run has none", field=option, hint="--engine ray")
    return LocalEngine()
