"""What all entries of a board say together of how far runs lie apart, and where they may not be taken together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_report import result

from harness.report.boards import collect_boards, pooled_std
from harness.report.statistics.intervals import Sample
from harness.report.statistics.seeds import Spread, pool_seeds, spread_of


def spreads(deviations: list[float], num_runs: int, seed: int, score: float = 80.0) -> list[Spread]:
    """Entries of so many runs whose scores deviate so much, on splits large enough to leave no other chance."""
    generator, place = np.random.default_rng(seed), score / 100
    level = 1e4 * place * (1 - place)
    return [
        Spread(float(generator.normal(0, item, num_runs).var(ddof=1)), num_runs - 1.0, 0.0, level, 1e-6, num_runs - 1.0)
        for item in deviations
    ]


def test_entries_that_are_alike_are_known_as_well_as_all_runs_together_allow() -> None:
    made = [pool_seeds(spreads([2.0] * 10, 2, seed)) for seed in range(40)]
    degrees = np.array([term.degrees for terms in made for term in terms])
    assert degrees.max() <= 10, "ten entries of two runs have ten degrees together"
    assert np.median(degrees) > 6
    variances = np.array([term.variance for terms in made for term in terms])
    assert 2.5 < np.median(variances) < 5  # 4 is true; alone, half of them were below 1.8
    assert np.quantile(variances, 0.1) > 0.8, "two runs that lie close together by chance do not pass for certain"


def test_entries_that_are_not_alike_speak_for_themselves() -> None:
    alike = pool_seeds(spreads([2.0] * 8, 5, 0))
    mixed = pool_seeds(spreads([0.2, 0.2, 0.2, 0.2, 8.0, 8.0, 8.0, 8.0], 5, 0))
    assert min(term.degrees for term in alike) > 12
    assert max(term.degrees for term in mixed) < 9
    assert max(term.variance for term in mixed[:4]) < 5 < 15 < min(term.variance for term in mixed[4:])


def test_an_entry_that_is_less_stable_than_the_others_is_not_moved_towards_them() -> None:
    found = spreads([1.0] * 9, 3, 4)
    wild = Spread(36.0, 2.0, 0.0, found[0].level, found[0].least, 2.0)
    assert pool_seeds([*found, wild])[-1].variance == 36.0


def test_scores_near_100_are_expected_to_vary_less() -> None:
    (middle, *_), (high, *_) = (
        pool_seeds([Spread(0.0, 1.0, 0.0, 1e4 * p * (1 - p), 0.01, 1.0), *spreads([4.0] * 6, 3, 1, 50.0)])
        for p in (0.5, 0.99)
    )
    assert high.variance < middle.variance / 10


def test_an_entry_without_another_keeps_its_own_variance() -> None:
    (only,) = spreads([2.0], 2, 0)
    (made,) = pool_seeds([only])
    assert (made.variance, made.degrees) == (only.variance, 1.0)


def test_a_rule_that_answers_always_alike_says_nothing_of_methods() -> None:
    rule = Spread(0.0, 1.0, 0.0, 2_500.0, 0.01, 1.0, alike=True)
    alone, beside = pool_seeds(spreads([3.0] * 5, 3, 2)), pool_seeds([rule, *spreads([3.0] * 5, 3, 2)])
    assert [term.variance for term in alone] == pytest.approx([term.variance for term in beside[1:]])
    hits = np.zeros((3, 50))
    hits[:, :20] = 100.0
    assert spread_of(Sample.of_values([(1,), (2,), (3,)], hits, np.arange(50))).alike
    hits[0, 30] = 100.0
    assert not spread_of(Sample.of_values([(1,), (2,), (3,)], hits, np.arange(50))).alike


def test_a_score_that_is_no_number_spoils_no_other_entry() -> None:
    found = spreads([3.0] * 5, 3, 2)
    beside = pool_seeds([*found, replace(found[0], variance=float("nan"))])
    assert [term.variance for term in beside[:5]] == [term.variance for term in pool_seeds(found)]


def test_the_luck_of_shared_draws_is_taken_out() -> None:
    generator = np.random.default_rng(0)
    luck = generator.normal(0, 10, 5)
    shares = [0.5 + (luck + generator.normal(0, 1, 5)) / 100 for _ in range(4)]
    samples = [
        Sample.of_values(
            [(1, k) for k in range(5)],
            np.where(np.arange(1_000) < 1_000 * share[:, None], 100.0, 0.0),
            np.arange(1_000),
        )
        for share in shares
    ]
    raw, matched = spread_of(samples[0]), spread_of(samples[0], samples)
    assert raw.variance > 20 > 3 > matched.variance
    assert matched.degrees == 3.0  # 12 of the residuals of 4 methods with 5 runs, shared by 4


def test_entries_that_vary_together_know_no_more_than_one_of_them() -> None:
    found = [replace(item, counted=item.degrees / 10) for item in spreads([2.0] * 10, 3, 0)]
    assert [term.degrees for term in pool_seeds(found)] == pytest.approx([2.0] * 10)


def test_a_pooled_deviation_weighs_each_sample_by_its_degrees_of_freedom() -> None:
    """Squares of 2 with one degree, of 6 with three; a single value says nothing."""
    assert pooled_std([[1.0, 3.0], [0.0, 0.0, 2.0, 2.0], [50.0]]) == pytest.approx(((2 + 4) / (1 + 3)) ** 0.5)
    assert pooled_std([[1.0], []]) is None


def test_spreads_of_seeds_and_of_reruns_are_within_a_task_and_a_cell() -> None:
    runs = [result("one", task, seed, 1, score) for task, score in (("cb", 40), ("rte", 80)) for seed in (1, 2)]
    (row,) = collect_boards(runs)[0].rows
    assert row.seed_std() == 0, "tasks lie 40 points apart, their seeds do not"
    again = [run.model_copy(update={"cell": run.cell.model_copy(update={"repeat": 2})}) for run in runs]
    (repeated,) = collect_boards([*runs, *again])[0].rows
    assert (repeated.rerun_std(), repeated.seed_std()) == (0, 0)
    assert sum(entry.num_reruns for entry in repeated.entries.values()) == 4
