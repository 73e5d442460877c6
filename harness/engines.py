"""Where bundles run: one after another in this process, or on the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import ClassVar, Literal, Protocol

from harness.bundle import Bundle, Listener, execute
from harness.errors import UserError
from harness.products import OnProduct
from harness.progress import Progress

EngineName = Literal["local", "ray"]


class Engine(AbstractContextManager["Engine"], Protocol):
    """Runs bundles and hands over every product as soon as it exists; open as a context while it does.

    `bundles` claims each bundle as it gives it out: take one only when there is room to run it.
    """

    in_process: ClassVar[bool]
    """Whether backbones are loaded in this process."""

    def run(self, bundles: Iterable[Bundle], progress: Progress, on_product: OnProduct) -> None: ...


class LocalEngine(AbstractContextManager["LocalEngine"]):
    """Bundles in order, on the best device of this machine."""

    in_process: ClassVar[bool] = True

    def __exit__(self, *raised: object) -> None:
        """There is nothing to close."""

    def run(self, bundles: Iterable[Bundle], progress: Progress, on_product: OnProduct) -> None:
        """Compute every bundle."""
        for bundle in bundles:
            shown = progress.start_bundle(bundle.cells)
            execute(bundle, Listener(progress.step, on_product, progress.say))
            progress.end_bundle(shown)


def make_engine(
    name: EngineName = "local", address: str | None = None, cpus: int | None = None, gpus: int | None = None
) -> Engine:
    """The engine of a name; `address` (HOST:PORT or auto), `cpus` and `gpus`, those of a worker, are Ray's.

    Raises UserError where Ray is asked for and missing, where nothing answers, and for Ray's options without Ray.
    """
    if name == "ray":
        from harness.ray_engine import RayEngine  # ray is an extra

        return RayEngine(address, 1 if cpus is None else cpus, 1 if gpus is None else gpus)
    for option, value in (("--address", address), ("--cpus-per-bundle", cpus), ("--gpus-per-bundle", gpus)):
        if value is not None:
            raise UserError("says where Ray's workers run, and this run has none", field=option, hint="--engine ray")
    return LocalEngine()
