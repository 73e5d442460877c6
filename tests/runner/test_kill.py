"""Killed at random moments and continued, a run ends as if nobody had touched it (see `kill_harness`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from kill_harness import kills, suite_text

SHORT = suite_text(steps=4, every=2).replace("  adamix: {rank: 2, recipe: {lr: 0.001}}\n", "")


def test_a_killed_run_ends_as_if_nobody_had_touched_it(tmp_path: Path) -> None:
    for num_kills, processes in ((5, 1), (3, 2)):  # both are held against one untouched run
        tally = kills(num_kills, processes, seed=3, text=SHORT, where=tmp_path)
        assert tally.num_kills >= num_kills
        assert tally.num_stored > 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_two_hundred_kills(processes: int, tmp_path: Path) -> None:
    tally = kills(200, processes, seed=0, text=suite_text("one, two", steps=20), where=tmp_path)
    assert tally.num_continued > 20
