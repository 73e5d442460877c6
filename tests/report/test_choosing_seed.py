"""The simulation of what choosing and reporting with one seed adds, against its closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from paths import ROOT

from harness.method import read_specs
from tools.choosing_seed import searched, simulate


@pytest.mark.parametrize(("points", "told"), [(3, 1.4), (12, 2.7)])
def test_the_advantage_is_that_of_the_best_of_several_draws(points: int, told: float) -> None:
    """s^2 / sqrt(s^2 + n^2) E[max of G], with s between seeds, n the noise of the dev rows and G grid points."""
    highest = np.random.default_rng(1).normal(size=(100_000, points)).max(1).mean()
    noise = 100 * math.sqrt(0.9 * 0.1 / 500)
    made = simulate(points, 3, draws=50_000)
    assert made.of_the_run == pytest.approx(4 / math.sqrt(4 + noise**2) * highest, abs=0.03)
    assert made.of_the_mean == pytest.approx(made.of_the_run / 3)
    assert round(made.of_the_run, 1) == told


def test_one_point_or_seeds_that_do_not_differ_give_no_advantage() -> None:
    assert simulate(1, 3, draws=50_000).of_the_run == pytest.approx(0, abs=0.03)
    assert simulate(12, 3, deviation=0.0, draws=10).of_the_run == 0


def test_searches_of_a_suite_are_counted_by_shape() -> None:
    assert dict(searched(str(ROOT / "suites" / "quickstart.yaml"), read_specs())) == {(2, 2): 18}
