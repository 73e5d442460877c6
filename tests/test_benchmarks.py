"""The benchmarks' own arithmetic: lengths drawn as stored, ratios of rounds, figures written in their place.

How fast anything is, no test asks.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bench, ours
from benchmarks.workload import LENGTHS, MINI, backbone, workload
from harness.flops import matmul_params


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
    usage = ours.train_usage(work, "prompt_tuning", "mini", "cpu", "float32", cells=2, steps=2)
    assert (usage.num_steps, usage.num_samples, usage.bundle_cells) == (2, 32, 2)
    assert usage.num_prompt_tokens == 32 * 100
    expected = matmul_params(backbone("mini", "cpu", "float32")).step_flops(32, usage.num_tokens + 3_200, 64)
    assert usage.model_flops == expected
    assert ours.evaluation_rate(work, "mini", "cpu", "float32", rows=8, cells=2) > 0


def test_the_mini_shape_is_the_shape_it_says() -> None:
    config = backbone("mini", "cpu", "float32").config
    assert {name: getattr(config, name) for name in MINI} == MINI


def test_ratios_are_medians_of_rounds_and_compare_with_the_fastest_careful_user() -> None:
    padded = bench.Contender("(a) x", lambda _: (0.0, None, None), [10.0, 20.0, 10.0])
    slow, fast = (bench.Contender(f"(b) {i}", lambda _: (0.0, None, None), [5.0 * i] * 3) for i in (2, 4))
    mine = bench.Contender("(c)", lambda _: (0.0, None, None), [30.0, 40.0, 50.0], padding=0.125)
    rows = bench.table_rows("sst2", "lora", [padded, slow, fast, mine])
    assert rows[3] == ["sst2", "lora", "(c)", "40.0", "3.00", "2.00", "12.5 %", ""]


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
