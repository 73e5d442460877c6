"""The peak memory of a bundle grows with the micro-batch, not with the number of cells."""

from __future__ import annotations

from test_fused import make_cell, trainer

from benchmarks.memory import peak_bytes
from harness.suite.cell import Cell
from harness.train.loop import BundleTrainer

TOKENS = 256


def bundle(cells: int, max_tokens: int) -> BundleTrainer:
    members: list[Cell] = [
        make_cell("prompt_tuning", {"prompt_length": 7}, 0.3, seed, 8, steps=4) for seed in range(cells)
    ]
    return trainer(members, max_tokens)


def peak(made: BundleTrainer) -> int:
    """Bytes that a step takes at its peak beside what the bundle holds between steps."""
    made._train_step(0)  # moments and buffers that stay
    return peak_bytes(lambda: made._train_step(1), "cpu")


def test_the_peak_grows_with_the_micro_batch_and_not_with_the_cells() -> None:
    few, many, larger = (peak(bundle(*size)) for size in ((3, TOKENS), (24, TOKENS), (24, 4 * TOKENS)))
    vectors = sum(p.nbytes for state in bundle(21, TOKENS).states for p in state.parameters)
    # a further cell adds its part of the table and of its gradient, its own gradient, and what AdamW works with
    assert many - few < 8 * vectors
    assert many < 1.5 * few
    assert larger > 2.5 * many
