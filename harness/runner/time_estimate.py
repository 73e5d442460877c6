"""Estimate how long the missing cells of a plan will take: their FLOPs, divided by the speed of this device.

The FLOPs of a cell are known before it runs (`flops`). The speed comes from stored results of the same backbone,
precision and device, or else from a probe of a few seconds (`probe`).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from harness import provenance
from harness.backbone import (
    SHORT_ANSWER,
    Backbone,
    MatmulParams,
    known_config,
    local_tokenizer,
    matmul_params,
    meta_backbone,
    peak_flops,
    resolve_backbone,
    weights_are_here,
)
from harness.data import Task, TaskData, cell_rows
from harness.errors import UserError
from harness.method import Method
from harness.results import Result, read_result
from harness.runner.device_speed import Rate, device_name, probed_rate
from harness.runner.plan import Plan
from harness.suite import Cell, Group, Key, Recipe
from harness.train import build_on_shapes, is_read_apart

SAMPLED_ROWS = 500
"""Training rows that are tokenised for the mean length. Where lengths spread as much as their mean, the mean of 500 is
within 4.5 % (one standard error)."""
WRITTEN_TOKEN = 7.0
"""What a token of a long answer costs, in positions that are read: 7.2 where 8 rows of 64 tokens are answered by
SmolLM2-135M on one thread (`python -m benchmarks.writing`)."""
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
    choices: float = 0.0
    """Tokens of all choices of a row, where the likeliest is the answer."""


@dataclass(frozen=True)
class Rows:
    """What one cell sends through the backbone."""

    training: tuple[int, int, int]
    """(rows, positions of prompts and texts, target tokens) of all steps."""
    evaluation: float
    """Positions of prompts, texts and choices in all evaluations, and what the tokens of long answers cost in such."""
    num_passes: int = 2
    """`Method.num_passes`."""


def estimate_time(
    plan: Plan,
    probe: bool | None = None,
    to_train: Mapping[int, int] | None = None,
    misfits: Container[Key] = (),
) -> list[TimeEstimate]:
    """One estimate for each group that has cells to train.

    `to_train` says how many, by the group's index: by default all without a result. Points whose cells are among
    `misfits` are left out of a group's mean. With `probe`, the device is measured where no stored result tells its
    speed. With None, it is measured only if the weights are on this machine and load within seconds.
    """
    if to_train is None:
        to_train = {index: plan.num_missing(index) for index in range(len(plan.groups))}
    counts = {index: count for index, count in to_train.items() if count}
    known = _Known(plan, stored_results(plan.store.root) if counts else ())
    estimates = []
    for index, missing in counts.items():
        group = plan.groups[index]
        method = plan.methods[group.method]
        if method.spec.is_rule or method.spec.error:
            continue
        cell = group.cells[(0, group.seeds[0])]
        processes = plan.suite.file.execution.processes
        backbone = plan.suite.backbone_sources[group.backbone]
        rate = known.stored.rate(cell, processes) or _probe(backbone, cell.recipe, probe)
        estimates.append(_estimate(known, group, cell, missing, rate, misfits))
    return estimates


class _Known:
    """What is equal for many groups of a plan, found out once: a wide suite asks the same again and again."""

    def __init__(self, plan: Plan, stored: Iterable[Result]) -> None:
        self.plan = plan
        self.stored = StoredCosts(stored)
        self._measured: dict[str, TextLengths | None] = {}
        """By `_rows_key`."""
        self._prompts: dict[tuple[str, ...], tuple[int, bool, int]] = {}
        """By method, settings and backbone: positions of a prompt, whether the method lets it be read apart, and
        `Method.num_passes`."""
        self._networks: dict[str, Backbone] = {}
        """By name or path; to be read only, since the code of a method may change what it is given."""

    def lengths(self, cell: Cell) -> TextLengths | None:
        """The lengths of a cell's rows, from stored results or else from a sample; None where neither is here."""
        key = _rows_key(cell)
        if (found := self.stored.lengths.get(key)) is not None:
            return found
        if key not in self._measured:
            self._measured[key] = _measured_lengths(self.plan, cell)
        return self._measured[key]

    def prompt(self, cell: Cell, lengths: TextLengths) -> tuple[int, bool, bool]:
        """Prompt positions of a cell, and whether they are read apart in evaluations and in training."""
        source = self.plan.suite.backbone_sources[cell.backbone]
        tokens, may, _ = self._built(cell)
        if source not in self._networks:
            self._networks[source] = meta_backbone(source)
        backbone = self._networks[source]
        limit = cell.recipe.max_source_length or self.plan.tasks[cell.task].max_source_length
        most = limit + tokens + math.ceil(lengths.target)
        backbone.model.eval()
        apart = may and backbone.shares_prompts(most)
        backbone.model.train(cell.recipe.backbone_dropout)
        return tokens, apart, apart and backbone.shares_prompts(most)

    def num_passes(self, cell: Cell) -> int:
        """`Method.num_passes` of a cell's method."""
        return self._built(cell)[2]

    def _built(self, cell: Cell) -> tuple[int, bool, int]:
        """What is asked of the method, built on a backbone without weights."""
        source = self.plan.suite.backbone_sources[cell.backbone]
        key = (cell.method, json.dumps(cell.hp, sort_keys=True, default=str), source)
        if key not in self._prompts:
            method = build_on_shapes(cell, _class(self.plan, cell), None, lambda: meta_backbone(source))
            self._prompts[key] = method.num_prompt_tokens, is_read_apart(method), method.num_passes
        return self._prompts[key]


