"""The statistics of the tables: against scipy, against simulations whose truth is known, on every metric."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.metrics import METRICS
from harness.report.statistics.intervals import (
    Estimate,
    Sample,
    Term,
    compare_samples,
    difference,
    holm,
    mean_of,
    rank_methods,
    swap_test,
)
from harness.report.statistics.resampling import draw_weights, make_scorer
from harness.report.statistics.swaps import sign_test
from harness.results.predictions import Answers

JUNK = ("", "what", "none", "1\x00", "1e308", "-1e308", "5e-324", "1.0000000000000002")
"""What a model may write and no row asks for: zero characters, numbers at the limits of a float, near ties."""
TEXTS = {
    "accuracy": ["0", "1", "", "1\x00"],
    "f1": ["0", "1", "what", "1\x00"],
    "macro_f1": ["0", "1", "2", "what", "1\x00"],
    "matthews": ["0", "1", "2", "1\x00"],
    "pearson": ["0.2", "1.0", "4.8", *JUNK],
    "spearman": ["0.2", "1.0", "4.8", *JUNK],
    "token_f1": ["the red house", "red", "a house", ""],
    "exact_match": ["the red house", "Red house.", "red"],
    "numeric_match": ["72", "it is 72.0", "#### 5", "none"],
    **{
        name: ["the red house\nis small", "a small red house", "red", "the red house is not very small", ""]
        for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf")
    },
}
LABELS = {"f1": ["0", "1"], "macro_f1": ["0", "1", "2"]}


def random_answers(name: str, num_rows: int, seed: int) -> Answers:
    generator = np.random.default_rng(seed)
    right = [text for text in TEXTS[name] if text not in JUNK]
    return Answers(
        [TEXTS[name][i] for i in generator.integers(len(TEXTS[name]), size=num_rows)],
        [[right[i]] for i in generator.integers(len(right), size=num_rows)],
    )


def right_or_wrong(hits: np.ndarray) -> Answers:
    """A run with the given hits [N] on a task whose right answer is always 1."""
    return Answers(["1" if hit else "0" for hit in hits], [["1"]] * len(hits))


def sample(hits: np.ndarray, seeds: list[int] | None = None, num_draws: int = 300) -> Sample:
    """Runs [K, N] of a method."""
    names = [(seed,) for seed in seeds or range(len(hits))]
    runs = list(zip(names, map(right_or_wrong, hits), strict=True))
    return Sample.of(runs, ["accuracy"], ["0", "1"], num_draws)


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=30, deadline=None)
@given(num_rows=st.integers(2, 30), seed=st.integers(0, 999))
def test_a_weighted_score_is_the_score_of_the_drawn_rows(name: str, num_rows: int, seed: int) -> None:
    answers, labels = random_answers(name, num_rows, seed), LABELS.get(name, ["0", "1", "2"])
    weights = draw_weights(num_rows, 5, seed)
    scores = make_scorer([name], answers, labels)(weights)
    for score, counts in zip(scores, weights.astype(int), strict=True):
        rows = np.repeat(np.arange(num_rows), counts).tolist()
        drawn = METRICS[name].score(
            [answers.predictions[i] for i in rows], [answers.references[i] for i in rows], labels
        )
        assert score == pytest.approx(drawn, abs=1e-6)


def test_a_metric_nobody_vectorised_is_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = random_answers("accuracy", 20, 0)
    weights = draw_weights(20, 4)
    fast = make_scorer(["accuracy"], answers, ["0", "1"])(weights)
    monkeypatch.setitem(make_scorer.__globals__, "ROW_MEANS", ())
    assert make_scorer(["accuracy"], answers, ["0", "1"])(weights) == pytest.approx(fast)


def test_draws_are_samples_of_all_rows_and_the_same_for_all() -> None:
    weights = draw_weights(40, 500)
    assert (weights.sum(axis=1) == 40).all()
    assert (weights == draw_weights(40, 500)).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(40), abs=0.25)
    assert weights.var() == pytest.approx(1 - 1 / 40, rel=0.05)


def test_the_standard_error_is_scipys_bootstrap() -> None:
    hits = np.random.default_rng(0).random((1, 200)) < 0.8
    made = sample(hits, num_draws=4_000).estimate()
    other = scipy.stats.bootstrap((100.0 * hits[0],), np.mean, n_resamples=4_000, rng=0)
    assert math.sqrt(made.variance) == pytest.approx(other.standard_error, rel=0.05)


def test_one_run_each_is_nearly_the_paired_t_test() -> None:
    generator = np.random.default_rng(1)
    one, other = generator.random((1, 400)) < 0.78, generator.random((1, 400)) < 0.74
    made = difference(sample(one, num_draws=4_000), sample(other, num_draws=4_000))
    assert made.p_value == pytest.approx(scipy.stats.ttest_rel(1.0 * one[0], 1.0 * other[0]).pvalue, rel=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_the_swap_test_of_one_run_is_the_exact_sign_test(seed: int) -> None:
    generator = np.random.default_rng(seed)
    one, other = generator.random((1, 28)) < 0.85, generator.random((1, 28)) < 0.65
    wins, losses = int((one & ~other).sum()), int((other & ~one).sum())
    exact = scipy.stats.binomtest(wins, wins + losses).pvalue
    assert swap_test(sample(one), sample(other)) == pytest.approx(exact)


def test_the_swap_test_of_several_runs_is_scipys_permutation_test() -> None:
    generator = np.random.default_rng(3)
    one, other = generator.random((3, 12)) < 0.85, generator.random((3, 12)) < 0.5
    exact = scipy.stats.permutation_test(  # type: ignore[call-overload]  # its stubs want whole numbers: inf is exact
        (one.mean(axis=0), other.mean(axis=0)), lambda a, b, axis: (a - b).mean(axis), vectorized=True,
        permutation_type="samples", n_resamples=np.inf,
    )  # fmt: skip
    assert swap_test(sample(one), sample(other)) == pytest.approx(exact.pvalue)


@pytest.mark.parametrize(("wins", "num_rows"), [(19, 28), (28, 28), (90, 100)])
def test_the_swap_test_is_exact_however_many_rows_differ(wins: int, num_rows: int) -> None:
    one = np.arange(num_rows)[None] < wins
    exact = scipy.stats.binomtest(wins, num_rows).pvalue
    assert swap_test(sample(one), sample(~one)) == pytest.approx(exact)
    assert exact < 1e-4 or wins == 19, "9,999 random swaps could not say so"


@pytest.mark.parametrize("seed", range(5))
def test_differences_of_any_size_are_swapped_on_a_grid_that_errs_to_the_safe_side(seed: int) -> None:
    ahead = np.random.default_rng(seed).normal(15, 40, 12)
    signs = np.array(list(itertools.product((-1, 1), repeat=12)))
    exact = np.mean(np.abs(signs @ ahead) >= abs(ahead.sum()) - 1e-9)
    assert exact <= sign_test(ahead) <= 1.1 * exact + 2 / 2**12


def test_swaps_of_other_metrics_go_on_until_a_small_p_is_known() -> None:
    # three labels in 60 rows, one run all right, the other wrong in 40: only all or no swaps differ as much
    truth = [[str(i % 3)] for i in range(60)]
    wrong = [str((i + i % 2 + 1) % 3) if i < 40 else str(i % 3) for i in range(60)]
    one, other = (
        Sample.of([((1,), Answers(made, truth))], ["macro_f1"], ["0", "1", "2"], 50)
        for made in ([refs[0] for refs in truth], wrong)
    )
    assert 0 < swap_test(one, other) <= 1e-5


def test_the_swap_test_of_f1_is_the_listing_of_all_swaps() -> None:
    generator = np.random.default_rng(0)
    truth, made, others = (generator.integers(0, 2, 10).astype(str).tolist() for _ in range(3))
    references = [[text] for text in truth]
    one, other = (Sample.of([((1,), Answers(t, references))], ["f1"], ["0", "1"], 50) for t in (made, others))
    gaps = []
    for swaps in itertools.product((False, True), repeat=10):
        sides = [[(b, a)[k == s] for a, b, s in zip(made, others, swaps, strict=True)] for k in (False, True)]
        gaps.append(
            METRICS["f1"].score(sides[1], references, ["0", "1"])
            - METRICS["f1"].score(sides[0], references, ["0", "1"])
        )
    exact = np.mean(np.abs(gaps) >= abs(gaps[0]) - 1e-9)
    assert swap_test(one, other) == pytest.approx(exact)


def test_the_swap_test_handles_metrics_that_are_no_means() -> None:
    truth = [["0"], ["1"]] * 4
    good = Sample.of([((1,), Answers([refs[0] for refs in truth], truth))], ["matthews"], ["0", "1"])
    bad = Sample.of([((1,), Answers(["0"] * 8, truth))], ["matthews"], ["0", "1"])
    # four answers differ; of the 16 swaps only none and all give the whole difference
    assert swap_test(good, bad) == pytest.approx(2 / 16)


def test_equal_answers_are_no_difference() -> None:
    hits = np.random.default_rng(0).random((2, 50)) < 0.7
    gap, p_value = compare_samples(sample(hits), sample(hits))
    assert (gap.value, p_value) == (0, 1)


def test_methods_with_other_seeds_are_compared_without_pairing_runs() -> None:
    hits = np.random.default_rng(0).random((2, 200)) < 0.7
    runs = [((k, k), right_or_wrong(item)) for k, item in enumerate(hits)]
    drawn = Sample.of(runs, ["accuracy"], ["0", "1"])
    apart = difference(sample(hits), sample(hits, [8, 9]))
    assert difference(drawn, drawn).variance == 0
    assert difference(sample(hits), sample(hits)).variance == apart.variance, "a training seed alone pairs nothing"
    assert apart.value == 0
    assert apart.variance == pytest.approx(2 * (100 * hits.mean(axis=1)).var(ddof=1) / 2)


def world(generator: np.random.Generator, rates: list[float], num_rows: int, num_runs: int) -> list[np.ndarray]:
    """Runs [K, N] of methods on one drawn test set: rows are hard or easy, runs are lucky or not.

    The logit of a right answer is the method's, plus the row's (sd 1.5, shared by all), plus the run's (sd 0.2).
    """
    rows = generator.normal(0, 1.5, num_rows)
    runs = [generator.normal(0, 0.2, (num_runs, 1)) for _ in rates]
    chances = [scipy.special.expit(rate + rows + run) for rate, run in zip(rates, runs, strict=True)]
    return [generator.random(chance.shape) < chance for chance in chances]


def true_score(rate: float) -> float:
    """The score of a method over all rows and all runs."""
    return 100 * scipy.stats.norm.expect(lambda x: scipy.special.expit(rate + x), scale=math.hypot(1.5, 0.2))


@pytest.mark.parametrize(("num_rows", "num_runs"), [(28, 1), (28, 3), (200, 2), (200, 5), (2_000, 2)])
def test_intervals_hold_the_true_score_as_often_as_they_say(num_rows: int, num_runs: int) -> None:
    generator, truth, held, trials = np.random.default_rng(0), true_score(1.5), 0, 300
    for _ in range(trials):
        hits, seeds = world(generator, [1.5], num_rows, num_runs)[0], [(k,) for k in range(num_runs)]
        low, high = Sample.of_values(seeds, np.where(hits, 100.0, 0.0), np.arange(num_rows)).interval()
        held += int(low <= truth <= high)
    # 0.95 less three standard errors; one run says nothing of the spread between runs
    assert held / trials >= (0.93 if num_runs > 1 else 0.88)


def test_intervals_of_averages_hold_the_true_average() -> None:
    generator, rates, held, trials = np.random.default_rng(0), [0.5, 1.5, 2.5], 0, 200
    truth = np.mean([true_score(rate) for rate in rates])
    for _ in range(trials):
        tasks = [sample(world(generator, [rate], rows, 2)[0]) for rate, rows in zip(rates, (30, 100, 200), strict=True)]
        low, high = mean_of([task.cautious() for task in tasks]).interval()
        held += int(low <= truth <= high)
    assert held / trials >= 0.91


@pytest.mark.parametrize(("num_rows", "num_runs"), [(28, 3), (150, 2), (150, 5)])
def test_equal_methods_are_called_different_no_more_often_than_allowed(num_rows: int, num_runs: int) -> None:
    generator, false, trials = np.random.default_rng(1), 0, 300
    for _ in range(trials):
        one, other = world(generator, [1.0, 1.0], num_rows, num_runs)
        false += compare_samples(sample(one), sample(other))[1] < 0.05
    assert false / trials <= 0.08


def test_a_clear_difference_is_found() -> None:
    generator, found = np.random.default_rng(2), 0
    for _ in range(50):
        one, other = world(generator, [2.0, 0.5], 200, 3)
        found += compare_samples(sample(one), sample(other))[1] < 0.05
    assert found >= 45


def test_all_right_on_few_rows_is_not_certain() -> None:
    low, high = sample(np.ones((1, 28), bool)).interval()
    assert high == 100
    assert 80 < low < 92  # Clopper and Pearson: 87.7
    assert mean_of([sample(np.ones((1, 28), bool)).cautious()] * 2).half_width > 1


def test_few_runs_give_few_degrees_of_freedom() -> None:
    hits = np.random.default_rng(0).random((2, 2_000)) < np.array([[0.6], [0.9]])
    estimate = sample(hits).estimate()
    assert 1 <= estimate.degrees < 1.1
    assert estimate.half_width > 100  # two runs thirty points apart say little


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_the_plain_p_and_bonferronis(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for plain, made in zip(p_values, adjusted, strict=True):
        assert plain <= made <= min(1, plain * len(p_values)) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_holm_on_the_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_mean_of_estimates_adds_variances() -> None:
    made = mean_of([Estimate(80, (Term(4.0, 9.0),)), Estimate(60, (Term(12.0, 9.0),))])
    assert made.value == 70
    assert made.variance == pytest.approx(4)
    assert made.degrees == pytest.approx(4**2 / (1**2 / 9 + 3**2 / 9))


def test_ranks_follow_scipy_and_demsar() -> None:
    # four classifiers on fourteen data sets: Demsar 2006, Table 6 and section 3.2.2
    table = np.array(
        [
            [0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1.000, 0.940, 0.619, 0.972, 0.957],
            [0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1.000, 0.962, 0.666, 0.981, 0.978],
            [0.771, 0.590, 0.968, 0.654, 0.886, 0.916, 0.609, 0.563, 0.866, 1.000, 0.965, 0.614, 0.9751, 0.946],
            [0.798, 0.569, 0.967, 0.657, 0.898, 0.931, 0.685, 0.625, 0.875, 1.000, 0.962, 0.669, 0.975, 0.970],
        ]
    )
    made = rank_methods(dict(zip(("a", "b", "c", "d"), table, strict=True)))
    assert made is not None
    assert list(made.ranks.values()) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=1e-3)
    assert made.critical_difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=1e-3)
    assert (made.friedman, made.p_value) == pytest.approx(tuple(scipy.stats.friedmanchisquare(*table)))


@pytest.mark.parametrize("scores", [{"a": [1, 2], "b": [2, 1]}, {"a": [1], "b": [2], "c": [3]}])
def test_too_little_to_rank_is_no_ranking(scores: dict[str, list[float]]) -> None:
    assert rank_methods(scores) is None
