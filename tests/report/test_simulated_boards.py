"""Boards of worlds whose truth is known: each mechanism of the statistics does there what it is for."""

from __future__ import annotations

import pytest

from tools.simulate_statistics import WORLDS, Outcome, Simulation, main


def played(world: str, num_rows: int, num_runs: int, num_boards: int, gap: float = 20.0) -> Outcome:
    return Simulation(WORLDS[world], num_rows, num_runs, gap, seed=0).play(num_boards)


def test_two_runs_of_each_method_tell_clear_differences_and_make_no_false_ones() -> None:
    made = played("equal", 300, 2, 60)
    assert made.told > 0.6, "each by itself they told next to none"
    assert made.false_boards <= 0.08
    assert made.coverage >= 0.93


def test_a_method_that_is_less_stable_than_the_others_is_not_taken_for_stable() -> None:
    assert played("unstable", 300, 3, 80).false_boards <= 0.1


@pytest.mark.parametrize("world", ["f1", "macro-f1", "matthews"])
def test_scores_near_100_have_intervals_that_hold_the_truth(world: str) -> None:
    assert played(world, 28, 1, 20).coverage >= 0.95, "without added answers about half"


def test_rows_that_belong_together_need_to_be_told() -> None:
    told, untold = (played(world, 300, 3, 40).coverage for world in ("groups", "groups-untold"))
    assert told >= 0.92 > untold


def test_the_shared_luck_of_draws_falls_out_of_differences() -> None:
    assert played("draws", 300, 3, 20).told > 0.5
    made = played("draws", 300, 2, 40)
    assert made.false_boards <= 0.1
    assert made.coverage >= 0.93, "scores themselves share it: ten runs of five methods are two draws"


def test_the_command_prints_a_line_for_each_setting(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--mechanisms", "equal", "two-methods", "--rows", "28", "--seeds", "1", "2", "--boards", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * 2
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert "no test" in lines[2]
    assert "no test" not in lines[3]
