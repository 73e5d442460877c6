"""What a process loads once and keeps: backbones, and the rows of tasks."""

from __future__ import annotations

import functools
from typing import Any

from harness.backbone import Backbone
from harness.data import TaskData, load_task
from harness.declarations import Draw, ProtocolReference, Strict, TaskFile
from harness.few_shot import draw_few
from harness.loading import DEFAULT_PLACEMENT, Placement, load_backbone, tokenizer_of
from harness.mixture import load_mixture
from harness.quantization import Scheme
from harness.schema import Cell, Mixture
from harness.seal import Seal
from harness.tasks.own import cell_mixture, cell_task
from harness.traces import put_back_classes


def cached_backbone(
    source: str, precision: str, quantization: Scheme = "none", placement: Placement = DEFAULT_PLACEMENT
) -> Backbone:
    """Load a backbone once per process, and again where it is not as it was loaded any more."""
    return sealed_backbone(source, precision, quantization, placement)[0]


def sealed_backbone(
    source: str, precision: str, quantization: Scheme = "none", placement: Placement = DEFAULT_PLACEMENT
) -> tuple[Backbone, Seal]:
    """The same with the proof of what it was when it was loaded."""
    loads = _load_sealed.cache_info().misses
    seal = _load_sealed(source, precision, quantization, placement)[1]
    was_here = _load_sealed.cache_info().misses == loads
    if was_here and seal.difference() is not None:
        del seal  # with all that it holds, before another takes its room
        drop_backbone()
    return _load_sealed(source, precision, quantization, placement)


def drop_backbone() -> None:
    """Let go of the cached backbone, which somebody has changed; it is loaded again when it is asked for."""
    _load_sealed.cache_clear()
    put_back_classes()


@functools.lru_cache(maxsize=1)
def _load_sealed(source: str, precision: str, quantization: Scheme, placement: Placement) -> tuple[Backbone, Seal]:
    backbone = load_backbone(source, precision, quantization=quantization, placement=placement)
    return backbone, Seal(backbone)


@functools.lru_cache(maxsize=1)
def cached_tokenizer(source: str) -> Any:
    """Load a backbone's tokenizer once per process, without its weights."""
    return tokenizer_of(source)


def cached_task(cell: Cell, data_dir: str | None, suite_folder: str) -> TaskData:
    """Load the rows that a cell needs, once per process."""
    what = cell.model_dump_json(include={"task", "protocol", "definition", "mixture"})
    if cell.few_shot is None:
        return _load_rows(what, data_dir, suite_folder)
    return _draw_rows(what, cell.few_shot, data_dir, suite_folder)


@functools.lru_cache(maxsize=64)
def _draw_rows(what: str, draw: Draw, data_dir: str | None, suite_folder: str) -> TaskData:
    return draw_few(_load_rows(what, data_dir, suite_folder), draw)


@functools.lru_cache(maxsize=32)
def _load_rows(what: str, data_dir: str | None, suite_folder: str) -> TaskData:
    asked = _Rows.model_validate_json(what)
    if asked.mixture is not None:
        return load_mixture(cell_mixture(asked.mixture, asked.task, asked.protocol, suite_folder), data_dir)
    return load_task(cell_task(asked.task, asked.protocol, asked.definition, suite_folder), data_dir)


class _Rows(Strict):
    """What of a cell decides its rows."""

    task: str
    protocol: ProtocolReference
    definition: TaskFile | None
    mixture: Mixture | None
