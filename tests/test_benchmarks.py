"""The benchmarks' own arithmetic: lengths drawn as stored, ratios of rounds, figures written in their place.

How fast anything is, no test asks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bench, ours, theirs
from benchmarks.ours import Measured
from benchmarks.workload import LENGTHS, MINI, backbone, workload
from harness.backbone.flops import matmul_params


@pytest.mark.parametrize("task", bench.TASKS)
def test_made_up_rows_have_the_lengths_of_the_task(task: str) -> None:
    stored = json.loads(LENGTHS.read_text())[task]
    made = workload(task, num_rows=4_000)
    lengths = made.encoded.source_lengths(np.arange(4_000))
    assert lengths.mean() == pytest.approx(stored["mean"], rel=0.05)
    assert np.median(lengths) == pytest.approx(stored["quantiles"][50], rel=0.1)
    assert lengths.max() <= made.max_source_length
    assert [len(row) for row in made.sources()[:50]] == lengths[:50].tolist()
    assert all(row[-1] == 1 and min(row[:-1]) >= 3 for row in made.sources()[:50])


def test_a_bundle_is_measured_by_its_own_accounts() -> None:
    work = workload("sst2", num_rows=64)
    network = backbone("mini", "cpu", "float32")
    trainer = ours.trained(work, "prompt_tuning", network, "float32", cells=2, steps=2)
    works = [state.outcome.work for state in trainer.states]
    seconds = sum(state.outcome.train_s for state in trainer.states)
    assert [one.samples for one in works] == [32, 32]
    found = ours.accounts(trainer, matmul_params(network), 1e9, None)
    padding, positions = sum(one.padding for one in works), sum(one.source_positions for one in works)
    assert found.padding == pytest.approx(padding / (padding + positions))
    assert found.rate == pytest.approx(64 / seconds)
    flops = matmul_params(network).step_flops(64, positions, 128)
    assert found.utilisation == pytest.approx(flops / (seconds * 1e9))
    again = ours.train_rate(work, "prompt_tuning", "mini", "cpu", "float32", cells=2, steps=2)
    assert again.padding == found.padding
    assert again.utilisation is None
    assert ours.evaluation_rate(work, "mini", "cpu", "float32", rows=8, cells=2) > 0


@pytest.mark.parametrize("method", ours.VARIANTS)
def test_bundles_of_other_input_side_methods_can_be_measured(method: str) -> None:
    network = backbone("mini", "cpu", "float32")
    states = ours.trained(workload("sst2", num_rows=64), method, network, "float32", cells=2, steps=1).states
    assert [(s.outcome.work.samples, s.outcome.work.prompt_tokens) for s in states] == [(16, 16 * 60)] * 2


def test_few_steps_stand_for_all_of_a_trainer_that_groups_by_length() -> None:
    """Behind the two that warm up: spread over a group of 50 batches, or over as many groups as the steps need."""
    assert theirs.evenly_spaced(256, 6, seed=0)[:2] == [0, 49]
    for steps in (1, 6, 50, 60):
        ranks = np.array(theirs.evenly_spaced(256, steps, seed=1)[2:])
        span = 50 if steps <= 50 else 100
        assert len(set(ranks)) == steps
        assert ranks.max() < span
        assert np.abs(np.diff(ranks) - span / steps).max(initial=0) < 1
    means = [np.mean(theirs.evenly_spaced(256, 6, seed)[2:]) for seed in range(50)]
    assert np.mean(means) == pytest.approx(24.5, abs=1)


def test_the_mini_shape_is_the_shape_it_says() -> None:
    config = backbone("mini", "cpu", "float32").config
    assert {name: getattr(config, name) for name in MINI} == MINI


def test_ratios_are_medians_of_rounds_and_compare_with_the_fastest_careful_user() -> None:
    padded = contender("(a) x", [10.0, 20.0, 10.0])
    slow, fast = (contender(f"(b) {i}", [5.0 * i] * 3) for i in (2, 4))
    mine = contender("(c)", [30.0, 40.0, 50.0], Measured(50.0, padding=0.125, peak_bytes=3 * 2**20))
    rows = bench.table_rows("sst2", "lora", [padded, slow, fast, mine])
    assert rows[3] == ["sst2", "lora", "(c)", "40.0", "3.00", "2.00", "12.5 %", "", "3", "3"]


NOTHING = Measured(0.0)


def contender(name: str, rates: list[float], last: Measured = NOTHING, cells: int = 0) -> Any:
    return bench.Contender(name, lambda *_: NOTHING, 1, cells, rates, last)


def test_the_share_of_evaluation_is_that_of_bundles() -> None:
    trained = [contender("(a)", [900.0]), contender("(c)", [800.0], cells=1), contender("(d)", [100.0], cells=6)]
    evaluated = [contender("(a)", [900.0]), contender("6 cells", [25.0], cells=6)]
    # 1,000 rows at 25 a second beside 1,000 steps of 16 rows at 100 a second
    assert bench.evaluation_share(trained, evaluated) == pytest.approx(40 / (40 + 160))
    assert bench.evaluation_share(trained[:2], evaluated) is None


def test_a_slow_job_has_one_round_and_all_warm_up_but_bundles() -> None:
    calls: list[tuple[str, int]] = []

    def recorded(name: str, cells: int) -> Any:
        def measure(amount: int, _: object) -> Measured:
            calls.append((name, amount))
            return NOTHING

        return bench.Contender(name, measure, 5, cells)

    both = [recorded("c", 1), recorded("d", 6)]
    bench.measure("lora", both, argparse.Namespace(device="cpu", rounds=3, seconds=0.0))
    assert calls == [("c", 1), ("c", 5), ("d", 5)]
    bench.measure(bench.EVALUATION, both, argparse.Namespace(device="cuda", rounds=2, seconds=1e9))
    assert calls[3:] == [("c", 64), ("d", 64), *[("c", 5), ("d", 5)] * 2]


def test_figures_replace_those_of_their_device_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    bench.README.write_text((LENGTHS.parent / "README.md").read_text())
    before = bench.README.read_text()
    for text in ("first figures", "second figures"):
        bench.write(text, "cpu")
    after = bench.README.read_text()
    assert "second figures" in after
    assert "first figures" not in after
    assert after.split("## Figures on a GPU")[1] == before.split("## Figures on a GPU")[1]
    assert after.split("<!-- figures: cpu")[0] == before.split("<!-- figures: cpu")[0]
