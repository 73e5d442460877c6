"""Which backbones fit a device, and in how many bits: computed from shapes, without weights or downloads."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, get_args

from transformers.modeling_layers import GradientCheckpointingLayer

from harness.backbone import (
    CONFIGS,
    DEVICES,
    Backbone,
    DeviceFigures,
    PromptPass,
    Scheme,
    backbone_config,
    evaluation_bytes,
    meta_backbone,
    shapes_only_backbone,
    training_bytes,
    untrained_network,
    weight_bytes,
)
from harness.errors import require_choice
from harness.suite import short_name
from harness.text_tables import text_table

PROMPT, TEXT = 100, 256
"""Vectors of a prompt and tokens of a text, the papers' setting."""
LENGTH = PROMPT + TEXT
"""Positions of a row with its prompt."""
TARGETS = 3
"""Tokens of a label with its end."""
ROWS = 16
"""Rows of a batch, the papers' setting: 5,696 positions, or 4,096 behind a prompt that is read apart."""
USABLE_SHARE = 0.9
"""Share of a device's memory that is planned with. The rest goes to the driver, libraries' workspaces and fragments: on
80 GB, 8 GB. A larger share fits more and runs out of memory more often."""
GIB = 2**30
SHARDS = (2, 4, 8)
"""Numbers of devices for which sharded full fine-tuning is shown: those of common machines."""


@dataclass(frozen=True)
class FullTuning:
    """Memory of full fine-tuning, in float32 (4 bytes a number)."""

    num_params: int
    layer_params: int
    """Weights of the largest layer."""
    other_params: int
    """Weights outside the layers: embedding, head, norms."""
    activations: int
    """Bytes of a step's activations."""
    evaluation: int
    """Bytes of an evaluation beside the weights."""

    def peak(self, processes: int = 1) -> int:
        """Peak bytes on each device; several processes divide the weights among them (`execution.sharding`).

        Throughout there are four copies: trained weights, two moments, and the best step's weights. One process also
        keeps the frozen weights, a fifth. On top comes the larger of two: gradients and activations in the backward
        pass, or gradients and one scratch copy in the optimizer.

        Shards need whole weights for a while. In a pass these are the weights outside the layers with their gradients,
        and two layers (the one at work and the next) with theirs; in an evaluation, all weights.
        """
        own = 4 * self.num_params / processes
        if processes == 1:
            return round(5 * own + max(own + self.activations, 2 * own))
        gathered = 4 * (2 * self.other_params + 4 * self.layer_params)
        evaluation = 4 * self.num_params + self.evaluation
        return round(4 * own + max(own + gathered + self.activations, 2 * own, evaluation))


@dataclass(frozen=True)
class MemoryNeed:
    """Memory that one backbone takes in one form of storage, in bytes."""

    backbone: str
    storage: Scheme
    weights: int
    """Bytes of the stored weights."""
    batch: int
    """Peak bytes of a step with one cell's batch beside the weights."""
    per_token: float
    """Peak bytes of a step of many cells beside the weights, for each token that a micro-batch may hold. Where a
    decoder reads prompts apart, it reads as many positions of prompts together as a micro-batch may hold."""
    row: int
    """Positions of a row: without its prompt where that is read apart."""
    evaluation: int
    """Peak bytes of an evaluation beside the weights; its micro-batches hold twice the rows."""
    full: FullTuning | None
    """Full fine-tuning; None unless weights are stored in float32."""

    @property
    def step(self) -> int:
        """Peak bytes of training a prompt or an added table with one cell's batch, weights included."""
        return self.weights + self.batch

    def most_tokens(self, capacity: float) -> int:
        """Tokens of the largest micro-batch that fits into `capacity` bytes, however many cells there are; 0 if not
        even one row does."""
        tokens = int((capacity - self.weights) / self.per_token)
        return tokens if tokens >= self.row else 0


def find_device(name: str) -> tuple[str, DeviceFigures]:
    """A device by its name in small letters with dashes. Raises UserError with the nearest match."""
    known = {key.lower().replace(" ", "-"): key for key in DEVICES}
    plain = {slug.replace("-", ""): slug for slug in known}
    given = name.lower().replace(" ", "-")
    key = known[require_choice(plain.get(given.replace("-", ""), given), known, kind="device", where="harness devices")]
    return key, DEVICES[key]


def memory_need(source: str, storage: Scheme, rows: int = ROWS) -> MemoryNeed:
    """The memory of training and evaluation with batches of `rows` rows of PROMPT and TEXT.

    Raises UserError for a backbone whose configuration is not on this machine.
    """
    apart = shares_prompts(source, LENGTH + TARGETS, dropout=True)
    length = TEXT if apart else LENGTH
    batch = step_bytes(source, storage, rows, length, PromptPass(1, PROMPT) if apart else None)
    largest = step_bytes(source, storage, rows, length, _full_group(rows * length) if apart else None)
    evaluation = _evaluation(source, storage, 2 * rows)
    full = full_tuning(source, rows * LENGTH) if storage == "none" else None
    per_token = largest / (rows * length)
    weights = weights_of(source, storage)
    return MemoryNeed(short_name(source), storage, weights, batch, per_token, length, evaluation, full)


