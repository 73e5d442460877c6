"""Input-side methods: parity with PEFT, the identities between methods, starting prompts, counts on T5-base."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import Tensor

from harness.backbone.load import untrained_network
from harness.backbone.network import Backbone
from harness.cli.list_params import describe_params
from harness.method.method import Method
from harness.method.prompt_init import vocabulary_rows
from harness.method.registry import discover
from harness.train.tiny_backbones import TinyTokenizer, tiny_backbone

REGISTRY = discover()


def make(name: str, backbone: Backbone | None = None, seed: int = 0, **hp: Any) -> Any:
    cls = REGISTRY[name].cls
    assert cls is not None
    assert issubclass(cls, Method)
    torch.manual_seed(seed)
    return cls(cls.HP(**hp), backbone or tiny_backbone(precision="float64"))


def batch(backbone: Backbone) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings [3, 7, H], a mask with padding, labels [3, 4]."""
    torch.manual_seed(1)
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    embeds = torch.randn(3, 7, backbone.hidden, dtype=backbone.embedding.weight.dtype)
    return embeds, mask, torch.randint(3, 50, (3, 4))


def logits(method: Method, backbone: Backbone) -> Tensor:
    embeds, mask, labels = batch(backbone)
    if not method.is_layer_side():
        embeds, mask = method(embeds, mask)
    method.attach(backbone)
    try:
        return backbone.target_logits(embeds, mask, labels)
    finally:
        method.detach(backbone)


def peft_logits(config: Any, copy: dict[str, Tensor]) -> tuple[Tensor, Any]:
    """PEFT's logits on the same batch with these tensors in its prompt encoder, and that encoder."""
    backbone = tiny_backbone()
    model = get_peft_model(backbone.model, config).eval()
    encoder = model.prompt_encoder.default
    found = encoder.state_dict()
    assert found.keys() == copy.keys()
    encoder.load_state_dict(copy)
    embeds, mask, labels = batch(backbone)
    return model(inputs_embeds=embeds, attention_mask=mask, labels=labels).logits, encoder


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_prompt_tuning_equals_peft() -> None:
    backbone = tiny_backbone()
    method = make("prompt_tuning", backbone, prompt_length=5, init="normal")
    config = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5, num_transformer_submodules=1)
    theirs, _ = peft_logits(config, {"embedding.weight": method.vectors.detach()})
    close(logits(method, backbone), theirs)


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_p_tuning_equals_peft(encoder: str) -> None:
    backbone = tiny_backbone()
    method = make("p_tuning", backbone, prompt_length=5, encoder=encoder, encoder_width=16)
    config = PromptEncoderConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5, num_transformer_submodules=1, encoder_hidden_size=16,
        encoder_reparameterization_type=encoder.upper(),
    )  # fmt: skip
    names = {"vectors": "embedding.weight", "head": "mlp_head", "lstm": "lstm_head"}
    state = {names[k.partition(".")[0]] + "".join(k.partition(".")[1:]): v for k, v in method.state_dict().items()}
    theirs, _ = peft_logits(config, state)
    close(logits(method, backbone), theirs)


# PEFT 0.21 hands its prefix over under the name that transformers gives up
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_prefix_tuning_equals_peft_under_its_pairing_of_vectors() -> None:
    """On a T5 PEFT's layer i reads vectors 4 i and 4 i + 1 of its 2 L, so half of them get no gradient."""
    backbone = tiny_backbone()
    theirs_config = PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5)
    vectors = torch.randn(5, 4, 64)
    theirs, encoder = peft_logits(theirs_config, {"embedding.weight": vectors.flatten(1)})
    method = make("prefix_tuning", backbone, prefix_length=5)
    pairing = [(4 * layer + part) % 4 for layer in range(2) for part in range(2)]
    with torch.no_grad():
        method.vectors.copy_(vectors[:, pairing].flatten(1))
    close(logits(method, backbone), theirs)
    theirs.sum().backward()
    used = encoder.embedding.weight.grad.unflatten(1, (4, 64)).abs().amax((0, 2)) > 0
    assert used.tolist() == [True, True, False, False]


