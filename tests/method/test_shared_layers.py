"""Layer-side cells in one forward pass: nothing changes but the time it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_fused import Spec, make_cell, tensors, trainer
from torch import Tensor, nn

from harness.backbone.network import Backbone
from harness.data.tokenization import Encoded, join_encoded
from harness.method.cell_error import CellError
from harness.method.inserted_modules import TrainedNorms
from harness.method.layer_change import LayerChange
from harness.method.method import Method
from harness.method.registry import discover
from harness.method.shared_layers import SharedLayers
from harness.runner.pack import pack
from harness.runner.plan import make_plan
from harness.suite.cell import Cell
from harness.suite.make_groups import Overrides
from harness.train.batch_input import BatchInput, Rows
from harness.train.bundle import BundleListener, train_bundle
from harness.train.loop import BundleTrainer
from harness.train.tiny_backbones import tiny_backbone, tiny_rows

SPECS: list[Spec] = [
    ("lora", {"rank": 4, "dropout": 0.0}, 0.003, 1, 4),
    ("lora", {"rank": 2, "dropout": 0.0, "biases": True}, 0.01, 2, 3),
    ("dora", {"rank": 3, "dropout": 0.0}, 0.003, 3, 5),
    ("vera", {"rank": 8}, 0.01, 4, 4),
    ("ia3", {}, 0.01, 5, 2),
    ("bitfit", {}, 0.01, 6, 4),
    ("adapter", {"reduction": 4}, 0.003, 7, 3),
    ("compacter", {"reduction": 4}, 0.01, 8, 4),
    ("adapter_drop", {"reduction": 4, "dropped_layers": 1}, 0.003, 9, 2),
]
SHARING = {name for name, *_ in SPECS}

SUITE = """\
suite: broken
backbones: [micro-t5]
tasks: [micro_sentiment]
seeds: [1]
recipe: {lr: 0.01, batch_size: 2, backbone_dropout: false}
methods: [ia3, stopping]
"""


def cells(steps: int) -> list[Cell]:
    return [make_cell(*spec, steps=steps) for spec in SPECS]


def run(made: BundleTrainer) -> BundleTrainer:
    with made.fused.attached():
        made.run(lambda *_: None, lambda _: None)
    return made


def with_two_evaluations(cell: Cell) -> Cell:
    """The first of them in the middle of training. The rate is above 0 from the second step on."""
    return cell.model_copy(update={"recipe": cell.recipe.model_copy(update={"eval_every": 3})})


LORA: list[Spec] = [("lora", {"rank": 4, "dropout": 0.0}, 0.003, seed, rows) for seed, rows in ((1, 4), (2, 3), (3, 5))]


@pytest.mark.parametrize("specs", [SPECS, LORA, [*LORA, SPECS[-1]]], ids=["all", "one shape", "one shape and another"])
def test_a_trajectory_is_the_same_alone_and_together(specs: list[Spec]) -> None:
    made = [with_two_evaluations(make_cell(*spec, steps=6)) for spec in specs]
    together = run(trainer(made, max_tokens=100))
    for index, cell in enumerate(made):
        alone = run(trainer([cell], max_tokens=10_000))
        first, second = together.states[index].outcome, alone.states[0].outcome
        assert [(item.step, item.metrics) for item in first.history] == [
            (item.step, item.metrics) for item in second.history
        ]
        assert first.answers == second.answers
        assert len(first.history) == 2
        assert [item.train_loss for item in first.history] == pytest.approx(
            [item.train_loss for item in second.history], rel=1e-9
        )
        fused, separate = tensors(together, index), tensors(alone, 0)
        for name, value in separate.items():
            torch.testing.assert_close(fused[name], value, rtol=1e-7, atol=1e-9, msg=f"{cell.method}.{name}")


def test_lora_of_many_cells_takes_as_many_products_as_that_of_two() -> None:
    def num_products(count: int) -> int:
        made = trainer([make_cell(*LORA[0][:3], seed, 4, steps=1) for seed in range(count)], max_tokens=10_000)
        with made.fused.attached(), torch.profiler.profile() as found:
            made._accumulate(made._draw())
        return sum(item.count for item in found.key_averages() if item.key in ("aten::mm", "aten::bmm"))

    assert num_products(6) == num_products(2)


def test_the_backbone_is_as_it_was_behind_it() -> None:
    made = trainer(cells(2), max_tokens=100)
    model = made.backbone.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = dict(model.named_modules())
    run(made)
    assert dict(model.named_modules()) == modules
    assert not any("forward" in module.__dict__ for module in modules.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_module_that_no_cell_changes_runs_once_for_all_rows() -> None:
    made = trainer(cells(1), max_tokens=10_000)
    seen: list[int] = []
    attention = made.backbone.model.encoder.block[0].layer[0].SelfAttention  # cells change parts of it, not the whole
    attention.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2].numel()))
    rows = made._draw()
    with made.fused.attached():
        made._accumulate(rows)
    # the rows are packed, so a position is computed once and none for padding
    assert made.fused.packs
    assert sum(seen) == made.fused.lengths(made.encoded["train"], rows).sum()
    assert len(seen) < len(SPECS)


class Raises(Method):
    """Shifts one module's output, and raises from the third step on."""

    name = "raises"
    step = 0

    def __init__(self, hp: object, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        self.place: nn.Module = backbone.model.encoder.block[0].layer[0].SelfAttention.o
        self.shift = nn.Parameter(torch.zeros(backbone.hidden, dtype=backbone.embedding.weight.dtype))

    def on_step(self, step: int, num_steps: int) -> None:
        self.step = step

    def layer_changes(self) -> list[LayerChange]:
        def shifted(states: Tensor) -> Tensor:
            if self.step >= 2:
                raise ArithmeticError("made up")
            return states + self.shift

        return [LayerChange(self.place, after=shifted)]


def test_a_cell_whose_change_raises_in_a_step_leaves_and_the_others_are_as_alone() -> None:
    cell = cells(6)[0]
    plain = trainer([cell], max_tokens=100)
    methods = [Raises(None, plain.backbone), plain.states[0].outcome.method]
    both = BundleTrainer([cell, cell], methods, plain.data, plain.encoded, plain.backbone, 100)
    broken, other = (state.outcome for state in run(both).states)
    assert broken.failure is not None
    assert (broken.failure.type, broken.failed_at) == ("ArithmeticError", 3)
    alone = run(trainer([cell], max_tokens=100))
    assert other.answers == alone.states[0].outcome.answers
    for name, value in tensors(alone, 0).items():
        torch.testing.assert_close(tensors(both, 1)[name], value, rtol=1e-7, atol=1e-9)


class TaskShift(Method):
    """Another shift for the rows of each task of a mixture."""

    name = "task_shift"

    def __init__(self, hp: object, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        self.places = [block.layer[0].SelfAttention.o for block in backbone.model.encoder.block]
        self.shifts = nn.Parameter(torch.randn(2, backbone.hidden, dtype=backbone.embedding.weight.dtype))

    def layer_changes(self) -> list[LayerChange]:
        def shifted(states: Tensor) -> Tensor:
            return states + self.shifts[self.tasks_of(states)][:, None]

        return [LayerChange(place, after=shifted) for place in self.places]


class TextShift(TaskShift):
    """And a prompt that depends on the text."""

    name = "text_shift"
    num_prompt_tokens = 1

    def forward(self, embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        front = (embeds * mask[..., None]).sum(1, keepdim=True)
        return torch.cat([front, embeds], 1), torch.cat([mask[:, :1], mask], 1)


@pytest.mark.parametrize("kinds", [(TaskShift, TaskShift), (TaskShift, TextShift), (TextShift, TaskShift)])
def test_rows_of_a_mixture_meet_the_changes_of_their_own_cell_and_task(kinds: tuple[type[Method], ...]) -> None:
    backbone = tiny_backbone(precision="float64")
    encoded = join_encoded([tiny_rows([3, 5], backbone), tiny_rows([4, 2, 7], backbone)])
    torch.manual_seed(0)
    methods = [kind(None, backbone) for kind in kinds]
    together = losses_of_rows(methods, encoded, backbone)
    for index, method in enumerate(methods):
        torch.testing.assert_close(together[index], losses_of_rows([method], encoded, backbone)[0])


def losses_of_rows(methods: list[Method], encoded: Encoded, backbone: Backbone) -> Tensor:
    """Losses of every row in each cell, [cells, rows]."""
    fused = BatchInput(methods, backbone, source_length=8)
    fused.refresh(grad=False, cells=range(len(methods)))
    count = len(encoded)
    rows = Rows(np.repeat(np.arange(len(methods)), count), np.tile(np.arange(count)[::-1], len(methods)))
    with torch.no_grad(), fused.attached():
        embeds, mask, placed = fused.build(encoded, rows)
        found = backbone.token_losses(embeds, mask, torch.as_tensor(encoded.targets(placed.rows))).sum(1)
    losses = torch.zeros(len(methods), count, dtype=found.dtype)
    losses[torch.as_tensor(placed.cells), torch.as_tensor(placed.rows)] = found
    return losses


def test_rows_whose_tasks_were_not_told_are_refused() -> None:
    method = TaskShift(None, tiny_backbone())
    method.row_tasks = torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="tasks of 3 rows are known, not of these 2"):
        method.tasks_of(torch.zeros(2, 4, 8))


def test_a_change_that_raises_is_blamed_on_its_cell() -> None:
    made = trainer(cells(3)[:2], max_tokens=100)
    broken = Raises(None, made.backbone)
    broken.on_step(2, 3)
    shared = SharedLayers([broken.layer_changes(), *(state.outcome.method.layer_changes() for state in made.states)])
    order = shared.order(np.array([1, 0, 2, 0]))
    assert order.tolist() == [1, 3, 0, 2], "rows of a cell stand together, in their order"
    with shared.attached(), pytest.raises(CellError) as caught:
        broken.place(torch.zeros(4, 3, made.backbone.hidden, dtype=torch.float64))
    assert caught.value.cell == 0
    assert "forward" not in broken.place.__dict__


@pytest.mark.parametrize("spoil", [lambda states: states[:1], lambda states: states[..., 1:]])
def test_a_change_that_gives_another_shape_is_blamed_on_its_cell(spoil: Callable[[Tensor], Tensor]) -> None:
    linear = nn.Linear(2, 2)
    shared = SharedLayers([[], [LayerChange(linear, after=spoil)]])
    shared.order(np.array([0, 1, 1]))
    with shared.attached(), pytest.raises(CellError) as caught:
        linear(torch.zeros(3, 1, 2))
    assert caught.value.cell == 1


def test_rows_that_belong_to_nobody_are_refused() -> None:
    linear = nn.Linear(2, 2)
    shared = SharedLayers([[LayerChange(linear, after=lambda states: states)], []])
    shared.order(np.array([0, 1]))
    with shared.attached(), pytest.raises(ValueError, match="got 3 rows, not 2"):
        linear(torch.zeros(3, 2))


def test_a_forward_that_somebody_put_on_a_module_is_used_and_stays() -> None:
    linear = nn.Linear(2, 2)
    plain = linear.forward
    linear.forward = lambda states: plain(states) + 1  # type: ignore[method-assign, assignment]
    put = linear.forward
    shared = SharedLayers([[LayerChange(linear, after=lambda states: 2 * states)], []])
    rows = torch.ones(2, 1, 2)
    shared.order(np.array([0, 1]))
    with shared.attached():
        changed = linear(rows)
    assert torch.equal(changed[0], 2 * (plain(rows[0]) + 1))
    assert torch.equal(changed[1], plain(rows[1]) + 1)
    assert linear.forward is put


class ShiftedNorm(nn.Module):
    """A norm with a scale and a shift, as those of other architectures have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))

    def forward(self, states: Tensor) -> Tensor:
        return self.weight * states + self.bias


def test_a_norm_with_scale_and_shift_trains_both() -> None:
    backbone = tiny_backbone()
    backbone.model.add_module("own_norm", norm := ShiftedNorm())
    trained = TrainedNorms(backbone)
    with torch.no_grad():
        trained.copies["own_norm/weight"].fill_(3.0)
        trained.copies["own_norm/bias"].fill_(5.0)
    shared = SharedLayers([trained.changes(), []])
    shared.order(np.array([0, 1]))
    with shared.attached():
        found = norm(torch.ones(2, 1, 2))
    assert found.tolist() == [[[8.0, 8.0]], [[1.0, 1.0]]]
    assert norm.weight.tolist() == [1.0, 1.0]
    twice = [LayerChange(norm, instead=norm.forward)] * 2
    with pytest.raises(ValueError, match="two changes instead of it"):
        SharedLayers([twice])


def test_methods_that_draw_per_pass_or_change_all_weights_run_alone() -> None:
    layer_side = {
        name: item.cls
        for name, item in discover().items()
        if item.cls is not None and issubclass(item.cls, Method) and item.cls.is_layer_side()
    }
    # peft and imported are of any kind: tests/method/test_peft_types.py, test_adapters_in.py
    assert {name for name, cls in layer_side.items() if not cls.runs_alone()} == SHARING | {"imported", "peft"}
    assert {"adamix", "finetune", "prefix_tuning"} <= layer_side.keys() - SHARING


STOPPING = """
import sys
from dataclasses import dataclass

import torch
from torch import nn

from harness.method import Method, Paper


class Stopping(Method):
    name = "stopping"
    paper = Paper("nobody-2026", "https://example.org")

    @dataclass(frozen=True, kw_only=True)
    class HP:
        pass

    def __init__(self, hp, backbone):
        super().__init__(hp, backbone)
        self.weight = nn.Parameter(torch.zeros(1))

    def layer_changes(self):
        sys.exit("no changes")
"""


def test_changes_that_cannot_be_had_leave_the_other_cells_alone_and_are_said(tmp_path: Path) -> None:
    (tmp_path / "stopping.py").write_text(STOPPING)
    (tmp_path / "suite.yaml").write_text(SUITE)
    said: list[str] = []
    made: list[Any] = []
    overrides = Overrides(settings={"recipe.steps": 2, "recipe.eval_every": 2})
    plan = make_plan(tmp_path / "suite.yaml", overrides, tmp_path / "results", None, [str(tmp_path)])
    (bundle,) = pack(plan, plan.pending())
    assert len(bundle.cells) == 2
    train_bundle(bundle, BundleListener(lambda *_: None, made.append, said.append))
    assert {product.result.cell.method: product.result.status for product in made}["ia3"] == "done"
    assert any("a bundle of 2 cells broke off (no changes)" in line for line in said)


def test_vectors_without_rows_are_dealt_to_no_cell() -> None:
    """An expert may get as many of all cells' tokens as there are rows; dealt out in order they would be others'."""
    module = nn.Linear(4, 4)
    layers = SharedLayers(
        [[LayerChange(module, after=lambda output: output + 1)], [LayerChange(module, after=torch.neg)]]
    )
    layers.order(np.array([0, 0, 1]))
    with layers.attached():
        assert module(torch.ones(3, 5, 4)).shape == (3, 5, 4)
        with pytest.raises(ValueError, match="3 vectors without rows"):
            module(torch.ones(3, 4))
