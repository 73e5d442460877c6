"""What a user would run otherwise: PEFT under the transformers Trainer, and `generate`.

Sequence-to-sequence models are padded behind the text, decoders in front of it, as their users do. A careful user asks
a decoder for the logits of the answer only (`logits_to_keep`), which at the end of rows padded in front are the last.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.workload import TARGET_TOKENS, Workload, is_decoder, learning_rate, model

BATCH_SIZE = 16
EVALUATION_BATCH = 64
PAD, IGNORED = 0, -100
ANSWER = [3, 1]
WARM_UP_STEPS = 2
GROUPED_BATCHES = 50
"""Batches that the Trainer sorts by length together, at most; a quarter of all where there are few."""
NUM_VECTORS, RANK = 100, 32
CONFIGS: Mapping[str, Callable[[bool], PeftConfig | None]] = {
    "prompt_tuning": lambda decoder: PromptTuningConfig(task_type=_task_type(decoder), num_virtual_tokens=NUM_VECTORS),
    "prefix_tuning": lambda decoder: PrefixTuningConfig(task_type=_task_type(decoder), num_virtual_tokens=NUM_VECTORS),
    "lora": lambda decoder: LoraConfig(
        task_type=_task_type(decoder),
        r=RANK,
        lora_alpha=RANK,
        lora_dropout=0.1,
        target_modules=["q_proj", "v_proj"] if decoder else ["q", "v"],
    ),
    "finetune": lambda _: None,
}
"""By method, PEFT's configuration for a decoder or another network; None where all weights train."""


def _task_type(decoder: bool) -> str:
    return "CAUSAL_LM" if decoder else "SEQ_2_SEQ_LM"


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
        self.timed_rows = batches[chosen[WARM_UP_STEPS:]].ravel().tolist()
        return batches[chosen].ravel().tolist()


def evenly_spaced(num_batches: int, steps: int, seed: int) -> list[int]:
    """Two batches to warm up, the first and the last of a group, then `steps` spread over whole groups."""
    group = min(num_batches // 4, GROUPED_BATCHES)
    span = min(-(-steps // group) * group, num_batches)
    start = np.random.default_rng(seed).random()
    return [0, group - 1] + [int((i + start) * span / steps) for i in range(steps)]


def tuned_model(method: str, shape: str, device: str) -> Any:
    """The network with what PEFT puts into it, or with all weights open."""
    network, config = model(shape, device), CONFIGS[method](is_decoder(shape))
    if config is None:
        return network.requires_grad_(True)
    return get_peft_model(network, config)


def train_rate(
    work: Workload, method: str, shape: str, device: str, steps: int, seed: int,
    *, padded: bool, bf16: bool, compiled: bool,
) -> float:  # fmt: skip
    """Samples per second of `steps` steps; `padded` pads to the task's maximum, else to the batch's longest row.

    Not padded, the rate is that at the task's mean length.
    """
    decoder = is_decoder(shape)
    rows = [{"input_ids": ids, "labels": ANSWER, "length": len(ids)} for ids in work.sources()]
    limit = work.max_source_length if padded else None
    few_logits = decoder and not padded
    clock = _Clock(device)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH_SIZE,
            max_steps=steps + WARM_UP_STEPS,
            learning_rate=learning_rate(method),
            train_sampling_strategy="random" if padded else "group_by_length",
            gradient_checkpointing=False,
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
        trainer = _SampledTrainer(
            tuned_model(method, shape, device),
            arguments,
            train_dataset=rows,
            data_collator=lambda batch: collate_causal(batch, limit, few_logits) if decoder else _collate(batch, limit),
            compute_loss_func=answer_loss if few_logits else None,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    rate = steps * BATCH_SIZE / clock.seconds
    if padded:
        return rate
    tokens = [len(rows[index]["input_ids"]) + TARGET_TOKENS for index in trainer.timed_rows]
    return work.at_mean_length(rate, sum(tokens) / len(tokens), NUM_VECTORS if method == "prompt_tuning" else 0)


def generate_rate(
    work: Workload, shape: str, device: str, rows: int, new_tokens: int, *, padded: bool, bf16: bool
) -> float:
    """Rows per second of `generate` behind a prompt; not padded means sorted by length and cut to the longest."""
    tuned = tuned_model("prompt_tuning", shape, device).eval()
    left = is_decoder(shape)
    sources = work.sources()[:rows]
    if not padded:
        sources.sort(key=len, reverse=True)
    started = time.perf_counter()
    for start in range(0, rows, EVALUATION_BATCH):
        chosen = sources[start : start + EVALUATION_BATCH]
        ids, mask = (part.to(device) for part in _pad(chosen, work.max_source_length if padded else None, left))
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            tuned.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=PAD
            ).cpu()
    return rows / (time.perf_counter() - started)


def collate_causal(batch: Sequence[dict[str, Any]], limit: int | None, few_logits: bool) -> dict[str, Any]:
    """Texts with their answers behind them, padded in front; labels are the answers.

    With `few_logits` the network is asked for those that predict the answer, and for the one behind it.
    """
    longest = None if limit is None else limit + TARGET_TOKENS
    ids, mask = _pad([row["input_ids"] + row["labels"] for row in batch], longest, left=True)
    answers = torch.tensor([row["labels"] for row in batch])
    if few_logits:
        return {"input_ids": ids, "attention_mask": mask, "labels": answers, "logits_to_keep": answers.shape[1] + 1}
    labels = torch.full_like(ids, IGNORED)
    labels[:, -answers.shape[1] :] = answers
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def answer_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """The mean over all tokens of the answers, [N, T], from the last T + 1 logits of each row."""
    logits = outputs.logits[:, :-1].flatten(0, 1).float()
    total = F.cross_entropy(logits, labels.flatten(), reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


def _collate(batch: Sequence[dict[str, Any]], limit: int | None) -> dict[str, Tensor]:
    ids, mask = _pad([row["input_ids"] for row in batch], limit)
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in batch])}


def _pad(rows: Sequence[list[int]], limit: int | None, left: bool = False) -> tuple[Tensor, Tensor]:
    width = limit or max(len(row) for row in rows)
    ids = np.full((len(rows), width), PAD)
    mask = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    return torch.as_tensor(ids), torch.as_tensor(mask)