# PEFT 0.21 hands its prefix over under the name that transformers gives up
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_prefix_tuning_equals_peft_on_a_decoder() -> None:
    backbone, other = tiny_backbone("decoder"), tiny_backbone("decoder")
    method = make("prefix_tuning", backbone, prefix_length=5)
    model = get_peft_model(other.model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    model.prompt_encoder.default.load_state_dict({"embedding.weight": method.vectors.detach()})
    embeds, mask, labels = batch(backbone)
    mask = torch.ones_like(mask)  # PEFT counts positions of padding, the harness does not
    method.attach(backbone)
    ours = backbone.target_logits(embeds, mask, labels)
    method.detach(backbone)
    whole = torch.cat([embeds, other.embedding(labels[:, :-1])], 1)
    theirs = model(inputs_embeds=whole, attention_mask=torch.ones(whole.shape[:2], dtype=torch.long)).logits
    close(ours, theirs[:, -4:])


SMALL: dict[str, Any] = {"vocab_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
DECODERS: dict[str, dict[str, Any]] = {
    "all heads": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100},
    "grouped": {**SMALL, "model_type": "llama", "intermediate_size": 64, "num_key_value_heads": 2},
    "one head": {**SMALL, "model_type": "falcon", "multi_query": True},
    "one head repeated": {**SMALL, "model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
    "one head of StarCoder": {"model_type": "gpt_bigcode", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100,
                              "multi_query": True},
}  # fmt: skip


@pytest.mark.parametrize("config", DECODERS.values(), ids=DECODERS)
def test_a_prefix_of_real_tokens_stands_for_these_tokens(config: dict[str, Any]) -> None:
    """Whatever heads the keys have: with those of five tokens as prefix, a text is what it is behind the tokens."""
    torch.manual_seed(0)
    network = Backbone("tiny", untrained_network(config).eval().double(), TinyTokenizer(), None, "float64")
    front, text, labels = torch.randint(3, 99, (1, 5)), torch.randint(3, 99, (2, 6)), torch.randint(3, 99, (2, 3))
    read = network.model(input_ids=front, use_cache=True)[network.cache_keyword]
    method = make("prefix_tuning", network, prefix_length=5)
    pairs = [part[0].transpose(0, 1).flatten(1) for layer in read.layers for part in (layer.keys, layer.values)]
    with torch.no_grad():
        method.vectors.copy_(torch.cat(pairs, 1))
    method.attach(network)
    ours = network.target_logits(network.token_vectors(text), torch.ones_like(text), labels)
    method.detach(network)
    whole = torch.cat([front.expand(2, -1), text], 1)
    close(ours, network.target_logits(network.token_vectors(whole), torch.ones_like(whole), labels))


def test_a_prefix_in_the_encoder_is_what_its_attention_sees() -> None:
    """Against attention written out by hand, on the first encoder layer."""
    backbone = tiny_backbone(precision="float64")
    method = make("prefix_tuning", backbone, prefix_length=3, places="all")
    embeds, _, _ = batch(backbone)
    attention = backbone.model.encoder.block[0].layer[0].SelfAttention
    seen: list[Tensor] = []
    handle = attention.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    method.attach(backbone)
    backbone.model.encoder(inputs_embeds=embeds, attention_mask=torch.ones(3, 7, dtype=torch.long))
    method.detach(backbone)
    handle.remove()
    normed = backbone.model.encoder.block[0].layer[0].layer_norm(embeds)
    keys, values = (method.prefix().unflatten(-1, (4, 2, 64))[:, 2, i].expand(3, 3, 64) for i in range(2))
    q, k, v = (
        attention.q(normed),
        torch.cat([keys, attention.k(normed)], 1),
        torch.cat([values, attention.v(normed)], 1),
    )
    split = [x.unflatten(-1, (4, 16)).transpose(1, 2) for x in (q, k, v)]
    bias = attention.compute_bias(7, 10, past_seen_tokens=3)
    weights = (split[0] @ split[1].transpose(-1, -2) + bias).softmax(-1)
    expected = attention.o((weights @ split[2]).transpose(1, 2).flatten(2))
    torch.testing.assert_close(seen[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("hp", [{"places": "all"}, {"network": "mlp"}, {"places": "all", "network": "mlp"}])
def test_a_prefix_in_any_form_answers_alike_after_export(hp: dict[str, str]) -> None:
    backbone = tiny_backbone(precision="float64")
    method, other = (make("prefix_tuning", backbone, seed, prefix_length=3, **hp) for seed in (1, 2))
    before = logits(method, backbone)
    assert not torch.allclose(logits(other, backbone), before)
    other.load_export(method.export())
    torch.testing.assert_close(logits(other, backbone), before)
    assert sum(t.numel() for t in method.export().values()) == method.num_kept


def test_all_rows_of_a_prompt_get_a_gradient() -> None:
    backbone = tiny_backbone(precision="float64")
    method = make("prompt_tuning", backbone)
    logits(method, backbone)[..., 5].sum().backward()
    assert bool((method.vectors.grad.abs().amax(1) > 0).all())
    assert len(method.vectors) == 100


@settings(max_examples=20, deadline=None)
@given(prompt_length=st.integers(1, 12), rank=st.integers(1, 8), seed=st.integers(0, 99))
def test_dpt_is_a_codebook_prompt_with_one_subspace(prompt_length: int, rank: int, seed: int) -> None:
    dpt = make("dpt", seed=seed, prompt_length=prompt_length, rank=rank)
    scpp = make(
        "accept", prompt_length=prompt_length, budget_length=prompt_length + 24, source_length=24, prompt_width=64,
        prompt_rank=rank,
    )  # fmt: skip
    with torch.no_grad():
        scpp.front.weights.copy_(dpt.a[:, None])
        scpp.front.codebooks.copy_(dpt.b[None])
    torch.testing.assert_close(dpt.prompt(), scpp.prompt())
    assert sum(p.numel() for p in scpp.front.parameters()) == dpt.num_trained


def test_dpt_starts_uniform_within_a_half() -> None:
    method = make("dpt", tiny_backbone())
    for factor in (method.a, method.b):
        assert 0.45 < float(factor.detach().abs().max()) <= 0.5
    assert float(method.prompt().detach().std()) == pytest.approx(math.sqrt(10) / 12, rel=0.1)


def test_scap_with_one_subspace_is_depts_table_without_its_factor() -> None:
    dept = make("dept", source_length=24, rank=6, scale="none")
    scap = make("accept", source_length=24, added_width=64, added_rank=6)
    with torch.no_grad():
        dept.b.normal_()
        scap.offset.weights.copy_(dept.a[:, None])
        scap.offset.codebooks.copy_(dept.b[None])
    torch.testing.assert_close(scap.added(), dept.added())
    assert sum(p.numel() for p in scap.offset.parameters()) == dept.a.numel() + dept.b.numel()


def test_depts_start_is_prompt_tuning_with_its_own_prompt() -> None:
    backbone = tiny_backbone(precision="float64")
    dept = make("dept", backbone, source_length=24, prompt_length=5, budget_length=9)
    plain = make("prompt_tuning", backbone, prompt_length=5, init="text_repeat")
    torch.testing.assert_close(logits(dept, backbone), logits(plain, backbone))


@pytest.mark.parametrize("network", ["shared", "separate"])
def test_residual_prompts_are_the_skip_plus_the_network(network: str) -> None:
    method = make("residual_prompt_tuning", prompt_length=3, bottleneck=7, network=network)
    assert len(method.networks) == {"shared": 1, "separate": 3}[network]
    rows = []
    for i, row in enumerate(method.vectors):
        w1, b1, w2, b2, gain, shift = method.networks[i % len(method.networks)].parameters()
        out = w2 @ torch.relu(w1 @ row + b1) + b2
        normed = (out - out.mean()) / (out.var(unbiased=False) + 1e-5).sqrt()
        rows.append(row + gain * normed + shift)
    torch.testing.assert_close(method.prompt(), torch.stack(rows))
    torch.testing.assert_close(method.kept()["prompt"], method.prompt())


def test_residual_prompts_without_skip_or_norm() -> None:
    method = make("residual_prompt_tuning", prompt_length=3, bottleneck=7, skip=False, layer_norm=False)
    w1, b1, w2, b2 = method.networks[0].parameters()
    torch.testing.assert_close(method.prompt(), torch.relu(method.vectors @ w1.T + b1) @ w2.T + b2)


def test_the_network_of_a_residual_prompt_may_learn_at_its_own_rate() -> None:
    groups = make("residual_prompt_tuning", network_lr=0.01).param_groups(0.3)
    assert [group["lr"] for group in groups] == [0.3, 0.01]
    assert [group["lr"] for group in make("residual_prompt_tuning").param_groups(0.3)] == [0.3, 0.3]


def test_ept_without_low_rank_pair_has_no_fusion() -> None:
    alone: dict[str, Any] = {"prompt_length": 9, "budget_length": 9}
    without_rank: dict[str, Any] = {"prompt_length": 5, "budget_length": 9, "rank": 0}
    for hp in (alone, without_rank):
        method = make("ept", source_length=24, **hp)
        assert method.added() is None
        torch.testing.assert_close(method.fused(), method.short)
        assert set(method.kept()) == {"prompt"}


def test_ept_without_prompt_is_the_low_rank_pair_alone() -> None:
    method = make("ept", source_length=24, prompt_length=0, budget_length=9)
    assert method.prompt() is None
    assert {name for name, _ in method.named_parameters()} == {"a", "b"}
    assert method.num_prompt_tokens == 0


def test_ept_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot both be 0"):
        make("ept", source_length=24, prompt_length=0, rank=0)


def test_ept_resamples_a_prompt_from_its_first_to_its_last_row() -> None:
    method = make("ept", source_length=17, prompt_length=9, budget_length=9, rank=9, align="linear", init="first_m")
    rows, table = tiny_backbone(precision="float64").embedding.weight[:9], method.added()
    torch.testing.assert_close(table[::2], rows)
    torch.testing.assert_close(table[1::2], (rows[1:] + rows[:-1]) / 2)


def test_ept_discards_its_networks_and_goes_on_from_the_same_prompt() -> None:
    method = make("ept", source_length=24, prompt_length=5, budget_length=9, discard_at=0.5)
    before = method.prompt()
    method.on_step(4, 10)
    assert not method.is_discarded
    method.on_step(5, 10)
    torch.testing.assert_close(method.prompt(), before)
    method.prompt().sum().backward()
    with_gradient = {name for name, p in method.named_parameters() if p.grad is not None}
    assert with_gradient == {"collapsed"}
    with torch.no_grad():
        method.collapsed.add_(1)
    method.on_step(6, 10)
    torch.testing.assert_close(method.prompt(), before + 1)
    fresh = make("ept", seed=3, source_length=24, prompt_length=5, budget_length=9, discard_at=0.5)
    fresh.load_state_dict(method.state_dict())
    torch.testing.assert_close(fresh.prompt(), before + 1)


def test_starting_prompts_come_from_the_ids_that_their_rule_names() -> None:
    backbone = tiny_backbone()
    weight = backbone.embedding.weight
    for rule in ("ids_100_to_599", "ids_100_to_999"):
        drawn = vocabulary_rows(backbone, 28, rule)  # the tiny vocabulary has ids 100 to 127
        assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in weight[100:].tolist()}
    noise = vocabulary_rows(backbone, 400, "uniform")
    assert float(noise.abs().max()) <= 0.5
    assert float(noise.std()) == pytest.approx(1 / math.sqrt(12), rel=0.02)
    assert float(vocabulary_rows(backbone, 400, "normal").std()) == pytest.approx(1, rel=0.02)


EXACT = [
    ("prompt_tuning", {}, 76_800, 76_800),
    ("dpt", {}, 8_680, 8_680),
    ("dept", {}, 76_800, 76_800),
    ("dept", {"prompt_length": 40, "rank": 45}, 76_800, 76_800),
    ("dept", {"prompt_length": 80, "rank": 15}, 76_800, 76_800),
    ("dept", {"rank": 24, "source_length": 512}, 76_800, 76_800),
    ("dept", {"rank": 30, "source_length": 348}, 79_560, 79_560),
    ("ept", {}, 1_656_836, 76_800),
    ("ept", {"prompt_length": 40, "rank": 45}, 1_656_836, 76_800),
    ("ept", {"rank": 30, "source_length": 348, "bottleneck": 256}, 1_659_596, 79_560),
    ("accept", {}, 74_880, 74_880),
    ("accept", {"added_side": "lowrank"}, 74_880, 74_880),
    ("accept", {"prompt_side": "free"}, 76_800, 76_800),
    ("accept", {"source_length": 512, "prompt_length": 40}, 74_176, 74_176),
    ("accept", {"source_length": 348}, 73_440, 73_440),
    ("residual_prompt_tuning", {}, 1_239_584, 7_680),
    ("p_tuning", {}, 1_848_576, 76_800),
    ("p_tuning", {"encoder": "lstm"}, 27_235_584, 76_800),
    ("prefix_tuning", {}, 1_843_200, 1_843_200),
    ("prefix_tuning", {"places": "all"}, 3_686_400, 3_686_400),
]
# ACCEPT Table 12: t, r and parameters of SCPP (beside DePT's low-rank pair), r and parameters of SCAP (beside a prompt)
TABLE_12 = [
    (16, 12, 74_496, 2, 72_192), (32, 20, 74_880, 4, 73_728), (64, 30, 75_360, 8, 76_800),
    (96, 36, 75_648, 10, 74_240), (128, 40, 75_840, 13, 76_032), (192, 45, 76_080, 17, 76_544),
    (256, 48, 76_224, 20, 76_800), (384, 51, 76_008, 24, 76_800), (768, 55, 76_260, 30, 76_800),
]  # fmt: skip


def counted(name: str, hp: dict[str, Any]) -> dict[str, Any]:
    """The row of `harness params --backbone t5-base --methods NAME --set NAME.KEY=VALUE`."""
    described = describe_params(REGISTRY, [name], "t5-base", {f"{name}.{key}": value for key, value in hp.items()})
    return dict(described["methods"][0])


@pytest.mark.parametrize(("name", "hp", "trained", "kept"), EXACT)
def test_exact_counts_on_t5_base(name: str, hp: dict[str, Any], trained: int, kept: int) -> None:
    row = counted(name, hp)
    assert (row["num_trained"], row["num_kept"]) == (trained, kept)


@pytest.mark.parametrize(("t", "scpp_rank", "scpp", "scap_rank", "scap"), TABLE_12)
def test_all_rows_of_accept_table_12(t: int, scpp_rank: int, scpp: int, scap_rank: int, scap: int) -> None:
    for rank in (None, scpp_rank):
        assert counted("accept", {"prompt_width": t, "prompt_rank": rank, "added_side": "lowrank"})["num_kept"] == scpp
    for rank in (None, scap_rank):
        assert counted("accept", {"added_width": t, "added_rank": rank, "prompt_side": "free"})["num_kept"] == scap


def test_differences_from_published_figures_are_put_in_words() -> None:
    assert counted("dept", {})["difference"] == ""
    assert counted("ept", {})["difference"].startswith("It is the number kept for inference.")
    assert counted("finetune", {})["difference"] == "It is the number trained, rounded."
    assert counted("dept", {"rank": 3})["difference"] == "The settings are not those of the figure."
    described = describe_params(REGISTRY, ["accept"], "llama-2-7b", {})
    assert "404,992" in described["methods"][0]["difference"]
    assert "accept, published figure: " in described["text"]
