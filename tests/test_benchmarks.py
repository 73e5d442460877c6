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
import torch

from benchmarks import bench, memory, micro_batch_cost, ours, startup, theirs
from benchmarks.ours import Measured
from benchmarks.workload import (
    DECODERS,
    LENGTHS,
    MINI,
    TARGET_TOKENS,
    VOCABULARY,
    backbone,
    is_decoder,
    model,
    shape_config,
    storage,
    workload,
)
from harness.backbone import untrained_network
from harness.backbone.flops import matmul_params
from harness.runner import make_plan
from harness.suite import Overrides
from harness.train import BatchInput


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
    assert max(made.encoded.source_ids) < VOCABULARY <= min(config["vocab_size"] for config in DECODERS.values())


def test_a_bundle_is_measured_by_its_own_accounts() -> None:
    work = workload("sst2", num_rows=64)
    network = backbone("mini", "cpu", "float32")
    trainer = ours.trained(work, "prompt_tuning", network, "float32", cells=2, steps=2)
    works = [state.outcome.work for state in trainer.states]
    seconds = sum(state.outcome.train_s for state in trainer.states)
    assert [one.samples for one in works] == [32, 32]
    found = ours.accounts(work, trainer, matmul_params(network), 1e9, None)
    padding, positions = sum(one.padding for one in works), sum(one.source_positions for one in works)
    assert found.padding == pytest.approx(padding / (padding + positions))
    # rows that are longer than the task's mean count as so many more: a row has its text, 2 tokens and 100 vectors
    mean = work.encoded.source_lengths(np.arange(64)).mean() + 102
    assert found.rate == pytest.approx(64 / seconds * (sum(one.tokens for one in works) / 64 + 102) / mean)
    flops = matmul_params(network).step_flops(64, positions, 128)
    assert found.utilisation == pytest.approx(flops / (seconds * 1e9))
    again = ours.train_rate(work, "prompt_tuning", "mini", "cpu", "float32", cells=2, steps=2)
    assert again.padding == found.padding
    assert again.utilisation is None
    assert ours.evaluation_rate(work, "mini", "cpu", "float32", rows=8, cells=2) > 0


def test_rates_of_rows_that_are_not_padded_are_those_at_the_mean_length() -> None:
    work = workload("sst2", num_rows=64)
    mean = work.encoded.source_lengths(np.arange(64)).mean() + 2
    assert work.at_mean_length(10.0, mean) == pytest.approx(10.0)
    assert work.at_mean_length(10.0, 2 * mean) == pytest.approx(20.0)
    assert work.at_mean_length(10.0, 2 * mean, prompt=mean) == pytest.approx(15.0)


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

    held = recorded("c", 1)
    both = [held, recorded("d", 6)]
    bench.measure("lora", both, argparse.Namespace(device="cpu", rounds=3, seconds=0.0))
    assert calls == [("c", 1), ("c", 5), ("d", 5)]
    bench.measure(bench.EVALUATION, both, argparse.Namespace(device="cuda", rounds=2, seconds=1e9))
    assert calls[3:] == [("c", 64), ("d", 64), *[("c", 5), ("d", 5)] * 2]
    held.has_floor = True
    bench.measure("lora", both, argparse.Namespace(device="cpu", rounds=9, seconds=0.0))
    assert calls[9:] == [("c", 1), ("c", 5), ("d", 5), *[("c", 5)] * (bench.LEAST_ROUNDS - 1)]


def test_figures_replace_those_of_their_device_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    bench.README.write_text((LENGTHS.parent / "README.md").read_text())
    before = bench.README.read_text()
    for text in ("first figures", "second figures"):
        bench.write(text, "cpu", "t5-small")
    after = bench.README.read_text()
    assert "second figures" in after
    assert "first figures" not in after
    end = "<!-- end of figures: cpu t5-small -->"
    assert after.split(end)[1] == before.split(end)[1]
    assert after.split("<!-- figures: cpu")[0] == before.split("<!-- figures: cpu")[0]


def test_a_shape_that_has_no_figures_yet_gets_a_place_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    bench.README.write_text((LENGTHS.parent / "README.md").read_text())
    before = bench.README.read_text()
    for text in ("first figures", "second figures"):
        for shape in ("llama-2-7b:bf16", "llama-2-7b:nf4"):
            bench.write(f"{text} of {shape}", "cuda", shape)
    after = bench.README.read_text()
    assert "first figures" not in after
    assert [after.count(f"second figures of llama-2-7b:{name}") for name in ("bf16", "nf4")] == [1, 1]
    assert after.count("### llama-2-7b:nf4") == 1
    assert after.split("## Figures on a GPU")[0] == before.split("## Figures on a GPU")[0]
    assert after.split("## Memory")[1] == before.split("## Memory")[1]


