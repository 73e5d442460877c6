"""The learning rate of every step is that of transformers' schedule of the same name."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from harness.suite.file_schema import Recipe
from harness.train.cell_state import lr_factor
from harness.train.optimizer import JointAdamW

THEIRS = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}


def theirs(schedule: str, warmup: int, steps: int) -> list[float]:
    """What transformers multiplies a learning rate of 1 by, in each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if schedule == "constant":
        made = get_constant_schedule_with_warmup(optimizer, warmup)
    else:
        made = THEIRS[schedule](optimizer, warmup, steps)
    rates = []
    for _ in range(steps):
        rates.append(made.get_last_lr()[0])
        optimizer.step()
        made.step()
    return rates


@pytest.mark.parametrize("schedule", ["linear", "constant", "cosine"])
@pytest.mark.parametrize(("warmup", "steps"), [(0, 7), (5, 50), (1, 1), (12, 12)])
def test_a_schedule_is_that_of_transformers(schedule: str, warmup: int, steps: int) -> None:
    recipe = Recipe(schedule=schedule, steps=steps, warmup_steps=warmup, warmup_max_share=1.0)  # type: ignore[arg-type]
    ours = [lr_factor(recipe, step) for step in range(steps)]
    assert ours == pytest.approx(theirs(schedule, warmup, steps), abs=1e-12)


def test_half_of_a_cosine_lies_above_the_line_at_first_and_below_it_later() -> None:
    line, cosine = (Recipe(steps=100, warmup_steps=0, schedule=name) for name in ("linear", "cosine"))
    assert lr_factor(cosine, 25) == pytest.approx(0.5 + 0.5**1.5)
    assert lr_factor(cosine, 25) > lr_factor(line, 25)
    assert lr_factor(cosine, 75) < lr_factor(line, 75)


def test_cells_of_one_bundle_follow_schedules_of_their_own() -> None:
    recipes = [Recipe(steps=40, warmup_steps=4, warmup_max_share=0.1, schedule=name) for name in ("cosine", "linear")]
    start = torch.linspace(-1, 1, 6, dtype=torch.float64)
    ours = [torch.nn.Parameter(start.clone()) for _ in recipes]
    alone = [torch.nn.Parameter(start.clone()) for _ in recipes]
    joint = JointAdamW([[{"params": [p], "lr": 0.1}] for p in ours], recipes)
    singles = [torch.optim.AdamW([p], lr=0.1, eps=1e-6, weight_decay=0.0) for p in alone]
    made = [THEIRS[recipe.schedule](s, 4, 40) for s, recipe in zip(singles, recipes, strict=True)]
    for step in range(40):
        gradient = torch.cos(torch.arange(6, dtype=torch.float64) * (step + 1)) / 10  # below the clipping norm
        for p in (*ours, *alone):
            p.grad = gradient.clone()
        joint.step({cell: lr_factor(recipe, step) for cell, recipe in enumerate(recipes)})
        for single, schedule in zip(singles, made, strict=True):
            single.step()
            schedule.step()
    for p, q in zip(ours, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(ours[0], ours[1])
