"""One optimiser for all cells moves each as its own torch.optim.AdamW behind clip_grad_norm_ would."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.optimizer import JointAdamW
from harness.suite_file import Recipe

SHAPES = [[(5, 4)], [(3, 4), (2,)], [(7,)], [(4, 2), (2, 4), (3,)]]
RECIPES = [
    Recipe(),
    Recipe(weight_decay=0.1, beta1=0.8, clip_norm=0.5),
    Recipe(eps=1e-3, beta2=0.99),
    Recipe(clip_norm=5.0, weight_decay=0.01),
]
RATES = [[0.3], [0.1, 0.001], [5.0], [0.01, 0.02, 0.03]]


def build() -> list[list[dict[str, object]]]:
    generator = torch.Generator().manual_seed(0)

    def new(shape: tuple[int, ...]) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))

    pairs = [list(zip(shapes, rates, strict=True)) for shapes, rates in zip(SHAPES, RATES, strict=True)]
    return [[{"params": [new(shape)], "lr": lr} for shape, lr in own] for own in pairs]


def tensors(groups: list[dict[str, object]]) -> list[Tensor]:
    return [p for group in groups for p in group["params"]]


def set_gradients(cells: list[list[dict[str, object]]], step: int, skip: bool) -> None:
    """Gradients from tiny to far above the clipping norm; some tensors get none."""
    for cell, groups in enumerate(cells):
        for index, p in enumerate(tensors(groups)):
            generator = torch.Generator().manual_seed(1_000 * step + 10 * cell + index)
            drawn = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.grad = None if skip and (step + index) % 3 == 2 else drawn * 10.0 ** ((step + cell) % 4 - 2)


@pytest.mark.parametrize("skip", [False, True])
def test_all_cells_at_once_equal_one_after_the_other_to_1e_12(skip: bool) -> None:
    ours, theirs = build(), build()
    joint = JointAdamW(ours, RECIPES)
    single = [
        torch.optim.AdamW(groups, lr=1.0, betas=(r.beta1, r.beta2), eps=r.eps, weight_decay=r.weight_decay)
        for groups, r in zip(theirs, RECIPES, strict=True)
    ]
    for step in range(40):
        active = [cell for cell in range(4) if not (cell == 2 and step >= 20)]
        set_gradients(ours, step, skip), set_gradients(theirs, step, skip)
        joint.step(dict.fromkeys(active, 1 / (1 + step)))
        if step == 20:
            joint.release([2])
        for cell in active:
            torch.nn.utils.clip_grad_norm_(tensors(theirs[cell]), RECIPES[cell].clip_norm)
            for group, rate in zip(single[cell].param_groups, RATES[cell], strict=True):
                group["lr"] = rate / (1 + step)
            single[cell].step()
        for mine, other in zip(ours, theirs, strict=True):
            for p, q in zip(tensors(mine), tensors(other), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    assert all(p.grad is None for cell in active for p in tensors(ours[cell]))


def test_a_gradient_that_is_not_finite_harms_no_other_cell() -> None:
    cells = build()
    joint = JointAdamW(cells, RECIPES)
    set_gradients(cells, 0, skip=False)
    tensors(cells[1])[0].grad[0, 0] = float("inf")
    joint.step(dict.fromkeys(range(4), 1.0))
    assert not all(p.isfinite().all() for p in tensors(cells[1]))
    assert all(p.isfinite().all() for cell in (0, 2, 3) for p in tensors(cells[cell]))