def _probe(name_or_path: str, recipe: Recipe, wanted: bool | None) -> Rate | str:
    """The speed that a probe measures, or in words why there is none. It never downloads weights."""
    if wanted is not False and not weights_are_here(name_or_path):
        return "weights not on this machine"
    if wanted is False or (wanted is None and _num_params(name_or_path) > MOST_PROBED_PARAMS):
        return "no stored result says how fast this device is; --probe measures it"
    try:
        return probed_rate(name_or_path, recipe.precision, recipe.backbone_dropout, recipe.quantization)
    except UserError as error:
        return error.problem


@functools.lru_cache(maxsize=8)
def _num_params(name_or_path: str) -> int:
    return meta_backbone(name_or_path).num_params


def _estimate(
    known: _Known, group: Group, cell: Cell, missing: int, rate: Rate | str, misfits: Container[Key]
) -> TimeEstimate:
    """The estimate for one group; where something is unknown, as much of it as there is, with the reason."""
    head = TimeEstimate(group.label, group.task, group.backbone, missing)
    plan = known.plan
    matmul = _matmul(plan.suite.backbone_sources[group.backbone])
    lengths = known.lengths(cell)
    if matmul is None or lengths is None:
        lacking = "configuration of the backbone" if matmul is None else "rows or tokenizer"
        return replace(head, origin=f"{lacking} not on this machine")
    try:
        rows = _mean_rows(known, group, lengths, misfits)
    except UserError:
        return replace(head, origin="does not fit the backbone")
    except Exception as error:  # a mistake in a method's code, which a run records as the failure of its cells
        return replace(head, origin=f"the method raises {type(error).__name__}")
    flops = missing * matmul.step_flops(*rows.training, num_passes=rows.num_passes)
    peak = peak_flops(device_name(), cell.recipe.precision)
    counted = replace(head, flops=flops, floor_s=None if peak is None else flops / peak)
    if isinstance(rate, str):
        return replace(counted, origin=rate)
    evaluation = missing * rows.evaluation / rate.eval_positions
    return replace(counted, train_s=flops / rate.train_flops, eval_s=evaluation, origin=rate.origin)


