"""Bundles change nothing: fused equals separate, padding cut equals padding kept, decoding equals generate."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.backbone.fast_functions import ATTENTION_NAME
from harness.backbone.network import Backbone
from harness.data.examples import Example, TaskData
from harness.data.record import DataRecord
from harness.data.tasks import all_tasks
from harness.data.tokenization import Encoded
from harness.method.method import Method
from harness.method.registry import discover
from harness.suite.blocks import ProtocolReference
from harness.suite.cell import Cell
from harness.suite.file_schema import Recipe
from harness.train.batch_input import BatchInput, Rows, micro_batches, micro_batches_of_cells
from harness.train.loop import BundleTrainer
from harness.train.tiny_backbones import tiny_backbone, tiny_rows

LENGTH = 24
NUM_ROWS = 12
"""Twice what the largest batch here has."""
REGISTRY = discover()
Kind = Literal["encoder-decoder", "decoder"]
Spec = tuple[str, dict[str, object], float, int, int]
"""Method, hp, learning rate, seed, batch size."""
SPECS: list[Spec] = [
    ("prompt_tuning", {"prompt_length": 7}, 0.3, 1, 4),
    ("dept", {"prompt_length": 5, "budget_length": 9, "source_length": LENGTH, "added_lr": 0.01}, 0.1, 2, 5),
    ("accept", {"prompt_length": 6, "budget_length": 12, "source_length": LENGTH, "added_lr": 0.02}, 0.2, 3, 3),
    ("ept", {"prompt_length": 4, "budget_length": 8, "source_length": LENGTH, "added_lr": 0.03}, 0.05, 4, 6),
    ("dept", {"prompt_length": 8, "budget_length": 11, "source_length": LENGTH, "added_lr": 0.5}, 0.3, 1, 2),
]


class ByText(Method):
    """A prompt that depends on the text, so it takes the trainer's other path."""

    name = "by_text"

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(None, backbone)
        self.gain = torch.nn.Parameter(torch.full((3, backbone.hidden), 0.1, dtype=backbone.embedding.weight.dtype))

    @property
    def num_prompt_tokens(self) -> int:
        return 3

    def forward(self, embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mean = (embeds * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        front = mean[:, None] * self.gain
        return torch.cat([front, embeds], 1), torch.cat([mask.new_ones(front.shape[:2]), mask], 1)


def make_cell(method: str, hp: dict[str, object], lr: float, seed: int, batch_size: int, steps: int) -> Cell:
    recipe = Recipe(
        steps=steps, batch_size=batch_size, lr=lr, warmup_steps=3, warmup_max_share=1.0, eval_every=10,
        precision="float64", backbone_dropout=False, max_source_length=LENGTH,
    )  # fmt: skip
    return Cell(
        suite="s", label=method, method=method, hp=hp, task="micro_sentiment", task_version=1, backbone="tiny",
        seed=seed, recipe=recipe, search_seed=seed, protocol=ProtocolReference(),
    )  # fmt: skip


def make_method(cell: Cell, backbone: Backbone) -> Method:
    torch.manual_seed(cell.seed)
    if cell.method == "by_text":
        return ByText(backbone)
    cls = REGISTRY[cell.method].cls
    assert cls is not None
    assert issubclass(cls, Method)
    method = cls(cls.HP(**cell.hp), backbone)
    for parameter in method.parameters():
        if not parameter.any():  # a zero factor would hide its partner's gradient
            torch.nn.init.normal_(parameter, std=0.1)
    return method


def trainer(cells: list[Cell], max_tokens: int, backbone: Backbone | None = None) -> BundleTrainer:
    """A trainer on made-up rows of very different lengths."""
    backbone = backbone or tiny_backbone(precision="float64")
    rows = [Example("x", "0", ("0",))] * NUM_ROWS
    count: dict[str, Any] = dict.fromkeys(("num_train", "num_dev", "num_test"), NUM_ROWS)
    record = DataRecord(source="", revision="", split_rule="", fingerprint="", **count)
    data = TaskData(all_tasks()["micro_sentiment"], rows, rows, rows, record)
    encoded = tiny_rows(np.random.default_rng(1).integers(2, LENGTH, NUM_ROWS).tolist(), backbone)
    methods = [make_method(cell, backbone) for cell in cells]
    splits = dict.fromkeys(("train", "dev", "test"), encoded)
    return BundleTrainer(cells, methods, data, splits, backbone, max_tokens)


def cells(steps: int) -> list[Cell]:
    return [make_cell(*spec, steps=steps) for spec in [*SPECS, ("by_text", {}, 0.1, 5, 4)]]


def layer_cells(steps: int) -> list[Cell]:
    specs: list[tuple[str, dict[str, object]]] = [("lora", {"rank": 2}), ("ia3", {}), ("adapter", {"reduction": 8})]
    return [make_cell(name, hp, 0.01, seed, 4, steps) for seed, (name, hp) in enumerate(specs)]


def tensors(made: BundleTrainer, index: int) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in made.states[index].outcome.method.state_dict().items()}


def test_gradients_of_a_fused_step_equal_those_of_separate_steps() -> None:
    together = trainer(cells(5), max_tokens=100)
    together._accumulate(together._draw())
    for index, cell in enumerate(cells(5)):
        alone = trainer([cell], max_tokens=10_000)
        alone._accumulate(alone._draw())
        fused = dict(together.states[index].outcome.method.named_parameters())
        for name, parameter in alone.states[0].outcome.method.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, f"{cell.method}.{name} gets no gradient"
            torch.testing.assert_close(fused[name].grad, parameter.grad, rtol=1e-12, atol=1e-12)


def test_a_trajectory_of_fifty_steps_is_the_same_alone_and_in_a_bundle() -> None:
    together = trainer(cells(50), max_tokens=150)
    together.run(lambda *_: None, lambda _: None)
    for index, cell in enumerate(cells(50)):
        alone = trainer([cell], max_tokens=10_000)
        alone.run(lambda *_: None, lambda _: None)
        for name, tensor in tensors(alone, 0).items():
            torch.testing.assert_close(tensors(together, index)[name], tensor, rtol=1e-9, atol=1e-9)
        ours, theirs = (t.outcome.history for t in (together.states[index], alone.states[0]))
        assert [item.selection for item in ours] == [item.selection for item in theirs]


def test_updated_tensors_after_one_step_agree_to_1e_12() -> None:
    together = trainer(cells(5), max_tokens=100)
    for step in range(2):  # the first update of a warm-up has learning rate zero
        together._train_step(step)
    for index, cell in enumerate(cells(5)):
        alone = trainer([cell], max_tokens=10_000)
        before = tensors(alone, 0)
        for step in range(2):
            alone._train_step(step)
        for name, tensor in tensors(alone, 0).items():
            torch.testing.assert_close(tensors(together, index)[name], tensor, rtol=1e-12, atol=1e-12)
            assert not torch.equal(before[name], tensor), f"{cell.method}.{name} did not move"


def test_cells_of_different_lengths_leave_the_bundle_at_their_own_step() -> None:
    short, long = make_cell(*SPECS[0], steps=3), make_cell(*SPECS[1], steps=12)
    made, ended = trainer([short, long], 500), []
    made.run(lambda *_: None, lambda outcome: ended.append((outcome.cell.method, outcome.num_steps)))
    assert ended == [("prompt_tuning", 3), ("dept", 12)]


def test_a_loss_that_is_not_finite_takes_only_its_own_cell_out() -> None:
    made = trainer([make_cell(*SPECS[0], steps=12), make_cell(*SPECS[1], steps=12)], 500)
    with torch.no_grad():
        next(made.states[0].outcome.method.parameters()).fill_(float("nan"))
    made.run(lambda *_: None, lambda _: None)
    broken, healthy = (state.outcome for state in made.states)
    assert broken.failure is not None
    assert broken.failed_at == 10
    assert "was nan at step 1, before any update, so no learning rate caused it" in broken.failure.message
    assert healthy.failure is None
    alone = trainer([make_cell(*SPECS[1], steps=12)], 500)
    alone.run(lambda *_: None, lambda _: None)
    for name, tensor in tensors(alone, 0).items():
        torch.testing.assert_close(tensors(made, 1)[name], tensor, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("breaks_at", "known"), [(7, 6), (11, 0), (12, 1)])
def test_a_loss_that_breaks_down_says_when_and_what_it_was(breaks_at: int, known: int) -> None:
    """`known` steps lie between the last evaluation, at step 10, and the break; without one its mean is told."""
    made = trainer([make_cell(*SPECS[0], steps=20)], 500)
    (state,) = made.states
    losses: list[float] = []
    record = state.record_loss

    def recorded(loss: Tensor) -> None:
        broken = len(losses) + 1 >= breaks_at
        losses.append(float(loss))
        record(loss * float("inf") if broken else loss)

    state.record_loss = recorded  # type: ignore[method-assign]
    made.run(lambda *_: None, lambda _: None)
    failure, sound = state.outcome.failure, losses[: breaks_at - 1]
    assert failure is not None
    assert f"the training loss became inf at step {breaks_at}; " in failure.message
    if known:
        assert f"its mean over the {known} steps before was {np.mean(sound[-known:]):.4g}" in failure.message
    else:
        assert f"its mean before the evaluation at step 10 was {np.mean(sound[-10:]):.4g}" in failure.message


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder"])
def test_cutting_the_padding_equals_padding_to_the_full_length(kind: Kind) -> None:
    backbone = tiny_backbone(kind, precision="float64")
    method: Any = make_method(make_cell(*SPECS[1], steps=1), backbone)
    with torch.no_grad():
        method.b.normal_()
    encoded = tiny_rows([3, 11, LENGTH], backbone)
    mixed = losses(method, backbone, encoded, [0, 1, 2])
    single = torch.cat([losses(method, backbone, encoded, [row]) for row in range(3)])
    torch.testing.assert_close(mixed, single, rtol=1e-12, atol=1e-12)


def test_a_decoder_counts_table_rows_from_the_padded_start() -> None:
    backbone = tiny_backbone("decoder", precision="float64")
    method: Any = make_method(make_cell(*SPECS[1], steps=1), backbone)
    fused = BatchInput([method], backbone, LENGTH)
    with torch.no_grad():
        method.b.normal_()
    fused.refresh(False, [0])
    encoded = tiny_rows([4], backbone)
    embeds, _, _ = fused.build(encoded, Rows(np.array([0]), np.array([0])))
    tokens = backbone.embedding(torch.as_tensor(encoded.source_ids))
    table = method.added()
    assert table is not None
    torch.testing.assert_close(embeds[0, -4:], tokens + table[-4:], rtol=1e-12, atol=1e-12)


def test_the_methods_own_forward_equals_the_gather() -> None:
    backbone = tiny_backbone(precision="float64")
    encoded = tiny_rows([3, 11, 20], backbone)
    for spec in SPECS:
        method = make_method(make_cell(*spec, steps=1), backbone)
        fused = BatchInput([method], backbone, LENGTH)
        fused.refresh(False, [0])
        embeds, mask, _ = fused.build(encoded, Rows(np.zeros(3, np.int64), np.arange(3)))
        sources = torch.as_tensor(encoded.sources(np.arange(3), 0))
        plain = (torch.arange(20)[None] < torch.tensor([3, 11, 20])[:, None]).long()
        direct, direct_mask = method(backbone.embedding(sources), plain)
        torch.testing.assert_close(embeds * mask[..., None], direct * direct_mask[..., None], rtol=1e-12, atol=1e-12)
        assert torch.equal(mask, direct_mask)


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder"])
def test_decoding_equals_generate(kind: Kind) -> None:
    backbone = tiny_backbone(kind)
    torch.manual_seed(0)
    embeds, lengths = torch.randn(5, 9, backbone.hidden) * 3, torch.tensor([9, 2, 5, 7, 1])
    mask = (torch.arange(9)[None] < lengths[:, None]).long()
    ours = backbone.decode(embeds, mask, 6)
    for row in range(5):
        one, length = embeds[row : row + 1, : lengths[row]], int(lengths[row])
        theirs = backbone.model.generate(
            inputs_embeds=one, attention_mask=torch.ones(1, length, dtype=torch.long), max_new_tokens=6,
            do_sample=False, num_beams=1, pad_token_id=0, eos_token_id=1,
        )[0].tolist()  # fmt: skip
        theirs = theirs[1:] if kind == "encoder-decoder" else theirs
        got = ours[row].tolist()
        assert got[: len(theirs)] == theirs
        assert not any(got[len(theirs) :])


def test_sdpa_with_position_bias_equals_eager_attention() -> None:
    backbone = tiny_backbone(precision="float64")
    encoded = tiny_rows([3, 11, 20], backbone)
    method = make_method(make_cell(*SPECS[0], steps=1), backbone)
    assert backbone.config._attn_implementation == ATTENTION_NAME
    fast = losses(method, backbone, encoded, [0, 1, 2])
    backbone.model.set_attn_implementation("eager")
    torch.testing.assert_close(losses(method, backbone, encoded, [0, 1, 2]), fast, rtol=1e-10, atol=1e-10)


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a device: reads of a tensor's value, and of a shape that depends on one."""

    READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in self.READS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("members", [cells(4), layer_cells(4)], ids=["input side", "layer side"])
def test_no_step_makes_the_host_wait_for_the_device(members: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchInput, "packs", False)  # as on a GPU: packing asks where rows end
    made = trainer(members, max_tokens=64)
    with made.fused.attached(), HostReads() as reads:
        for step in range(3):
            made._train_step(step)
        in_steps = reads.count
        made._evaluate(made.active, 3)
    assert in_steps == 0
    assert reads.count > 0  # losses and answers are read at last, so the counter works


@given(
    cells=st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=8), min_size=1, max_size=6),
    max_tokens=st.integers(20, 200),
)
def test_cells_stay_whole_where_they_fit_into_a_micro_batch(cells: list[list[int]], max_tokens: int) -> None:
    lengths = np.array([length for own in cells for length in own])
    owner = np.repeat(np.arange(len(cells)), [len(own) for own in cells])
    batches = micro_batches_of_cells(lengths, owner, max_tokens)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    padded = [len(batch) * int(lengths[batch].max()) for batch in batches]
    assert all(size <= max_tokens or len(batch) == 1 for size, batch in zip(padded, batches, strict=True))
    for cell, own in enumerate(cells):
        if len(own) * max(own) <= max_tokens:
            assert sum(cell in owner[batch] for batch in batches) == 1
    if all(len(own) * max(own) <= max_tokens for own in cells):  # no two neighbours could have been one
        for one, other in itertools.pairwise(batches):
            both = np.concatenate([one, other])
            assert len(both) * lengths[both].max() > max_tokens


def test_micro_batches_keep_the_token_budget_and_every_row() -> None:
    lengths = np.random.default_rng(0).integers(1, 90, 200)
    batches = micro_batches(lengths, 400)
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= 400
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    assert padded < 1.2 * int(lengths.sum())


def losses(method: Method, backbone: Backbone, encoded: Encoded, rows: list[int]) -> Tensor:
    fused = BatchInput([method], backbone, LENGTH)
    fused.refresh(False, [0])
    embeds, mask, placed = fused.build(encoded, Rows(np.zeros(len(rows), np.int64), np.array(rows)))
    with torch.no_grad():
        return backbone.token_losses(embeds, mask, torch.as_tensor(encoded.targets(placed.rows)))
