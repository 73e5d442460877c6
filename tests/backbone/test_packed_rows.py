"""A network that trains on packed rows gives what it gives for padded ones, on every architecture that takes them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from float64 import in_float64
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from harness.backbone import packed_rows
from harness.backbone.load import load_backbone
from harness.backbone.network import Backbone
from harness.backbone.network_kinds import Pooling
from tools.network_matrix.checkpoints import ARCHITECTURES, build

TEXTS = (14, 7, 1, 6, 5, 3, 30)
"""Tokens of seven texts. The short windows of these networks are 16 positions, so one text is longer than a window."""
TARGETS = 3
OWN_ATTENTION = {"BLOOM", "Falcon", "Gemma 2", "gpt-oss", "DeBERTa-v3", "BART"}
"""Their attention is their own, or not PyTorch's: a table of distances, capped scores, sinks. BART numbers positions
itself, from the first of the sequence on."""
IN_FLOAT32 = ("Qwen3-MoE",)
"""PyTorch's grouped products, which run the experts, know no float64."""
NETWORKS = [name for name in ARCHITECTURES if name != "Gemma 4 E"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that this module has built, by name."""
    return tmp_path_factory.mktemp("networks")


def checkpoint(folder: Path, name: str) -> str:
    if not (folder / name).exists():
        build(name, folder / name)
    return str(folder / name)


@functools.cache
def loaded(path: str, precision: str) -> Backbone:
    """A network that several tests use; each leaves it as it was, or the trace that it leaves is a fault."""
    backbone = load_backbone(path, precision)
    own = vars(backbone)
    again = backbone._recomputed_within
    # PyTorch leaves such a mode for the backward pass, where layers may be computed again

    def recomputed_within() -> tuple[Any, Any]:
        first, second = again()
        return first, _both(in_float64(), second)

    own["_recomputed_within"] = recomputed_within
    backbone.model.requires_grad_(True)
    return backbone


@pytest.fixture(params=[name for name in NETWORKS if name not in OWN_ATTENTION])
def network(request: pytest.FixtureRequest, folder: Path) -> Iterator[Backbone]:
    """A tiny network of each architecture that takes packed rows, with gradients for its own weights."""
    name = request.param
    backbone = loaded(checkpoint(folder, name), "float32" if name in IN_FLOAT32 else "float64")
    with in_float64():
        yield backbone
    backbone.recomputes = False


@contextlib.contextmanager
def _both(outer: Any, inner: Any) -> Iterator[None]:
    with outer, inner:
        yield


@pytest.fixture(autouse=True)
def several_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attention pad these few rows in six groups; by default they would be too short for that."""
    monkeypatch.setattr(packed_rows, "GROUP_PAIRS", 0)


def test_rows_of_like_lengths_are_padded_together_where_it_saves_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packed_rows._group_sizes(sorted(TEXTS, reverse=True)) == [1, 1, 2, 1, 1, 1]
    monkeypatch.setattr(packed_rows, "GROUP_PAIRS", 4_000)
    assert packed_rows._group_sizes(sorted(TEXTS, reverse=True)) == [1, 6]
    assert packed_rows._group_sizes([100, 90, 76, 75, 60, 57, 56, 10]) == [3, 3, 2]
    assert packed_rows._group_sizes([9] * 4) == [4]


class Rows:
    """Rows of several lengths, with answers of several lengths."""

    def __init__(self, backbone: Backbone) -> None:
        torch.manual_seed(0)
        self.backbone = backbone
        ids = torch.randint(3, 200, (len(TEXTS), max(TEXTS)))
        self.texts = backbone.token_vectors(ids).requires_grad_()
        self.mask = (torch.arange(max(TEXTS))[None] < torch.tensor(TEXTS)[:, None]).long()
        self.labels = torch.randint(3, 200, (len(TEXTS), TARGETS))
        self.labels[1, 2] = self.labels[6, 1] = self.labels[6, 2] = -100

    def losses(self, packed: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [N, T], and gradients of the texts and of every weight by name."""
        with self.backbone.packed(packed):
            if self.backbone.writes_text:
                losses = self.backbone.token_losses(self.texts, self.mask, self.labels)
            else:
                losses = self.backbone.text_states(self.texts, self.mask).sin()
            losses.sum().backward()
        inputs = {"": self.texts, **dict(self.backbone.model.named_parameters())}
        gradients = {name: tensor.grad for name, tensor in inputs.items() if tensor.grad is not None}
        for tensor in inputs.values():
            tensor.grad = None
        return losses.detach(), gradients


def close(one: Tensor, other: Tensor) -> None:
    tolerance = 1e-10 if one.dtype == torch.float64 else 2e-4
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_the_architectures_that_take_packed_rows_are_those_with_the_interface(folder: Path) -> None:
    takes = {name for name in NETWORKS if load_backbone(checkpoint(folder, name), "float32").takes_packed_rows}
    assert takes == set(NETWORKS) - OWN_ATTENTION


@pytest.mark.parametrize("recomputes", [False, True])
def test_losses_and_all_gradients_are_those_of_padded_rows(network: Backbone, recomputes: bool) -> None:
    rows = Rows(network)
    expected, gradients = rows.losses(packed=False)
    assert expected.isfinite().all()
    if recomputes:
        network.recompute_layers()
    losses, packed_gradients = rows.losses(packed=True)
    close(losses, expected)
    assert gradients.keys() == packed_gradients.keys()
    for name, gradient in gradients.items():
        close(packed_gradients[name], gradient)
    assert gradients[""].abs().max() > 1e-4


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_states_are_those_of_padded_rows(network: Backbone, pooling: Pooling) -> None:
    if not network.kind.has_text_states:
        pytest.skip("an encoder-decoder has no state of the whole text")
    rows = Rows(network)
    prompts = torch.tensor([2, 2, 0, 3, 1, 0, 5])
    expected = network.text_states(rows.texts, rows.mask, pooling, prompts)
    with network.packed(True):
        close(network.text_states(rows.texts, rows.mask, pooling, prompts), expected)


def test_layers_see_no_padding(network: Backbone) -> None:
    rows = Rows(network)
    seen: list[Tensor] = []
    if network.is_encoder_decoder:
        stack = network.model.get_encoder()
    else:
        stack = network.model.get_decoder() if network.writes_text else network.model
    linear = [module for module in stack.modules() if isinstance(module, (nn.Linear, Conv1D))]
    handles = [module.register_forward_pre_hook(lambda module, args: seen.append(args[0])) for module in linear]
    rows.losses(packed=True)
    for handle in handles:
        handle.remove()
    targets = int((rows.labels != -100)[:, 1:].sum()) if network.kind.name == "decoder" else 0
    assert {states.shape[:-1].numel() for states in seen} == {sum(TEXTS) + targets}


def test_packing_leaves_no_trace(network: Backbone) -> None:
    before = {name: dict(vars(module)) for name, module in network.model.named_modules()}
    names = [module.config._attn_implementation for module in network.model.modules() if hasattr(module, "config")]
    rows = Rows(network)
    network.recompute_layers()
    rows.losses(packed=True)
    assert names == [m.config._attn_implementation for m in network.model.modules() if hasattr(m, "config")]
    assert not any("packed" in name for name in names)
    after = {name: dict(vars(module)) for name, module in network.model.named_modules()}
    assert {name: set(values) for name, values in after.items()} == {n: set(v) for n, v in before.items()}


def test_an_attention_that_takes_another_way_is_not_trusted(folder: Path) -> None:
    """The rows of one sequence would see each other there, and nothing else would tell."""
    network = load_backbone(checkpoint(folder, "BLOOM"), "float32")
    rows = Rows(network)
    with network.packed(True), pytest.raises(RuntimeError, match="0 of 2 attentions kept the rows apart"):
        network.token_losses(rows.texts, rows.mask, rows.labels)


def test_dropout_in_attention_keeps_its_share(folder: Path) -> None:
    """With dropout the losses are random; their mean over many draws is that of padded rows."""
    shape: dict[str, Any] = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 256, "n_positions": 64}
    shares = {"attn_pdrop": 0.5, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    config = AutoConfig.for_model("gpt2", **shape, **shares, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    backbone = Backbone("gpt2", AutoModelForCausalLM.from_config(config).train(), None, None, "float32")
    rows = Rows(backbone)
    means = []
    for packed in (False, True):
        with backbone.packed(packed), torch.no_grad():
            draws = torch.stack([backbone.token_losses(rows.texts, rows.mask, rows.labels) for _ in range(300)])
        assert draws.std(0)[0].min() > 0
        means.append(draws.mean(0))
    torch.testing.assert_close(means[0], means[1], rtol=0.01, atol=0.01)


def llama(folder: Path) -> Backbone:
    return load_backbone(checkpoint(folder, "Llama 3"), "float32")


def test_a_network_that_mixes_positions_outside_of_attention_is_found_out(folder: Path) -> None:
    assert llama(folder).takes_packed_rows
    mixing, failing = llama(folder), llama(folder)
    mixing.model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: output + output.roll(1, 1))
    assert not mixing.takes_packed_rows
    first = failing.model.model.layers[0].mlp
    first.register_forward_pre_hook(lambda module, args: args[0].view(2, -1))  # wants the rows of the trial
    assert not failing.takes_packed_rows
    assert all(not module.training for module in failing.model.modules())


def test_what_a_head_reads_behind_a_short_answer_stays_in_its_row(folder: Path) -> None:
    """The loss there is 0, but 0 times the NaN of another cell's row would be NaN in a change of the head."""
    backbone = llama(folder)
    rows = Rows(backbone)
    texts = rows.texts.detach().clone()
    texts[2] = float("nan")
    read: list[Tensor] = []
    with (
        backbone.packed(True),
        backbone.model.get_output_embeddings().register_forward_hook(lambda module, args, output: read.append(args[0])),
    ):
        backbone.token_losses(texts, rows.mask, rows.labels)
    states = read[0].view(len(TEXTS), TARGETS, -1)  # row 1, in front of the NaN, has two targets
    assert states[2].isnan().all()
    assert states[[0, 1, 3, 4, 5, 6]].isfinite().all()
