"""Time before anything runs: the plan's arithmetic, rates of stored results, the probe, and what is not known."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SMALL_SUITE
from torch import Tensor
from typing_help import present

import harness.runner.device_speed as device_speed
import harness.runner.time_estimate as estimate_module
from harness.backbone.flops import matmul_params
from harness.backbone.load import load_backbone, meta_backbone, weights_are_here
from harness.backbone.names import SHIPPED
from harness.cli.listings import describe_plan
from harness.data import cell_rows
from harness.data.tokenization import encode
from harness.results.store import read_result
from harness.runner.plan import Plan, make_plan
from harness.runner.time_estimate import TimeEstimate, estimate_time, stored_rate, stored_results
from harness.suite.make_groups import Overrides

WIDER = SMALL_SUITE.replace("seeds: [1, 2]", "seeds: [1, 2, 3]")


@pytest.fixture
def plan_of(write_suite: Callable[[str], Path], tmp_path: Path) -> Callable[..., Plan]:
    def make(text: str, results: Path | None = None) -> Plan:
        return make_plan(write_suite(text), Overrides(), results or tmp_path / "none", None)

    return make


def test_stored_results_give_the_rate_and_the_lengths(plan_of: Callable[..., Plan], small_results: Path) -> None:
    made = {item.method: item for item in estimate_time(plan_of(WIDER, small_results))}
    assert set(made) == {"prompt_tuning", "dept"}, "a rule takes no time worth telling"
    dept = made["dept"]
    stored = [r for r in stored_results(small_results) if r.cell.label == "dept"]
    assert dept.cells == 1
    rate = sum(present(present(r.usage).model_flops) for r in stored) / sum(present(r.usage).train_s for r in stored)
    assert dept.train_s == pytest.approx(present(dept.flops) / rate)
    # cells of one kind: the new one will take about what the old ones took on average
    assert dept.flops == pytest.approx(np.mean([present(present(r.usage).model_flops) for r in stored]), rel=0.1)
    assert dept.eval_s == pytest.approx(np.mean([present(r.usage).eval_s for r in stored]), rel=0.1)
    assert dept.origin == "2 stored cells of micro-t5"


def test_nothing_missing_takes_no_time(plan_of: Callable[..., Plan], small_results: Path) -> None:
    plan = plan_of(SMALL_SUITE, small_results)
    assert estimate_time(plan) == []
    assert "Nothing is left to train" in describe_plan(plan)["text"]


def test_the_arithmetic_is_counted_from_the_rows_themselves(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(SMALL_SUITE)
    (dept,) = [item for item in estimate_time(plan) if item.method == "dept"]
    cell = next(group.cells[(0, 1)] for group in plan.groups if group.label == "dept")
    data = cell_rows(cell, None, plan.suite.folder)
    encoded = encode(data.train, load_backbone("micro-t5", device="cpu"), data.task, 64)
    rows = np.arange(len(encoded))
    matmul = matmul_params(meta_backbone("micro-t5"))
    source = 3 + encoded.source_lengths(rows).mean()
    expected = 2 * matmul.step_flops(16, 16 * source, 16 * encoded.target_lengths(rows).mean())
    assert dept.cells == 2
    assert dept.flops == pytest.approx(expected, rel=0.05)


def test_evaluations_are_counted_by_the_recipe(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(SMALL_SUITE.replace("steps: 4,", "steps: 5,"))
    cell = next(group.cells[(0, 1)] for group in plan.groups if group.label == "dept")
    lengths = estimate_module.TextLengths(source=10.0, target=2.0, num_dev=7, num_test=11)
    rows = estimate_module.rows_of(cell, lengths, prompt_tokens=3)
    assert rows.training == (20, 20 * 13, 40)
    assert rows.evaluation == (3 * 7 + 11) * 13


def test_without_results_or_probe_the_plan_says_that_it_does_not_know(plan_of: Callable[..., Plan]) -> None:
    shown = describe_plan(plan_of(SMALL_SUITE), probe=False)
    assert "no stored result says how fast this device is; --probe measures it" in shown["text"]
    assert shown["time"]["hours"] is None
    assert all(entry["train_s"] is None for entry in shown["time"]["entries"])


def test_the_probe_gives_hours_and_their_sum(plan_of: Callable[..., Plan]) -> None:
    shown = describe_plan(plan_of(SMALL_SUITE))
    entries = shown["time"]["entries"]
    assert all(entry["origin"].startswith("probe of") for entry in entries)
    total = sum(entry["train_s"] + entry["eval_s"] for entry in entries)
    assert shown["time"]["hours"] == pytest.approx(total / 3600)
    assert total > 0


@pytest.mark.parametrize(
    ("seconds_of_a_row", "tokens", "at_most_s"),
    [(0.001, 2_048, 1.0), (0.1, 4 * 128, 6.0), (0.5, 128, 6.0), (20.0, 128, 40.0)],
)
def test_a_probe_takes_seconds_however_slow_the_network_is(
    seconds_of_a_row: float, tokens: int, at_most_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe of SmolLM2-135M took 70 seconds of a processor; one of a billion weights would have taken ten minutes."""
    backbone, clock = load_backbone("micro-t5", device="cpu"), [0.0]

    def work(embeds: Tensor, *_: object) -> Tensor:
        clock[0] += seconds_of_a_row * len(embeds)
        return embeds.sum((1, 2))

    monkeypatch.setattr(backbone, "token_losses", work)
    monkeypatch.setattr(backbone, "decode", work)
    monkeypatch.setattr(device_speed, "cached_backbone", lambda *_: backbone)
    monkeypatch.setattr(device_speed, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    rate = device_speed.probed_rate.__wrapped__("a network", "float32", dropout=False)
    assert clock[0] <= at_most_s
    assert rate.origin == f"probe of {tokens:,} tokens"
    assert rate.eval_positions == pytest.approx(128 / seconds_of_a_row)


def test_only_weights_that_are_here_and_load_soon_are_probed_unasked(
    plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weights_are_here("micro-t5")
    assert not weights_are_here("t5-base"), "the hub is not asked"
    monkeypatch.setattr(estimate_module, "MOST_PROBED_PARAMS", 1_000)
    assert all(item.train_s is None for item in estimate_time(plan_of(SMALL_SUITE)))
    assert all(item.train_s for item in estimate_time(plan_of(SMALL_SUITE), probe=True))


def test_weights_that_cannot_be_loaded_leave_the_time_unknown_and_say_why(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    shutil.copytree(SHIPPED["micro-t5"], tmp_path / "torn")
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"torn")
    plan = plan_of(SMALL_SUITE.replace("[micro-t5]", f"[{tmp_path}/torn]"))
    for probe in (None, True):
        made = estimate_time(plan, probe)
        assert all(item.seconds is None for item in made)
        assert all("could not be loaded from" in item.origin for item in made)
    (tmp_path / "torn" / "model.safetensors").unlink()
    assert {item.origin for item in estimate_time(plan, probe=True)} == {"weights not on this machine"}


def test_a_known_peak_gives_the_floor(plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(SMALL_SUITE)
    assert all(item.floor_s is None for item in estimate_time(plan))
    monkeypatch.setattr(estimate_module, "device_name", lambda: "NVIDIA H200")
    made = estimate_time(plan)
    assert all(item.floor_s == pytest.approx(present(item.flops) / 67e12) for item in made)


def test_points_of_a_grid_that_cost_differently_are_averaged(plan_of: Callable[..., Plan]) -> None:
    def flops(lengths: str) -> float:
        searched = "prompt_length: 4, recipe: {lr: {sweep: [0.1, 0.3]}}"
        text = SMALL_SUITE.replace(searched, f"prompt_length: {lengths}, recipe: {{lr: 0.1}}")
        made = next(item for item in estimate_time(plan_of(text), probe=False) if item.method == "prompt_tuning")
        return present(made.flops)

    short, long, both = flops("4"), flops("9"), flops("{sweep: [4, 9]}")
    assert short < long
    assert both == pytest.approx((short + long) / 2 * 3 / 2, rel=1e-3)


@pytest.mark.parametrize(("key", "value"), [("device", "NVIDIA H200"), ("processor", "another"), ("num_cpus", 10_000)])
def test_rates_of_other_machines_do_not_count(small_results: Path, key: str, value: object) -> None:
    stored = [r for r in stored_results(small_results) if r.cell.label == "dept"]
    cell = stored[0].cell
    assert stored_rate(stored, cell) is not None
    moved = [r.model_copy(update={"provenance": {**r.provenance, key: value}}) for r in stored]
    assert stored_rate(moved, cell) is None
    assert stored_rate(stored, cell, num_processes=2) is None
    other = cell.recipe.model_copy(update={"precision": "bfloat16"})
    assert stored_rate(stored, cell.model_copy(update={"recipe": other})) is None


def test_another_method_lends_its_rate(plan_of: Callable[..., Plan], small_results: Path, tmp_path: Path) -> None:
    shutil.copytree(small_results, tmp_path / "results")
    for path in (tmp_path / "results").rglob("*.json"):
        if read_result(path).cell.label == "dept":
            path.unlink()
    (tmp_path / "results" / "damaged.json").write_text("{")
    (dept,) = estimate_time(plan_of(SMALL_SUITE, tmp_path / "results"))
    assert dept.method == "dept"
    assert dept.origin == "3 stored cells of micro-t5"
    assert math.isfinite(present(dept.seconds))


def test_points_that_do_not_fit_are_no_part_of_the_mean(write_suite: Callable[[str], Path], tmp_path: Path) -> None:
    def dept(lengths: str) -> TimeEstimate:
        path = write_suite(SMALL_SUITE.replace("prompt_length: 3, budget", f"prompt_length: {lengths}, budget"))
        plan = make_plan(path, Overrides(methods=["dept"]), tmp_path / "none", None)
        misfits = {cell.key for cell in plan.groups[0].cells.values() if cell.hp["prompt_length"] == 5}
        return estimate_time(plan, False, {0: 1}, misfits)[0]

    assert dept("{sweep: [3, 5]}").flops == dept("3").flops != dept("{sweep: [3, 4]}").flops


def test_a_first_point_that_cannot_be_built_leaves_the_others_their_time(
    write_suite: Callable[[str], Path], tmp_path: Path
) -> None:
    row = "wide: {method: accept, prompt_width: {sweep: [7, 8]}, recipe: {lr: 0.1}}"
    path = write_suite(f"{SMALL_SUITE.partition('methods:')[0]}methods:\n  {row}\n")
    plan = make_plan(path, Overrides(), tmp_path / "none", None)
    cells = plan.groups[0].cells
    assert cells[(0, 1)].hp["prompt_width"] == 7, "the first point is one that cannot be built"
    (found,) = estimate_time(plan, False, {0: 1}, {cell.key for cell in cells.values() if cell.hp["prompt_width"] == 7})
    assert found.flops, found.origin


def test_what_is_not_on_this_machine_is_named(plan_of: Callable[..., Plan]) -> None:
    text = SMALL_SUITE.replace("[micro_sentiment]", "[cb]").replace("[micro-t5]", "[t5-base]")
    made = estimate_time(plan_of(text))
    assert {item.origin for item in made} == {"rows or tokenizer not on this machine"}
    assert all(item.seconds is None for item in made)