def _mean_rows(known: _Known, group: Group, lengths: TextLengths, misfits: Container[Key]) -> Rows:
    """What a cell of the group needs on average; grid points may differ in steps, batch size and prompt length."""
    every = [group.cells[(point, group.seeds[0])] for point in range(len(group.points))]
    points = [cell for cell in every if cell.key not in misfits] or every
    prompts = {str(cell.hp): known.prompt(cell, lengths) for cell in {str(cell.hp): cell for cell in points}.values()}
    written = _planned_writing(known.plan.tasks[group.task], lengths.target)
    trains = _class(known.plan, points[0]).trains
    rows = [rows_of(cell, lengths, *prompts[str(cell.hp)], written, trains) for cell in points]
    samples, source, target = (round(fmean(part)) for part in zip(*(one.training for one in rows), strict=True))
    return Rows((samples, source, target), fmean(one.evaluation for one in rows), known.num_passes(points[0]))


def rows_of(
    cell: Cell,
    lengths: TextLengths,
    prompt_tokens: int,
    apart: bool = False,
    apart_in_training: bool = False,
    written: float = 0.0,
    trains: bool = True,
) -> Rows:
    """What training and evaluating one cell sends through the backbone.

    A prompt that is read apart counts once for each evaluation, and in training once a step; else it counts for each
    row. `written` is what writing one answer costs, in positions. A cell that does not train is answered once.
    """
    recipe = cell.recipe
    steps = recipe.steps if trains else 0
    samples = steps * recipe.batch_size
    evaluations = math.ceil(steps / recipe.eval_every) if trains else 1
    answered = evaluations * lengths.num_dev + lengths.num_test
    trained = samples * lengths.source + prompt_tokens * (steps if apart_in_training else samples)
    scored = answered * (lengths.source + lengths.choices + written)
    scored += prompt_tokens * (evaluations + 1 if apart else answered)
    return Rows((samples, round(trained), round(samples * lengths.target)), scored)


def written_positions(target: float, limit: int, num_beams: int) -> float:
    """What writing an answer costs, in positions that are read.

    Trained networks write as much as the texts that they were trained on, `target` tokens on average, within `limit`.
    Short answers cost nothing here: they are part of the speed that was measured on cells like theirs.
    """
    if limit <= SHORT_ANSWER and num_beams == 1:
        return 0.0
    return WRITTEN_TOKEN * min(target, limit) * num_beams


def _planned_writing(task: Task, target: float) -> float:
    """The same for a task, or the mean over the tasks of a mixture."""
    if task.parts:
        return fmean(_planned_writing(part, target) for part in task.parts)
    if task.is_ranked:
        return 0.0
    limit = task.max_new_tokens or (0 if task.kind == "classification" else task.max_target_length - 1)
    return written_positions(target, limit, task.num_beams)


def _stored_writing(result: Result, target: float) -> float:
    """The same for a stored cell, as it has recorded."""
    assert result.data is not None
    records = [part.writing for part in result.data.parts.values()] or [result.data.writing]
    known = [record for record in records if record is not None]
    return fmean(written_positions(target, own.max_new_tokens, own.num_beams) for own in known) if known else 0.0


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
    return StoredCosts(stored).rate(cell, num_processes)


@dataclass
class _Total:
    """What stored cells took together."""

    cells: int = 0
    train_s: float = 0.0
    eval_s: float = 0.0
    flops: float = 0.0
    positions: float = 0.0

    def add(self, result: Result) -> None:
        usage = result.usage
        assert usage is not None
        self.cells += 1
        self.train_s += usage.train_s
        self.eval_s += usage.eval_s
        self.flops += usage.model_flops or 0.0
        self.positions += _evaluated_positions(result)


