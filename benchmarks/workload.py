"""What is trained on: made-up rows with the lengths of real tasks, under a T5 of random weights.

Speed depends on shapes alone, so that neither data nor checkpoints are needed.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from harness.backbone import CONFIGS, Backbone
from harness.data import DataRecord, Encoded, Example, TaskData, all_tasks
from harness.train import TinyTokenizer

LENGTHS = Path(__file__).with_name("lengths.json")
NUM_ROWS = 4_096
TARGET_TOKENS = 2
"""A digit and the end."""
# for the quick form, which only shows that all runs
MINI = {"d_model": 128, "d_ff": 256, "d_kv": 32, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}


@dataclass(frozen=True)
class Workload:
    """Rows of one task's lengths. Padding to `max_source_length` is what the papers' code does."""

    task: str
    max_source_length: int
    encoded: Encoded

    def sources(self) -> list[list[int]]:
        bounds = self.encoded.source_offsets
        return [self.encoded.source_ids[a:b].tolist() for a, b in itertools.pairwise(bounds)]


def workload(task: str, num_rows: int = NUM_ROWS, vocabulary: int = 32_100) -> Workload:
    """Draw lengths from the stored quantiles of a task, and ids at random."""
    stored = json.loads(LENGTHS.read_text())[task]
    rng = np.random.default_rng(0)
    quantiles = stored["quantiles"]
    drawn = np.interp(rng.random(num_rows), np.linspace(0, 1, len(quantiles)), quantiles)
    offsets = np.concatenate([[0], np.cumsum(drawn.round().astype(np.int64))])
    ids = rng.integers(3, vocabulary, offsets[-1])
    ids[offsets[1:] - 1] = TinyTokenizer.eos_token_id
    targets = np.stack([3 + np.arange(num_rows) % 2, np.full(num_rows, TinyTokenizer.eos_token_id)], 1).ravel()
    target_offsets = np.arange(num_rows + 1) * TARGET_TOKENS
    return Workload(task, stored["max_source_length"], Encoded(ids, offsets, targets, target_offsets))


def model(shape: str, device: str) -> Any:
    """A T5 of that shape with random weights: `t5-small`, `t5-base`, ... or `mini`."""
    values = json.loads((CONFIGS / f"{'t5-small' if shape == 'mini' else shape}.json").read_text())["config"]
    config = AutoConfig.for_model(**(values | MINI if shape == "mini" else values))
    torch.manual_seed(0)
    return AutoModelForSeq2SeqLM.from_config(config).to(device)


def backbone(shape: str, device: str, precision: str) -> Backbone:
    """The same network as ours sees it."""
    return Backbone(shape, model(shape, device).eval(), TinyTokenizer(), None, precision)


def task_data(num_train: int) -> TaskData:
    """Stands for the rows, whose texts nobody reads: as many for training, one each for dev and test."""
    rows = [Example("", "0", ("0",))]
    record = DataRecord(
        source="", revision="", split_rule="", num_train=num_train, num_dev=1, num_test=1, fingerprint=""
    )
    return TaskData(all_tasks()["micro_sentiment"], rows * num_train, rows, rows, record)
