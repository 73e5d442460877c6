"""The same work by this program: bundles of cells, and their evaluation."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.workload import TARGET_TOKENS, Workload, backbone, is_decoder, learning_rate, task_data
from harness.backbone import Backbone, MatmulParams, matmul_params, peak_flops, peak_memory_bytes, reset_peak_memory
from harness.data import Encoded, all_tasks
from harness.method import Method, discover
from harness.runner import device_name
from harness.suite import Cell, ProtocolReference, Recipe
from harness.train import EVALUATION_FACTOR, BatchInput, BundleTrainer, answer_split, default_tokens, usage_of

HP: dict[str, dict[str, Any]] = {
    "prompt_tuning": {"prompt_length": 100, "init": "sample_vocab"},
    "prefix_tuning": {"prefix_length": 100},
    "lora": {"rank": 32, "alpha": 32, "dropout": 0.1},
    "finetune": {},
    "dept": {},
    "accept": {},
    "ept": {},
}
VARIANTS = ("dept", "accept", "ept")
"""Methods beside prompt tuning whose bundles are compared with its contenders; their own defaults."""


@dataclass(frozen=True)
class Measured:
    """One run of a contender: training or answered rows per second, and what else its accounts say."""

    rate: float
    padding: float | None = None
    utilisation: float | None = None
    peak_bytes: int | None = None


def runs_alone(method: str, shape: str) -> bool:
    """Whether cells of a method share no forward pass; on a decoder, keys and values may stand in front of rows."""
    cls = _class(method)
    return cls.runs_alone() and not (cls.gives_keys_and_values() and is_decoder(shape))


def train_rate(
    work: Workload, method: str, shape: str, device: str, precision: str, cells: int, steps: int, seed: int = 0,
    compiled: bool = False,
) -> Measured:  # fmt: skip
    """Rates of `cells` cells trained together for `steps` steps, from the accounts of all."""
    network = backbone(shape, device, precision)
    matmul = matmul_params(network)
    if compiled:
        network.compile(True)
        trained(work, method, network, precision, cells, 2)  # compiling is no part of a step
    trainer = trained(work, method, network, precision, cells, steps, seed)
    peak = peak_flops(device_name(), precision) if device == "cuda" else None
    return accounts(work, trainer, matmul, peak, peak_memory_bytes() if device == "cuda" else None)


def accounts(
    work: Workload, trainer: BundleTrainer, matmul: MatmulParams, peak: float | None, peak_bytes: int | None
) -> Measured:
    """What the cells of a bundle took together, at the task's mean length; `peak` is the device's FLOP/s."""
    usages = [usage_of(state.outcome, len(trainer.states), matmul, peak) for state in trainer.states]
    seconds = sum(usage.train_s for usage in usages)
    padding = sum(usage.num_padding or 0 for usage in usages)
    samples, tokens = sum(usage.num_samples for usage in usages), sum(usage.num_tokens for usage in usages)
    prompts = sum(usage.num_prompt_tokens or 0 for usage in usages)
    positions = tokens + prompts
    flops = sum(usage.model_flops or 0.0 for usage in usages)
    return Measured(
        work.at_mean_length(samples / seconds, tokens / samples + TARGET_TOKENS, prompts / samples),
        padding / (padding + positions),
        None if peak is None else flops / (seconds * peak),
        peak_bytes,
    )


def trained(
    work: Workload, method: str, network: Backbone, precision: str, cells: int, steps: int, seed: int = 0
) -> BundleTrainer:
    """A bundle after its last step; `seed` decides which rows it has seen."""
    made = [_cell(method, steps, seed * cells + i, precision, work.max_source_length) for i in range(cells)]
    methods = [_method(cell, network) for cell in made]
    one = _first(work.encoded, 1)
    encoded = {"train": work.encoded, "dev": one, "test": one}
    trainer = BundleTrainer(made, methods, task_data(len(work.encoded)), encoded, network, default_tokens(network))
    with trainer.fused.attached():
        trainer.probe()
        gc.collect()
        reset_peak_memory()
        trainer.run(lambda *_: None, lambda _: None)
    return trainer


def evaluation_rate(work: Workload, shape: str, device: str, precision: str, rows: int, cells: int) -> float:
    """Answered rows per second of a bundle's evaluation; `rows` are answered in all, each cell has its share."""
    network = backbone(shape, device, precision)
    made = [_cell("prompt_tuning", 1, seed, precision, work.max_source_length) for seed in range(cells)]
    methods = [_method(cell, network).eval() for cell in made]
    # with the length of an answer, a decoder reads prompts apart from texts, as in a real run
    fused = BatchInput(methods, network, work.max_source_length, answer_length=TARGET_TOKENS)
    encoded, task = _first(work.encoded, -(-rows // cells)), all_tasks()["micro_sentiment"]
    started = time.perf_counter()
    answer_split(fused, range(cells), encoded, task, default_tokens(network) * EVALUATION_FACTOR)
    return len(encoded) * cells / (time.perf_counter() - started)


def _cell(name: str, steps: int, seed: int, precision: str, length: int) -> Cell:
    recipe = Recipe.model_validate(
        {
            "steps": steps,
            "eval_every": steps,
            "precision": precision,
            "max_source_length": length,
            # at a prompt's 0.3 LoRA's attention became so sharp that its weights were subnormal, and steps slowed down
            "lr": learning_rate(name),
        }
    )
    return Cell(
        suite="bench", label=name, method=name, hp=_hp(name, length), task="micro_sentiment", task_version=1,
        backbone="bench", seed=seed, search_seed=seed, protocol=ProtocolReference(), recipe=recipe,
    )  # fmt: skip


def _hp(name: str, length: int) -> dict[str, Any]:
    """Tables that are added to tokens have a row for each."""
    return HP[name] | ({"source_length": length} if name in VARIANTS else {})


def _class(method: str) -> type[Method]:
    cls = discover()[method].cls
    assert cls is not None
    assert issubclass(cls, Method)
    return cls


def _method(cell: Cell, network: Any) -> Method:
    cls = _class(cell.method)
    torch.manual_seed(cell.seed)
    return cls(cls.HP(**cell.hp), network).to(network.device)


def _first(encoded: Encoded, rows: int) -> Encoded:
    """The first rows of a split."""
    end = int(encoded.source_offsets[rows])
    bounds = np.arange(rows + 1) * TARGET_TOKENS
    return Encoded(
        encoded.source_ids[:end], encoded.source_offsets[: rows + 1], encoded.target_ids[: bounds[-1]], bounds
    )
