"""What a process loads once and keeps for its next bundles: one backbone with its seal, and one tokenizer.

Only one backbone is kept, since two may not fit a device.
"""

from __future__ import annotations

import functools
from typing import Any

from harness.backbone import (
    DEFAULT_PLACEMENT,
    Backbone,
    Placement,
    Scheme,
    Seal,
    load_backbone,
    restore_process,
    tokenizer_of,
)


def cached_backbone(
    source: str, precision: str, quantization: Scheme = "none", placement: Placement = DEFAULT_PLACEMENT
) -> Backbone:
    """Load a backbone once per process, and again if something has changed it since."""
    return sealed_backbone(source, precision, quantization, placement)[0]


def sealed_backbone(
    source: str, precision: str, quantization: Scheme = "none", placement: Placement = DEFAULT_PLACEMENT
) -> tuple[Backbone, Seal]:
    """Do what `cached_backbone` does, and return the backbone with the proof of what it was when it was loaded."""
    loads = _load_sealed.cache_info().misses
    seal = _load_sealed(source, precision, quantization, placement)[1]
    was_kept = _load_sealed.cache_info().misses == loads
    if was_kept and seal.difference() is not None:
        del seal  # frees the changed backbone, so that the new one finds room on the device
        drop_backbone()
    return _load_sealed(source, precision, quantization, placement)


def drop_backbone() -> None:
    """Free the kept backbone because a method has changed it; the next caller loads it anew."""
    _load_sealed.cache_clear()
    restore_process()


@functools.lru_cache(maxsize=1)
def _load_sealed(source: str, precision: str, quantization: Scheme, placement: Placement) -> tuple[Backbone, Seal]:
    backbone = load_backbone(source, precision, quantization=quantization, placement=placement)
    return backbone, Seal(backbone)


@functools.lru_cache(maxsize=1)
def cached_tokenizer(source: str) -> Any:
    """Load a backbone's tokenizer once per process, without its weights."""
    return tokenizer_of(source)
