"""The statistics of a board against formulas worked out here number by number, with numpy and scipy alone."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from harness.report.statistics.comparison import AVERAGE, Comparison
from harness.report.statistics.intervals import Estimate, Sample, Term, add_terms, difference, p_of_swaps
from harness.report.statistics.resampling import make_scorer, metric_range
from harness.report.statistics.seeds import Spread, pool_seeds, spread_of
from harness.results.predictions import Answers


def runs_of(chance: float, num_runs: int, num_rows: int, seed: int) -> np.ndarray:
    """What each row scores [K, N]: rows are easy or hard for all runs."""
    generator = np.random.default_rng(seed)
    rows = np.clip(generator.normal(chance, 0.25, num_rows), 0.02, 0.98)
    return np.where(generator.random((num_runs, num_rows)) < rows, 100.0, 0.0)


def sample_of(values: np.ndarray, seeds: list[tuple[int, ...]] | None = None, group: int = 1) -> Sample:
    count = values.shape[1]
    return Sample.of_values(seeds or [(k,) for k in range(len(values))], values, np.arange(count) // group)


def quantile(degrees: float) -> float:
    return float(scipy.stats.t.ppf(0.975, degrees))


def pooled_by_scipy(spreads: list[Spread]) -> tuple[float, float]:
    """tau^2 and d0 by the densities of scipy: chi^2 over its degrees, then Fisher's F."""
    taus, priors = np.geomspace(1e-6, 1.0, 49), 2.0 ** np.arange(7)
    alike = np.zeros(49)
    both = np.zeros((49, 7))
    for item in spreads:
        scale, known = taus * item.level + item.noise, max(item.variance, 1e-12)
        alike += scipy.stats.chi2.logpdf(item.degrees * known / scale, item.degrees) - np.log(scale)
        for i, prior in enumerate(priors):
            fisher = scipy.stats.f(item.degrees, prior)
            is_small = item.variance < 0.99 * item.least
            both[:, i] += (
                fisher.logcdf(item.least / scale) if is_small else fisher.logpdf(known / scale) - np.log(scale)
            )
    weights = np.exp(alike - alike.max())
    common = math.exp((weights * np.log(taus)).sum() / weights.sum())
    shares = np.exp(both - both.max()).sum(axis=0)
    return common, shares.sum() / (shares / priors).sum()


@pytest.mark.parametrize("variances", [[3.0, 5.0, 4.0, 2.0], [0.5, 40.0, 1.0, 9.0], [0.0, 4.0, 6.0, 0.001]])
def test_the_pool_of_variances_is_that_of_its_likelihoods(variances: list[float]) -> None:
    places, degrees, noises = (0.5, 0.8, 0.9, 0.97), (1.0, 2.0, 2.0, 4.0), (0.5, 2.0, 0.1, 1.0)
    found = [
        Spread(variance, d, noise, 1e4 * p * (1 - p), 0.05, d)
        for variance, d, noise, p in zip(variances, degrees, noises, places, strict=True)
    ]
    common, prior = pooled_by_scipy(found)
    for item, term in zip(found, pool_seeds(found), strict=True):
        expected = common * item.level + item.noise
        moderated = (prior * expected + item.degrees * item.variance) / (prior + item.degrees)
        assert term.variance == pytest.approx(max(moderated, item.variance))
        assert term.degrees == pytest.approx(min(prior + item.degrees, 9.0))
        assert term.most == 9.0, "nor does a sum of such variances know more than all entries"


def test_a_sum_of_pooled_variances_knows_no_more_than_the_pool() -> None:
    one, other = Term(4.0, 5.0, most=6.0), Term(4.0, 5.0, most=6.0)
    assert add_terms([one, other]) == Term(8.0, 6.0, 6.0), "10 by Satterthwaite"
    assert add_terms([Term(1.0, 2.0), Term(3.0, 4.0)], 0.5) == Term(2.0, 4**2 / (1 / 2 + 9 / 4))


