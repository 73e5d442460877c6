"""Bundles on decoders whose prompts are read once a step train as bundles whose prompts stand in every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import test_fused
import torch
from float64 import in_float64
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.backbone.load import load_backbone
from harness.backbone.network import Backbone
from harness.data.examples import Example, TaskData
from harness.data.record import DataRecord
from harness.data.tasks import all_tasks
from harness.data.tokenization import Encoded
from harness.method.linear_head import LinearHead
from harness.method.method import Method
from harness.suite.blocks import ProtocolReference
from harness.suite.cell import Cell
from harness.suite.file_schema import Recipe
from harness.train.batch_input import BatchInput, Rows
from harness.train.evaluate import answer_split
from harness.train.loop import BundleTrainer
from harness.train.tiny_backbones import tiny_backbone, tiny_rows
from tools.network_matrix.checkpoints import build

LENGTH = 20
NUM_ROWS = 8
"""More than a batch of any cell has, and fewer than two, so that rows come again."""
NETWORKS = ("Llama 3", "Qwen3", "Gemma 3", "Mistral", "GPT-2")
Spec = tuple[str, dict[str, Any]]
SPECS: list[Spec] = [
    ("prompt_tuning", {"prompt_length": 7}),
    ("prompt_tuning", {"prompt_length": 25}),  # longer than a window of 16
    ("dept", {"prompt_length": 5, "budget_length": 9, "source_length": LENGTH, "added_lr": 0.01}),
    ("accept", {"prompt_length": 6, "budget_length": 12, "source_length": LENGTH, "added_lr": 0.02}),
    ("ept", {"prompt_length": 4, "budget_length": 8, "source_length": LENGTH, "added_lr": 0.03}),
    ("p_tuning", {"prompt_length": 3}),
    ("residual_prompt_tuning", {"prompt_length": 8}),
    ("dpt", {"prompt_length": 6, "rank": 2}),
    ("spot", {"prompt_length": 5}),
]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("network")
    build(request.param, folder)
    return load_backbone(str(folder), "float64")


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    with in_float64():
        yield


def make_cell(method: str, hp: dict[str, Any], seed: int, steps: int, **recipe: Any) -> Cell:
    made = Recipe(
        steps=steps, batch_size=3 + seed % 3, lr=0.05, warmup_steps=3, warmup_max_share=1.0, eval_every=10,
        precision="float64", backbone_dropout=False, max_source_length=LENGTH, **recipe,
    )  # fmt: skip
    return Cell(
        suite="s", label=method, method=method, hp=hp, task="micro_sentiment", task_version=1, backbone="tiny",
        seed=seed, recipe=made, search_seed=seed, protocol=ProtocolReference(),
    )  # fmt: skip


def make_method(cell: Cell, backbone: Backbone) -> Method:
    """As `test_fused` makes it, with a head where the recipe asks for one."""
    method = test_fused.make_method(cell, backbone)
    if cell.recipe.head == "linear":
        method.linear_head = LinearHead(2, backbone)
    return method


def made_up_rows(cell: Cell, backbone: Backbone) -> tuple[TaskData, Encoded]:
    """Rows of several lengths, with what the cell's recipe trains on."""
    rows = [Example("x", "0", ("0",))] * NUM_ROWS
    count: dict[str, Any] = dict.fromkeys(("num_train", "num_dev", "num_test"), NUM_ROWS)
    record = DataRecord(source="", revision="", split_rule="", fingerprint="", **count)
    data = TaskData(all_tasks()["micro_sentiment"], rows, rows, rows, record)
    encoded = tiny_rows(np.random.default_rng(1).integers(2, LENGTH, NUM_ROWS).tolist(), backbone)
    if cell.recipe.head == "linear":
        encoded = Encoded(encoded.source_ids, encoded.source_offsets, np.arange(NUM_ROWS) % 2, np.arange(NUM_ROWS + 1))
    return data, encoded


def trainer(cells: list[Cell], backbone: Backbone, apart: bool, max_tokens: int = 120) -> BundleTrainer:
    """A trainer on made-up rows; with `apart` prompts are read once a step, as a run does it."""
    data, encoded = made_up_rows(cells[0], backbone)
    methods = [make_method(cell, backbone) for cell in cells]
    splits = dict.fromkeys(("train", "dev", "test"), encoded)
    made = BundleTrainer(cells, methods, data, splits, backbone, max_tokens)
    assert made.fused.shared.all()
    if not apart:
        made.fused = BatchInput(methods, backbone, LENGTH, made.watched)
        made.watched = made.fused.seal
        assert not made.fused.shared.any()
    return made


