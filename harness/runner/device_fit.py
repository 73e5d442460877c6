"""Which backbones fit a device, and in how many bits: computed from shapes, without weights or downloads."""

from __future__ import annotations

import functools
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

LENGTH = 356
"""Positions of a row: a prompt of 100 and a text of 256, the papers' setting."""
TARGETS = 3
"""Tokens of a label with its end."""
TOKENS = 16 * LENGTH
"""A batch of the papers, 16 rows: 5,696 positions."""
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
    per_token: float
    """Peak bytes of a step beside the weights, for each position of a micro-batch."""
    evaluation: int
    """Peak bytes of an evaluation beside the weights; its micro-batches hold twice the tokens."""
    full: FullTuning | None
    """Full fine-tuning; None unless weights are stored in float32."""

    def step(self, tokens: int) -> int:
        """Peak bytes of training a prompt or an added table, weights included."""
        return round(self.weights + self.per_token * tokens)

    def most_tokens(self, capacity: float) -> int:
        """Positions of the largest micro-batch that fits into `capacity` bytes; 0 if not even one row does."""
        tokens = int((capacity - self.weights) / self.per_token)
        return tokens if tokens >= LENGTH else 0


def find_device(name: str) -> tuple[str, DeviceFigures]:
    """A device by its name in small letters with dashes. Raises UserError with the nearest match."""
    known = {key.lower().replace(" ", "-"): key for key in DEVICES}
    plain = {slug.replace("-", ""): slug for slug in known}
    given = name.lower().replace(" ", "-")
    key = known[require_choice(plain.get(given.replace("-", ""), given), known, kind="device", where="harness devices")]
    return key, DEVICES[key]


def memory_need(source: str, storage: Scheme, tokens: int = TOKENS, length: int = LENGTH) -> MemoryNeed:
    """The memory of training and evaluation with micro-batches of `tokens` positions in rows of `length`.

    Raises UserError for a backbone whose configuration is not on this machine.
    """
    weights, per_token = weights_of(source, storage), token_bytes(source, storage, tokens, length)
    full = full_tuning(source, tokens, length) if storage == "none" else None
    return MemoryNeed(
        short_name(source), storage, weights, per_token, _evaluation(source, storage, tokens, length), full
    )


@functools.cache
def weights_of(source: str, storage: Scheme) -> int:
    """Bytes of a backbone's weights."""
    return weight_bytes(meta_backbone(source).model, storage)


@functools.cache
def token_bytes(source: str, storage: Scheme, tokens: int, length: int) -> float:
    """Peak bytes of a step beside the weights, for each position of a micro-batch of `tokens` in rows of `length`."""
    rows = max(1, tokens // length)
    return _step(source, storage, rows, length, trains_weights=False) / (rows * length)


@functools.cache
def full_tuning(source: str, tokens: int = TOKENS, length: int = LENGTH) -> FullTuning:
    """The memory of full fine-tuning of a backbone in float32."""
    model = meta_backbone(source).model
    num_params = _num_weights(model)
    layers = [_num_weights(m) for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    backward = _step(source, "none", max(1, tokens // length), length, trains_weights=True)
    evaluation = _evaluation(source, "none", tokens, length)
    activations = round(backward - 4 * num_params)
    return FullTuning(num_params, max(layers, default=0), num_params - sum(layers), activations, evaluation)


def _num_weights(module: Any) -> int:
    return sum(weight.numel() for weight in module.parameters())


@functools.cache
def _step(source: str, storage: Scheme, rows: int, length: int, trains_weights: bool) -> int:
    """Peak bytes of a step beside the weights, from operators run on shapes."""
    with _shape(source, storage) as backbone:
        return training_bytes(backbone, rows, length, TARGETS, trains_weights)


@functools.cache
def _evaluation(source: str, storage: Scheme, tokens: int, length: int) -> int:
    with _shape(source, storage) as backbone:
        return evaluation_bytes(backbone, 2 * max(1, tokens // length), length)


@contextmanager
def _shape(source: str, storage: Scheme) -> Iterator[Backbone]:
    """The network with all its layers, on shapes. One layer would not do: the peak depends on how many there are."""
    config, precision = backbone_config(source), "float32" if storage == "none" else "bfloat16"
    with shapes_only_backbone(
        lambda: Backbone("shape", untrained_network(config), None, None, precision), storage
    ) as backbone:
        yield backbone


def describe_device(device: str, sources: Sequence[str] | None, tokens: int = TOKENS) -> dict[str, Any]:
    """What fits a device, one row for each backbone and form of storage: as data, with a table under "text"."""
    name, found = find_device(device)
    capacity = found.memory_gb * 1e9 * USABLE_SHARE
    names = sources or sorted((path.stem for path in CONFIGS.glob("*.json")), key=_size)
    needs = [memory_need(source, storage, tokens) for source in names for storage in get_args(Scheme)]
    rows = [_row(item, capacity, tokens) for item in needs]
    columns = ["backbone", "storage", "weights", "prompts", "fits", "most_tokens", "evaluation", "full_tuning"]
    columns += ["fits_full", *(f"fsdp_{shards}" for shards in SHARDS)]
    text = (
        f"{name}: {found.memory_gb} GB, of which {capacity / GIB:.1f} GiB are planned with. GiB at {tokens:,} tokens\n"
        "(prompt, text and padding of a micro-batch); most_tokens: the largest micro-batch that fits; full_tuning: of\n"
        "all weights, and on each of 2, 4 or 8 devices (execution.sharding: fsdp). 8- and 4-bit weights and bf16\n"
        "compute in bfloat16, none in float32.\n\n" + text_table(rows, columns)
    )
    return {
        "device": name,
        "memory_gb": found.memory_gb,
        "usable_bytes": round(capacity),
        "tokens": tokens,
        "backbones": [_values(item, capacity, tokens) for item in needs],
        "text": text,
    }


def _values(item: MemoryNeed, capacity: float, tokens: int) -> dict[str, Any]:
    peaks = {"full_tuning": None if item.full is None else item.full.peak()}
    peaks |= {f"fsdp_{shards}": None if item.full is None else item.full.peak(shards) for shards in SHARDS}
    return {**asdict(item), "step": item.step(tokens), "most_tokens": item.most_tokens(capacity), **peaks}


def _row(item: MemoryNeed, capacity: float, tokens: int) -> dict[str, str]:
    step, evaluation = item.step(tokens), item.weights + item.evaluation
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
