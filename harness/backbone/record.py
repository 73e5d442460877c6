"""Which weights a cell stood on."""

from __future__ import annotations

from harness.suite import Strict


class BackboneRecord(Strict):
    """Which weights a cell stood on."""

    source: str
    revision: str
    fingerprint: str
    num_params: int
