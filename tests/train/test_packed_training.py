"""Cells train on packed rows as on padded ones, alone and in bundles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from float64 import in_float64
from test_shared_prompts import LENGTH, Spec, made_up_rows, make_cell, make_method
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from harness.backbone.load import load_backbone
from harness.backbone.network import Backbone
from harness.data.tokenization import Encoded
from harness.method.method import Method, Rule
from harness.method.registry import discover
from harness.train.batch_input import BatchInput, Rows
from harness.train.evaluate import answer_split
from harness.train.loop import BundleTrainer
from harness.train.tiny_backbones import tiny_backbone, tiny_rows
from tools.network_matrix.checkpoints import build

SPECS: list[Spec] = [
    ("lora", {"rank": 4, "dropout": 0.0}),
    ("lora", {"rank": 4, "dropout": 0.0}),
    ("lora", {"rank": 2, "dropout": 0.0}),
    ("bitfit", {}),
    ("adapter", {"reduction": 4}),
    ("ia3", {}),
    ("dora", {"dropout": 0.0}),
]
ALONE: list[Spec] = [SPECS[0], ("finetune", {}), ("adamix", {"experts": 1}), ("prompt_tuning", {"prompt_length": 3})]


@pytest.fixture(scope="module", params=["Llama 3", "Qwen3", "Gemma 3", "GPT-2", "T5", "BERT", "RoBERTa"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("network")
    build(request.param, folder)
    return load_backbone(str(folder), "float64")


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    with in_float64():
        yield


def layers_of_texts(network: Backbone) -> Iterator[nn.Module]:
    """The modules that texts pass."""
    model = network.model
    if network.is_encoder_decoder:
        return iter(model.get_encoder().modules())
    return iter((model.get_decoder() if network.writes_text else model).modules())


def trained(specs: list[Spec], backbone: Backbone, packs: bool, **recipe: Any) -> BundleTrainer:
    """A bundle after 4 steps on made-up rows, on packed ones or on padded ones."""
    # the first of the warm-up's moves nothing, so three do, each from the tensors and moments of those before
    cells = [make_cell(*spec, seed=seed, steps=4, **recipe) for seed, spec in enumerate(specs)]
    data, encoded = made_up_rows(cells[0], backbone)
    methods = [make_method(cell, backbone) for cell in cells]
    made = BundleTrainer(cells, methods, data, dict.fromkeys(("train", "dev", "test"), encoded), backbone, 120)
    with pytest.MonkeyPatch.context() as patch, made.fused.attached():
        if not packs:
            patch.setattr(BatchInput, "packs", False)
        assert made.fused.packs == packs
        made.run(lambda *_: None, lambda _: None)
    return made


@pytest.mark.parametrize("specs", [SPECS, SPECS[:2], *([spec] for spec in ALONE)], ids=lambda specs: specs[-1][0])
@pytest.mark.parametrize("recipe", [{}, {"head": "linear"}], ids=["text", "head"])
def test_four_steps_end_where_padded_rows_end(network: Backbone, specs: list[Spec], recipe: dict[str, Any]) -> None:
    if not (network.kind.has_text_states if recipe else network.writes_text):
        pytest.skip("this kind of network has no such output")
    if network.takes_prefixes and specs[0][0] == "prompt_tuning":
        pytest.skip("a decoder reads prompts apart, and the rows behind them stay padded")
    if "gpt2" in network.config.model_type:  # its keys and values are no modules of their own, and not linear
        specs = [spec for spec in specs if spec[0] != "ia3"]
    seen: list[torch.Size] = []
    linear = next(m for m in layers_of_texts(network) if isinstance(m, nn.Linear | Conv1D))
    with linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape)):
        one = trained(specs, network, True, **recipe)
    assert any(shape[0] == 1 for shape in seen)
    other = trained(specs, network, False, **recipe)
    for ours, theirs in zip(one.states, other.states, strict=True):
        assert ours.outcome.failure is None
        expected: dict[str, Tensor] = theirs.outcome.method.state_dict()
        for name, tensor in ours.outcome.method.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-8)
        assert ours.outcome.answers == theirs.outcome.answers


def test_packed_rows_have_no_padding_in_their_accounts(network: Backbone) -> None:
    recipe = {} if network.writes_text else {"head": "linear"}
    packed, padded = (trained(SPECS[:1], network, packs, **recipe).states[0].outcome.work for packs in (True, False))
    assert packed.padding == 0 < padded.padding
    assert (packed.source_positions, packed.target_tokens) == (padded.source_positions, padded.target_tokens)


@pytest.mark.parametrize("lengths", [(1, 2), (2, 2), (1, 1), (3, 4)])
def test_as_many_positions_as_heads_are_told_apart(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    """Gemma 3 norms queries as [1, heads, positions, size], with 4 heads here and 2 of keys."""
    build("Gemma 3", tmp_path)
    backbone = load_backbone(str(tmp_path), "float64")
    specs: list[Spec] = [("adapter", {"reduction": 4}), ("adapter", {"reduction": 2})]
    methods = [make_method(make_cell(*spec, seed=i, steps=1), backbone) for i, spec in enumerate(specs)]
    encoded = tiny_rows(list(lengths), backbone)
    encoded = Encoded(encoded.source_ids, encoded.source_offsets, np.array([3, 4]), np.arange(3))
    fused = BatchInput(methods, backbone, LENGTH)
    found = []
    for packed in (True, False):
        fused.refresh(grad=False, cells=[0, 1])
        with torch.no_grad(), fused.attached(), backbone.packed(packed):
            embeds, mask, rows = fused.build(encoded, Rows(np.array([0, 1]), np.array([0, 1])))
            found.append(backbone.token_losses(embeds, mask, torch.as_tensor(encoded.targets(rows.rows))))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_a_method_that_does_not_say_so_gets_padded_rows(network: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [make_cell(*SPECS[0], seed=0, steps=1)]
    method = make_method(cells[0], network)
    assert method.takes_packed_rows()
    monkeypatch.setattr(type(method), "is_positionwise", False)
    assert not method.takes_packed_rows()


def test_answers_are_written_from_padded_rows(network: Backbone) -> None:
    """Packing is for training: a cache of keys and values has a row for each text."""
    made = trained(SPECS[:1], network, True, **({} if network.writes_text else {"head": "linear"}))
    encoded = made.encoded["dev"]
    with made.fused.attached():
        answers = answer_split(made.fused, [0], encoded, made.data.task, 120)
    assert answers[0] == made.states[0].outcome.answers["dev"]


def test_methods_with_a_loss_of_their_own_see_rows_unless_they_say_otherwise() -> None:
    """MPT hooks a decoder's last norm in its loss, and takes the last positions of each row there."""
    own = {
        name for name, found in discover().items() if issubclass(found.cls or Rule, Method) and has_own_loss(found.cls)
    }
    assert {"mpt", "hyperformer", "hyperdecoder", "adamix"} <= own
    for name in own - {"adamix"}:
        assert not discover()[name].cls.is_positionwise, name  # type: ignore[union-attr]
    backbone = tiny_backbone("decoder")
    cls: Any = discover()["mpt"].cls
    assert not cls(cls.HP(), backbone).takes_packed_rows()


def has_own_loss(cls: Any) -> bool:
    return cls.token_losses is not Method.token_losses
