"""What a cell is said to have cost: counts by hand, FLOPs against PyTorch's own counter, shares that add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_fused import LENGTH, SPECS, Kind, make_cell, make_method, trainer
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel
from typing_help import present

from harness.backbone.flops import matmul_params, peak_flops
from harness.backbone.load import meta_backbone
from harness.backbone.network import Backbone
from harness.method.method import Method
from harness.results.schema import Usage
from harness.results.store import ResultStore
from harness.train.batch_input import BatchInput, Rows, micro_batches
from harness.train.bundle import MICRO_BATCH_TOKENS
from harness.train.cell_result import usage_of
from harness.train.cell_state import Outcome, Work
from harness.train.data_parallel import Team
from harness.train.step import LEAST_PADDING, overhead_tokens
from harness.train.tiny_backbones import tiny_backbone, tiny_rows


@pytest.fixture
def padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows stay padded, as on a GPU."""
    monkeypatch.setattr(BatchInput, "packs", False)


@pytest.mark.usefixtures("padded")
def test_a_step_is_counted_row_by_row() -> None:
    made = trainer([make_cell(*SPECS[0], steps=3), make_cell(*SPECS[1], steps=3)], max_tokens=90)
    train = made.encoded["train"]
    rows = made._draw()
    positions = made._account(rows)
    texts = train.source_lengths(rows.rows)
    prompts = np.array([7, 5])[rows.cells]
    batches = micro_batches(texts + prompts, 90, overhead_tokens(made.backbone))
    assert len(batches) > 2
    padded = np.zeros(len(rows), np.int64)
    for batch in batches:
        padded[batch] = (texts + prompts)[batch].max()
    for i, state in enumerate(made.states):
        own, work = rows.cells == i, state.outcome.work
        assert work.samples == own.sum() == state.recipe.batch_size
        assert work.tokens == texts[own].sum()
        assert work.prompt_tokens == prompts[own].sum()
        assert work.target_tokens == train.target_lengths(rows.rows)[own].sum()
        assert work.padding == (padded - texts - prompts)[own].sum()
        assert positions[i] == padded[own].sum()


@pytest.mark.usefixtures("padded")
def test_padding_is_that_of_the_micro_batches_of_every_process() -> None:
    made = trainer([make_cell(*SPECS[0], steps=3), make_cell(*SPECS[1], steps=3)], max_tokens=90)
    made.team = Team(1, 2)
    rows = made._draw()
    made._account(rows)
    expected = 0
    for own in (rows.take(np.arange(0, len(rows), 2)), rows.take(np.arange(1, len(rows), 2))):
        lengths = made.fused.lengths(made.encoded["train"], own)
        for batch in micro_batches(lengths, 90, overhead_tokens(made.backbone)):
            expected += int((lengths[batch].max() - lengths[batch]).sum())
    assert sum(state.outcome.work.padding for state in made.states) == expected > 0


def test_padding_is_counted_where_a_micro_batch_is_not_packed() -> None:
    made = trainer([make_cell(*SPECS[0], steps=3), make_cell(*SPECS[1], steps=3)], max_tokens=90)
    assert made.fused.packs
    rows = made._draw()
    made._account(rows)
    lengths = made.fused.lengths(made.encoded["train"], rows)
    found = {True: 0, False: 0}
    for batch in micro_batches(lengths, 90):
        padding = int((lengths[batch].max() - lengths[batch]).sum())
        found[padding > LEAST_PADDING * len(batch) * lengths[batch].max()] += padding
    assert found[True] > 0
    assert sum(state.outcome.work.padding for state in made.states) == found[False]


def test_shares_of_time_add_up_and_follow_the_positions() -> None:
    made = trainer([make_cell(*SPECS[0], steps=4), make_cell(*SPECS[1], steps=4)], max_tokens=90)
    made._share_time("train_s", 0.0, {0: 1.0, 1: 3.0})
    first, second = (state.outcome.train_s for state in made.states)
    assert second == pytest.approx(3 * first)
    made.run(lambda *_: None, lambda _: None)
    assert all(state.outcome.eval_s > 0 for state in made.states)


def test_the_accounts_of_a_cell_follow_from_its_counts() -> None:
    backbone = tiny_backbone()
    matmul = matmul_params(backbone)
    work = Work(samples=8, tokens=100, prompt_tokens=40, target_tokens=16, padding=60)
    outcome = Outcome(make_cell(*SPECS[0], steps=2), make_method(make_cell(*SPECS[0], steps=2), backbone),
                      work=work, train_s=2.0, eval_s=1.0, num_steps=2, micro_batch_tokens=512)  # fmt: skip
    usage = usage_of(outcome, 3, matmul, peak=1e9)
    assert usage.padding_share == 60 / 200
    assert (usage.samples_per_s, usage.tokens_per_s) == (4.0, 50.0)
    assert usage.model_flops == 4 * (matmul.per_source * 140 + (matmul.per_target + matmul.head) * 16)
    assert usage.utilisation == usage.model_flops / 2e9
    assert (usage.train_s, usage.eval_s, usage.total_s) == (2.0, 1.0, 3.0)
    assert (usage.bundle_cells, usage.micro_batch_tokens, usage.num_out_of_memory) == (3, 512, 0)
    assert usage_of(outcome, 3, matmul, peak=None).utilisation is None
    of_two = usage_of(outcome, 3, matmul, peak=1e9, num_processes=2)
    assert (of_two.num_processes, of_two.utilisation) == (2, usage.model_flops / 4e9)
    assert usage_of(Outcome(outcome.cell, outcome.method), 1, matmul, None).samples_per_s is None


