"""Benchmark harness for parameter-efficient fine-tuning: `run` a suite, `load_results`, `read_predictions`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Read when torch starts its threads. By default they spin for milliseconds while they wait for each other, and where
# another process wants the same cores a step then takes many times as long; a short spin costs next to nothing.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

from harness import library_noise
from harness.errors import UserError
from harness.results import load_results, read_predictions

# here, since every process imports this first: those that train together and Ray's workers too
library_noise.silence_libraries()

if TYPE_CHECKING:
    from harness.runner import run

__all__ = ["UserError", "load_results", "read_predictions", "run"]


def __getattr__(name: str) -> Any:
    """Import the runner, and torch with it, only when it is used."""
    if name == "run":
        from harness.runner import run

        return run
    raise AttributeError(f"module 'harness' has no attribute '{name}'")
