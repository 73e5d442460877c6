"""What a process loads once and keeps: backbones, and the rows of tasks."""

from __future__ import annotations

import functools
from typing import Any

from harness.backbone import Backbone
from harness.data import TaskData, load_task
from harness.declarations import Draw, ProtocolReference, Strict, TaskFile
from harness.few_shot import draw_few
from harness.loading import DEFAULT_PLACEMENT, Placement, load_backbone, load_tokenizer
from harness.mixture import load_mixture
from harness.quantization import Scheme
from harness.schema import Cell, Mixture
from harness.tasks.own import cell_mixture, cell_task


@functools.lru_cache(maxsize=1)
def cached_backbone(
    source: str, precision: str, quantization: Scheme = "none", placement: Placement = DEFAULT_PLACEMENT
) -> Backbone:
    """Load a backbone once per process."""
    return load_backbone(source, precision, quantization=quantization, placement=placement)


@functools.lru_cache(maxsize=1)
def cached_tokenizer(source: str) -> Any:
    """Load a backbone's tokenizer once per process, without its weights."""
    return load_tokenizer(source)


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
