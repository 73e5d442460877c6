"""Which backbones fit a device, and how they must be stored: arithmetic over shapes, without weights or download."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, get_args

from transformers.modeling_layers import GradientCheckpointingLayer

from harness.backbone import Backbone
from harness.errors import require_choice
from harness.flops import DEVICES, Device
from harness.footprint import evaluation_bytes, training_bytes, weightless
from harness.listings_data import table
from harness.loading import CONFIGS, meta_backbone, model_of, source_config
from harness.quantization import Scheme, weight_bytes
from harness.suite import short_name

LENGTH = 356
"""Positions of a row: a prompt of 100 and a text of 256, the papers' setting."""
TARGETS = 3
"""Tokens of a label with its end."""
TOKENS = 16 * LENGTH
"""A batch of the papers."""
USABLE_SHARE = 0.9
"""The rest goes to the driver, libraries' workspaces and fragments."""
GIB = 2**30
SHARDS = (2, 4, 8)
"""Numbers of devices among which full fine-tuning is shown divided."""


@dataclass(frozen=True)
class FullTuning:
    """What training all weights takes, in float32."""

    num_params: int
    layer_params: int
    """Of the largest layer."""
    other_params: int
    """Of no layer: embedding, head, norms."""
    activations: int
    evaluation: int

    def peak(self, processes: int = 1) -> int:
        """Bytes on each device; with several processes, the weights are divided among them (`execution.sharding`).

        Trained weights, two moments and the copy of the best step; on top of it the larger of the backward pass with
        its gradients, and the optimiser's gradients and scales. One process also keeps the frozen weights. Shards need
        during a pass what stands in no layer, whole and with its gradient, and twice so the layer at work and the next;
        in an evaluation all weights, whole.
        """
        own = 4 * self.num_params / processes
        if processes == 1:
            return round(5 * own + max(own + self.activations, 2 * own))
        gathered = 4 * (2 * self.other_params + 4 * self.layer_params)
        evaluation = 4 * self.num_params + self.evaluation
        return round(4 * own + max(own + gathered + self.activations, 2 * own, evaluation))


@dataclass(frozen=True)
class Need:
    """Bytes that one backbone takes in one form of storage."""

    backbone: str
    storage: Scheme
    weights: int
    per_token: float
    """Peak of a step beside the weights for each position of a micro-batch."""
    evaluation: int
    """Peak of an evaluation of twice the tokens beside the weights."""
    full: FullTuning | None
    """Full fine-tuning; None for other storage than float32."""

    def step(self, tokens: int) -> int:
        """Peak of training a prompt or a table, weights included."""
        return round(self.weights + self.per_token * tokens)

    def most_tokens(self, capacity: float) -> int:
        """Positions of the largest micro-batch that fits; 0 where not even a row does."""
        tokens = int((capacity - self.weights) / self.per_token)
        return tokens if tokens >= LENGTH else 0


def find_device(name: str) -> tuple[str, Device]:
    """A device by its name in small letters with dashes. Raises UserError with the nearest match."""
    known = {key.lower().replace(" ", "-"): key for key in DEVICES}
    plain = {slug.replace("-", ""): slug for slug in known}
    given = name.lower().replace(" ", "-")
    key = known[require_choice(plain.get(given.replace("-", ""), given), known, kind="device", where="harness devices")]
    return key, DEVICES[key]


def need(source: str, storage: Scheme, tokens: int = TOKENS, length: int = LENGTH) -> Need:
    """What training and evaluation through a backbone take.

    Raises UserError for a backbone whose configuration is not on this machine.
    """
    weights, per_token = weights_of(source, storage), token_bytes(source, storage, tokens, length)
    full = full_tuning(source, tokens, length) if storage == "none" else None
    return Need(short_name(source), storage, weights, per_token, _evaluation(source, storage, tokens, length), full)


@functools.cache
def weights_of(source: str, storage: Scheme) -> int:
    """Bytes of a backbone's weights."""
    return weight_bytes(meta_backbone(source).model, storage)


@functools.cache
def token_bytes(source: str, storage: Scheme, tokens: int, length: int) -> float:
    """Peak of a step for each position of a micro-batch of `tokens` in rows of `length`, beside the weights."""
    rows = max(1, tokens // length)
    return _step(source, storage, rows, length, trains_weights=False) / (rows * length)


@functools.cache
def full_tuning(source: str, tokens: int = TOKENS, length: int = LENGTH) -> FullTuning:
    """What training all weights of a backbone takes; float32."""
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
    """Peak of a step beside the weights."""
    with _shape(source, storage) as backbone:
        return training_bytes(backbone, rows, length, TARGETS, trains_weights)


@functools.cache
def _evaluation(source: str, storage: Scheme, tokens: int, length: int) -> int:
    with _shape(source, storage) as backbone:
        return evaluation_bytes(backbone, 2 * max(1, tokens // length), length)


@contextmanager
def _shape(source: str, storage: Scheme) -> Iterator[Backbone]:
    """The network with all its layers, to be run on shapes: which operators make its peak depends on their number."""
    config, precision = source_config(source), "float32" if storage == "none" else "bfloat16"
    with weightless(lambda: Backbone("shape", model_of(config), None, None, precision), storage) as backbone:
        yield backbone


def describe_device(device: str, sources: Sequence[str] | None, tokens: int = TOKENS) -> dict[str, Any]:
    """What fits a device: one row per backbone and storage, as data and as text."""
    name, found = find_device(device)
    capacity = found.memory_gb * 1e9 * USABLE_SHARE
    names = sources or sorted((path.stem for path in CONFIGS.glob("*.json")), key=_size)
    needs = [need(source, storage, tokens) for source in names for storage in get_args(Scheme)]
    rows = [_row(item, capacity, tokens) for item in needs]
    columns = ["backbone", "storage", "weights", "prompts", "fits", "most_tokens", "evaluation", "full_tuning"]
    columns += ["fits_full", *(f"fsdp_{shards}" for shards in SHARDS)]
    text = (
        f"{name}: {found.memory_gb} GB, of which {capacity / GIB:.1f} GiB are planned with. GiB at {tokens:,} tokens\n"
        "(prompt, text and padding of a micro-batch); most_tokens: the largest micro-batch that fits; full_tuning: of\n"
        "all weights, and on each of 2, 4 or 8 devices (execution.sharding: fsdp). 8- and 4-bit weights and bf16\n"
        "compute in bfloat16, none in float32.\n\n" + table(rows, columns)
    )
    return {
        "device": name,
        "memory_gb": found.memory_gb,
        "usable_bytes": round(capacity),
        "tokens": tokens,
        "backbones": [_values(item, capacity, tokens) for item in needs],
        "text": text,
    }


def _values(item: Need, capacity: float, tokens: int) -> dict[str, Any]:
    peaks = {"full_tuning": None if item.full is None else item.full.peak()}
    peaks |= {f"fsdp_{shards}": None if item.full is None else item.full.peak(shards) for shards in SHARDS}
    return {**asdict(item), "step": item.step(tokens), "most_tokens": item.most_tokens(capacity), **peaks}


def _row(item: Need, capacity: float, tokens: int) -> dict[str, str]:
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
