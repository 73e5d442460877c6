"""What a device holds: the estimate against measured peaks, and the command that shows it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fused import Kind, make_cell, make_method, trainer
from typer.testing import CliRunner
from typing_help import present

from benchmarks.memory import evaluation, peak_bytes, random_backbone, training_step
from harness.backbone.flops import DEVICES, peak_flops
from harness.backbone.load import backbone_config, meta_backbone
from harness.backbone.memory_estimate import PromptPass, evaluation_bytes, shapes_only_backbone, training_bytes
from harness.backbone.network import Backbone
from harness.backbone.quantization import weight_bytes
from harness.cli.commands import app
from harness.errors import UserError
from harness.runner.device_fit import (
    LENGTH,
    PROMPT,
    TEXT,
    describe_device,
    find_device,
    full_tuning,
    memory_need,
)
from harness.runner.ray.gpu_share import largest_prompt_pass
from harness.train.tiny_backbones import tiny_backbone, tiny_rows

ROWS = 4
# T5-small and a Llama of its size, shallow; dropout is off, since a CPU draws other masks than a GPU
SMALL = {
    "t5": {**backbone_config("t5-small"), "num_layers": 2, "num_decoder_layers": 2, "dropout_rate": 0.0},
    "llama": {**backbone_config("llama-2-7b"), "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 2_000},
}  # fmt: skip


@pytest.mark.parametrize("kind", list(SMALL))
@pytest.mark.parametrize("storage", ["none", "nf4"])
def test_the_estimate_of_a_step_is_what_a_profiler_sees(kind: str, storage: Any) -> None:
    backbone = stored(kind, storage)
    training = peak_bytes(lambda: training_step(backbone, ROWS, prompts=0), "cpu")
    answering = peak_bytes(lambda: evaluation(backbone, 2 * ROWS, prompts=0), "cpu")
    with shapes_only_backbone(lambda: random_like(kind, storage), storage) as shapes:
        assert training_bytes(shapes, ROWS, LENGTH, 3) == pytest.approx(training, rel=0.15)
        assert evaluation_bytes(shapes, 2 * ROWS, LENGTH) == pytest.approx(answering, rel=0.25)


@pytest.mark.parametrize("prompts", [1, 10])
@pytest.mark.parametrize("storage", ["none", "nf4"])
def test_prompts_that_a_decoder_reads_apart_count_once(storage: Any, prompts: int) -> None:
    backbone = stored("llama", storage)
    training = peak_bytes(lambda: training_step(backbone, ROWS, prompts), "cpu")
    answering = peak_bytes(lambda: evaluation(backbone, 2 * ROWS, prompts), "cpu")
    read = PromptPass(prompts, PROMPT)
    with shapes_only_backbone(lambda: random_like("llama", storage), storage) as shapes:
        assert training_bytes(shapes, ROWS, TEXT, 3, prompts=read) == pytest.approx(training, rel=0.15)
        assert evaluation_bytes(shapes, 2 * ROWS, TEXT, read) == pytest.approx(answering, rel=0.25)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_the_estimate_of_a_bundle_on_a_decoder_is_what_its_step_takes(method: str) -> None:
    """Two groups of prompts, or prefixes of ten cells, in front of rows of one length."""
    length, budget, cells = 24, 256, 10
    name = {"prompt_tuning": "prompt_length", "prefix_tuning": "prefix_length"}[method]
    network = stored("llama", "none")
    members = [make_cell(method, {name: 40}, 0.3, seed, batch_size=8, steps=4) for seed in range(cells)]
    made = trainer(members, budget, network)
    rows = tiny_rows([length] * 32, network)
    made.encoded = dict.fromkeys(made.encoded, rows)
    made._train_step(0)  # moments and buffers that stay
    measured = peak_bytes(lambda: made._train_step(1), "cpu")
    methods = [state.outcome.method for state in made.states]
    prompts = present(largest_prompt_pass(methods, network, budget, length))
    assert prompts == (PromptPass(6, 40) if method == "prompt_tuning" else PromptPass(0, 40, given=cells))
    with shapes_only_backbone(lambda: random_like("llama", "none"), "none") as shapes:
        step = training_bytes(shapes, budget // length, length, 2, prompts=prompts)
    assert step == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder"])
def test_prompts_count_apart_only_where_training_reads_them_apart(kind: Kind) -> None:
    network = tiny_backbone(kind)
    specs: list[tuple[str, dict[str, object]]] = [("prompt_tuning", {"prompt_length": length}) for length in (7, 5)]
    cells = [make_cell(*spec, 0.3, seed, 8, 4) for seed, spec in enumerate([*specs, ("by_text", {})])]
    methods = [make_method(cell, network) for cell in cells]
    wanted = PromptPass(2, 7) if kind == "decoder" else None
    assert largest_prompt_pass(methods, network, 100, 20) == wanted
    assert largest_prompt_pass(methods[2:], network, 100, 20) is None, "vectors that depend on the text"


def test_a_decoder_that_reads_prompts_apart_needs_less_than_one_that_cannot(tmp_path: Path) -> None:
    """The other network drops parts of its attention in training, so there each row has its own prompt."""
    apart, within = (
        memory_need(str(write_config(tmp_path / str(share), SMALL["llama"], attention_dropout=share)), "none", ROWS)
        for share in (0.0, 0.1)
    )
    assert (apart.row, within.row) == (TEXT, LENGTH)
    assert apart.batch < 0.85 * within.batch
    # many cells may need a pass over as many positions of prompts as of rows
    assert apart.per_token > within.per_token == within.batch / (ROWS * LENGTH)
    assert apart.evaluation == within.evaluation, "nothing is dropped in an evaluation"
    with shapes_only_backbone(lambda: random_like("llama", "none"), "none") as shapes:
        assert apart.evaluation < 0.9 * evaluation_bytes(shapes, 2 * ROWS, LENGTH)


def write_config(folder: Path, config: dict[str, Any], **settings: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


@functools.cache
def stored(kind: str, storage: Any) -> Backbone:
    """A network of SMALL with random weights; a step and an evaluation leave it as it is."""
    return random_backbone(SMALL[kind], storage, "cpu")


def random_like(kind: str, storage: str) -> Any:
    from harness.backbone.load import untrained_network

    return Backbone("shape", untrained_network(SMALL[kind]), None, None, "float32" if storage == "none" else "bfloat16")


@pytest.mark.parametrize("storage", ["none", "bf16", "int8", "nf4"])
def test_weights_are_counted_as_they_are_stored(storage: Any) -> None:
    taken = 0
    for weight in stored("llama", storage).model.parameters():
        taken += weight.nbytes
        state = getattr(weight, "quant_state", None)
        if state is not None:
            taken += state.absmax.nbytes + state.state2.absmax.nbytes
        if getattr(weight, "SCB", None) is not None:
            taken += weight.SCB.nbytes
    assert weight_bytes(backbone_shapes(), storage) == pytest.approx(taken, rel=0.01)


def backbone_shapes() -> Any:
    from harness.backbone.load import untrained_network

    with torch.device("meta"):
        return untrained_network(SMALL["llama"])


def test_a_step_is_that_of_all_layers_and_grows_with_its_tokens(tmp_path: Path) -> None:
    source = str(write_config(tmp_path / "t5", SMALL["t5"]))
    few, many = (memory_need(source, "none", rows) for rows in (4, 16))
    assert few.per_token == pytest.approx(many.per_token, rel=0.1)
    with shapes_only_backbone(lambda: random_like("t5", "none"), "none") as backbone:
        exact = training_bytes(backbone, 16, LENGTH, 3)
    assert many.step - many.weights == many.batch == exact


def test_a_network_that_looks_at_the_numbers_it_draws_has_an_estimate(tmp_path: Path) -> None:
    config = backbone_config("modernbert-base")
    # attention over all positions in the first and the last, over a window in the two between
    source = str(write_config(tmp_path / "shallow", config, num_hidden_layers=4))
    found = memory_need(source, "none", rows=1)
    assert found.weights < found.step < 2 * found.weights
    assert present(found.full).num_params == meta_backbone(source).num_params


def test_storage_decides_what_fits(tmp_path: Path) -> None:
    # as many weights as Llama-2-7B in 2 layers for 32: what storage decides does not hang on depth, and time does
    config = {**backbone_config("llama-2-7b"), "num_hidden_layers": 2, "intermediate_size": 256_000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = {item["storage"]: item for item in describe_device("rtx3090", [str(tmp_path)])["backbones"]}
    num_params = meta_backbone(str(tmp_path)).num_params
    assert num_params == pytest.approx(meta_backbone("llama-2-7b").num_params, rel=0.05)
    assert found["nf4"]["weights"] < found["int8"]["weights"] < found["bf16"]["weights"] < found["none"]["weights"]
    assert found["bf16"]["weights"] == pytest.approx(2 * num_params, rel=0.03)
    assert found["none"]["most_tokens"] == 0  # 27 GB of weights
    assert found["bf16"]["most_tokens"] < found["nf4"]["most_tokens"]
    assert found["nf4"]["full_tuning"] is None
    assert found["none"]["full_tuning"] > 24 * num_params


def test_the_command_needs_neither_suite_nor_download() -> None:
    done = CliRunner().invoke(app, ["devices", "a100-80gb", "--backbones", "minilm-l6"])
    assert done.exit_code == 0, done.output
    assert "A100 80GB: 80 GB" in done.output
    assert done.output.count("minilm-l6") == 4


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


def test_a_larger_backbone_needs_more_on_any_number_of_devices(tmp_path: Path) -> None:
    """Their own widths and vocabularies at a quarter of their 32 layers, of which each takes as much as the next."""
    larger, smaller = (
        full_tuning(str(write_config(tmp_path / name, backbone_config(name), num_hidden_layers=8)))
        for name in ("llama-3-8b", "llama-2-7b")
    )
    assert larger.num_params > smaller.num_params
    assert all(larger.peak(shards) > smaller.peak(shards) for shards in (1, 2, 4, 8))
