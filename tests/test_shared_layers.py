"""Layer-side cells in one forward pass: nothing changes but the time it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_fused import make_cell, tensors, trainer
from torch import Tensor, nn

from harness.blame import CellError
from harness.bundle import Listener, execute
from harness.layer_change import LayerChange
from harness.layer_parts import TrainedNorms
from harness.method import Method, discover
from harness.packing import pack
from harness.planning import make_plan
from harness.schema import Cell
from harness.shared_layers import SharedLayers
from harness.suite import Overrides
from harness.tiny import tiny_backbone
from harness.train import BundleTrainer

SPECS = [
    ("lora", {"rank": 4, "dropout": 0.0}, 0.003, 1, 4),
    ("lora", {"rank": 2, "dropout": 0.0, "biases": True}, 0.01, 2, 3),
    ("dora", {"rank": 3, "dropout": 0.0}, 0.003, 3, 5),
    ("vera", {"rank": 8}, 0.01, 4, 4),
    ("ia3", {}, 0.01, 5, 2),
    ("bitfit", {}, 0.01, 6, 4),
    ("adapter", {"reduction": 4}, 0.003, 7, 3),
    ("compacter", {"reduction": 4}, 0.01, 8, 4),
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


def test_a_trajectory_is_the_same_alone_and_together() -> None:
    together = run(trainer(cells(20), max_tokens=100))
    for index, cell in enumerate(cells(20)):
        alone = run(trainer([cell], max_tokens=10_000))
        first, second = together.states[index].outcome, alone.states[0].outcome
        assert [(item.step, item.metrics) for item in first.history] == [
            (item.step, item.metrics) for item in second.history
        ]
        assert first.answers == second.answers
        assert [item.train_loss for item in first.history] == pytest.approx(
            [item.train_loss for item in second.history], rel=1e-9
        )
        fused, separate = tensors(together, index), tensors(alone, 0)
        for name, value in separate.items():
            torch.testing.assert_close(fused[name], value, rtol=1e-7, atol=1e-9, msg=f"{cell.method}.{name}")


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
    seen: dict[str, list[int]] = {"wi": [], "q": []}
    layer = made.backbone.model.encoder.block[0].layer
    for name, module in (("wi", layer[1].DenseReluDense.wi), ("q", layer[0].SelfAttention.q)):
        module.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(len(args[0])))
    with made.fused.attached():
        made._accumulate(made._draw())
    num_rows = sum(batch_size for *_, batch_size in SPECS)
    assert sum(seen["wi"]) == num_rows
    assert len(seen["wi"]) < len(SPECS)


class Raises(Method):
    name = "raises"

    def layer_changes(self) -> list[LayerChange]:
        def broken(states: Tensor) -> Tensor:
            raise ArithmeticError("made up")

        return [LayerChange(self.place, after=broken)]

    place: nn.Module


def test_a_change_that_raises_takes_only_its_own_cell_out() -> None:
    made = trainer(cells(3)[:2], max_tokens=100)
    broken = Raises(None, made.backbone)
    broken.place = made.backbone.model.encoder.block[0].layer[0].SelfAttention.o
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
        linear(torch.zeros(3, 2))
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
    linear.forward = lambda states: plain(states) + 1  # type: ignore[method-assign]
    put = linear.forward
    shared = SharedLayers([[LayerChange(linear, after=lambda states: 2 * states)], []])
    rows = torch.ones(2, 2)
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
        found = norm(torch.ones(2, 2))
    assert found.tolist() == [[8.0, 8.0], [1.0, 1.0]]
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
    assert {name for name, cls in layer_side.items() if not cls.runs_alone()} == SHARING
    assert {"adamix", "adapter_drop", "finetune"} <= layer_side.keys() - SHARING


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
    said, made = [], []
    overrides = Overrides(settings={"recipe.steps": 2, "recipe.eval_every": 2})
    plan = make_plan(tmp_path / "suite.yaml", overrides, tmp_path / "results", None, [str(tmp_path)])
    (bundle,) = pack(plan, plan.pending())
    assert len(bundle.cells) == 2
    execute(bundle, Listener(lambda *_: None, made.append, said.append))
    assert {product.result.cell.method: product.result.status for product in made}["ia3"] == "done"
    assert any("a bundle of 2 cells broke off (no changes)" in line for line in said)
