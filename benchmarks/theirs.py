"""What a user would run otherwise: PEFT under the transformers Trainer, and `generate`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.workload import Workload, model

BATCH_SIZE = 16
EVALUATION_BATCH = 64
PAD, IGNORED = 0, -100
WARM_UP_STEPS = 2
GROUPED_BATCHES = 50
"""Batches that the Trainer sorts by length together, at most; a quarter of all where there are few."""
CONFIGS = {
    "prompt_tuning": lambda: PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=100),
    "lora": lambda: LoraConfig(
        task_type="SEQ_2_SEQ_LM", r=32, lora_alpha=32, lora_dropout=0.1, target_modules=["q", "v"]
    ),
}


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Times the steps behind the warm-up, waiting for the device at both ends."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.started = self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step not in (WARM_UP_STEPS, state.max_steps):
            return
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.seconds, self.started = time.perf_counter() - self.started, time.perf_counter()


class _SampledTrainer(Trainer):  # type: ignore[misc]
    """Grouped by length, batches come longest first; a few steps from there on would be the slowest of all.

    So that few stand for all, it takes batches from evenly spaced places of the groups; the longest and the shortest
    warm up.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if self.args.train_sampling_strategy != "group_by_length":
            return sampler
        order = np.array(list(sampler))
        batches = order[: len(order) // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE)
        chosen = evenly_spaced(len(batches), self.args.max_steps - WARM_UP_STEPS, self.args.seed)
        return batches[chosen].ravel().tolist()


def evenly_spaced(num_batches: int, steps: int, seed: int) -> list[int]:
    """Two batches to warm up, the first and the last of a group, then `steps` spread over whole groups."""
    group = min(num_batches // 4, GROUPED_BATCHES)
    span = min(-(-steps // group) * group, num_batches)
    start = np.random.default_rng(seed).random()
    return [0, group - 1] + [int((i + start) * span / steps) for i in range(steps)]


def train_rate(
    work: Workload, method: str, shape: str, device: str, steps: int, seed: int,
    *, padded: bool, bf16: bool, compiled: bool,
) -> float:  # fmt: skip
    """Samples per second of `steps` steps; `padded` pads to the task's maximum, else to the batch's longest row."""
    tuned = get_peft_model(model(shape, device), CONFIGS[method]())
    rows = [{"input_ids": ids, "labels": [3, 1], "length": len(ids)} for ids in work.sources()]
    clock = _Clock(device)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH_SIZE,
            max_steps=steps + WARM_UP_STEPS,
            learning_rate=0.3,
            train_sampling_strategy="random" if padded else "group_by_length",
            bf16=bf16,
            torch_compile=compiled,
            use_cpu=device == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            remove_unused_columns=False,
        )
        limit = work.max_source_length if padded else None
        trainer = _SampledTrainer(
            tuned, arguments, train_dataset=rows, data_collator=lambda batch: _collate(batch, limit), callbacks=[clock]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return steps * BATCH_SIZE / clock.seconds


def generate_rate(
    work: Workload, shape: str, device: str, rows: int, new_tokens: int, *, padded: bool, bf16: bool
) -> float:
    """Rows per second of `generate` behind a prompt; not padded means sorted by length and cut to the longest."""
    tuned = get_peft_model(model(shape, device), CONFIGS["prompt_tuning"]()).eval()
    sources = work.sources()[:rows]
    if not padded:
        sources.sort(key=len, reverse=True)
    started = time.perf_counter()
    for start in range(0, rows, EVALUATION_BATCH):
        chosen = sources[start : start + EVALUATION_BATCH]
        ids, mask = (part.to(device) for part in _pad(chosen, work.max_source_length if padded else None))
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            tuned.generate(input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False).cpu()
    return rows / (time.perf_counter() - started)


def _collate(batch: Sequence[dict[str, Any]], limit: int | None) -> dict[str, Tensor]:
    ids, mask = _pad([row["input_ids"] for row in batch], limit)
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in batch])}


def _pad(rows: Sequence[list[int]], limit: int | None) -> tuple[Tensor, Tensor]:
    width = limit or max(len(row) for row in rows)
    ids = np.full((len(rows), width), PAD)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    lengths = np.array([len(row) for row in rows])
    return torch.as_tensor(ids), torch.as_tensor((np.arange(width)[None] < lengths[:, None]).astype(np.int64))
