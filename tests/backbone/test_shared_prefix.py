"""A decoder that reads prompts apart from texts gives what it gives for both in one pass, on every architecture."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from float64 import in_float64
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from harness.backbone.load import Placement, load_backbone
from harness.backbone.network import Backbone
from harness.backbone.shared_prefix import Prefixes, RowPrefixes
from tools.network_matrix.checkpoints import ARCHITECTURES, build

LENGTHS = (5, 9, 3)
"""Vectors of three prompts."""
TEXTS = (14, 7, 2, 6, 5, 3, 30)
"""Tokens of seven texts. The short windows of these networks are 16 positions, so prompts pass out of them."""
OWNERS = (0, 1, 2, 0, -1, 1, 2)
"""Which prompt stands in front of each text; none in front of one."""
TARGETS = 3
IN_FLOAT32 = ("Gemma 2", "BLOOM", "gpt-oss", "Qwen3-MoE")
"""The attention of three puts float64's smallest number into a float32, which is minus infinity: NaN, in either way.
PyTorch's grouped products, which run the experts, know no float64."""
DECODERS = [name for name, found in ARCHITECTURES.items() if found.kind == "decoder" and name != "Gemma 4 E"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that this module has built, by name."""
    return tmp_path_factory.mktemp("networks")


@functools.cache
def loaded(path: str, precision: str) -> Backbone:
    """A network that several tests use; each leaves it as it was, or the trace that it leaves is a fault."""
    backbone = load_backbone(path, precision)
    # PyTorch leaves such a mode for the backward pass, where layers may be computed again
    vars(backbone)["_recomputed_within"] = lambda: (contextlib.nullcontext(), in_float64())
    return backbone


@pytest.fixture(params=DECODERS)
def network(request: pytest.FixtureRequest, folder: Path) -> Iterator[Backbone]:
    """A tiny network of each architecture."""
    name = request.param
    if not (folder / name).exists():
        build(name, folder / name)
    backbone = loaded(str(folder / name), "float32" if name in IN_FLOAT32 else "float64")
    with in_float64():
        yield backbone
    backbone.recomputes = False


class Rows:
    """The same rows twice: with each prompt in front of its texts, and with prompts and texts apart."""

    def __init__(self, backbone: Backbone) -> None:
        torch.manual_seed(0)
        make: dict[str, Any] = {"dtype": backbone.embedding.weight.dtype}
        self.backbone = backbone
        self.prompts = [torch.randn(length, backbone.hidden, **make).requires_grad_() for length in LENGTHS]
        self.texts = backbone.token_vectors(torch.randint(3, 200, (len(TEXTS), max(TEXTS))))
        self.mask = (torch.arange(max(TEXTS))[None] < torch.tensor(TEXTS)[:, None]).long()
        self.owners = torch.tensor(OWNERS)
        self.labels = torch.randint(3, 200, (len(TEXTS), TARGETS))
        self.labels[1, 2] = self.labels[4, 1] = self.labels[4, 2] = -100

    def joined(self) -> tuple[Tensor, Tensor]:
        """[N, L, H] and [N, L] with every prompt in its rows."""
        rows = [
            torch.cat([self.prompts[owner], text[:length]]) if owner >= 0 else text[:length]
            for owner, text, length in zip(OWNERS, self.texts, TEXTS, strict=True)
        ]
        longest = max(map(len, rows))
        mask = torch.stack([(torch.arange(longest) < len(row)).long() for row in rows])
        return torch.stack([F.pad(row, (0, 0, 0, longest - len(row))) for row in rows]), mask

    def read(self, grad: bool = True) -> Prefixes:
        longest = max(LENGTHS)
        mask = torch.stack([(torch.arange(longest) >= longest - length).long() for length in LENGTHS])
        padded = torch.stack([F.pad(prompt, (0, 0, longest - len(prompt), 0)) for prompt in self.prompts])
        return self.backbone.read_prompts(padded, mask, grad)

    def apart(self, prefixes: Prefixes, chosen: slice = slice(None)) -> tuple[Tensor, Tensor, RowPrefixes]:
        return self.texts[chosen], self.mask[chosen], RowPrefixes(prefixes, self.owners[chosen])


def close(one: Tensor, other: Tensor) -> None:
    tolerance = 1e-10 if one.dtype == torch.float64 else 2e-4
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_every_architecture_of_the_matrix_with_keys_and_values_shares(network: Backbone) -> None:
    assert network.shares_prompts(64)


@pytest.mark.parametrize("recomputes", [False, True])
def test_losses_and_gradients_are_those_of_one_pass(network: Backbone, recomputes: bool) -> None:
    rows = Rows(network)
    embeds, mask = rows.joined()
    expected = network.token_losses(embeds, mask, rows.labels)
    gradients = torch.autograd.grad(expected.sum(), rows.prompts)
    assert expected.isfinite().all()
    if recomputes:
        network.recompute_layers()
    prefixes = rows.read()
    losses = []
    for chosen in (slice(0, 4), slice(4, 7)):  # gradients of two micro-batches add up in the keys and values
        texts, text_mask, own = rows.apart(prefixes, chosen)
        losses.append(network.token_losses(texts, text_mask, rows.labels[chosen], own))
        losses[-1].sum().backward()
    prefixes.backward()
    close(torch.cat(losses), expected)
    for prompt, gradient in zip(rows.prompts, gradients, strict=True):
        assert prompt.grad is not None
        assert gradient.abs().max() > 1e-4
        close(prompt.grad, gradient)


def test_answers_and_states_are_those_of_one_pass(network: Backbone) -> None:
    rows = Rows(network)
    with torch.no_grad():
        embeds, mask = rows.joined()
        texts, text_mask, own = rows.apart(rows.read(grad=False))
        assert torch.equal(network.decode(texts, text_mask, 12, own), network.decode(embeds, mask, 12))
        close(network.text_states(texts, text_mask, prefixes=own), network.text_states(embeds, mask))


def test_answers_are_those_of_generate(network: Backbone) -> None:
    rows = Rows(network)
    config = network.model.generation_config
    config.eos_token_id, config.pad_token_id = network.eos_id, network.pad_id
    with torch.no_grad():
        texts, mask, own = rows.apart(rows.read(grad=False))
        ours = network.decode(texts, mask, 8, own)
        for row, (owner, length) in enumerate(zip(OWNERS, TEXTS, strict=True)):
            front = [rows.prompts[owner]] if owner >= 0 else []
            embeds = torch.cat([*front, rows.texts[row, :length]])[None]
            written = network.model.generate(
                inputs_embeds=embeds, attention_mask=embeds.new_ones(embeds.shape[:2]).long(), max_new_tokens=8,
                do_sample=False,
            )[0]  # fmt: skip
            assert ours[row, : len(written)].tolist() == written.tolist()


def test_reading_leaves_no_trace(network: Backbone) -> None:
    before = {name: dict(vars(module)) for name, module in network.model.named_modules()}
    rows = Rows(network)
    network.recompute_layers()
    network.token_losses(*rows.apart(rows.read())[:2], rows.labels, rows.apart(rows.read())[2]).sum().backward()
    head = network.model.get_output_embeddings()
    assert not head._forward_pre_hooks
    after = {name: dict(vars(module)) for name, module in network.model.named_modules()}
    assert {name: set(values) for name, values in after.items()} == {n: set(v) for n, v in before.items()}


def test_bfloat16_adds_gradients_up_in_float32(folder: Path) -> None:
    """32 rows whose gradients are summed one by one: with bfloat16's 8 bits the sum would be off by 1 % and more."""
    if not (folder / "Llama 3").exists():
        build("Llama 3", folder / "Llama 3")
    network = load_backbone(str(folder / "Llama 3"), "bfloat16")
    rows = Rows(network)
    prefixes = rows.read()
    assert {tensor.dtype for tensor in (*prefixes.keys, *prefixes.values)} == {torch.float32}
    texts, mask, own = rows.apart(prefixes, slice(0, 1))
    for _ in range(32):
        network.token_losses(texts, mask, rows.labels[:1], own).sum().backward()
    many = prefixes.keys[0].grad
    once = rows.read()
    network.token_losses(texts, mask, rows.labels[:1], RowPrefixes(once, rows.owners[:1])).sum().backward()
    assert many is not None
    assert once.keys[0].grad is not None
    torch.testing.assert_close(many, 32 * once.keys[0].grad, rtol=1e-4, atol=1e-6)


TINY: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 128,
                        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip


def shares(model_type: str, positions: int = 64, training: bool = False, **settings: Any) -> bool:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    backbone = Backbone(model_type, model.train(training), None, None, "float32")
    return backbone.shares_prompts(positions)


def test_networks_without_keys_and_values_read_prompts_with_their_rows() -> None:
    small: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128}
    assert not shares("mamba", **small, state_size=8)
    hybrid = {**TINY, "layer_types": ["linear_attention", "full_attention"], "head_dim": 16,
              "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
              "linear_value_head_dim": 16}  # fmt: skip
    assert not shares("qwen3_5_text", **hybrid)


