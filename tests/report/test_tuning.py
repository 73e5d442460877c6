"""What a grid search gave: expected best dev scores and the optimism of choosing by test."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_runs import answers, store
from test_report import demo, result, searching
from typer.testing import CliRunner

from harness.cli.commands import app
from harness.report.boards import collect_boards
from harness.report.search_curves import SearchCurve, search_curve
from harness.report.tables import render_boards
from harness.report.tuning import expected_best, lay_out_tuning, trial_scores, tuning_records


@given(st.lists(st.integers(0, 100), min_size=1, max_size=5), st.integers(0, 2))
def test_the_expected_best_is_the_mean_maximum_of_all_draws_without_replacement(scores: list[int], failed: int) -> None:
    made = [*scores, *[0] * failed]
    brute = [np.mean([max(draw) for draw in itertools.combinations(made, n)]) for n in range(1, len(made) + 1)]
    assert expected_best(made) == pytest.approx(brute)
    assert expected_best(made)[-1] == max(scores)


def test_the_expected_best_of_few_runs_is_right_on_average() -> None:
    # 8 runs of a search whose scores are uniform on 0 to 100: the best of n is 100 n / (n + 1) on average
    draws = np.random.default_rng(0).uniform(0, 100, (4_000, 8))
    made = np.mean([expected_best(list(draw)) for draw in draws], axis=0)
    assert made == pytest.approx([100 * n / (n + 1) for n in range(1, 9)], abs=1.2)  # drawn twice, the 8th is 4 lower


def test_optimism_is_what_choosing_by_test_would_add() -> None:
    (board,) = collect_boards(demo())
    records = {record.task: record for record in tuning_records(board)}
    cb = records["cb"]
    assert (cb.by_dev, cb.by_test, cb.optimism) == (60, 90, 30)
    assert cb.expected_best_dev == pytest.approx((75, 80))
    rte = records["rte"]
    assert (rte.num_points, rte.num_failed) == (3, 1)
    assert len(rte.expected_best_dev) == 3, "the failed point is a run too"
    assert rte.optimism == pytest.approx(99 - 55.04)
    assert {record.method for record in records.values()} == {"grid"}


def test_several_searched_seeds_are_averaged() -> None:
    runs = [
        searching(result("grid", "cb", seed, dev=dev, test=test, lr=lr, index=index))
        for seed in (1, 2)
        for lr, index, dev, test in ((0.1, 0, 50 + seed, 70), (0.2, 1, 60, 60 + seed))
    ]
    (board,) = collect_boards(runs)
    (record,) = tuning_records(board)
    assert (record.num_points, record.num_searches) == (2, 2)
    assert (record.by_dev, record.by_test) == (61.5, 70)
    assert record.expected_best_dev[0] == pytest.approx((51 + 60 + 52 + 60) / 4)
    assert "2 × 2 searches" in [cell.text for cell in lay_out_tuning(board).rows[0]]
    (others,) = collect_boards(runs, report_seeds="others")
    entry = others.rows[0].entries["cb"]
    assert (len(entry.runs), entry.choosers, entry.left_out) == (2, [], []), "each is what a search gives"


def test_points_that_left_early_leave_neither_a_curve_nor_a_choice_by_test() -> None:
    devs = (50, 90, 52)  # the one that leaves had the best score of fewer steps, and is never chosen
    runs = [result("grid", "cb", 1, dev=dev, test=60 + i, lr=0.1 * (i + 1), index=i) for i, dev in enumerate(devs)]
    runs[1] = runs[1].model_copy(update={"raced_out_at": 10, "test": None, "dev": None})
    (board,) = collect_boards(runs)
    (record,) = tuning_records(board)
    assert (record.num_points, record.num_raced_out, record.by_dev) == (3, 1, 62)
    assert (record.by_test, record.optimism, record.expected_best_dev) == (None, None, ())
    told = "searched by halving: 1 of 3 left early, untested, so no choice by test is known"
    assert told in lay_out_tuning(board).notes
    assert "searched by halving: 1 of 3 grid runs left early, by dev score" in render_boards([board], "markdown")
    assert search_curve(board.rows[0].entries["cb"]) is None


def test_a_failed_run_is_a_run_with_score_0_also_beside_scores_below_0() -> None:
    runs = [result("grid", "cb", 1, dev=-20.0, test=60, lr=0.1), result("grid", "cb", 1, 0, None, lr=0.2, index=1)]
    assert trial_scores(runs) == [0.0, 0.0], "Matthews below 0 is no worse than no model"
    assert trial_scores(runs[:1]) == [-20.0]


def test_of_a_search_by_tpe_the_best_so_far_counts_in_the_order_of_its_trials() -> None:
    found = []
    for index, dev in enumerate((60, 50, 80, 70)):
        run = result("grid", "cb", 1, dev=dev, test=60, lr=0.1 * (index + 1), index=index)
        found.append(run.model_copy(update={"cell": run.cell.model_copy(update={"study": "tpe-0"})}))
    (board,) = collect_boards(reversed(found))
    (record,) = tuning_records(board)
    assert record.expected_best_dev == (60, 60, 80, 80)
    assert "Of a search by tpe it is the best so far, in the order of its trials" in lay_out_tuning(board).caption
    curve = search_curve(board.rows[0].entries["cb"])
    assert curve == SearchCurve([60, 60, 80, 80], [60, 60, 80, 80], [60, 60, 80, 80], is_guided=True), "and no band"
    assert "points drawn by tpe" in render_boards([board], "markdown")
    found[0] = found[0].model_copy(update={"cell": found[0].cell.model_copy(update={"study": ""})})
    assert "points drawn by tpe, and points of earlier searches" in render_boards(collect_boards(found), "markdown")


def test_a_board_without_a_grid_says_so() -> None:
    (board,) = collect_boards([result("plain", "cb", 1, 1, 50)])
    assert lay_out_tuning(board).remarks == ["No grid was searched."]


def test_a_grid_that_failed_as_a_whole_is_left_out() -> None:
    (board,) = collect_boards([result("grid", "cb", 1, 0, None, lr=lr, index=i) for i, lr in enumerate((0.1, 0.2))])
    assert tuning_records(board) == []


def test_the_command_prints_tables_and_records(tmp_path: Path) -> None:
    store(tmp_path, "grid", "cb", 1, *answers(60), lr=0.1, dev=80)
    store(tmp_path, "grid", "cb", 1, *answers(75), lr=0.2, dev=70, index=1)
    arguments = ["tuning", str(tmp_path), "--format"]
    text = CliRunner().invoke(app, [*arguments, "markdown"]).output
    (row,) = [line for line in text.splitlines() if line.startswith("| grid")]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "grid", "cb", "2", "60.0", "75.0", "15.0", "75.0", "80.0",
    ]  # fmt: skip
    assert "would stand 15.0 points higher" in text
    (record,) = json.loads(CliRunner().invoke(app, [*arguments, "json"]).output)
    assert record["optimism"] == pytest.approx(15)
    heads, values = CliRunner().invoke(app, [*arguments, "csv"]).output.splitlines()
    assert "optimism" in heads
    assert values.endswith(",75.0 80.0"), "numbers with blanks between them, and nothing of Python"
    assert "<table>" in CliRunner().invoke(app, [*arguments, "html"]).output
    assert r"\toprule" in CliRunner().invoke(app, [*arguments, "latex"]).output


def test_the_seed_that_chose_can_be_left_out(tmp_path: Path) -> None:
    for index, (lr, share) in enumerate(((0.1, 60), (0.2, 70))):
        store(tmp_path, "dept", "cb", 1, *answers(share), lr=lr, index=index, dev=50.0 - index)
    store(tmp_path, "dept", "cb", 2, *answers(50), lr=0.1, dev=50.0)

    def told(*options: str) -> tuple[float, float, float]:
        done = CliRunner().invoke(app, ["tuning", str(tmp_path), "--format", "json", *options], catch_exceptions=False)
        (record,) = json.loads(done.output)
        return record["by_dev"], record["by_test"], record["optimism"]

    assert told() == (60, 70, 10)
    assert told("--report-seeds", "others") == (50, 70, 20)
