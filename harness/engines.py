"""Where bundles run. The local engine computes them one after another in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from harness.bundle import Bundle, OnProduct, execute
from harness.progress import Progress


class Engine(Protocol):
    """Runs bundles and hands over every product as soon as it exists."""

    def run(self, bundles: Sequence[Bundle], progress: Progress, on_product: OnProduct) -> None: ...


class LocalEngine:
    """Bundles in order, on the best device of this machine."""

    def run(self, bundles: Sequence[Bundle], progress: Progress, on_product: OnProduct) -> None:
        """Compute every bundle."""
        for bundle in bundles:
            progress.start_bundle(bundle.cells)
            execute(bundle, progress.step, on_product)