def same(one: BundleTrainer, other: BundleTrainer) -> None:
    for ours, theirs in zip(one.states, other.states, strict=True):
        expected = theirs.outcome.method.state_dict()
        for name, tensor in ours.outcome.method.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("recipe", [{}, {"head": "linear"}], ids=["text", "head"])
def test_gradients_of_a_step_are_those_of_prompts_in_every_row(network: Backbone, recipe: dict[str, Any]) -> None:
    cells = [make_cell(*spec, seed=seed, steps=5, **recipe) for seed, spec in enumerate(SPECS)]
    gradients: list[dict[str, Tensor]] = []
    losses = []
    for apart in (True, False):
        made = trainer(cells, network, apart)
        losses.append(made._accumulate(made._draw()))
        named = [p for state in made.states for p in state.outcome.method.named_parameters()]
        gradients.append({f"{i} {name}": p.grad for i, (name, p) in enumerate(named) if p.grad is not None})
        assert len(gradients[-1]) == len(named)
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-12)
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-8, atol=1e-11)


def test_twenty_steps_end_where_prompts_in_every_row_end(network: Backbone) -> None:
    cells = [make_cell(*spec, seed=seed, steps=20) for seed, spec in enumerate(SPECS)]
    # several groups of prompts and micro-batches, and few; the gradients above are of many of both
    one, other = (trainer(cells, network, apart, max_tokens=200) for apart in (True, False))
    for made in (one, other):
        made.run(lambda *_: None, lambda _: None)
    same(one, other)
    for ours, theirs in zip(one.states, other.states, strict=True):
        assert ours.outcome.answers == theirs.outcome.answers
        assert [item.train_loss for item in ours.outcome.history] == pytest.approx(
            [item.train_loss for item in theirs.outcome.history], rel=1e-8
        )


PREFIXES: list[Spec] = [
    ("prefix_tuning", {"prefix_length": 4}),
    ("prefix_tuning", {"prefix_length": 20, "network": "mlp", "network_width": 16}),
]


@pytest.mark.parametrize("recipe", [{}, {"head": "linear"}], ids=["text", "head"])
def test_prefixes_share_a_bundle_with_prompts_and_end_where_they_end_alone(
    network: Backbone, recipe: dict[str, Any]
) -> None:
    specs = [PREFIXES[0], SPECS[0], PREFIXES[1], SPECS[5]]
    cells = [make_cell(*spec, seed=seed, steps=4, **recipe) for seed, spec in enumerate(specs)]
    together = trainer(cells, network, apart=True)
    together.run(lambda *_: None, lambda _: None)
    for index, cell in enumerate(cells):
        # one row at a time: padding between prefix and text would push the prefix out of a window
        alone = trainer([cell], network, apart=False, max_tokens=1)
        with alone.fused.attached():
            alone.run(lambda *_: None, lambda _: None)
        ours, theirs = together.states[index].outcome, alone.states[0].outcome
        expected = theirs.method.state_dict()
        for name, tensor in ours.method.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-8)
        assert ours.answers == theirs.answers
        assert [e.train_loss for e in ours.history] == pytest.approx([e.train_loss for e in theirs.history], rel=1e-8)


def test_a_prefix_takes_no_positions_of_its_own() -> None:
    made = trainer([make_cell(*PREFIXES[0], seed=1, steps=2)], tiny_backbone("decoder", "float64"), apart=True)
    made.run(lambda *_: None, lambda _: None)
    assert made.states[0].outcome.work.prompt_tokens == 0


def test_bundles_of_methods_that_attach_themselves_are_refused() -> None:
    backbone = tiny_backbone("encoder-decoder", "float64")
    methods = [make_method(make_cell(*PREFIXES[0], seed=seed, steps=2), backbone) for seed in range(2)]
    with pytest.raises(ValueError, match="shares no bundle"):
        BatchInput(methods, backbone, LENGTH, answer_length=2)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.lists(st.integers(0, len(SPECS) - 1), min_size=1, max_size=6),
    max_tokens=st.integers(30, 400),
)
def test_any_bundle_under_any_budget_takes_the_same_steps(chosen: list[int], max_tokens: int) -> None:
    with in_float64():
        backbone = tiny_backbone("decoder", "float64")
        cells = [make_cell(*SPECS[number], seed=seed, steps=3) for seed, number in enumerate(chosen)]
        one, other = (trainer(cells, backbone, apart, max_tokens) for apart in (True, False))
        for step in range(3):
            one._train_step(step)
            other._train_step(step)
        same(one, other)


