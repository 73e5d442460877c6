"""Estimate how long the missing cells of a plan will take: their FLOPs, divided by the speed of this device.

The FLOPs of a cell are known before it runs (`flops`). The speed comes from stored results of the same backbone,
precision and device, or else from a probe of a few seconds (`probe`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from harness import provenance
from harness.backbone import (
    MatmulParams,
    known_config,
    local_tokenizer,
    matmul_params,
    meta_backbone,
    peak_flops,
    resolve_backbone,
    weights_are_here,
)
from harness.data import TaskData, cell_rows
from harness.errors import UserError
from harness.method import Method
from harness.results import Result, read_result
from harness.runner.device_speed import Rate, device_name, probed_rate
from harness.runner.plan import Plan
from harness.suite import Cell, Group, Recipe
from harness.train import build_method, is_read_apart

SAMPLED_ROWS = 500
"""Training rows that are tokenised for the mean length. Where lengths spread as much as their mean, the mean of 500 is
within 4.5 % (one standard error)."""
MOST_PROBED_PARAMS = 10**9
"""Largest backbone, in weights, that a plan probes without `--probe`: 4 GB in float32, which load within seconds."""


@dataclass(frozen=True)
class TimeEstimate:
    """How long the missing cells of one table entry take together; seconds are None if no speed is known."""

    method: str
    """Label of the entry."""
    task: str
    backbone: str
    cells: int
    """Number of missing cells."""
    flops: float | None = None
    """FLOPs of their training."""
    train_s: float | None = None
    eval_s: float | None = None
    floor_s: float | None = None
    """Seconds that training takes at the device's peak FLOP/s, so at least; None if the peak is not known."""
    origin: str = ""
    """Where the speed comes from, or why there is no estimate."""

    @property
    def seconds(self) -> float | None:
        return None if self.train_s is None or self.eval_s is None else self.train_s + self.eval_s


@dataclass(frozen=True)
class TextLengths:
    """Mean lengths of a task's rows under a backbone's tokenizer, and its numbers of rows."""

    source: float
    """Tokens of a text."""
    target: float
    """Tokens of a target with its end token."""
    num_dev: int
    num_test: int


@dataclass(frozen=True)
class Rows:
    """What one cell sends through the backbone."""

    training: tuple[int, int, int]
    """(rows, positions of prompts and texts, target tokens) of all steps."""
    evaluation: float
    """Positions of prompts and texts in all evaluations."""


def estimate_time(plan: Plan, probe: bool | None = None) -> list[TimeEstimate]:
    """One estimate for each group that has cells to train.

    With `probe`, the device is measured where no stored result tells its speed. With None, it is measured only if the
    weights are on this machine and load within seconds.
    """
    stored = list(stored_results(plan.store.root))
    estimates = []
    for index, group in enumerate(plan.groups):
        missing = plan.num_missing(index)
        method = plan.methods[group.method]
        if not missing or method.spec.is_rule or method.spec.error:
            continue
        cell = group.cells[(0, group.seeds[0])]
        processes = plan.suite.file.execution.processes
        backbone = plan.suite.backbone_sources[group.backbone]
        rate = stored_rate(stored, cell, processes) or _probe(backbone, cell.recipe, probe)
        estimates.append(_estimate(plan, group, cell, missing, stored, rate))
    return estimates


def _probe(name_or_path: str, recipe: Recipe, wanted: bool | None) -> Rate | str:
    """The speed that a probe measures, or in words why there is none. It never downloads weights."""
    if wanted is not False and not weights_are_here(name_or_path):
        return "weights not on this machine"
    if wanted is False or (wanted is None and meta_backbone(name_or_path).num_params > MOST_PROBED_PARAMS):
        return "no stored result says how fast this device is; --probe measures it"
    try:
        return probed_rate(name_or_path, recipe.precision, recipe.backbone_dropout, recipe.quantization)
    except UserError as error:
        return error.problem


