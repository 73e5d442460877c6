"""Low-rank updates of many cells in two batched products: the numbers of each alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from harness.method.layer_change import LayerChange
from harness.method.low_rank import CellBlocks, LowRank, add_all_updates
from harness.method.shared_layers import _together


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 3))
def test_updates_of_one_shape_are_computed_together_as_one_by_one(counts: list[int], length: int) -> None:
    torch.manual_seed(0)
    sizes = ((6, 2), (2, 5))
    linears = [[nn.Linear(*size, bias=False, dtype=torch.float64) for size in sizes] for _ in counts]
    updates = [LowRank(down, up, 0.5, nn.Identity()) for down, up in linears]
    states = torch.randn(sum(counts), length, 6, dtype=torch.float64, requires_grad=True)
    made = torch.randn(sum(counts), length, 5, dtype=torch.float64)
    together = add_all_updates(updates, CellBlocks(counts), states, made)
    pairs = zip(states.split(counts), made.split(counts), updates, strict=True)
    apart = torch.cat([update.added(own, whole) for own, whole, update in pairs])
    torch.testing.assert_close(together, apart)
    inputs = [states, *(u.down.weight for u in updates), *(u.up.weight for u in updates)]
    weights = torch.randn_like(apart)
    ours, theirs = (torch.autograd.grad((out * weights).sum(), inputs) for out in (together, apart))
    torch.testing.assert_close(ours, theirs)


def test_updates_that_cannot_be_together_are_not() -> None:
    def change(rank: int, scale: float = 1.0) -> LayerChange:
        update = LowRank(nn.Linear(6, rank, bias=False), nn.Linear(rank, 5, bias=False), scale, nn.Dropout(0.1))
        return LayerChange(nn.Linear(6, 5), low_rank=update)

    assert len(_together([[change(2)], [change(2)]])) == 2
    assert _together([[change(2)], [change(3)]]) == []
    assert _together([[change(2)], [change(2, scale=2.0)]]) == []
    assert _together([[change(2)], []]) == []
    assert _together([[change(2)], [change(2), LayerChange(nn.Linear(6, 5), after=torch.relu)]]) == []


@pytest.mark.parametrize("scale", [16 / 12, 0.1])
def test_a_scale_is_not_rounded_to_bfloat16(scale: float) -> None:
    """As torch.add's alpha it was: the update came out 0.1 to 0.3 % too large, in training alone."""
    torch.manual_seed(0)
    update = LowRank(nn.Linear(64, 8, bias=False), nn.Linear(8, 48, bias=False), scale, nn.Identity())
    states, output = torch.randn(4_000, 64), torch.zeros(4_000, 48, dtype=torch.bfloat16)
    with torch.no_grad():
        wanted = update.up(update.down(states)) * scale
        with torch.autocast("cpu", torch.bfloat16):
            alone = update.added(states, output)
            together = add_all_updates([update, update], CellBlocks([2_000, 2_000]), states, output)
    for found in (alone.float(), together.float()):
        slope = (found * wanted).sum() / (wanted * wanted).sum()
        assert abs(float(slope) - 1) < 5e-4
