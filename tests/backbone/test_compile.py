"""The compiled forward pass trains to the same numbers as the eager one, over micro-batches of many sizes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from test_fused import LENGTH, SPECS, make_cell, make_method

from harness.data.examples import Example, TaskData
from harness.data.record import DataRecord
from harness.data.tasks import all_tasks
from harness.train.loop import BundleTrainer
from harness.train.tiny_backbones import tiny_backbone, tiny_rows

Kind = Literal["encoder-decoder", "decoder"]
# norms square in single precision, whatever the weights have, and a compiler may add in another order
TOLERANCE = 1e-5
NUM_ROWS, STEPS, MICRO_BATCH_TOKENS = 12, 3, 120


def trained(kind: Kind, compiler: str | None = None) -> BundleTrainer:
    backbone = tiny_backbone(kind, precision="float64")
    if compiler is not None:
        backbone.compile(True)
    if compiler == "trace":  # the graph as traced, with symbolic lengths, without minutes of C++ compilation
        backbone._forward = torch.compile(backbone.model, dynamic=True, backend="aot_eager")
    cells = [make_cell(*spec, steps=STEPS) for spec in SPECS[:3]]
    rows = [Example("x", "0", ("0",))] * NUM_ROWS
    count: dict[str, Any] = dict.fromkeys(("num_train", "num_dev", "num_test"), NUM_ROWS)
    record = DataRecord(source="", revision="", split_rule="", fingerprint="", **count)
    data = TaskData(all_tasks()["micro_sentiment"], rows, rows, rows, record)
    encoded = tiny_rows(np.random.default_rng(1).integers(2, LENGTH, NUM_ROWS).tolist(), backbone)
    splits = dict.fromkeys(("train", "dev", "test"), encoded)
    methods = [make_method(cell, backbone) for cell in cells]
    trainer = BundleTrainer(cells, methods, data, splits, backbone, MICRO_BATCH_TOKENS)
    trainer.run(lambda *_: None, lambda outcome: None)
    return trainer


@pytest.mark.filterwarnings("ignore")  # the compiler warns of what its own parts do
@pytest.mark.parametrize(
    ("kind", "compiler"),
    [
        ("encoder-decoder", "trace"),
        pytest.param("encoder-decoder", "full", marks=pytest.mark.slow),
        # prompts are read apart, and rows stand behind their keys and values
        pytest.param("decoder", "full", marks=pytest.mark.slow),
    ],
)
def test_compiled_equals_eager(kind: Kind, compiler: str) -> None:
    eager, compiled = trained(kind), trained(kind, compiler)
    assert compiled.backbone.is_compiled
    for one, other in zip(eager.states, compiled.states, strict=True):
        for name, tensor in one.outcome.method.state_dict().items():
            moved = other.outcome.method.state_dict()[name]
            torch.testing.assert_close(moved, tensor, rtol=0, atol=TOLERANCE)
        losses = [[entry.train_loss for entry in state.outcome.history] for state in (one, other)]
        assert losses[0] == pytest.approx(losses[1], abs=TOLERANCE)
        assert one.outcome.answers == other.outcome.answers


def test_compiling_can_be_undone() -> None:
    """A cached backbone serves layer-side methods next, whose hooks a compiled graph would not see."""
    backbone = tiny_backbone()
    backbone.compile(True)
    assert backbone.is_compiled
    backbone.compile(False)
    assert not backbone.is_compiled