def _estimate(
    plan: Plan, group: Group, cell: Cell, missing: int, stored: Sequence[Result], rate: Rate | str
) -> TimeEstimate:
    """The estimate for one group; where something is unknown, as much of it as there is, with the reason."""
    head = TimeEstimate(group.label, group.task, group.backbone, missing)
    matmul = _matmul(plan.suite.backbone_sources[group.backbone])
    lengths = _stored_lengths(stored, cell) or _measured_lengths(plan, cell)
    if matmul is None or lengths is None:
        lacking = "configuration of the backbone" if matmul is None else "rows or tokenizer"
        return replace(head, origin=f"{lacking} not on this machine")
    try:
        rows = _mean_rows(plan, group, lengths)
    except UserError:
        return replace(head, origin="does not fit the backbone")
    except Exception as error:  # a mistake in a method's code, which a run records as the failure of its cells
        return replace(head, origin=f"the method raises {type(error).__name__}")
    trains = _class(plan, cell).trains_weights
    flops = missing * matmul.step_flops(*rows.training, weights_train=trains)
    peak = peak_flops(device_name(), cell.recipe.precision)
    counted = replace(head, flops=flops, floor_s=None if peak is None else flops / peak)
    if isinstance(rate, str):
        return replace(counted, origin=rate)
    evaluation = missing * rows.evaluation / rate.eval_positions
    return replace(counted, train_s=flops / rate.train_flops, eval_s=evaluation, origin=rate.origin)


def _mean_rows(plan: Plan, group: Group, lengths: TextLengths) -> Rows:
    """What a cell of the group needs on average; grid points may differ in steps, batch size and prompt length."""
    points = [group.cells[(point, group.seeds[0])] for point in range(len(group.points))]
    prompts = {str(cell.hp): _prompt(plan, cell, lengths) for cell in {str(cell.hp): cell for cell in points}.values()}
    rows = [rows_of(cell, lengths, *prompts[str(cell.hp)]) for cell in points]
    samples, source, target = (round(fmean(part)) for part in zip(*(one.training for one in rows), strict=True))
    return Rows((samples, source, target), fmean(one.evaluation for one in rows))


def rows_of(
    cell: Cell, lengths: TextLengths, prompt_tokens: int, apart: bool = False, apart_in_training: bool = False
) -> Rows:
    """What training and evaluating one cell sends through the backbone.

    A prompt that is read apart counts once for each evaluation, and in training once a step; else it counts for each
    row.
    """
    recipe = cell.recipe
    samples = recipe.steps * recipe.batch_size
    evaluations = math.ceil(recipe.steps / recipe.eval_every)
    answered = evaluations * lengths.num_dev + lengths.num_test
    trained = samples * lengths.source + prompt_tokens * (recipe.steps if apart_in_training else samples)
    scored = answered * lengths.source + prompt_tokens * (evaluations + 1 if apart else answered)
    return Rows((samples, round(trained), round(samples * lengths.target)), scored)


def stored_results(root: Path) -> Iterable[Result]:
    """All readable results in a folder; damaged ones are skipped, since here they only tell of speed."""
    for path in sorted(root.rglob("*.json")) if root.is_dir() else ():
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            try:
                yield read_result(path)
            except UserError:
                continue


def stored_rate(stored: Iterable[Result], cell: Cell, num_processes: int = 1) -> Rate | None:
    """The mean speed of comparable stored cells: those of the same method, or if there are none, of any method."""
    comparable = [result for result in stored if _is_comparable(result, cell, num_processes)]
    own = [result for result in comparable if result.cell.method == cell.method]
    chosen = own or comparable
    seconds = sum(result.usage.train_s for result in chosen if result.usage)
    eval_seconds = sum(result.usage.eval_s for result in chosen if result.usage)
    if not seconds or not eval_seconds:
        return None
    flops = sum(result.usage.model_flops or 0.0 for result in chosen if result.usage)
    positions = sum(_evaluated_positions(result) for result in chosen)
    return Rate(flops / seconds, positions / eval_seconds, f"{len(chosen)} stored cells of {cell.backbone}")


def _is_comparable(result: Result, cell: Cell, num_processes: int) -> bool:
    """Whether a stored cell ran on this device with the same backbone, precision, dropout and number of processes."""
    usage, made = result.usage, result.provenance
    if result.status != "done" or usage is None or not usage.model_flops or result.cell.backbone != cell.backbone:
        return False
    if usage.num_processes != num_processes:
        return False
    here = provenance.collect_provenance(device_name())
    same = all(made.get(key) == here[key] for key in ("device", "processor", "num_cpus"))
    mine, theirs = cell.recipe, result.cell.recipe
    settings = ("precision", "backbone_dropout", "quantization")
    return same and all(getattr(mine, name) == getattr(theirs, name) for name in settings)