def test_groups_keep_prompts_within_the_budget_and_lose_no_cell() -> None:
    backbone = tiny_backbone("decoder", "float64")
    cells = [make_cell("prompt_tuning", {"prompt_length": length}, seed=length, steps=2) for length in (10, 4, 12, 30)]
    made = trainer(cells, backbone, apart=True)
    made.fused.refresh(grad=False, cells=range(4))
    assert made.fused.groups(range(4), 24) == [[0, 1], [2], [3]]
    assert made.fused.groups(range(4), 1_000) == [[0, 1, 2, 3]]
    assert made.fused.groups([1, 3], 60) == [[1, 3]]
    assert made.fused.positions_apart([0, 2]).tolist() == [10, 0, 12, 0]
    assert made.fused.positions_apart([0, 2], padded=True).tolist() == [12, 0, 12, 0]


def test_accounts_count_a_prompt_once_a_step() -> None:
    backbone = tiny_backbone("decoder", "float64")
    cells = [make_cell("prompt_tuning", {"prompt_length": length}, seed=length, steps=4) for length in (6, 9)]
    made = trainer(cells, backbone, apart=True, max_tokens=1_000)
    made.run(lambda *_: None, lambda _: None)
    for state, length in zip(made.states, (6, 9), strict=True):
        work = state.outcome.work
        assert work.prompt_tokens == 4 * length
        assert work.samples == 4 * state.recipe.batch_size
    # the shorter prompt is filled up by 3 positions in each of 4 steps, beside what texts are filled up by
    assert made.states[0].outcome.work.padding >= 4 * 3


def test_answers_read_each_prompt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone("decoder", "float64")
    cells = [make_cell("prompt_tuning", {"prompt_length": 8}, seed=seed, steps=2) for seed in range(3)]
    made = trainer(cells, backbone, apart=True)
    read: list[int] = []
    once: Callable[..., Any] = backbone.read_prompts

    def counted(*args: Any) -> Any:
        read.append(len(args[0]))
        return once(*args)

    monkeypatch.setattr(backbone, "read_prompts", counted)
    answers = answer_split(made.fused, range(3), made.encoded["dev"], made.data.task, 60)
    assert read == [3]
    other = trainer(cells, backbone, apart=False)
    assert answers == answer_split(other.fused, range(3), other.encoded["dev"], other.data.task, 60)


def test_rows_of_cells_with_and_without_such_prompts_stand_in_one_batch() -> None:
    """A prompt that depends on its text stays in the row; the others of the bundle are read apart all the same."""
    backbone = tiny_backbone("decoder", "float64")

    class ByText(Method):
        name = "by_text"

        def __init__(self) -> None:
            super().__init__(None, backbone)
            self.gain = torch.nn.Parameter(torch.full((3, backbone.hidden), 0.1, dtype=torch.float64))

        @property
        def num_prompt_tokens(self) -> int:
            return 3

        def forward(self, embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            front = (embeds * mask[..., None]).sum(1, keepdim=True) * self.gain
            return torch.cat([front, embeds], 1), torch.cat([mask.new_ones(front.shape[:2]), mask], 1)

    cell = make_cell("prompt_tuning", {"prompt_length": 7}, 1, 2)
    methods = [ByText(), make_method(cell, backbone)]
    encoded = tiny_rows([5, 9, 3], backbone)
    rows = Rows(np.array([0, 1, 1, 0]), np.array([0, 1, 2, 2]))
    labels = torch.tensor([[4, 1]] * 4)
    losses = []
    for answer in (2, None):
        fused = BatchInput(methods, backbone, LENGTH, answer_length=answer)
        fused.refresh(grad=True, cells=range(2))
        fused.read_prompts(range(2), grad=True)
        embeds, mask, placed = fused.build(encoded, rows)
        losses.append(backbone.token_losses(embeds, mask, labels, fused.row_prefixes(encoded, placed)))
        assert placed.cells.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-12)
