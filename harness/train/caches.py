"""What a process loads once and keeps for its next bundles: one backbone with its seal, one tokenizer, rows of tasks.

Only one backbone is kept, since two may not fit a device. Rows of the last 32 tasks and 64 few-shot draws are kept:
they take little room beside a backbone.
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
from harness.data import TaskData, cell_mixture, cell_task, draw_few, load_mixture, load_task
from harness.suite import Cell, Draw, Mixture, ProtocolReference, Strict, TaskFile


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


def cached_task(cell: Cell, data_dir: str | None, suite_folder: str) -> TaskData:
    """Load the rows that a cell needs, once per process: a task's or a mixture's, or a few-shot draw from them."""
    request = cell.model_dump_json(include=set(_RowsRequest.model_fields))
    if cell.few_shot is None:
        return _load_rows(request, data_dir, suite_folder)
    return _draw_rows(request, cell.few_shot, data_dir, suite_folder)


@functools.lru_cache(maxsize=64)
def _draw_rows(request: str, draw: Draw, data_dir: str | None, suite_folder: str) -> TaskData:
    return draw_few(_load_rows(request, data_dir, suite_folder), draw)


@functools.lru_cache(maxsize=32)
def _load_rows(request: str, data_dir: str | None, suite_folder: str) -> TaskData:
    """`request` is a _RowsRequest as JSON: a string can be the key of a cache, a cell cannot."""
    asked = _RowsRequest.model_validate_json(request)
    if asked.mixture is not None:
        return load_mixture(cell_mixture(asked.mixture, asked.task, asked.protocol, suite_folder), data_dir)
    return load_task(cell_task(asked.task, asked.protocol, asked.definition, suite_folder), data_dir)


class _RowsRequest(Strict):
    """The fields of a cell that decide its rows; cells that differ in others share them."""

    task: str
    protocol: ProtocolReference
    definition: TaskFile | None
    mixture: Mixture | None
