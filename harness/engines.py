"""Where bundles run. The local engine computes them one after another in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from harness.job import BundleJob, OnProduct, execute
from harness.progress import Progress


class Engine(Protocol):
    """Runs jobs and hands over every product as soon as it exists."""

    def run(self, jobs: Sequence[BundleJob], progress: Progress, on_product: OnProduct) -> None: ...


class LocalEngine:
    """Bundles in order, on the best device of this machine."""

    def run(self, jobs: Sequence[BundleJob], progress: Progress, on_product: OnProduct) -> None:
        """Compute every job."""
        for job in jobs:
            progress.start_bundle(job.cells)
            execute(job, progress.step, on_product)
