"""Which backbones fit a device, and how they must be stored: arithmetic over shapes, without weights or download."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, get_args

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
DEPTHS = (2, 3)  # a single layer has its peak elsewhere
DEPTH_NAMES = ("num_layers", "num_decoder_layers", "num_hidden_layers")


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
    full_tuning: int | None
    """Peak of full fine-tuning, all told; in float32; None for other storage."""

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
    key = known[require_choice(plain.get(given.replace("-", ""), given), known, kind="device", where="--device")]
    return key, DEVICES[key]


@functools.cache
def need(source: str, storage: Scheme, tokens: int = TOKENS, length: int = LENGTH) -> Need:
    """What training and evaluation through a backbone take.

    Layers are alike, so two shallow networks give the whole: what a step takes anyway, and what each layer adds.
    Raises UserError for a backbone whose configuration is not on this machine.
    """
    config = source_config(source)
    depth = max(config.get(name, 0) for name in DEPTH_NAMES)
    rows = max(1, tokens // length)
    precision = "float32" if storage == "none" else "bfloat16"
    step = _whole(depth, [_trained(config, d, storage, precision, rows, length) for d in DEPTHS])
    evaluation = _whole(depth, [_evaluated(config, d, storage, precision, 2 * rows, length) for d in DEPTHS])
    backbone = meta_backbone(source)
    weights = weight_bytes(backbone.model, storage)
    full_tuning = _full_tuning(config, depth, backbone.num_params, weights, rows, length) if storage == "none" else None
    return Need(short_name(source), storage, weights, step / (rows * length), round(evaluation), full_tuning)


def _full_tuning(config: dict[str, Any], depth: int, num_params: int, weights: int, rows: int, length: int) -> int:
    """Frozen weights, trained copies, two moments; and the larger of backward pass and the optimiser's own copies."""
    backward = _whole(depth, [_trained(config, d, "none", "float32", rows, length, True) for d in DEPTHS])
    return round(weights + 12 * num_params + max(backward, 8.0 * num_params))


def _whole(depth: int, peaks: Sequence[int]) -> float:
    """The peak of all layers from those of two shallow networks."""
    small, large = peaks
    return small + (large - small) / (DEPTHS[1] - DEPTHS[0]) * (depth - DEPTHS[0])


def _trained(
    config: dict[str, Any], depth: int, storage: Scheme, precision: str, rows: int, length: int, weights: bool = False
) -> int:
    with _shallow(config, depth, storage, precision) as backbone:
        return training_bytes(backbone, rows, length, TARGETS, weights)


def _evaluated(config: dict[str, Any], depth: int, storage: Scheme, precision: str, rows: int, length: int) -> int:
    with _shallow(config, depth, storage, precision) as backbone:
        return evaluation_bytes(backbone, rows, length)


@contextmanager
def _shallow(config: dict[str, Any], depth: int, storage: Scheme, precision: str) -> Iterator[Backbone]:
    """The same network with fewer layers, to be run on shapes."""
    shape = config | {name: depth for name in DEPTH_NAMES if name in config}
    with weightless(lambda: Backbone("shape", model_of(shape), None, None, precision), storage) as backbone:
        yield backbone


def describe_device(device: str, sources: Sequence[str] | None, tokens: int = TOKENS) -> dict[str, Any]:
    """What fits a device: one row per backbone and storage, as data and as text."""
    name, found = find_device(device)
    capacity = found.memory_gb * 1e9 * USABLE_SHARE
    names = sources or sorted((path.stem for path in CONFIGS.glob("*.json")), key=_size)
    needs = [need(source, storage, tokens) for source in names for storage in get_args(Scheme)]
    rows = [_row(item, capacity, tokens) for item in needs]
    columns = [
        "backbone",
        "storage",
        "weights",
        "prompts",
        "fits",
        "most_tokens",
        "evaluation",
        "full_tuning",
        "fits_too",
    ]
    text = (
        f"{name}: {found.memory_gb} GB, of which {capacity / GIB:.1f} GiB are planned with. GiB at {tokens:,} tokens\n"
        "(prompt, text and padding of a micro-batch); most_tokens: the largest micro-batch that fits; full_tuning: of\n"
        "all weights. 8- and 4-bit weights and bf16 compute in bfloat16, none in float32.\n\n" + table(rows, columns)
    )
    return {
        "device": name,
        "memory_gb": found.memory_gb,
        "usable_bytes": round(capacity),
        "tokens": tokens,
        "backbones": [
            {**asdict(item), "step": item.step(tokens), "most_tokens": item.most_tokens(capacity)} for item in needs
        ],
        "text": text,
    }


def _row(item: Need, capacity: float, tokens: int) -> dict[str, str]:
    step, evaluation = item.step(tokens), item.weights + item.evaluation
    most = item.most_tokens(capacity)
    return {
        "backbone": item.backbone,
        "storage": item.storage,
        "weights": f"{item.weights / GIB:.1f}",
        "prompts": f"{step / GIB:.1f}",
        "fits": "yes" if max(step, evaluation) <= capacity else "smaller batches" if most else "no",
        "most_tokens": f"{most:,}" if most else "",
        "evaluation": f"{evaluation / GIB:.1f}",
        "full_tuning": "" if item.full_tuning is None else f"{item.full_tuning / GIB:.1f}",
        "fits_full": "" if item.full_tuning is None else "yes" if item.full_tuning <= capacity else "no",
    }


def _size(source: str) -> int:
    return meta_backbone(source).num_params