def test_shapes_of_decoders_are_those_of_the_published_networks() -> None:
    sizes = {"smollm2-135m": 134_515_008, "llama-3.2-1b": 1_235_814_400, "llama-2-7b:nf4": 6_738_415_616}
    for shape, size in sizes.items():
        with torch.device("meta"):
            network = untrained_network(shape_config(shape))
        assert sum(weight.numel() for weight in network.parameters()) == size
        assert is_decoder(shape)
    assert not is_decoder("t5-base")
    assert [storage(shape) for shape in ("t5-base", "llama-2-7b:nf4", "llama-2-7b:bf16")] == ["none", "nf4", "bf16"]
    for shape in ("t5-huge", "t5-base:int3"):
        with pytest.raises(ValueError, match="unknown"):
            model(shape, "cpu")
        with pytest.raises(SystemExit, match="2"):
            bench.parse(["--shape", shape])


def test_weights_can_be_packed_as_a_shape_says() -> None:
    network = backbone("mini-decoder:nf4", "cpu", "bfloat16")
    kinds = {type(module).__name__ for module in network.model.modules()}
    assert "Linear4bit" in kinds
    assert network.quantization == "nf4"


@pytest.mark.parametrize("few_logits", [True, False])
def test_a_careful_user_of_a_decoder_trains_on_the_answers_alone(few_logits: bool) -> None:
    """The loss from the answer's logits is the network's own from all, and that of rows by themselves."""
    network = model("mini-decoder", "cpu").eval()
    rows = [{"input_ids": ids, "labels": theirs.ANSWER} for ids in ([5, 6, 7, 1], [9, 1])]
    batch = theirs.collate_causal(rows, None, few_logits)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 1, 3, 1], [0, 0, 9, 1, 3, 1]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [0, 0, 1, 1, 1, 1]]
    if few_logits:
        labels = batch.pop("labels")
        out = network(**batch)
        assert out.logits.shape[1] == TARGET_TOKENS + 1
        loss = theirs.answer_loss(out, labels, labels.numel())
    else:
        assert batch["labels"].tolist() == [[-100] * 4 + [3, 1]] * 2
        loss = network(**batch).loss
    alone = []
    for row in rows:
        ids = torch.tensor([row["input_ids"] + row["labels"]])
        logits = network(input_ids=ids).logits[0, -3:-1]
        alone.append(torch.nn.functional.cross_entropy(logits, torch.tensor(theirs.ANSWER)))
    assert loss.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-5)


def test_padding_to_the_task_s_maximum_leaves_room_for_the_answer() -> None:
    batch = theirs.collate_causal([{"input_ids": [5, 1], "labels": theirs.ANSWER}], 4, False)
    assert batch["input_ids"].tolist() == [[0, 0, 5, 1, 3, 1]]


@pytest.mark.parametrize("method", list(theirs.CONFIGS))
@pytest.mark.parametrize("shape", ["mini", "mini-decoder"])
def test_both_sides_train_the_same_numbers(shape: str, method: str) -> None:
    tuned = theirs.tuned_model(method, shape, "cpu")
    network = backbone(shape, "cpu", "float32")
    states = ours.trained(workload("sst2", num_rows=64), method, network, "float32", cells=1, steps=1).states
    theirs_count = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    ours_count = sum(p.numel() for p in states[0].parameters)
    # PEFT gives a T5 one prompt for the encoder and one for the decoder
    twice = shape == "mini" and method == "prompt_tuning"
    assert theirs_count == ours_count * (2 if twice else 1)


def test_evaluation_of_decoders_reads_prompts_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counted(self: BatchInput, cells: Any, grad: bool) -> None:
        read.append(int(self.shared.sum()))
        original(self, cells, grad)

    original = BatchInput.read_prompts
    monkeypatch.setattr(BatchInput, "read_prompts", counted)
    assert ours.evaluation_rate(workload("sst2", num_rows=64), "mini-decoder", "cpu", "float32", 8, 2) > 0
    assert read == [2]


def test_floors_alone_are_few_and_have_two_sides() -> None:
    options = bench.parse(["--floors", "--skip-padded", "--precision", "float32", "--shape", "mini-decoder"])
    for method, names in (("prompt_tuning", "18 cells"), ("lora", "1 cell")):
        found = bench.training(workload("sst2", num_rows=64), method, "mini-decoder", options)
        assert [item.has_floor for item in found] == [True, True]
        assert names in found[1].name
        assert found[0].name.startswith("(b)")
    assert bench.tasks_of("prompt_tuning", list(bench.TASKS), options) == ["sst2", "boolq"]
    assert bench.tasks_of("lora", list(bench.TASKS), options) == list(bench.TASKS)
    assert bench.tasks_of(bench.EVALUATION, list(bench.TASKS), options) == ["sst2"]
    rows = bench.table_rows("sst2", "lora", [contender("(b)", [2.0, 4.0]), contender("(c)", [3.0])])
    assert [row[4:6] for row in rows] == [["", "1.00"], ["", "1.50"]]


