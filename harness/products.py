"""What a cell leaves behind, done or failed: its result with the contents of the files beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from harness import provenance
from harness.backbone import Backbone
from harness.cell_state import Outcome
from harness.data import TaskData
from harness.flops import MatmulParams, peak_flops
from harness.method import Rule
from harness.predict import score_data
from harness.protocol import Place, resolve
from harness.records import metric_record, prediction_rows
from harness.results import PredictionRow
from harness.schema import BackboneRecord, Cell, DevScore, Failure, Key, ParamCounts, Result, StartRecord, Usage
from harness.starting import StartFile
from harness.tasks.own import cell_task
from harness.usage import rule_usage, usage_of


@dataclass(frozen=True)
class Product:
    """A cell's result with the contents of the files beside it."""

    result: Result
    predictions: list[PredictionRow]
    tensors: bytes | None


OnProduct = Callable[[Product], None]


@dataclass(frozen=True)
class Circumstances:
    """What the results of a bundle have in common."""

    started_at: str
    suite_folder: str
    method_sha256: dict[str, str]
    """By method name."""
    bundle_cells: int
    starts: Mapping[Key, Sequence[StartFile]]
    """By key, what its tensors started from."""
    num_processes: int

    def start_records(self, cell: Cell) -> list[StartRecord]:
        """What a result says of the tensors that its cell started from."""
        return [start.record for start in self.starts.get(cell.key, ())]


def trained_product(
    outcome: Outcome,
    tensors: Mapping[str, Tensor],
    data: TaskData,
    backbone: Backbone,
    matmul: MatmulParams,
    common: Circumstances,
) -> Product:
    """The product of a cell whose training has ended, well or not; `tensors` are its method's, whole, on the CPU."""
    cell, method = outcome.cell, outcome.method
    peak = peak_flops(device_name(backbone), cell.recipe.precision)
    usage = usage_of(outcome, common.bundle_cells, matmul, peak, common.num_processes)
    if outcome.failure is not None:
        failure = outcome.failure.model_copy(update={"step": outcome.failed_at})
        return failed_product(cell, failure, common, usage if outcome.num_steps else None)
    result = Result(
        cell_id=cell.cell_id,
        group_id=cell.group_id,
        status="done",
        cell=cell,
        protocol=_protocol_values(cell, data.task.benchmark),
        metrics=metric_record(data),
        dev_history=outcome.history,
        selected_step=outcome.selected_step,
        raced_out_at=outcome.raced_out_at,
        dev=outcome.scores["dev"],
        test=outcome.scores.get("test"),
        params=ParamCounts(
            num_trained=method.num_trained,
            num_kept=method.num_kept,
            num_head=method.num_head,
            num_tasks=max(1, len(data.parts)),
        ),
        starts=common.start_records(cell),
        usage=usage,
        data=data.record,
        backbone=backbone.record,
        method_sha256=common.method_sha256[cell.method],
        provenance=provenance.collect(device_name(backbone)),
        started_at=common.started_at,
        finished_at=provenance.now(),
    )
    if outcome.raced_out_at is not None:
        return Product(result, prediction_rows(data, outcome.answers), None)
    return Product(result, prediction_rows(data, outcome.answers), safetensors_bytes(dict(tensors)))


def rule_product(cell: Cell, rule: Rule, data: TaskData, common: Circumstances) -> Product:
    """Score a rule; there is nothing to select, so its history has the one step 0."""
    begin = time.perf_counter()
    targets = [example.target for example in data.train]
    answers = {name: rule.answers(targets, len(data.split(name)), cell.seed) for name in ("dev", "test")}
    scores = {name: score_data(data, name, answers[name]) for name in answers}
    selection = scores["dev"].metrics[data.task.selection]
    elapsed = time.perf_counter() - begin
    result = Result(
        cell_id=cell.cell_id,
        group_id=cell.group_id,
        status="done",
        cell=cell,
        protocol=_protocol_values(cell, data.task.benchmark),
        metrics=metric_record(data),
        dev_history=[DevScore(step=0, selection=selection, metrics=scores["dev"].metrics)],
        selected_step=0,
        selection_rule="nothing is selected",
        dev=scores["dev"],
        test=scores["test"],
        params=ParamCounts(num_trained=0, num_kept=0),
        usage=rule_usage(elapsed),
        data=data.record,
        backbone=BackboneRecord(source="none", revision="none", fingerprint="none", num_params=0),
        method_sha256=common.method_sha256[cell.method],
        provenance=provenance.collect("cpu"),
        started_at=common.started_at,
        finished_at=provenance.now(),
    )
    return Product(result, prediction_rows(data, answers), None)


def failed_product(cell: Cell, failure: Failure, common: Circumstances, usage: Usage | None = None) -> Product:
    """A failure is a result too; it needs no rows, which may be what failed. `usage` is what training has cost."""
    task = cell_task(cell.task, cell.protocol, cell.definition, common.suite_folder)
    result = Result(
        cell_id=cell.cell_id,
        group_id=cell.group_id,
        status="failed",
        cell=cell,
        protocol=_protocol_values(cell, task.benchmark),
        failure=failure,
        usage=usage,
        starts=common.start_records(cell),
        method_sha256=common.method_sha256[cell.method],
        provenance=provenance.collect("unknown"),
        started_at=common.started_at,
        finished_at=provenance.now(),
    )
    return Product(result, [], None)


def failed_to_store(made: Result, failure: Failure) -> Result:
    """The record of a cell whose result found no room."""
    common = (
        "cell_id",
        "group_id",
        "cell",
        "protocol",
        "method_sha256",
        "starts",
        "usage",
        "provenance",
        "started_at",
        "finished_at",
    )
    return Result(status="failed", failure=failure, **{name: getattr(made, name) for name in common})


def device_name(backbone: Backbone) -> str:
    """The model of a GPU, or the kind of device."""
    return torch.cuda.get_device_name() if backbone.device.type == "cuda" else backbone.device.type


def _protocol_values(cell: Cell, benchmark: str) -> dict[str, Any]:
    return resolve(cell.protocol).acting(
        Place(cell.task, benchmark, cell.method, cell.backbone, cell.few_shot is not None)
    )