def test_rotary_positions_that_depend_on_the_length_share_below_it_only() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0, "original_max_position_embeddings": 100}
    assert shares("llama", 100, **TINY, rope_parameters=rope)
    assert not shares("llama", 101, **TINY, rope_parameters=rope)
    assert shares("llama", 101, **TINY, rope_parameters={**rope, "rope_type": "linear"})


def test_dropout_in_the_network_keeps_prompts_with_their_rows_in_training_only() -> None:
    small: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 256}
    assert not shares("gpt2", training=True, **small)
    assert shares("gpt2", training=False, **small)
    off: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"), 0.0)
    assert shares("gpt2", training=True, **small, **off)
    assert shares("llama", training=True, **TINY)
    assert not shares("llama", training=True, **TINY, attention_dropout=0.1)


@pytest.mark.parametrize("how", ["nf4", "int8", "device_map"])
def test_packed_and_spread_weights_share_prompts_too(folder: Path, how: str) -> None:
    if not (folder / "Llama 3").exists():
        build("Llama 3", folder / "Llama 3")
    placement = Placement(device_map="auto") if how == "device_map" else Placement()
    scheme: Any = "none" if how == "device_map" else how
    network = load_backbone(
        str(folder / "Llama 3"), "bfloat16" if scheme != "none" else "float32", quantization=scheme, placement=placement
    )
    rows = Rows(network)
    embeds, mask = rows.joined()
    expected = network.token_losses(embeds, mask, rows.labels)
    gradients = torch.autograd.grad(expected.sum(), rows.prompts)
    prefixes = rows.read()
    losses = network.token_losses(*rows.apart(prefixes)[:2], rows.labels, rows.apart(prefixes)[2])
    losses.sum().backward()
    prefixes.backward()
    # products in bfloat16 round at 1 / 256, and add up in another order
    tolerance = 1e-4 if scheme == "none" else 0.05
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=tolerance)
    for prompt, gradient in zip(rows.prompts, gradients, strict=True):
        assert prompt.grad is not None
        assert (prompt.grad - gradient).norm() < tolerance * gradient.norm()
