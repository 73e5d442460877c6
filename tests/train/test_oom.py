"""A device that runs out of memory gets smaller micro-batches; no number changes and no cell is lost."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_fused import LENGTH, SPECS, make_cell, make_method
from torch import Tensor
from typing_help import present

from harness.backbone.device_memory import MEMORY_SHARE, PROBE_TOKENS, TokenBudget, probed_tokens, until_it_fits
from harness.backbone.network import Backbone
from harness.backbone.shared_prefix import RowPrefixes
from harness.data.examples import Example, TaskData
from harness.data.record import DataRecord
from harness.data.tasks import all_tasks
from harness.train.batch_input import Index, micro_batches
from harness.train.loop import BundleTrainer
from harness.train.step import EVALUATION_FACTOR
from harness.train.tiny_backbones import tiny_backbone, tiny_rows

NUM_ROWS = 12


class SmallMemory(Backbone):
    """A backbone that holds `limit` positions at once, and forgives the first `spared` calls that are too large."""

    limit = 10**9
    spared = 0
    num_refused = 0

    def _claim(self, embeds: Tensor) -> None:
        if embeds.shape[0] * embeds.shape[1] <= self.limit:
            return
        if self.spared > 0:
            self.spared -= 1
            return
        self.num_refused += 1
        raise torch.OutOfMemoryError("CUDA out of memory (on purpose)")

    def target_logits(
        self, embeds: Tensor, mask: Tensor, labels: Tensor, prefixes: RowPrefixes | None = None
    ) -> Tensor:
        self._claim(embeds)
        return super().target_logits(embeds, mask, labels, prefixes)

    def write(self, embeds: Tensor, mask: Tensor, *args: Any) -> Tensor:
        self._claim(embeds)
        return super().write(embeds, mask, *args)


def made(max_tokens: int, limit: int = 10**9, spared: int = 0, dropout: bool = False) -> BundleTrainer:
    """A bundle of static and text-dependent methods; alike but for the memory of its backbone."""
    tiny = tiny_backbone(precision="float64")
    backbone = SmallMemory(tiny.name, tiny.model, tiny.tokenizer, None, "float64")
    backbone.limit, backbone.spared = limit, spared
    cells = [make_cell(*spec, steps=5) for spec in [*SPECS[:3], ("by_text", {}, 0.1, 5, 4)]]
    if dropout:
        recipes = [cell.recipe.model_copy(update={"backbone_dropout": True}) for cell in cells]
        cells = [cell.model_copy(update={"recipe": r}) for cell, r in zip(cells, recipes, strict=True)]
    rows = [Example("x", "0", ("0",))] * NUM_ROWS
    count: dict[str, Any] = dict.fromkeys(("num_train", "num_dev", "num_test"), NUM_ROWS)
    record = DataRecord(source="", revision="", split_rule="", fingerprint="", **count)
    data = TaskData(all_tasks()["micro_sentiment"], rows, rows, rows, record)
    encoded = tiny_rows(np.random.default_rng(1).integers(2, LENGTH, NUM_ROWS).tolist(), backbone)
    methods = [make_method(cell, backbone) for cell in cells]
    return BundleTrainer(cells, methods, data, dict.fromkeys(("train", "dev", "test"), encoded), backbone, max_tokens)


def train(trainer: BundleTrainer) -> BundleTrainer:
    ended: list[str] = []
    torch.manual_seed(0)
    trainer.run(lambda *_: None, lambda outcome: ended.append(outcome.cell.label))
    assert len(ended) == len(trainer.states)
    return trainer


def assert_same(ours: BundleTrainer, theirs: BundleTrainer) -> None:
    """Bit for bit: trained tensors, dev scores, losses, answers."""
    for one, other in zip(ours.states, theirs.states, strict=True):
        assert one.outcome.failure is None
        for name, tensor in one.outcome.method.state_dict().items():
            assert torch.equal(tensor, other.outcome.method.state_dict()[name]), name
        assert one.outcome.history == other.outcome.history
        assert one.outcome.answers == other.outcome.answers


@pytest.mark.parametrize("spared", [0, 1])
@pytest.mark.parametrize("dropout", [False, True])
def test_a_smaller_memory_changes_no_result(spared: int, dropout: bool) -> None:
    """`spared` leaves gradients of a half-done step behind; they must not be counted twice."""
    scarce, plenty = made(240, limit=60, spared=spared, dropout=dropout), made(60, dropout=dropout)
    train(scarce), train(plenty)
    assert isinstance(scarce.backbone, SmallMemory)
    assert scarce.backbone.num_refused >= 2
    assert scarce.budget.tokens == 60
    assert_same(scarce, plenty)


def test_gradients_of_a_half_done_step_are_dropped() -> None:
    scarce, plenty = made(240, limit=60, spared=1), made(60)
    scarce._accumulate(scarce._draw())
    plenty._accumulate(plenty._draw())
    assert isinstance(scarce.backbone, SmallMemory)
    assert scarce.backbone.spared == 0
    assert scarce.budget.num_halvings == 2
    for one, other in zip(scarce.states, plenty.states, strict=True):
        for ours, theirs in zip(one.parameters, other.parameters, strict=True):
            assert torch.equal(present(ours.grad), present(theirs.grad))


def test_evaluation_has_a_budget_of_its_own() -> None:
    trainer = train(made(150, limit=200))
    assert trainer.budget.num_halvings == 0
    assert trainer.eval_budget.tokens <= 200
    assert trainer.eval_budget.num_halvings == 1
    assert [state.outcome.num_out_of_memory for state in trainer.states] == [1] * len(trainer.states)
    assert_same(trainer, train(made(150)))


def test_the_budget_in_use_is_recorded() -> None:
    outcome = train(made(800, limit=200)).states[0].outcome
    assert outcome.micro_batch_tokens == 200
    assert outcome.num_out_of_memory == 2 + 3  # of training, and of evaluation from EVALUATION_FACTOR x 800
    assert EVALUATION_FACTOR * 800 / 2**3 == 200


def test_halvings_of_the_last_evaluation_are_recorded() -> None:
    trainer = made(150, limit=200)
    before = trainer.states[0].outcome.num_out_of_memory
    trainer._answers("test", [0])
    assert (before, trainer.states[0].outcome.num_out_of_memory) == (0, 1)


def test_a_row_that_does_not_fit_alone_is_an_error() -> None:
    trainer = made(800, limit=5)
    with pytest.raises(torch.OutOfMemoryError):
        trainer._accumulate(trainer._draw())
    assert trainer.budget.tokens >= 5


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    calls = []

    def fail(tokens: int) -> None:
        calls.append(tokens)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        until_it_fits(fail, TokenBudget(100), 1)
    assert calls == [100]


@pytest.mark.parametrize("message", ["DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes",
                                     "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
                                     "MPS backend out of memory (MPS allocated: 1 GB)"])  # fmt: skip
def test_a_lack_of_memory_that_is_reported_in_other_words_is_known(message: str) -> None:
    def work(tokens: int) -> int:
        if tokens > 30:
            raise RuntimeError(message)
        return tokens

    assert until_it_fits(work, TokenBudget(100), 1) == 25


@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.integers(1, 3_000), st.integers(0, 500))
def test_cuts_that_save_padding_lose_no_row_and_pay_for_themselves(
    lengths: list[int], max_tokens: int, overhead: int
) -> None:
    array = np.array(lengths)
    cut, plain = micro_batches(array, max_tokens, overhead), micro_batches(array, max_tokens)
    assert sorted(np.concatenate(cut).tolist()) == list(range(len(lengths)))
    for batch in cut:
        assert len(batch) == 1 or len(batch) * array[batch].max() <= max_tokens
    cost = [sum(len(b) * int(array[b].max()) for b in batches) for batches in (cut, plain)]
    assert cost[0] <= cost[1], "padding never grows"
    assert np.concatenate(cut).tolist() == np.concatenate(plain).tolist(), "rows stay sorted by length"


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 200), st.integers(0, 80))
def test_no_other_cut_costs_less(lengths: list[int], max_tokens: int, overhead: int) -> None:
    array = -np.sort(-np.array(lengths))

    def cost(batches: list[Index]) -> int:
        return sum(len(batch) * int(array[batch].max()) + overhead for batch in batches)

    found = []
    for places in itertools.product([False, True], repeat=len(array) - 1):  # every way to cut sorted rows
        batches = np.split(np.arange(len(array)), np.flatnonzero(places) + 1)
        if all(len(batch) == 1 or len(batch) * array[batch].max() <= max_tokens for batch in batches):
            found.append(cost(batches))
    assert cost(micro_batches(array, max_tokens, overhead)) == min(found)


def test_one_long_text_among_short_ones_gets_a_micro_batch_of_its_own() -> None:
    lengths = np.array([10] * 15 + [200])
    assert [len(batch) for batch in micro_batches(lengths, 4_096, 128)] == [1, 15]
    assert [len(batch) for batch in micro_batches(lengths, 4_096, 10_000)] == [16]
    assert [len(batch) for batch in micro_batches(lengths, 4_096)] == [16]


def test_the_probe_fills_the_free_memory_along_a_line() -> None:
    def peak(tokens: int) -> int:
        return 5_000 + 10 * tokens

    free = round((5_000 + 10 * 40_000) / MEMORY_SHARE)
    assert probed_tokens(peak, free, most=10**6) == pytest.approx(40_000, abs=1)
    assert probed_tokens(peak, free, most=9_000) == 9_000
    assert probed_tokens(peak, 1, most=10**6) == PROBE_TOKENS[0]


def test_a_probe_without_room_takes_the_smallest_size() -> None:
    def peak(tokens: int) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert probed_tokens(peak, 10**9, most=10**6) == PROBE_TOKENS[0]


def test_the_probe_uses_one_micro_batch_of_the_longest_rows() -> None:
    trainer = made(100)
    rows = trainer.longest_rows(500)
    lengths = trainer.fused.lengths(trainer.encoded["train"], rows)
    texts = trainer.encoded["train"].source_lengths(rows.rows)
    assert texts.min() == trainer.encoded["train"].source_lengths(np.arange(NUM_ROWS)).max()
    assert 500 - lengths.max() < len(rows) * lengths.max() <= 500
    assert set(rows.cells) == {0, 1, 2, 3}
