"""How much of a GPU a bundle needs: the arithmetic by which several small bundles share one.

An estimate errs to the large side; where it is too small all the same, a step that runs out of memory is repeated
with smaller micro-batches.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

from harness.backbone import Backbone
from harness.bundle import Bundle, build_method
from harness.loading import meta_backbone
from harness.method import Method, Rule, load_file
from harness.quantization import weight_bytes
from harness.schema import Cell

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
    """Bytes that training a bundle takes on a GPU: weights, activations of a micro-batch, tensors of its cells.

    Activations: (34 H + 5 A S) bytes per position and layer at 16 bits, twice that at 32 (Korthikanti et al., 2022,
    eq. 1), with width H, A heads and rows of S positions. A trained number has a gradient, two moments and the copy
    of the best step. 0 for a rule.
    """
    if is_rule(bundle):
        return 0
    backbone, recipe = _meta(bundle.backbone), bundle.cells[0].recipe
    size = 8 if recipe.precision == "float64" else 4
    trained = sum(_num_trained(bundle, cell, backbone) for cell in bundle.cells)
    tokens = bundle.micro_batch_tokens or SHARED_TOKENS
    per_position = size / 2 * _per_position(backbone, recipe.max_source_length or LONGEST_TEXT)
    quantized = recipe.quantization != "none"
    weights = weight_bytes(backbone.model, recipe.quantization) if quantized else size * backbone.num_params
    return int(CONTEXT_BYTES + weights + 5 * size * trained + tokens * per_position)


def is_rule(bundle: Bundle) -> bool:
    """Whether the bundle needs no backbone."""
    cls = load_file(bundle.method_files[bundle.cells[0].method]).cls
    return cls is not None and issubclass(cls, Rule)


def _per_position(backbone: Backbone, length: int) -> float:
    """Bytes of one position in all layers at 16 bits. A decoder's own positions are few and counted as the rest."""
    config = backbone.config
    layers = int(getattr(config, "num_hidden_layers", 0) or getattr(config, "num_layers", 0))
    heads = int(getattr(config, "num_attention_heads", 0) or getattr(config, "num_heads", 0))
    return float(layers * (34 * backbone.hidden + 5 * heads * length))


def _num_trained(bundle: Bundle, cell: Cell, backbone: Backbone) -> int:
    cls = load_file(bundle.method_files[cell.method]).cls
    if cls is None or not issubclass(cls, Method):
        return 0
    try:
        return build_method(cell, cls, backbone).num_trained
    except Exception:  # the cell will say so
        return 0


@functools.lru_cache(maxsize=4)
def _meta(source: str) -> Backbone:
    return meta_backbone(source)