def _evaluated_positions(result: Result) -> float:
    """Positions of prompts and texts in all evaluations of a stored cell; texts are as long as in training."""
    usage = result.usage
    assert usage is not None
    assert result.data is not None
    tested = 0 if result.raced_out_at is not None else result.data.num_test
    rows = len(result.dev_history) * result.data.num_dev + tested
    prompts = usage.num_eval_prompt_tokens
    if prompts is None:  # of an older version, where each row had its prompt, as in training
        prompts = round(rows * (usage.num_prompt_tokens or 0) / usage.num_samples)
    return rows * usage.num_tokens / usage.num_samples + prompts


def _stored_lengths(stored: Iterable[Result], cell: Cell) -> TextLengths | None:
    """The lengths that a stored cell of the same task and backbone has met in training."""
    for result in stored:
        usage, data = result.usage, result.data
        made = result.cell
        same = (made.task, made.backbone, made.protocol, made.recipe.max_source_length, made.few_shot)
        if usage is None or data is None or usage.num_target_tokens is None or not usage.num_samples:
            continue
        if same == (cell.task, cell.backbone, cell.protocol, cell.recipe.max_source_length, cell.few_shot):
            samples = usage.num_samples
            means = usage.num_tokens / samples, usage.num_target_tokens / samples
            return TextLengths(*means, data.num_dev, data.num_test)
    return None


def _measured_lengths(plan: Plan, cell: Cell) -> TextLengths | None:
    """The lengths of a sample of the rows; None unless rows and tokenizer are on this machine, as nothing is
    downloaded."""
    task = plan.tasks[cell.task]
    if not (task.is_here or plan.data_dir):
        return None
    try:
        data = cell_rows(cell, plan.data_dir, plan.suite.folder)
    except UserError:
        return None
    tokenizer = local_tokenizer(plan.suite.backbone_sources[cell.backbone])
    if tokenizer is None:
        return None
    return _sampled_lengths(data, tokenizer, cell.recipe.max_source_length or task.max_source_length)


def _sampled_lengths(data: TaskData, tokenizer: Any, limit: int) -> TextLengths:
    """Mean lengths of SAMPLED_ROWS training rows; texts are cut at `limit` tokens, as in training."""
    chosen = np.random.default_rng(0).permutation(len(data.train))[:SAMPLED_ROWS]
    sources = tokenizer([data.train[i].source for i in chosen], truncation=True, max_length=limit)["input_ids"]
    targets = tokenizer([data.train[i].target for i in chosen], add_special_tokens=False)["input_ids"]
    source, target = (float(np.mean([len(ids) for ids in rows])) for rows in (sources, targets))
    return TextLengths(source, target + 1, len(data.dev), len(data.test))  # the end token closes a target


def _prompt(plan: Plan, cell: Cell, lengths: TextLengths) -> tuple[int, bool, bool]:
    """Prompt positions of a cell, and whether they are read apart in evaluations and in training.

    All of it comes from the method built on a backbone without weights.
    """
    backbone = meta_backbone(plan.suite.backbone_sources[cell.backbone])
    method = build_method(cell, _class(plan, cell), backbone)
    limit = cell.recipe.max_source_length or plan.tasks[cell.task].max_source_length
    most = limit + method.num_prompt_tokens + math.ceil(lengths.target)
    backbone.model.eval()
    apart = is_read_apart(method) and backbone.shares_prompts(most)
    backbone.model.train(cell.recipe.backbone_dropout)
    return method.num_prompt_tokens, apart, apart and backbone.shares_prompts(most)


def _class(plan: Plan, cell: Cell) -> type[Method]:
    cls = plan.methods[cell.method].cls
    assert cls is not None
    assert issubclass(cls, Method)
    return cls


@functools.lru_cache(maxsize=8)
def _matmul(name_or_path: str) -> MatmulParams | None:
    """The weights that matter for a backbone's FLOPs; None if not even its configuration is on this machine."""
    if known_config(name_or_path) is None and not Path(resolve_backbone(name_or_path)).is_dir():
        return None
    return matmul_params(meta_backbone(name_or_path))
