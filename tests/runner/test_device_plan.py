"""What a device holds: the estimate against measured peaks, and the command that shows it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.memory import evaluation, peak_bytes, random_backbone, training_step
from harness.backbone.flops import DEVICES, peak_flops
from harness.backbone.load import backbone_config, meta_backbone
from harness.backbone.memory_estimate import evaluation_bytes, shapes_only_backbone, training_bytes
from harness.backbone.quantization import weight_bytes
from harness.cli.commands import app
from harness.errors import UserError
from harness.runner.device_fit import LENGTH, describe_device, find_device, full_tuning, memory_need

TOKENS = 4 * LENGTH
# T5-small and a Llama of its size, shallow; dropout is off, since a CPU draws other masks than a GPU
SMALL = {
    "t5": {**backbone_config("t5-small"), "num_layers": 2, "num_decoder_layers": 2, "dropout_rate": 0.0},
    "llama": {**backbone_config("llama-2-7b"), "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
              "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 2_000},
}  # fmt: skip


@pytest.mark.parametrize("kind", list(SMALL))
@pytest.mark.parametrize("storage", ["none", "nf4"])
def test_the_estimate_of_a_step_is_what_a_profiler_sees(kind: str, storage: Any) -> None:
    backbone = random_backbone(SMALL[kind], storage, "cpu")
    training = peak_bytes(lambda: training_step(backbone, TOKENS), "cpu")
    answering = peak_bytes(lambda: evaluation(backbone, TOKENS), "cpu")
    with shapes_only_backbone(lambda: random_like(kind, storage), storage) as shapes:
        assert training_bytes(shapes, 4, LENGTH, 3) == pytest.approx(training, rel=0.15)
        assert evaluation_bytes(shapes, 8, LENGTH) == pytest.approx(answering, rel=0.25)


def random_like(kind: str, storage: str) -> Any:
    from harness.backbone.load import untrained_network
    from harness.backbone.network import Backbone

    return Backbone("shape", untrained_network(SMALL[kind]), None, None, "float32" if storage == "none" else "bfloat16")


@pytest.mark.parametrize("storage", ["none", "bf16", "int8", "nf4"])
def test_weights_are_counted_as_they_are_stored(storage: Any) -> None:
    backbone = random_backbone(SMALL["llama"], storage, "cpu")
    stored = 0
    for weight in backbone.model.parameters():
        stored += weight.nbytes
        state = getattr(weight, "quant_state", None)
        if state is not None:
            stored += state.absmax.nbytes + state.state2.absmax.nbytes
        if getattr(weight, "SCB", None) is not None:
            stored += weight.SCB.nbytes
    assert weight_bytes(backbone_shapes(), storage) == pytest.approx(stored, rel=0.01)


def backbone_shapes() -> Any:
    from harness.backbone.load import untrained_network

    with torch.device("meta"):
        return untrained_network(SMALL["llama"])


def test_a_step_is_that_of_all_layers_and_grows_with_its_tokens() -> None:
    few, many = (memory_need("t5-small", "none", tokens=rows * LENGTH) for rows in (4, 16))
    assert few.per_token == pytest.approx(many.per_token, rel=0.1)
    with shapes_only_backbone(lambda: whole("t5-small"), "none") as backbone:
        exact = training_bytes(backbone, 16, LENGTH, 3)
    assert many.step(16 * LENGTH) - many.weights == pytest.approx(exact, rel=0.05)


def whole(name: str) -> Any:
    from harness.backbone.load import untrained_network
    from harness.backbone.network import Backbone

    return Backbone(name, untrained_network(backbone_config(name)), None, None, "float32")


def test_storage_decides_what_fits() -> None:
    found = {item["storage"]: item for item in describe_device("rtx3090", ["llama-2-7b"])["backbones"]}
    num_params = meta_backbone("llama-2-7b").num_params
    assert found["nf4"]["weights"] < found["int8"]["weights"] < found["bf16"]["weights"] < found["none"]["weights"]
    assert found["bf16"]["weights"] == pytest.approx(2 * num_params, rel=0.03)
    assert found["none"]["most_tokens"] == 0  # 27 GB of weights
    assert found["bf16"]["most_tokens"] < found["nf4"]["most_tokens"]
    assert found["nf4"]["full_tuning"] is None
    assert found["none"]["full_tuning"] > 24 * num_params


def test_the_command_needs_neither_suite_nor_download() -> None:
    done = CliRunner().invoke(app, ["devices", "a100-80gb", "--backbones", "t5-small"])
    assert done.exit_code == 0, done.output
    assert "A100 80GB: 80 GB" in done.output
    assert done.output.count("t5-small") == 4


def test_an_unknown_device_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean rtx-3090"):
        find_device("rtx-3091")
    assert find_device("H200")[1].memory_gb == 141
    assert find_device("rtx3090") == find_device("RTX 3090")


def test_peaks_are_found_by_the_drivers_names() -> None:
    assert peak_flops("NVIDIA A100-SXM4-80GB", "bfloat16") == 312e12
    assert peak_flops("NVIDIA GeForce RTX 3090", "bfloat16") == 71e12
    assert peak_flops("Tesla V100-SXM2-32GB", "bfloat16") is None
    assert all(device.memory_gb >= 16 for device in DEVICES.values())


def test_a_larger_backbone_needs_more_at_its_full_depth() -> None:
    larger, smaller = full_tuning("llama-3-8b"), full_tuning("llama-2-7b")
    assert larger.num_params > smaller.num_params
    assert all(larger.peak(shards) > smaller.peak(shards) for shards in (1, 2, 4, 8))
