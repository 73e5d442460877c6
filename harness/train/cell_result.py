"""Make what is stored of a cell, done or failed: its result with what it cost, its predictions and its tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from harness import provenance
from harness.backbone import Backbone, BackboneRecord, MatmulParams, peak_flops, peak_memory_bytes
from harness.data import TaskData, cell_mixture, cell_task, signature_of
from harness.method import Rule, SourceFile
from harness.results import (
    DevScore,
    Failure,
    MetricRecord,
    ParamCounts,
    PredictionRow,
    Result,
    StartRecord,
    Usage,
    split_name,
)
from harness.suite import Cell, Key, Scope, resolve_protocol
from harness.train.cell_state import Outcome
from harness.train.evaluate import score_data


@dataclass(frozen=True)
class CellResult:
    """The contents of the files that a cell leaves in the results folder."""

    result: Result
    predictions: list[PredictionRow]
    """Answers and references of dev and test; empty for a failure."""
    tensors: bytes | None
    """The selected tensors as a safetensors file; None for a failure, a rule, and a cell that lost a race."""


OnCellResult = Callable[[CellResult], None]


@dataclass(frozen=True)
class BundleFacts:
    """What the results of one bundle have in common."""

    started_at: str
    suite_folder: str
    """Where the suite file lies; paths in it are relative to this folder."""
    method_sha256: dict[str, str]
    """By method, the hash of its file."""
    bundle_cells: int
    """Number of cells that shared the forward passes."""
    starts: Mapping[Key, Sequence[SourceFile]]
    """By cell key, the files that its tensors start from (`init_from`)."""
    num_processes: int
    """Processes that trained the bundle together."""

    def start_records(self, cell: Cell) -> list[StartRecord]:
        """The part of a result that names the files which the cell's tensors started from."""
        return [start.record for start in self.starts.get(cell.key, ())]


def trained_result(
    outcome: Outcome,
    tensors: Mapping[str, Tensor],
    data: TaskData,
    backbone: Backbone,
    matmul: MatmulParams,
    common: BundleFacts,
) -> CellResult:
    """What is stored of a cell whose training has ended, well or not.

    `tensors` are the method's selected tensors by name, whole and on the CPU; `matmul` counts the backbone's weights,
    for the FLOPs.
    """
    cell, method = outcome.cell, outcome.method
    peak = peak_flops(device_name(backbone), cell.recipe.precision)
    usage = usage_of(outcome, common.bundle_cells, matmul, peak, common.num_processes)
    if outcome.failure is not None:
        failure = outcome.failure.model_copy(update={"step": outcome.failed_at})
        return failed_result(cell, failure, common, usage if outcome.num_steps else None)
    result = Result(
        cell_id=cell.cell_id,
        group_id=cell.group_id,
        status="done",
        cell=cell,
        protocol=_protocol_values(cell, data.task.benchmark),
        metrics=_metric_record(data),
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
        forgetting=outcome.forgetting,
        answering=outcome.answering,
        data=data.record,
        backbone=backbone.record,
        method_sha256=common.method_sha256[cell.method],
        provenance=provenance.collect_provenance(device_name(backbone)),
        started_at=common.started_at,
        finished_at=provenance.utc_now(),
    )
    # a cell that lost a race can never win its grid, so nothing ever reads its tensors
    content = None if outcome.raced_out_at is not None else safetensors_bytes(dict(tensors))
    return CellResult(result, _prediction_rows(data, outcome.answers), content)


def _rule_answers(cls: type[Rule], data: TaskData, split: str, seed: int) -> list[str]:
    """Answers of a rule to a split. Of a choice the answer is a number, and a row's labels are those of its choices."""
    targets = [example.references[0] if example.choices else example.target for example in data.train]
    rows = data.split(split)
    places: dict[int, list[int]] = {}
    for index, example in enumerate(rows):
        places.setdefault(len(example.choices), []).append(index)
    answers = [""] * len(rows)
    for count, own in sorted(places.items()):
        labels = [str(number) for number in range(count)] or data.task.targets
        for index, answer in zip(own, cls(labels).answers(targets, len(own), seed), strict=True):
            answers[index] = answer
    return answers


def rule_result(cell: Cell, cls: type[Rule], data: TaskData, common: BundleFacts) -> CellResult:
    """Score a rule, and return what is stored of it. It is not trained, so step 0 is its whole history."""
    begin = time.perf_counter()
    answers = {name: _rule_answers(cls, data, name, cell.seed) for name in ("dev", "test")}
    scores = {name: score_data(data, name, answers[name]) for name in answers}
    selection = scores["dev"].metrics[data.task.selection]
    elapsed = time.perf_counter() - begin
    result = Result(
        cell_id=cell.cell_id,
        group_id=cell.group_id,
        status="done",
        cell=cell,
        protocol=_protocol_values(cell, data.task.benchmark),
        metrics=_metric_record(data),
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
        provenance=provenance.collect_provenance("cpu"),
        started_at=common.started_at,
        finished_at=provenance.utc_now(),
    )
    return CellResult(result, _prediction_rows(data, answers), None)