def test_a_spread_is_worked_out_from_the_answers() -> None:
    values = runs_of(0.9, 3, 40, 0)
    made, place = spread_of(sample_of(values)), values.mean() / 100
    padded = (40 * place + 2) / 44
    assert made.variance == pytest.approx(values.mean(axis=1).var(ddof=1))
    assert (made.degrees, made.counted, made.alike) == (2.0, 2.0, False)
    assert made.level == pytest.approx(1e4 * padded * (1 - padded)), "scores near 100 vary less"
    flip = np.zeros((3, 40))
    flip[0, 0] = 100
    assert made.least == pytest.approx(spread_of(sample_of(flip)).variance), "runs that differ in one row"
    perfect = spread_of(sample_of(np.full((3, 40), 100.0)))
    assert perfect.level == pytest.approx(1e4 * 42 * 2 / 44**2), "never nothing"
    swapped = spread_of(sample_of(np.stack([np.roll(values[0], 7 * k) for k in range(3)])))
    assert (swapped.variance, swapped.alike) == (0, False), "equal scores of other answers are no rule's"


def test_noise_is_what_chance_in_single_answers_adds_between_runs() -> None:
    """Runs that draw each answer anew differ in score by the variance of these draws: sum of p (1 - p) over N^2."""
    generator = np.random.default_rng(0)
    chances = generator.uniform(0.2, 0.95, 60)
    found = [spread_of(sample_of(np.where(generator.random((3, 60)) < chances, 100.0, 0.0))).noise for _ in range(300)]
    assert np.mean(found) == pytest.approx(1e4 * (chances * (1 - chances)).sum() / 60**2, rel=0.03)


def by_hand(values: np.ndarray, group: int) -> tuple[float, float, float]:
    """Centre, variance over rows and noise of the mean score, with two right and two wrong answers added."""
    (num_runs, num_rows), count = values.shape, values.shape[1] // group
    padded = np.concatenate([values.mean(axis=0), [0, 0, 100, 100]])
    spread = padded.var(ddof=1) / len(padded)
    off = values - values.mean(axis=1, keepdims=True)
    sums = off.reshape(num_runs, count, group).sum(axis=2)
    clustered = count / (count - 1) * (sums.mean(axis=0) ** 2).sum() / num_rows**2
    spread *= max(1.0, clustered / (off.mean(axis=0).var(ddof=1) / num_rows))
    noise = count / (count - 1) * ((sums - sums.mean(axis=0)) ** 2).sum() / (num_runs - 1) / num_rows**2
    return float(padded.mean()), float(spread), float(noise) / num_runs


