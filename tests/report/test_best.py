"""Who can be told from the best: the chances of the largest gaps, and how often equal methods are called different."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from harness.report.statistics.best import cannot_be_best, chance_of_gap
from harness.report.statistics.comparison import FEW_SEEDS, Gap, judge
from harness.report.statistics.intervals import Estimate, Term


@pytest.mark.parametrize(("ratio", "count", "degrees"), [(4.0, 5, 5), (6.0, 21, 10), (12.7, 2, 1), (2.8, 4, 60)])
def test_the_lowest_of_all_has_tukeys_chance(ratio: float, count: int, degrees: float) -> None:
    made = chance_of_gap(ratio, count, count, degrees)
    assert made == pytest.approx(scipy.stats.studentized_range.sf(math.sqrt(2) * ratio, count, degrees), rel=1e-3)


def test_one_against_the_rest_has_dunnetts_one_sided_chance() -> None:
    assert chance_of_gap(2.0, 2, 1, 10) == pytest.approx(scipy.stats.t.sf(2.0, 10), rel=1e-3)
    draws = np.random.default_rng(0).normal(size=(200_000, 5))
    ahead = (draws[:, 1:].max(axis=1) - draws[:, 0]) / math.sqrt(2) > 2.16
    assert chance_of_gap(2.16, 5, 1, math.inf) == pytest.approx(ahead.mean(), abs=0.002)


def claims(scores: np.ndarray) -> dict[str, bool]:
    """Which methods are told from the best, at scores [M] whose variance is known to be 1."""
    gaps = {
        (f"{i}", f"{j}"): Gap(Estimate(scores[i] - scores[j], (Term(2.0, math.inf),)))
        for i in range(len(scores))
        for j in range(i)
    }
    made = judge({f"{i}": value for i, value in enumerate(scores)}, gaps, 1)
    return {name: verdict.kind == "differs" for name, verdict in made.items()}


@pytest.mark.parametrize("lower", [[], [-3.0], [-3.0, -2.0, -8.0]])
def test_five_equal_methods_hold_a_false_claim_on_one_board_in_twenty(lower: list[float]) -> None:
    """Whatever else is on the board. With Dunnett's value for all, which suits a fixed best, it is one in five."""
    draws = np.random.default_rng(1).normal([0.0, 0.0, 0.0, 0.0, 0.0, *lower], size=(1_200, 5 + len(lower)))
    boards = [claims(scores) for scores in draws]
    assert np.mean([any(made[f"{i}"] for i in range(5)) for made in boards]) <= 0.065
    if not lower:
        assert np.mean([any(made.values()) for made in boards]) >= 0.035, "nor is it so careful as to claim nothing"
        spread = np.ptp(draws, axis=1) / math.sqrt(2)
        assert np.mean([chance_of_gap(item, 5, 1, math.inf) < 0.05 for item in spread[:400]]) > 0.12


def test_a_step_is_taken_only_behind_the_one_before() -> None:
    made = cannot_be_best([1.0, 9.0, 3.0], [math.inf] * 3, [0.0] * 3)
    assert made == sorted(made)
    assert made[0] == pytest.approx(chance_of_gap(1.0, 4, 4, math.inf))
    steps = cannot_be_best([3.0, 3.0, 3.0], [math.inf] * 3, [0.0] * 3)
    assert steps == [steps[0]] * 3
    assert chance_of_gap(3.0, 4, 2, math.inf) < steps[0]


def test_the_swap_test_counts_too_corrected_for_all_its_pairs() -> None:
    assert cannot_be_best([9.0, 9.0], [math.inf] * 2, [0.004, 0.002]) == pytest.approx([0.004 / 2 * 3 * 2, 0.012])


def test_few_degrees_make_no_tie() -> None:
    def verdict(value: float, degrees: float) -> tuple[str, str]:
        made = judge({"a": value, "b": 0.0}, {("a", "b"): Gap(Estimate(value, (Term(4.0, degrees),)))}, 1)
        return made["b"].kind, made["b"].reason

    assert verdict(16.0, 1) == ("cannot tell", FEW_SEEDS)
    assert verdict(16.0, 20) == ("differs", "")
    assert verdict(1.0, 1) == ("tied", "")


def test_each_step_has_the_range_of_what_is_left() -> None:
    """2.2 standard errors: not told as the lowest of four, whose range is 2.57, but as the last of them, at 1.96."""
    ratios = [5.0, 4.0, 2.2]
    made = cannot_be_best(ratios, [math.inf] * 3, [0.0] * 3)
    assert made == pytest.approx([chance_of_gap(ratio, 4, 4 - step, math.inf) for step, ratio in enumerate(ratios)])
    tukey = scipy.stats.studentized_range.sf(math.sqrt(2) * 2.2, 4, math.inf)
    assert tukey > 0.1 > made[2], "in one step"
    assert made[0] == pytest.approx(scipy.stats.studentized_range.sf(math.sqrt(2) * 5, 4, math.inf), rel=1e-3)


def test_few_seeds_leave_open_only_what_more_of_them_could_tell() -> None:
    """By the same level, the same step and the same swaps as a claim."""

    def kinds(ratios: dict[str, float], num_families: int = 1, p_swaps: float = 0.0) -> dict[str, str]:
        gaps = {("best", name): Gap(Estimate(value, (Term(1.0, 1.0),)), p_swaps) for name, value in ratios.items()}
        made = judge({"best": 100.0} | {name: 100.0 - value for name, value in ratios.items()}, gaps, num_families)
        return {name: made[name].kind for name in ratios}

    assert kinds({"one": 2.2}) == {"one": "cannot tell"}  # known exactly, its p is 0.028
    assert kinds({"one": 2.2}, num_families=3) == {"one": "tied"}
    assert kinds({"one": 9.0}, p_swaps=0.2) == {"one": "tied"}, "rows are too few, not seeds"
    assert kinds({"one": 2.1, "two": 2.0}) == {"one": "tied", "two": "tied"}  # the range of three is 2.34
    assert kinds({"one": 2.5, "two": 2.3}) == {"one": "cannot tell", "two": "cannot tell"}  # of two of three it is 2.20
