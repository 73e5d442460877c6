"""Where bundles run. The local engine computes them one after another in this process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from harness.bundle import Bundle, Listener, execute
from harness.products import OnProduct
from harness.progress import Progress


class Engine(Protocol):
    """Runs bundles and hands over every product as soon as it exists.

    `bundles` claims each bundle as it gives it out: take one only when there is room to run it.
    """

    def run(self, bundles: Iterable[Bundle], progress: Progress, on_product: OnProduct) -> None: ...


class LocalEngine:
    """Bundles in order, on the best device of this machine."""

    def run(self, bundles: Iterable[Bundle], progress: Progress, on_product: OnProduct) -> None:
        """Compute every bundle."""
        for bundle in bundles:
            progress.start_bundle(bundle.cells)
            execute(bundle, Listener(progress.step, on_product, progress.say))