class StoredCosts:
    """Speeds and lengths that stored results tell. Each result is looked at once, however many groups ask."""

    def __init__(self, stored: Iterable[Result]) -> None:
        self._totals: dict[tuple[str, str], _Total] = {}
        """By `_speed_key` and method; "" is any method."""
        self.lengths: dict[str, TextLengths] = {}
        """By `_rows_key`, what the first such cell has met in training."""
        for result in stored:
            self._add(result)

    def _add(self, result: Result) -> None:
        usage, data = result.usage, result.data
        if usage is None or not usage.num_samples:
            return
        if data is not None and usage.num_target_tokens is not None:
            means = usage.num_tokens / usage.num_samples, usage.num_target_tokens / usage.num_samples
            sizes = data.num_dev, data.num_test
            # a text is as long as in training; choices are read in evaluations alone, and what they took is known
            records = (data, *data.parts.values())
            choices = sum(sum(record.choice_tokens.values()) for record in records) / sum(sizes)
            self.lengths.setdefault(_rows_key(result.cell), TextLengths(*means, *sizes, choices))
        if result.status == "done" and usage.model_flops and _is_of_this_device(result):
            key = _speed_key(result.cell, usage.num_processes)
            for method in (result.cell.method, ""):
                self._totals.setdefault((key, method), _Total()).add(result)

    def rate(self, cell: Cell, num_processes: int = 1) -> Rate | None:
        """The mean speed of comparable cells: those of the same method, or if there are none, of any method."""
        key = _speed_key(cell, num_processes)
        total = self._totals.get((key, cell.method)) or self._totals.get((key, ""))
        if total is None or not total.train_s or not total.eval_s:
            return None
        origin = f"{total.cells} stored cells of {cell.backbone}"
        return Rate(total.flops / total.train_s, total.positions / total.eval_s, origin)


def _speed_key(cell: Cell, num_processes: int) -> str:
    """Equal for cells of equal speed: the same backbone, precision, dropout, storage and number of processes."""
    recipe = cell.recipe
    return json.dumps([cell.backbone, recipe.precision, recipe.backbone_dropout, recipe.quantization, num_processes])


def _rows_key(cell: Cell) -> str:
    """Equal for cells whose rows have the same lengths."""
    shots = None if cell.few_shot is None else cell.few_shot.model_dump_json()
    protocol = cell.protocol.model_dump_json()
    limit = None if cell.row_limit is None else cell.row_limit.model_dump_json()
    return json.dumps([cell.task, cell.backbone, protocol, cell.recipe.max_source_length, shots, limit])


def _is_of_this_device(result: Result) -> bool:
    here = provenance.collect_provenance(device_name())
    return all(result.provenance.get(key) == here[key] for key in ("device", "processor", "num_cpus"))


def _evaluated_positions(result: Result) -> float:
    """Positions of prompts, texts and choices in all evaluations of a stored cell, and those that long answers cost.

    Texts and answers are as long as in training.
    """
    usage = result.usage
    assert usage is not None
    assert result.data is not None
    tests = 0 if result.raced_out_at is not None else 1
    rows = len(result.dev_history) * result.data.num_dev + tests * result.data.num_test
    records = list(result.data.parts.values()) or [result.data]
    choices = sum(len(result.dev_history) * record.choice_tokens.get("dev", 0) for record in records)
    choices += sum(tests * record.choice_tokens.get("test", 0) for record in records)
    prompts = usage.num_eval_prompt_tokens
    if prompts is None:  # of an older version, where each row had its prompt, as in training
        prompts = round(rows * (usage.num_prompt_tokens or 0) / usage.num_samples)
    written = _stored_writing(result, (usage.num_target_tokens or 0) / usage.num_samples)
    return rows * (usage.num_tokens / usage.num_samples + written) + prompts + choices


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
    # the end token closes a target
    return TextLengths(source, target + 1, len(data.dev), len(data.test), _sampled_choices(data, tokenizer))


def _sampled_choices(data: TaskData, tokenizer: Any) -> float:
    """Mean tokens of all choices of a row, of SAMPLED_ROWS dev rows; 0 where answers are written."""
    chosen = np.random.default_rng(0).permutation(len(data.dev))[:SAMPLED_ROWS]
    texts = [text for row in chosen for text in _choices_of(data, int(row))]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return sum(map(len, ids)) / len(chosen)


def _choices_of(data: TaskData, row: int) -> Sequence[str]:
    """The texts among which the answer to a dev row is chosen; of a mixture, by the task that the row is of."""
    for part in data.parts:
        if row < len(part.dev):
            return _choices_of(part, row)
        row -= len(part.dev)
    return data.dev[row].choices or (data.task.targets if data.task.is_ranked else ())


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