def test_cells_that_run_alone_have_no_bundles() -> None:
    options = bench.parse(["--precision", "float32", "--bundles", "6"])
    found = bench.training(workload("sst2", num_rows=64), "finetune", "mini-decoder", options)
    assert [item.cells for item in found] == [0, 0, 1]


@pytest.mark.parametrize("shape", ["mini", "mini-decoder"])
def test_only_what_shares_a_pass_is_put_into_bundles(shape: str) -> None:
    """A T5 trains each cell of prefix tuning alone: a bundle would end the quick form, which runs all methods."""
    options, work = bench.parse(["--quick", "--bundles", "2", "--skip-padded"]), workload("sst2", num_rows=64)
    found = {method: bench.training(work, method, shape, options) for method in options.methods}
    alone = {"finetune"} | ({"prefix_tuning"} if shape == "mini" else set())
    assert {method: [item.cells for item in items] for method, items in found.items()} == {
        method: [0, 1] if method in alone else [0, 1, 2] for method in theirs.CONFIGS
    }
    assert found["prefix_tuning"][-1].run(1, 0).rate > 0


@pytest.mark.parametrize("nonsense", [["--rounds", "0"], ["--bundles", "-2"], ["--seconds", "nan"], ["--steps", "x"]])
def test_nonsense_is_refused_before_anything_is_measured(
    nonsense: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.parse(["--quick", *nonsense])
    assert f"argument {nonsense[0]}: '{nonsense[1]}' is no" in capsys.readouterr().err


def test_short_texts_are_trained_on_in_more_steps_unless_a_prompt_makes_them_long() -> None:
    options = bench.parse(["--steps", "6"])
    assert bench.num_steps(workload("sst2"), "lora", options) == 6 * 9
    assert bench.num_steps(workload("multirc"), "lora", options) == 6
    assert bench.num_steps(workload("sst2"), "prompt_tuning", options) == 6


def test_the_quick_form_of_the_gpu_s_command_runs_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = bench.parse(["--device", "cuda", "--compile", "--quick", "--write", "--precision", "bfloat16"])
    assert (options.device, options.compile, options.write) == ("cpu", False, False)
    assert options.shape == ["mini", "mini-decoder"]


def test_the_cost_of_a_micro_batch_is_the_start_of_a_line() -> None:
    assert micro_batch_cost.line([16, 64, 256], [0.1 + 0.01 * n for n in (16, 64, 256)]) == pytest.approx((0.1, 0.01))
    work = workload("sst2")
    few, many = micro_batch_cost.cut(work, 2048, 10**9), micro_batch_cost.cut(work, 2048, 1)
    assert few[0] == 1
    assert many[0] > 4
    assert few[1] > 0.5 > 0.1 > many[1]


def test_generated_suites_have_as_many_cells_as_they_say(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(startup.suite_text(50))
    plan = make_plan(path, Overrides(None, None, None, None, {}, None), tmp_path / "results", None)
    assert sum(plan.num_cells(group) for group in plan.groups) == len(plan.pending()) == 50
    with pytest.raises(ValueError, match="55"):
        startup.suite_text(55)


def test_a_start_is_timed_by_stage_and_leaves_nothing(tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(startup.suite_text(10))
    found = startup.measure(suite)
    assert len(found["seconds"]) == len(startup.STAGES)
    assert all(second >= 0 for second in found["seconds"])
    assert found["processor"] > 0


def test_growth_is_told_for_each_more_cell() -> None:
    runs = [[{"seconds": [1.0, 1, 1, 1], "processor": 5.0 + cells / 1000}] for cells in (2_000, 4_000)]
    rows = [startup.table_row("generated", cells, run) for cells, run in zip((2_000, 4_000), runs, strict=True)]
    assert startup.growth(rows) == "Processor time of one more cell: 1.00 ms from 2,000 to 4,000."


def test_memory_is_measured_on_a_processor_too() -> None:
    found = memory.measure("t5-small", "none", 1, "cpu")
    weights = 4 * 60_506_624
    assert weights < found.evaluation
    assert weights < found.training < weights * 3
    assert "| t5-small | none |" in memory.table([found])
