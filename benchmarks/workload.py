"""What is trained on: made-up rows with the lengths of real tasks, under a network of random weights.

Speed depends on shapes alone, so that neither data nor checkpoints are needed. A shape is a name of `SHAPES`, or one
that the program knows, and may say how weights are stored: `t5-small`, `smollm2-135m`, `llama-2-7b:nf4`.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from transformers import AutoConfig

from benchmarks.random_network import random_network
from harness.backbone import CONFIGS, Backbone, Scheme, untrained_network
from harness.data import DataRecord, Encoded, Example, TaskData, all_tasks
from harness.train import TinyTokenizer

LENGTHS = Path(__file__).with_name("lengths.json")
NUM_ROWS = 4_096
TARGET_TOKENS = 2
"""A digit and the end."""
LEARNING_RATES = {"prompt_tuning": 0.3, "dept": 0.3, "accept": 0.3, "ept": 0.3}
LEARNING_RATE = 1e-4
"""For all but prompts; a network that has left the range of its numbers is no work that anybody has."""
VOCABULARY = 32_000
"""Ids are drawn below the smallest vocabulary of all shapes."""
# for the quick form, which only shows that all runs
MINI = {"d_model": 128, "d_ff": 256, "d_kv": 32, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
_LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
DECODERS: dict[str, dict[str, Any]] = {
    "mini-decoder": _LLAMA
    | {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
    },
    "smollm2-135m": _LLAMA
    | {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    },
    "llama-3.2-1b": _LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
}
"""Shapes that the program has no name for: configurations of published networks, and one for the quick form."""


@dataclass(frozen=True)
class Workload:
    """Rows of one task's lengths. Padding to `max_source_length` is what the papers' code does."""

    task: str
    max_source_length: int
    encoded: Encoded

    def at_mean_length(self, rate: float, tokens: float, prompt: float = 0.0) -> float:
        """A rate in rows per second as it would be with rows of the task's mean length.

        A few steps of 16 rows hold longer or shorter texts than the task on average: 64 rows of MNLI by 6 %, which is
        no merit of whoever drew them. `tokens` is the mean of the rows drawn, answers included; `prompt` is how many
        vectors each row reads besides.
        """
        mean = len(self.encoded.source_ids) / len(self.encoded) + TARGET_TOKENS
        return rate * (tokens + prompt) / (mean + prompt)

    def sources(self) -> list[list[int]]:
        bounds = self.encoded.source_offsets
        return [self.encoded.source_ids[a:b].tolist() for a, b in itertools.pairwise(bounds)]


def workload(task: str, num_rows: int = NUM_ROWS, vocabulary: int = VOCABULARY) -> Workload:
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


def learning_rate(method: str) -> float:
    """What all contenders train a method with."""
    return LEARNING_RATES.get(method, LEARNING_RATE)


def shape_config(shape: str) -> dict[str, Any]:
    """The configuration of a shape; `mini` is a small T5. Raises ValueError for a name that nobody knows."""
    name = shape.partition(":")[0]
    if name in DECODERS:
        return DECODERS[name]
    path = CONFIGS / f"{'t5-small' if name == 'mini' else name}.json"
    if not path.exists():
        known = ", ".join(dict.fromkeys(["mini", *DECODERS, *sorted(item.stem for item in CONFIGS.glob("*.json"))]))
        raise ValueError(f"unknown shape '{name}'; known: {known}")
    values: dict[str, Any] = json.loads(path.read_text())["config"]
    return values | MINI if name == "mini" else values


def known_shape(text: str) -> str:
    """The name of a shape on a command line. Raises ArgumentTypeError for another one, which argparse prints."""
    try:
        shape_config(text)
        storage(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def is_decoder(shape: str) -> bool:
    """Whether a shape reads and writes with one stack."""
    return not AutoConfig.for_model(**shape_config(shape)).is_encoder_decoder


def storage(shape: str) -> Scheme:
    """How the weights of a shape are stored, as behind its colon; in float32 where it has none."""
    name = shape.partition(":")[2] or "none"
    for scheme in get_args(Scheme):
        if scheme == name:
            return scheme  # type: ignore[no-any-return]
    raise ValueError(f"unknown storage '{name}' of {shape}; known: {', '.join(get_args(Scheme))}")


def model(shape: str, device: str) -> Any:
    """A network of that shape with random weights, the same each time."""
    torch.manual_seed(0)
    if storage(shape) == "none":
        return untrained_network(shape_config(shape)).to(device)
    return random_network(shape_config(shape), storage(shape), device)


def backbone(shape: str, device: str, precision: str) -> Backbone:
    """The same network as ours sees it."""
    return Backbone(shape, model(shape, device).eval(), TinyTokenizer(), None, precision, storage(shape))


def task_data(num_train: int) -> TaskData:
    """Stands for the rows, whose texts nobody reads: as many for training, one each for dev and test."""
    rows = [Example("", "0", ("0",))]
    record = DataRecord(
        source="", revision="", split_rule="", num_train=num_train, num_dev=1, num_test=1, fingerprint=""
    )
    return TaskData(all_tasks()["micro_sentiment"], rows * num_train, rows, rows, record)