def _full_group(tokens: int) -> PromptPass:
    """As many prompts as are read together where a micro-batch holds this many tokens."""
    return PromptPass(max(1, tokens // PROMPT), PROMPT)


@functools.cache
def shares_prompts(source: str, num_positions: int, dropout: bool) -> bool:
    """Whether a backbone reads prompts apart from texts in training; arguments as for `Backbone.shares_prompts`."""
    backbone = meta_backbone(source)
    backbone.model.train(dropout)
    return backbone.shares_prompts(num_positions)


@functools.cache
def weights_of(source: str, storage: Scheme) -> int:
    """Bytes of a backbone's weights."""
    return weight_bytes(meta_backbone(source).model, storage)


@functools.cache
def step_bytes(
    source: str,
    storage: Scheme,
    rows: int,
    length: int,
    prompts: PromptPass | None = None,
    dropout: bool = True,
    trains_weights: bool = False,
) -> int:
    """Peak bytes of a step beside the weights, from operators run on shapes; arguments as for `training_bytes`."""
    with _shape(source, storage) as backbone:
        return training_bytes(backbone, rows, length, TARGETS, trains_weights, prompts, dropout)


@functools.cache
def full_tuning(source: str, tokens: int = ROWS * LENGTH, length: int = LENGTH) -> FullTuning:
    """The memory of full fine-tuning of a backbone in float32, with micro-batches of `tokens` in rows of `length`."""
    rows = max(1, tokens // length)
    model = meta_backbone(source).model
    num_params = _num_weights(model)
    layers = [_num_weights(m) for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    backward = step_bytes(source, "none", rows, length, trains_weights=True)
    evaluation = _answering_bytes(source, "none", 2 * rows, length)
    activations = round(backward - 4 * num_params)
    return FullTuning(num_params, max(layers, default=0), num_params - sum(layers), activations, evaluation)


def _num_weights(module: Any) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _evaluation(source: str, storage: Scheme, rows: int) -> int:
    """Peak bytes of answering `rows` rows of one cell beside the weights."""
    if shares_prompts(source, LENGTH + TARGETS, dropout=False):
        return _answering_bytes(source, storage, rows, TEXT, PromptPass(1, PROMPT))
    return _answering_bytes(source, storage, rows, LENGTH)


@functools.cache
def _answering_bytes(source: str, storage: Scheme, rows: int, length: int, prompts: PromptPass | None = None) -> int:
    """The same from operators run on shapes; arguments as for `evaluation_bytes`."""
    with _shape(source, storage) as backbone:
        return evaluation_bytes(backbone, rows, length, prompts)


@contextmanager
def _shape(source: str, storage: Scheme) -> Iterator[Backbone]:
    """The network with all its layers, on shapes. One layer would not do: the peak depends on how many there are."""
    config, precision = backbone_config(source), "float32" if storage == "none" else "bfloat16"
    with shapes_only_backbone(
        lambda: Backbone("shape", untrained_network(config), None, None, precision), storage
    ) as backbone:
        yield backbone


def describe_device(device: str, sources: Sequence[str] | None, rows: int = ROWS) -> dict[str, Any]:
    """What fits a device, one row for each backbone and form of storage: as data, with a table under "text"."""
    name, found = find_device(device)
    capacity = found.memory_gb * 1e9 * USABLE_SHARE
    names = sources or sorted((path.stem for path in CONFIGS.glob("*.json")), key=_size)
    needs = [memory_need(source, storage, rows) for source in names for storage in get_args(Scheme)]
    shown = [_row(item, capacity) for item in needs]
    columns = ["backbone", "storage", "weights", "prompts", "fits", "most_tokens", "evaluation", "full_tuning"]
    columns += ["fits_full", *(f"fsdp_{shards}" for shards in SHARDS)]
    usable, positions, apart = capacity / GIB, rows * LENGTH, rows * TEXT + PROMPT
    head = (
        f"{name}: {found.memory_gb} GB, of which {usable:.1f} GiB are planned with. GiB of a batch of {rows} rows of "
        f"{PROMPT} prompt vectors and {TEXT} tokens, {positions:,} positions; {apart:,} where a decoder reads the "
        "prompt once. most_tokens: the largest micro-batch that fits, whatever the number of cells; full_tuning: of "
        "all weights, and on each of 2, 4 or 8 devices (execution.sharding: fsdp). 8- and 4-bit weights and bf16 "
        "compute in bfloat16, none in float32."
    )
    text = f"{textwrap.fill(head, 110)}\n\n{text_table(shown, columns)}"
    return {
        "device": name,
        "memory_gb": found.memory_gb,
        "usable_bytes": round(capacity),
        "tokens": rows * LENGTH,
        "backbones": [_values(item, capacity) for item in needs],
        "text": text,
    }


def _values(item: MemoryNeed, capacity: float) -> dict[str, Any]:
    peaks = {"full_tuning": None if item.full is None else item.full.peak()}
    peaks |= {f"fsdp_{shards}": None if item.full is None else item.full.peak(shards) for shards in SHARDS}
    return {**asdict(item), "step": item.step, "most_tokens": item.most_tokens(capacity), **peaks}


def _row(item: MemoryNeed, capacity: float) -> dict[str, str]:
    step, evaluation = item.step, item.weights + item.evaluation
    most = item.most_tokens(capacity)
    row = {
        "backbone": item.backbone,
        "storage": item.storage,
        "weights": f"{item.weights / GIB:.1f}",
        "prompts": f"{step / GIB:.1f}",
        "fits": "yes" if max(step, evaluation) <= capacity else "smaller batches" if most else "no",
        "most_tokens": f"{most:,}" if most else "",
        "evaluation": f"{evaluation / GIB:.1f}",
    }
    if item.full is None:
        return row
    row["full_tuning"] = f"{item.full.peak() / GIB:.1f}"
    row["fits_full"] = "yes" if item.full.peak() <= capacity else "no"
    return row | {f"fsdp_{shards}": f"{item.full.peak(shards) / GIB:.1f}" for shards in SHARDS}


def _size(source: str) -> int:
    return meta_backbone(source).num_params
