"""What every network has to give, whatever its family: vectors, padding that acts on nothing, greedy decoding."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from typing_help import present

from harness.backbone.load import backbone_config, untrained_network
from harness.backbone.network import Backbone
from harness.method.method import Method
from harness.method.prompt_init import vocabulary_rows
from harness.method.registry import discover
from harness.train.tiny_backbones import TinyTokenizer

REGISTRY = discover()
VOCABULARY, WIDTH = 128, 32
IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
GEMMA = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "sliding_window": 5}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": {"hidden_size": WIDTH, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 64, "word_embed_proj_dim": WIDTH},
    "bloom": {"hidden_size": WIDTH, "n_layer": 2, "n_head": 4},
    "gemma": GEMMA,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA | {"layer_types": ["sliding_attention", "full_attention"]},
    "bart": {"d_model": WIDTH, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_layers": 2, "decoder_layers": 2,
             "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64,
             "scale_embedding": True, "decoder_start_token_id": 1, "forced_eos_token_id": None},
}  # fmt: skip
SCALED = {"gemma": WIDTH**0.5, "gemma2": WIDTH**0.5, "gemma3_text": WIDTH**0.5, "bart": WIDTH**0.5}
LENGTHS = [12, 1, 5, 9]


@functools.cache
def network(kind: str) -> Backbone:
    """A random network of two layers, wide enough apart that positions and padding would show."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = untrained_network({"model_type": kind, **IDS, **NETWORKS[kind]})
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return Backbone(f"tiny-{kind}", model.eval(), TinyTokenizer(), None, "float32")


def rows(backbone: Backbone) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors [4, 12, H] of random tokens, a mask of LENGTHS, labels [4, 3]."""
    generator = torch.Generator().manual_seed(1)
    vectors = backbone.token_vectors(torch.randint(3, VOCABULARY, (4, 12), generator=generator))
    mask = (torch.arange(12)[None] < torch.tensor(LENGTHS)[:, None]).long()
    labels = torch.tensor([[5, 6, 1], [7, 1, -100], [8, 9, 1], [1, -100, -100]])
    return vectors, mask, labels


@pytest.mark.parametrize("kind", NETWORKS)
def test_token_vectors_are_what_the_network_reads_for_ids(kind: str) -> None:
    backbone = network(kind)
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))
    answer = {"decoder_input_ids": ids[:, :2]} if backbone.is_encoder_decoder else {}
    with torch.no_grad():
        read = backbone.model(input_ids=ids, **answer).logits
        given = backbone.model(inputs_embeds=backbone.token_vectors(ids), **answer).logits
    assert torch.equal(read, given)
    ratio = backbone.token_vectors(ids) / backbone.embedding.weight[ids]
    torch.testing.assert_close(ratio, torch.full_like(ratio, SCALED.get(kind, 1.0)))


@pytest.mark.parametrize("kind", NETWORKS)
def test_starting_prompts_are_vectors_of_tokens(kind: str) -> None:
    backbone = network(kind)
    tokens = backbone.token_vectors(torch.arange(VOCABULARY))
    for rule in ("top5000", "first_m", "text_repeat", "sample_vocab", "ids_100_to_599", "ids_100_to_999"):
        found = vocabulary_rows(backbone, 9, rule)
        assert all((tokens == row).all(1).any() for row in found), rule
    assert torch.equal(vocabulary_rows(backbone, 9, "first_m"), tokens[:9])


def made(name: str, backbone: Backbone, **hp: Any) -> Any:
    cls = REGISTRY[name].cls
    assert cls is not None
    assert issubclass(cls, Method)
    torch.manual_seed(0)
    return cls(cls.HP(**hp), backbone)


@pytest.mark.parametrize("name", ["tpt", "attempt"])
def test_padding_that_methods_read_is_what_the_network_reads_for_it(name: str) -> None:
    backbone = network("gemma")
    method = made(name, backbone, prompt_length=4, as_released=True)
    assert torch.equal(method.pad, backbone.token_vectors(torch.tensor(0)))


def test_a_network_that_scales_its_embedding_gets_the_prompts_of_one_that_holds_it_scaled() -> None:
    scaled, plain = network("gemma"), network("gpt2")
    held = torch.nn.Embedding.from_pretrained(scaled.token_vectors(torch.arange(VOCABULARY)))
    for name in ("prompt_tuning", "dept", "ept", "residual_prompt_tuning", "mpt", "tpt", "attempt"):
        expected = made(name, scaled).state_dict()
        with patch.object(plain.model, "get_input_embeddings", lambda: held):
            found = made(name, plain).state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name


@pytest.mark.parametrize("kind", NETWORKS)
def test_padding_acts_on_no_loss_and_no_gradient_in_training(kind: str) -> None:
    """With dropout on, though it drops nothing: the way that attention takes in training has its own code on a CPU."""
    backbone = network(kind)
    vectors, mask, labels = rows(backbone)
    vectors.requires_grad_()
    backbone.model.train()
    try:
        with patch("harness.backbone.fast_functions.keep_mask", lambda like, p: torch.ones_like(like)):
            together = backbone.token_losses(vectors, mask, labels)
        together.sum().backward()
    finally:
        backbone.model.eval()
    assert not present(vectors.grad)[mask == 0].any()
    for row, length in enumerate(LENGTHS):
        leaf = vectors[row : row + 1, :length].detach().requires_grad_()
        alone = backbone.token_losses(leaf, mask[row : row + 1, :length], labels[row : row + 1])
        alone.sum().backward()
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(present(vectors.grad)[row : row + 1, :length], leaf.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_greedy_decoding_equals_generate(kind: str) -> None:
    backbone = network(kind)
    vectors, mask, _ = rows(backbone)
    ours = backbone.decode(vectors, mask, 5)
    for row, length in enumerate(LENGTHS):
        theirs = backbone.model.generate(
            inputs_embeds=vectors[row : row + 1, :length], attention_mask=mask[row : row + 1, :length],
            max_new_tokens=5, do_sample=False, num_beams=1, pad_token_id=0, eos_token_id=1,
        )[0].tolist()  # fmt: skip
        theirs = theirs[1:] if backbone.is_encoder_decoder else theirs
        got = ours[row].tolist()
        assert got[: len(theirs)] == theirs
        assert not any(got[len(theirs) :])


def test_a_folder_is_itself_whatever_lies_beside_it_and_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the user's beside the folder is no known name, and a folder called like a known name is the folder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("mine", "t5-base"):
        network("gpt2").config.save_pretrained(tmp_path / folder)
    (tmp_path / "mine.json").write_text("{}")
    for name in (str(tmp_path / "mine"), "mine", "t5-base"):
        assert backbone_config(name)["model_type"] == "gpt2", name