def failed_result(cell: Cell, failure: Failure, common: BundleFacts, usage: Usage | None = None) -> CellResult:
    """What is stored of a cell that failed; `usage` is what its training cost until then.

    It needs neither rows nor weights, since loading those may be what failed.
    """
    if cell.mixture is None:
        task = cell_task(cell.task, cell.protocol, cell.definition, common.suite_folder)
    else:
        task = cell_mixture(cell.mixture, cell.task, cell.protocol, common.suite_folder)
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
        provenance=provenance.collect_provenance("unknown"),
        started_at=common.started_at,
        finished_at=provenance.utc_now(),
    )
    return CellResult(result, [], None)


def failed_to_store(made: Result, failure: Failure) -> Result:
    """The result of a cell that was trained and could not be stored, for example because the disk is full."""
    kept = (
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
    return Result(status="failed", failure=failure, **{name: getattr(made, name) for name in kept})


def device_name(backbone: Backbone) -> str:
    """The name of the GPU's model, or "cpu" and the like for other devices."""
    return torch.cuda.get_device_name() if backbone.device.type == "cuda" else backbone.device.type


def _protocol_values(cell: Cell, benchmark: str) -> dict[str, Any]:
    """The protocol's values that act on this cell, by key."""
    return resolve_protocol(cell.protocol).acting(
        Scope(cell.task, benchmark, cell.method, cell.backbone, cell.few_shot is not None)
    )


def _metric_record(data: TaskData) -> MetricRecord:
    """What `harness score` needs to recompute the metrics of a task, and of each task of a mixture."""
    task = data.task
    references = [example.references for example in data.test]
    made = {name: signature_of(name, references) for name in ([] if data.parts else task.metrics)}
    return MetricRecord(
        reported=list(task.reported),
        extra=[name for name in task.metrics if name not in task.reported],
        selection=task.selection,
        labels=task.targets,
        signatures={name: signature for name, signature in made.items() if signature is not None},
        parts={part.task.name: _metric_record(part) for part in data.parts},
    )


def _prediction_rows(data: TaskData, answers: Mapping[str, Sequence[str]], task: str = "") -> list[PredictionRow]:
    """Answers to dev and test with their references, row by row; those of a mixture task by task.

    The rows of a mixture's tasks stand one behind the other, so each task takes the next piece of each split's answers.
    """
    rows: list[PredictionRow] = []
    if data.parts:
        starts = dict.fromkeys(answers, 0)
        for part in data.parts:
            ends = {split: starts[split] + len(part.split(split)) for split in answers}
            own = {split: answers[split][starts[split] : ends[split]] for split in answers}
            rows += _prediction_rows(part, own, part.task.name)
            starts = ends
        return rows
    rows = []
    for split in ("dev", "test"):
        if split in answers:
            for index, (example, answer) in enumerate(zip(data.split(split), answers[split], strict=True)):
                row = (split_name(split, task), index, list(example.references), answer)
                rows.append((*row, example.group) if example.group else row)
    return rows


def usage_of(
    outcome: Outcome, bundle_cells: int, matmul: MatmulParams, peak: float | None, num_processes: int = 1
) -> Usage:
    """The cost of one trained cell; `peak` is one device's FLOP/s at the cell's precision, None where it is not known.

    The seconds of a bundle are divided among its cells by positions. So a cell's rates (rows and tokens a second) are
    those of its share of the bundle, not of the cell trained alone. Peak memory is that of the whole process.
    """
    work, seconds = outcome.work, outcome.train_s
    flops = matmul.step_flops(
        work.samples, work.source_positions, work.target_tokens, num_passes=outcome.method.num_passes
    )
    return Usage(
        num_steps=outcome.num_steps,
        num_samples=work.samples,
        num_tokens=work.tokens,
        num_prompt_tokens=work.prompt_tokens,
        num_target_tokens=work.target_tokens,
        num_padding=work.padding,
        num_eval_prompt_tokens=outcome.eval_prompt_tokens,
        padding_share=_ratio(work.padding, work.padding + work.source_positions),
        samples_per_s=_ratio(work.samples, seconds),
        tokens_per_s=_ratio(work.tokens, seconds),
        model_flops=flops,
        utilisation=None if peak is None else _ratio(flops, seconds * peak * num_processes),
        train_s=seconds,
        eval_s=outcome.eval_s,
        total_s=seconds + outcome.eval_s,
        peak_memory_bytes=peak_memory_bytes(),
        bundle_cells=bundle_cells,
        micro_batch_tokens=outcome.micro_batch_tokens,
        num_out_of_memory=outcome.num_out_of_memory,
        num_processes=num_processes,
    )


def rule_usage(seconds: float) -> Usage:
    """The cost of a rule, which trains nothing and answered in `seconds`."""
    return Usage(
        num_steps=0,
        num_samples=0,
        num_tokens=0,
        train_s=0.0,
        eval_s=seconds,
        total_s=seconds,
        peak_memory_bytes=0,
        bundle_cells=1,
    )


def _ratio(amount: float, base: float) -> float | None:
    return amount / base if base > 0 else None