def counted_flops(method: Method, backbone: Backbone) -> int:
    """FLOPs that PyTorch counts in one training step on two rows of 4 tokens."""
    fused = BatchInput([method], backbone, LENGTH)
    encoded = tiny_rows([4, 4], backbone)
    rows = Rows(np.zeros(2, np.int64), np.arange(2))
    with fused.attached(), FlopCounterMode(display=False) as counter:
        fused.refresh(True, [0])
        embeds, mask, _ = fused.build(encoded, rows)
        backbone.token_losses(embeds, mask, torch.as_tensor(encoded.targets(rows.rows))).sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder"])
def test_flops_equal_those_that_pytorch_counts(kind: Kind) -> None:
    """PyTorch skips what needs no gradient: in a T5's decoder, self-attention and the query of the first layer."""
    backbone = tiny_backbone(kind)
    matmul = matmul_params(backbone)
    counted = counted_flops(make_method(make_cell(*SPECS[0], steps=1), backbone), backbone)
    skipped = 5 * backbone.hidden**2 * 2 * 4 if kind == "encoder-decoder" else 0
    assert counted == matmul.step_flops(rows=2, source_positions=2 * (7 + 4), target_positions=2 * 2) - skipped


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder"])
def test_a_pass_forward_alone_is_what_a_head_takes(kind: Kind) -> None:
    backbone = tiny_backbone(kind)
    matmul = matmul_params(backbone)
    ids = torch.ones(2, 7, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone.token_losses(backbone.embedding(ids), torch.ones_like(ids), torch.full((2, 2), 3))
    assert int(counter.get_total_flops()) == matmul.step_flops(2, 2 * 7, 2 * 2, num_passes=1)
    cells = [make_cell("head_only", {}, 1e-3, 1, 2, steps=1), make_cell(*SPECS[0], steps=1)]
    cells.append(make_cell("finetune", {}, 1e-3, 1, 2, steps=1))
    assert [make_method(cell, backbone).num_passes for cell in cells] == [1, 2, 3]


def test_matrices_of_gpt_2_count_although_they_are_no_linear_modules() -> None:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=128, n_positions=64)
    matmul = matmul_params(Backbone("gpt2", GPT2LMHeadModel(config), None, None, "float32"))
    assert matmul.per_source == 2 * 12 * 32 * 32  # keys, queries, values, output; the feed-forward is 4 times as wide
    assert matmul.head == 128 * 32


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder"])
def test_flops_of_full_fine_tuning_equal_those_that_pytorch_counts(kind: Kind) -> None:
    """Where a position bias trains, PyTorch computes self-attention in the open and counts it, and we leave it out."""
    backbone = tiny_backbone(kind)
    matmul, config = matmul_params(backbone), backbone.config
    counted = counted_flops(make_method(make_cell("finetune", {}, 1e-3, 1, 2, steps=1), backbone), backbone)
    scores = 0
    if kind == "encoder-decoder":
        encoder, decoder = config.num_layers * 2 * 4**2, config.num_decoder_layers * 2 * 2**2
        scores = 6 * (encoder + decoder) * 2 * config.num_heads * config.d_kv
    expected = matmul.step_flops(2, source_positions=2 * 4, target_positions=2 * 2, num_passes=3)
    assert counted == expected + scores


def test_matrices_of_t5_base_are_counted_as_the_architecture_says() -> None:
    matmul = matmul_params(meta_backbone("t5-base"))
    layer, feed_forward = 4 * 768 * 768, 2 * 768 * 3072
    crossing = 12 * 2 * 768 * 768
    assert matmul.per_source == 12 * (layer + feed_forward) + crossing
    assert matmul.per_target == 12 * (2 * layer + feed_forward) - crossing
    assert matmul.head == 32_128 * 768


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA H200", "bfloat16", 989e12),
        ("NVIDIA H100 80GB HBM3", "float32", 67e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("NVIDIA H200", "float64", None),
        ("cpu", "float32", None),
    ],
)
def test_the_peak_of_a_device_is_known_by_its_name(device: str, precision: str, peak: float | None) -> None:
    assert peak_flops(device, precision) == peak


def test_results_hold_the_accounts(small_results: Path) -> None:
    for _, result in ResultStore(small_results).scan():
        usage = result.usage
        assert usage is not None
        if usage.num_steps == 0:
            assert usage.model_flops is None
            continue
        assert usage.total_s == pytest.approx(usage.train_s + usage.eval_s)
        assert usage.samples_per_s == pytest.approx(usage.num_samples / usage.train_s)
        assert 0 <= present(usage.padding_share) < 1
        assert usage.num_prompt_tokens == result.cell.hp["prompt_length"] * usage.num_samples
        assert usage.num_target_tokens == 2 * usage.num_samples
        assert usage.micro_batch_tokens == MICRO_BATCH_TOKENS["cpu"]
        assert present(usage.model_flops) > 0
        assert usage.utilisation is None


def test_a_result_of_an_earlier_version_is_read_without_the_new_accounts() -> None:
    old = {"num_steps": 4, "num_samples": 16, "num_tokens": 90, "train_s": 1.0, "eval_s": 1.0, "total_s": 2.0,
           "peak_memory_bytes": 5, "bundle_cells": 2}  # fmt: skip
    assert Usage.model_validate(old).model_flops is None
