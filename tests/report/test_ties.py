"""Equal scores are equal, whatever the order of the arithmetic that made them."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_runs import answers
from test_report import result

from harness.data.metrics import compute_metrics, mean_score, round_score
from harness.report.boards import collect_boards
from harness.report.figures.cost import pareto_front
from harness.report.statistics.intervals import Estimate, Sample, difference, mean_of
from harness.report.statistics.resampling import make_scorer
from harness.report.statistics.significance import assess_board
from harness.results.predictions import Answers

NOISY = 100 * 0.28
"""28.000000000000004"""


def test_a_share_of_whole_percents_is_that_number() -> None:
    for right in range(101):
        for num_rows in (100, 200, 300):
            predictions, references = answers(right * num_rows // 100, num_rows)
            assert compute_metrics(["accuracy"], predictions, references, ["0", "1"])["accuracy"] == right


def test_noise_is_taken_away_and_scores_are_not_touched() -> None:
    assert NOISY != 28.0
    assert round_score(NOISY) == 28.0
    assert str(round_score(-1e-15)) == "0.0"
    assert round_score(100 / 3) != round_score(100 / 3 + 1e-8)
    assert mean_score([NOISY, 28.0]) == 28.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["a", "a b", "a b c", "a b c d", "e"]), min_size=2, max_size=12), st.randoms())
def test_a_score_does_not_depend_on_the_order_of_rows(texts: list[str], random: object) -> None:
    shuffled = list(texts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    refs, ones = [["a b c"]] * len(texts), np.ones((1, len(texts)))
    assert compute_metrics(["token_f1"], texts, refs, []) == compute_metrics(["token_f1"], shuffled, refs, [])
    one, other = (make_scorer(["token_f1"], Answers(rows, refs), [])(ones)[0] for rows in (texts, shuffled))
    assert one == other == compute_metrics(["token_f1"], texts, refs, [])["token_f1"]


def test_methods_with_equal_means_share_their_rank() -> None:
    """Some stored before scores were settled where they are made."""
    seeds = {"one": (NOISY, NOISY), "two": (28.0, 28.0), "three": (27.9, 28.1), "last": (10, 10)}
    assert len({fmean(values) for values in seeds.values()}) > 2
    runs = [
        result(label, task, seed, 50, score)
        for label, scores in seeds.items()
        for seed, score in enumerate(scores)
        for task in ("cb", "rte")
    ]
    (board,) = collect_boards(runs)
    ranking = assess_board(board, lambda run: None).rankings[""]
    assert ranking.ranks == {"one": 2, "two": 2, "three": 2, "last": 4}
    front = pareto_front([(cost, row.average(board.tasks) or 0.0) for cost, row in enumerate(board.rows)])
    assert len(front) == 1 + (board.rows[0].label == "last")


def test_an_average_over_tasks_is_tied_whatever_the_tasks() -> None:
    scores = {"one": (70.0, 70.0, 70.3), "two": (70.1, 70.1, 70.1)}
    assert len({fmean(values) for values in scores.values()}) == 2
    (board,) = collect_boards(
        result(label, task, 1, 50, value)
        for label, values in scores.items()
        for task, value in zip(("cb", "rte", "wic"), values, strict=True)
    )
    one, two = (row.average(board.tasks) for row in board.rows)
    assert one == two


def test_a_difference_of_nothing_but_noise_is_none() -> None:
    # three runs each, the same three scores in another order: rows are answered so that nothing varies by row
    rows = 10
    runs = {name: [Answers(["1"] * n + ["0"] * (rows - n), [["1"]] * rows) for n in ns]
            for name, ns in {"one": (1, 2, 6), "two": (6, 2, 1)}.items()}  # fmt: skip
    one, two = (
        Sample.of([((i,), run) for i, run in enumerate(items)], ["accuracy"], ["0", "1"], 50) for items in runs.values()
    )
    assert difference(one, two).value == 0
    assert difference(one, two).p_value == 1
    noise = mean_of([Estimate(0.1, ()), Estimate(0.2, ()), Estimate(-0.3, ())])
    assert sum((0.1, 0.2, -0.3)) != 0
    assert (noise.value, noise.p_value) == (0, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(value: float) -> None:
    assert repr(round_score(value)) == repr(value)
