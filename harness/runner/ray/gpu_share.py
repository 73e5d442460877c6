"""How much of a GPU a bundle needs, so that several small bundles can share one.

The estimate is rather too large. Where it is too small, a step runs out of memory and is repeated with smaller
micro-batches, so no result is lost.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

from harness.backbone import Backbone, PromptPass, Scheme, meta_backbone
from harness.method import CellError, Method, Rule, load_file
from harness.runner.device_fit import TARGETS, full_tuning, step_bytes, weights_of
from harness.suite import Cell
from harness.train import BatchInput, Bundle, build_method, trains_backbone

CONTEXT_BYTES = 600 * 2**20
"""Memory that CUDA and its libraries take in every process."""
USABLE = 0.9
"""Share of a GPU's memory that is given out; the rest is for fragmentation. The same share as in `device_plan`."""
MOST_PER_GPU = 4
"""Most processes on one GPU. With more, they would wait for the GPU's time and not for its memory."""
SHARED_TOKENS = 8_192
"""Token budget of a micro-batch on part of a GPU, if the suite sets none. A probe would see the memory of the whole
GPU, and 8,192 positions of T5-base are what one more micro-batch costs (`step.OVERHEAD_NUMBERS`)."""
LONGEST_TEXT = 512
"""Positions of a row if the recipe does not say: the longest texts of the papers' tasks are cut there."""


def gpu_share(need: int, gpu_bytes: int | None) -> float:
    """Part of a GPU for a bundle of `need` bytes: 1, 1/2, 1/3 or 1/4; 1 if the GPU's memory is not known."""
    if gpu_bytes is None or need <= 0:
        return 1.0 if gpu_bytes is None else 1 / MOST_PER_GPU
    return 1 / max(1, min(MOST_PER_GPU, math.floor(USABLE * gpu_bytes / need)))


def on_a_share(bundle: Bundle) -> Bundle:
    """The bundle with the token budget that `memory_need` assumes, to run on part of a GPU."""
    return replace(bundle, micro_batch_tokens=bundle.micro_batch_tokens or SHARED_TOKENS)


def memory_need(bundle: Bundle) -> int:
    """Bytes that training a bundle takes on a GPU, by the arithmetic of `harness devices`; 0 for a rule.

    A number that a cell trains takes 20 bytes in float32: itself, a gradient, two moments, and a copy of the best step.
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
    backbone, dropout = _meta(bundle.backbone, recipe.quantization), recipe.backbone_dropout
    backbone.model.train(dropout)
    prompts = largest_prompt_pass(methods, backbone, tokens, length)
    rows = max(1, tokens // length)
    step = step_bytes(bundle.backbone, recipe.quantization, rows, length, prompts, dropout)
    trained = sum(method.num_trained for method in methods)
    return round(CONTEXT_BYTES + scale * (weights_of(bundle.backbone, recipe.quantization) + step + 20 * trained))


def largest_prompt_pass(methods: Sequence[Method], backbone: Backbone, tokens: int, length: int) -> PromptPass | None:
    """The most prompts that stand in front of a group of cells, apart from their texts of at most `length` tokens.

    `tokens` is the budget of a micro-batch, and the network's mode that of training. None where prompts stay with their
    rows, or where the code of a method raises, which training its cell will record.
    """
    cells = list(range(len(methods)))
    try:
        fused = BatchInput(methods, backbone, length, answer_length=TARGETS)
        fused.refresh(grad=False, cells=cells)
        passes = [_prompt_pass(fused, group) for group in fused.groups(cells, tokens)]
    except CellError:
        return None
    largest = max(passes, key=lambda one: (one.number + one.given) * one.length)
    return largest if largest.length else None


def _prompt_pass(fused: BatchInput, cells: Sequence[int]) -> PromptPass:
    """What stands in front of the rows of a group of cells; of no length where that is nothing."""
    positions = fused.positions_apart(cells, padded=True)[cells]
    given = [cell for cell in cells if fused.given[cell]]
    length = max((int(fused.prompt_lengths[cell]) for cell in cells if fused.shared[cell]), default=0)
    number = int(positions.sum()) // length if length else 0
    return PromptPass(number, max([length, *(fused.methods[cell].num_positions for cell in given)]), len(given))


def is_rule(bundle: Bundle) -> bool:
    """Whether the bundle needs no backbone."""
    cls = load_file(bundle.method_files[bundle.cells[0].method]).cls
    return cls is not None and issubclass(cls, Rule)


def _method(bundle: Bundle, cell: Cell) -> Method | None:
    """A cell's method without weights; None if it cannot be built, which training the cell will record."""
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
