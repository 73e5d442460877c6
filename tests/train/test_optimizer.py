"""One optimiser for all cells moves each as its own AdamW behind clip_grad_norm_ would, PyTorch's or transformers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from typing_help import present

from harness.suite.file_schema import Recipe
from harness.train.optimizer import JointAdamW

SHAPES: list[list[tuple[int, ...]]] = [[(5, 4)], [(3, 4), (2,)], [(7,)], [(4, 2), (2, 4), (3,)]]
RECIPES = [
    Recipe(),
    Recipe(weight_decay=0.1, beta1=0.8, clip_norm=0.5),
    Recipe(eps=1e-3, beta2=0.99),
    Recipe(clip_norm=5.0, weight_decay=0.01),
]
RATES = [[0.3], [0.1, 0.001], [5.0], [0.01, 0.02, 0.03]]


def build() -> list[list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(0)

    def new(shape: tuple[int, ...]) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))

    pairs = [list(zip(shapes, rates, strict=True)) for shapes, rates in zip(SHAPES, RATES, strict=True)]
    return [[{"params": [new(shape)], "lr": lr} for shape, lr in own] for own in pairs]


def tensors(groups: list[dict[str, Any]]) -> list[Tensor]:
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
        set_gradients(ours, step, skip)
        set_gradients(theirs, step, skip)
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
        joint.clear()
    assert all(p.grad is None for cell in active for p in tensors(ours[cell]))


def test_a_gradient_that_is_not_finite_harms_no_other_cell() -> None:
    cells = build()
    joint = JointAdamW(cells, RECIPES)
    set_gradients(cells, 0, skip=False)
    present(tensors(cells[1])[0].grad)[0, 0] = float("inf")
    joint.step(dict.fromkeys(range(4), 1.0))
    assert not all(p.isfinite().all() for p in tensors(cells[1]))
    assert all(p.isfinite().all() for cell in (0, 2, 3) for p in tensors(cells[cell]))


class TransformersAdamW:
    """What the AdamW of transformers 4.33.2 gives, worked out from the sums of its moments, not step by step.

    m_t = (1 - b1) sum_i b1^(t - i) g_i, v_t likewise of squares,
    p <- (p - lr c2 / c1 m_t / (sqrt(v_t) + eps)) (1 - lr wd)
    with c1 = 1 - b1^t and c2 = sqrt(1 - b2^t) (optimization.py, correct_bias as by default).
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.seen: list[Tensor] = []

    def moved(self, p: Tensor, gradient: Tensor, lr: float) -> Tensor:
        r = self.recipe
        self.seen.append(gradient)
        t = len(self.seen)
        powers = torch.arange(t - 1, -1, -1, dtype=torch.float64)
        history = torch.stack(self.seen, -1)
        m = (1 - r.beta1) * (history * r.beta1**powers).sum(-1)
        v = (1 - r.beta2) * (history.square() * r.beta2**powers).sum(-1)
        step = lr * (1 - r.beta2**t) ** 0.5 / (1 - r.beta1**t) * m / (v.sqrt() + r.eps)
        moved: Tensor = (p - step) * (1 - lr * r.weight_decay)
        return moved


FORMS = ["transformers", "torch", "transformers", "torch"]


@pytest.mark.parametrize("skip", [False, True])
def test_cells_of_one_bundle_may_differ_in_whose_adamw_moves_them(skip: bool) -> None:
    """Clipping left out by a high limit; gradients from 1e-8, below eps, to 1."""
    recipes = [
        recipe.model_copy(update={"adamw": form, "clip_norm": 1e9}) for recipe, form in zip(RECIPES, FORMS, strict=True)
    ]
    ours, theirs = build(), build()
    joint = JointAdamW(ours, recipes)
    forms = [[TransformersAdamW(r) for _ in tensors(groups)] for r, groups in zip(recipes, theirs, strict=True)]
    single = [
        torch.optim.AdamW(groups, lr=1.0, betas=(r.beta1, r.beta2), eps=r.eps, weight_decay=r.weight_decay)
        for groups, r in zip(theirs, recipes, strict=True)
    ]
    for step in range(30):
        set_gradients(ours, step, skip)
        set_gradients(theirs, step, skip)
        for cell in range(4):
            for p, q in zip(tensors(ours[cell]), tensors(theirs[cell]), strict=True):
                if p.grad is not None:
                    p.grad, q.grad = p.grad * 1e-6, present(q.grad) * 1e-6
        joint.step(dict.fromkeys(range(4), 1 / (1 + step)))
        for cell, recipe in enumerate(recipes):
            rates = [rate / (1 + step) for rate in RATES[cell]]
            if recipe.adamw == "torch":
                for group, rate in zip(single[cell].param_groups, rates, strict=True):
                    group["lr"] = rate
                single[cell].step()
                continue
            for p, form, rate in zip(tensors(theirs[cell]), forms[cell], rates, strict=True):
                if p.grad is not None:
                    p.data = form.moved(p.data, p.grad, rate)
    for mine, other in zip(ours, theirs, strict=True):
        for p, q in zip(tensors(mine), tensors(other), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("steps", "share"), [(1, 0.061), (1_000, 0.716)])
def test_small_gradients_move_slower_at_first_in_the_form_of_transformers(steps: int, share: float) -> None:
    """Constant gradients as large as eps: each step is c_t / (1 + c_t), not one half, with c_t = sqrt(1 - b2^t)."""
    way = {}
    for form in ("torch", "transformers"):
        p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        joint = JointAdamW([[{"params": [p], "lr": 1.0}]], [Recipe(adamw=form)])
        for _ in range(steps):
            p.grad = torch.full((1,), 1e-6, dtype=torch.float64)
            joint.step({0: 1.0})
        way[form] = -p.item()
    corrections = [(1 - 0.999**t) ** 0.5 for t in range(1, steps + 1)]
    assert way["torch"] == pytest.approx(steps / 2)
    assert way["transformers"] == pytest.approx(sum(c / (1 + c) for c in corrections))
    assert way["transformers"] / way["torch"] == pytest.approx(share, abs=0.001)


def test_a_group_may_have_a_weight_decay_of_its_own() -> None:
    weight, bias = (torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    groups = [{"params": [weight], "lr": 0.1}, {"params": [bias], "lr": 0.1, "weight_decay": 0.0}]
    joint = JointAdamW([groups], [Recipe(weight_decay=0.5)])
    weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
    joint.step({0: 1.0})
    assert weight.tolist() == [0.95, 0.95]
    assert bias.tolist() == [1.0, 1.0]
