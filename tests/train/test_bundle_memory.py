"""The peak memory of a bundle grows with the micro-batch, not with the number of cells."""

from __future__ import annotations

import pytest
from test_fused import Kind, make_cell, trainer

from benchmarks.memory import peak_bytes
from harness.suite.cell import Cell
from harness.train.loop import BundleTrainer
from harness.train.tiny_backbones import tiny_backbone

TOKENS = 256


def bundle(kind: Kind, cells: int, max_tokens: int) -> BundleTrainer:
    members: list[Cell] = [
        make_cell("prompt_tuning", {"prompt_length": 7}, 0.3, seed, 8, steps=4) for seed in range(cells)
    ]
    made = trainer(members, max_tokens, tiny_backbone(kind, "float64"))
    # a decoder's prompts are read apart, a group of cells at a time
    assert made.fused.shared.all() == (kind == "decoder")
    return made


def peak(made: BundleTrainer) -> int:
    """Bytes that a step takes at its peak beside what the bundle holds between steps."""
    made._train_step(0)  # moments and buffers that stay
    return peak_bytes(lambda: made._train_step(1), "cpu")


# rows of 12 cells fill a micro-batch; 36 prompts of 7 vectors are the most that a decoder reads at once
@pytest.mark.parametrize(("kind", "cells"), [("encoder-decoder", 12), ("decoder", TOKENS // 7)])
def test_the_peak_grows_with_the_micro_batch_and_not_with_the_cells(kind: Kind, cells: int) -> None:
    sizes = (cells, TOKENS), (cells + 21, TOKENS), (cells + 21, 4 * TOKENS)
    few, many, larger = (peak(bundle(kind, *size)) for size in sizes)
    vectors = sum(p.nbytes for state in bundle(kind, 21, TOKENS).states for p in state.parameters)
    # a further cell adds its part of the table and of its gradient, its own gradient, and what AdamW works with
    assert many - few < 8 * vectors
    assert many < 1.5 * few
    assert larger > 2.5 * many