@pytest.mark.parametrize("group", [1, 5])
def test_the_interval_of_several_runs_is_banerjees_around_added_answers(group: int) -> None:
    values = np.repeat(runs_of(0.7, 3, 60 // group, 1), group, axis=1)
    comparison = Comparison()
    comparison.add_task("cb", {"one": sample_of(values, group=group)})
    comparison.finish(["cb"])
    centre, rows, noise = by_hand(values, group)
    between = values.mean(axis=1).var(ddof=1) / 3  # alone on its board: nothing to pool it with
    half = math.sqrt(quantile(60 // group - 1) ** 2 * (rows - noise) + quantile(2) ** 2 * between)
    assert comparison.intervals["one", "cb"] == pytest.approx((max(0.0, centre - half), min(100.0, centre + half)))


def test_a_half_width_is_made_of_the_quantiles_of_both_parts_and_p_agrees_with_it() -> None:
    made = Estimate(10.0, (Term(4.0, 1.0), Term(9.0, 5.0)))
    half = math.sqrt(quantile(1) ** 2 * 4 + quantile(5) ** 2 * 9)
    assert made.half_width == pytest.approx(half)
    assert made.degrees < 13**2 / (4**2 / 1 + 9**2 / 5), "Satterthwaite's would claim more"
    assert Estimate(half, made.terms).p_value == pytest.approx(0.05), "the end of the interval is where p is 5 %"


@pytest.mark.parametrize("draws", [False, True])
def test_a_difference_has_paired_rows_and_the_pooled_variance_of_both(draws: bool) -> None:
    values = {name: runs_of(0.7, 4, 120, seed) for seed, name in enumerate(("a", "b", "c"))}
    luck = np.array([0, 8, 30, 45])  # rows that a draw gets right for all methods
    for item in values.values() if draws else ():
        for run, count in zip(item, luck, strict=True):
            run[:count] = 100.0
    names: list[tuple[int, ...]] = [(1, k) for k in range(4)] if draws else [(k,) for k in range(4)]
    samples = {name: sample_of(item, names) for name, item in values.items()}
    comparison = Comparison()
    comparison.add_task("cb", samples)
    comparison.finish(["cb"])
    gap = comparison.gaps["cb"]["a", "b"]
    apart = (values["a"] - values["b"]).mean(axis=0)
    noise = sum(by_hand(values[name], 1)[2] for name in "ab")
    shared = list(samples.values()) if draws else []
    terms = pool_seeds([spread_of(samples[name], shared) for name in "abc"])
    rows, seeds = gap.estimate.terms
    assert gap.estimate.value == pytest.approx(apart.mean())
    assert rows.variance == pytest.approx(max(0.0, apart.var(ddof=1) / 120 - noise))
    assert rows.degrees == 119
    assert seeds.variance == pytest.approx((terms[0].variance + terms[1].variance) / 4)
    if draws:
        own = pool_seeds([spread_of(sample) for sample in samples.values()])
        assert seeds.variance < (own[0].variance + own[1].variance) / 4 / 3, "the luck of draws falls out"


def test_luck_that_is_shared_counts_once_in_scores_and_in_differences_from_other_draws() -> None:
    """Three methods on the draws 0 to 3 are one set of draws; the fourth, on others, is another."""
    samples = {
        name: sample_of(runs_of(0.7, 4, 120, seed), [(1, k + 100 * (name == "d")) for k in range(4)])
        for seed, name in enumerate("abcd")
    }
    comparison = Comparison()
    comparison.add_task("cb", samples)
    comparison.finish(["cb"])
    spreads = [replace(spread_of(sample), counted=3.0 if name == "d" else 1.0) for name, sample in samples.items()]
    terms = dict(zip(samples, pool_seeds(spreads), strict=True))
    assert terms["a"].most == 6.0, "degrees of all scores together"
    gap = comparison.gaps["cb"]["a", "d"].estimate.terms[1]
    assert gap == add_terms([add_terms([terms["a"]], 1 / 4), add_terms([terms["d"]], 1 / 4)])
    centre, rows, noise = by_hand(samples["a"].values, 1)  # type: ignore[arg-type]
    half = math.sqrt(quantile(119) ** 2 * (rows - noise) + quantile(terms["a"].degrees) ** 2 * terms["a"].variance / 4)
    assert comparison.intervals["a", "cb"] == pytest.approx((centre - half, centre + half))


def test_draws_pair_runs_only_where_each_is_one_run_s() -> None:
    values = runs_of(0.7, 2, 40, 0)
    seeds: list[list[tuple[int, ...]]] = [[(1, 7), (1, 8)], [(1, 7), (1, 7)], [(1,), (2,)]]
    once, twice, alone = (sample_of(values, names) for names in seeds)
    assert once.pairs_with(once)
    assert not once.pairs_with(sample_of(values, [(1, 7), (1, 9)]))
    assert not twice.pairs_with(twice), "which of them belongs to which is not known"
    assert not alone.pairs_with(alone), "a training seed gives two methods other random numbers"


def test_runs_are_compared_by_one_metric_alone() -> None:
    truth = [["1"], ["0"]] * 5
    one, other = (Sample.of([((1,), Answers(["1"] * 10, truth))], [name], ["0", "1"], 9) for name in ("accuracy", "f1"))
    assert one.comparable(one)
    assert not one.comparable(other)


def test_intervals_end_where_scores_do() -> None:
    comparison = Comparison()
    comparison.add_task("cb", {"best": sample_of(np.full((2, 9), 100.0)), "worst": sample_of(np.zeros((2, 9)))})
    comparison.finish(["cb"])
    assert comparison.intervals["best", "cb"][1] == 100.0
    assert comparison.intervals["worst", "cb"][0] == 0.0
    assert metric_range(["f1", "matthews"]) == (-50.0, 100.0)
    assert metric_range(["accuracy"]) == (0.0, 100.0)


def test_answers_are_swapped_on_up_to_100_rows_and_for_metrics_that_many_draws_can_be_scored_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pair(num_rows: int) -> tuple[Sample, Sample]:
        truth = [["1"]] * num_rows
        texts = (["1"] * num_rows, ["0"] * 4 + ["1"] * (num_rows - 4))
        one, other = (Sample.of([((1,), Answers(list(made), truth))], ["accuracy"], ["0", "1"], 9) for made in texts)
        return one, other

    assert p_of_swaps(*pair(100)) == pytest.approx(2 / 2**4), "four rows differ"
    assert p_of_swaps(*pair(101)) == 2.0**-100, "the least that it could be"
    few = pair(5)
    assert p_of_swaps(few[0], few[0]) == 2.0**-4
    monkeypatch.setattr("harness.report.statistics.resampling.ROW_MEANS", ())
    assert p_of_swaps(*few) == 2.0**-4, "no scorer of weighted rows: nothing is swapped"


def test_draws_are_common_to_all_methods_so_that_equal_answers_differ_by_nothing() -> None:
    truth = [["0"], ["1"], ["1"]] * 5
    one, other = (Sample.of([((1,), Answers(["1"] * 15, truth))], ["f1"], ["0", "1"], 200) for _ in range(2))
    assert difference(one, other).variance == 0.0
    assert difference(one, other).p_value == 1.0


def test_an_average_divides_variances_by_the_squared_number_of_tasks() -> None:
    samples = {name: sample_of(runs_of(0.7, 3, 120, seed)) for seed, name in enumerate(("a", "b"))}
    comparison = Comparison()
    for task in ("cb", "rte"):
        comparison.add_task(task, samples)
    comparison.finish(["cb", "rte"])
    one, whole = (comparison.gaps[column]["a", "b"] for column in ("cb", AVERAGE))
    assert whole.estimate.variance == pytest.approx(2 * one.estimate.variance / 4)
    assert whole.p_swaps == 2.0**-239, "what a swap of all 240 rows could make it"
    low, high = comparison.intervals["a", AVERAGE]
    first = comparison.intervals["a", "cb"]
    assert high - low < first[1] - first[0]


@pytest.mark.parametrize("metric", ["macro_f1", "spearman"])
def test_a_bootstrap_gives_the_variance_of_rows_that_are_drawn_from_all(metric: str) -> None:
    """All 4^4 samples of four rows; their variance times U / (U - 1), as for any mean of U."""
    truth, made = ("0", "1", "1", "0"), ("0", "1", "0", "0")
    if metric == "spearman":
        truth, made = ("1.0", "2.0", "3.0", "4.0"), ("1.5", "1.0", "3.0", "9.0")
    answers = Answers(list(made), [[text] for text in truth])
    labels = ["0", "1"] if metric == "macro_f1" else []
    listed = np.array([np.bincount(rows, minlength=4) for rows in itertools.product(range(4), repeat=4)], float)
    exact = make_scorer([metric], answers, labels)(listed).var() * 4 / 3
    sample = Sample.of([((1,), answers)], [metric], labels, 20_000)
    assert sample.estimate().variance == pytest.approx(exact, rel=0.04)
    if metric == "spearman":  # nothing is added to correlations
        assert sample.cautious_rows[1] == pytest.approx(exact, rel=0.04)


@pytest.mark.parametrize(("metric", "labels"), [("f1", ["0", "1"]), ("macro_f1", ["0", "1", "2"])])
def test_added_answers_are_spread_over_labels_and_confusions(metric: str, labels: list[str]) -> None:
    """30 right answers: two more right ones, and two wrong ones over what labels are taken for, in parts of a row."""
    count = len(labels)
    truth = [labels[i % count] for i in range(30)]
    sample = Sample.of([((1,), Answers(truth, [[text] for text in truth]))], [metric], labels)
    added = np.where(np.eye(count) == 1, 2 / count, 2 / (count * (count - 1)))

    def score(confusions: np.ndarray) -> np.ndarray:
        """F1 of the second label, or the mean over labels; `confusions` [D, truth, answer]."""
        right = np.diagonal(confusions, axis1=1, axis2=2)
        each = 200 * right / np.maximum(confusions.sum(axis=1) + confusions.sum(axis=2), 1e-9)
        return np.asarray(each[:, 1] if metric == "f1" else each.mean(axis=1))

    centre, spread = sample.cautious_rows
    assert centre == pytest.approx(score(30 / count * np.eye(count)[None] + added)[0])
    generator = np.random.default_rng(9)
    rows = generator.multinomial(30, np.full(count, 1 / count), 20_000)[:, :, None] * np.eye(count)
    draws = score(rows + generator.poisson(added, (20_000, count, count)))
    assert spread == pytest.approx(draws.var() * 30 / 29, rel=0.15)  # 1,000 draws know it to 4 % and more
