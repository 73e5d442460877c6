"""How much of a GPU a bundle needs: the arithmetic by which several small bundles share one.

An estimate errs to the large side; where it is too small all the same, a step that runs out of memory is repeated
with smaller micro-batches.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

from harness.backbone import Backbone
from harness.building import build_method
from harness.bundle import Bundle
from harness.device_plan import full_tuning, token_bytes, weights_of
from harness.loading import meta_backbone
from harness.method import Method, Rule, load_file
from harness.quantization import Scheme
from harness.schema import Cell
from harness.sharding import trains_backbone

CONTEXT_BYTES = 600 * 2**20
"""What CUDA and its libraries take in every process."""
USABLE = 0.9
"""Share of a GPU's memory that is given out; the rest is for fragmentation."""
MOST_PER_GPU = 4
"""Processes on one GPU; with more of them the GPU's time is short, not its memory."""
SHARED_TOKENS = 8_192
"""Token budget of a micro-batch on part of a GPU, where the suite sets none: a probe would see the whole GPU."""
LONGEST_TEXT = 512
"""Positions of a row, where the recipe does not say."""


def gpu_share(need: int, gpu_bytes: int | None) -> float:
    """Part of a GPU for a bundle that needs `need` bytes: 1, 1/2, 1/3 or 1/4; 1 where its memory is not known."""
    if gpu_bytes is None or need <= 0:
        return 1.0 if gpu_bytes is None else 1 / MOST_PER_GPU
    return 1 / max(1, min(MOST_PER_GPU, math.floor(USABLE * gpu_bytes / need)))


def on_a_share(bundle: Bundle) -> Bundle:
    """The bundle as it runs on part of a GPU: with the token budget that `memory_need` counts on."""
    return replace(bundle, micro_batch_tokens=bundle.micro_batch_tokens or SHARED_TOKENS)


def memory_need(bundle: Bundle) -> int:
    """Bytes that training a bundle takes on a GPU, by the arithmetic of `harness devices`; 0 for a rule.

    A number that a cell trains has a gradient, two moments and the copy of the best step.
    """
    if is_rule(bundle):
        return 0
    recipe = bundle.cells[0].recipe
    scale = 2 if recipe.precision == "float64" else 1
    tokens, length = bundle.micro_batch_tokens or SHARED_TOKENS, recipe.max_source_length or LONGEST_TEXT
    methods = [method for cell in bundle.cells if (method := _method(bundle, cell)) is not None]
    if any(trains_backbone(method, _meta(bundle.backbone, recipe.quantization)) for method in methods):
        shards = 1 if bundle.sharding == "none" else bundle.processes
        return CONTEXT_BYTES + scale * full_tuning(bundle.backbone, tokens, length).peak(shards)
    trained = sum(method.num_trained for method in methods)
    step = tokens * token_bytes(bundle.backbone, recipe.quantization, tokens, length)
    return round(CONTEXT_BYTES + scale * (weights_of(bundle.backbone, recipe.quantization) + step + 20 * trained))


def is_rule(bundle: Bundle) -> bool:
    """Whether the bundle needs no backbone."""
    cls = load_file(bundle.method_files[bundle.cells[0].method]).cls
    return cls is not None and issubclass(cls, Rule)


def _method(bundle: Bundle, cell: Cell) -> Method | None:
    """A cell's method without weights; None where it cannot be built, as the cell will say."""
    cls = load_file(bundle.method_files[cell.method]).cls
    if cls is None or not issubclass(cls, Method):
        return None
    try:
        return build_method(cell, cls, _meta(bundle.backbone, cell.recipe.quantization))
    except Exception:
        return None


@functools.lru_cache(maxsize=4)
def _meta(source: str, quantization: Scheme) -> Backbone:
    return meta_backbone(source, quantization)
