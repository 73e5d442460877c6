"""Every method file meets the contract; equations hold against direct computation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration
from typing_help import present

from harness.backbone.network import Backbone
from harness.method.method import Method
from harness.method.prompt_init import DEPT_SENTENCE, vocabulary_rows
from harness.method.registry import discover
from harness.shipped import shipped_methods
from harness.train.method_contract import check_method_file
from harness.train.tiny_backbones import tiny_backbone

REGISTRY = discover()
FILES = sorted(path for path in shipped_methods().glob("*.py") if not path.name.startswith("_"))


def make(name: str, **hp: object) -> Any:
    cls = REGISTRY[name].cls
    assert cls is not None
    assert issubclass(cls, Method)
    torch.manual_seed(0)
    return cls(cls.HP(**hp), tiny_backbone(precision="float64"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_method_meets_the_contract(path: Path) -> None:
    broken = [f"{item.check}: {item.detail}" for item in check_method_file(path) if not item.ok]
    assert not broken


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_method_names_its_source(path: Path) -> None:
    registered = REGISTRY[path.stem]
    assert registered.cls is not None
    assert registered.summary.endswith((".", ")", "clear")), registered.summary
    if issubclass(registered.cls, Method):
        assert registered.cls.paper.url.startswith("https://")
        assert set(registered.spec.defaults.recipe) == {"lr"}


def test_dept_starts_as_prompt_tuning() -> None:
    table = make("dept", source_length=24).added()
    assert table is not None
    assert not table.any()


def test_dept_scales_its_table_by_eight_over_root_rank() -> None:
    method = make("dept", source_length=24, rank=4)
    with torch.no_grad():
        method.b.normal_()
    expected = 8 / math.sqrt(4) * method.a @ method.b
    torch.testing.assert_close(method.added(), expected)


def test_accept_rows_are_concatenated_sums_of_codewords() -> None:
    method = make("accept", source_length=24, prompt_length=6, budget_length=12, prompt_width=16)
    w, c = method.front.weights, method.front.codebooks
    prompt = method.prompt()
    assert prompt is not None
    for i in range(6):
        parts = [sum(w[i, k, j] * c[k, j] for j in range(w.shape[2])) for k in range(4)]
        torch.testing.assert_close(prompt[i], torch.cat(parts), rtol=1e-12, atol=1e-12)


def test_accept_starts_within_the_kaiming_bounds_of_its_code() -> None:
    config = T5Config(vocab_size=64, d_model=768, d_kv=64, d_ff=64, num_layers=1, num_heads=12)
    backbone = Backbone("x", T5ForConditionalGeneration(config), None, None, "float32")
    cls = REGISTRY["accept"].cls
    assert cls is not None
    assert issubclass(cls, Method)
    method: Any = cls(cls.HP(**{"source_length": 256}), backbone)
    tensors = (method.front.weights, method.front.codebooks, method.offset.weights, method.offset.codebooks)
    for tensor, bound in zip(tensors, (0.0456, 0.0395, 0.1443, 0.0255), strict=True):
        assert float(tensor.detach().abs().max()) == pytest.approx(bound, rel=0.02)
    assert float(present(method.prompt()).detach().std()) == pytest.approx(0.0027, rel=0.1)
    assert float(present(method.added()).detach().std()) == pytest.approx(0.0060, rel=0.1)


def test_accept_with_one_subspace_is_a_plain_product() -> None:
    method = make("accept", source_length=24, prompt_length=6, budget_length=12, prompt_width=64)
    weights, codebook = method.front.weights[:, 0], method.front.codebooks[0]
    torch.testing.assert_close(method.prompt(), weights @ codebook)


def test_ept_fusion_as_printed_doubles_the_prompt() -> None:
    method = make("ept", source_length=24, prompt_length=5, budget_length=9, fusion="literal")
    torch.testing.assert_close(method.fused(), 2 * method.short)


def test_ept_default_fusion_mixes_rows_of_the_low_rank_table() -> None:
    method = make("ept", source_length=24, prompt_length=5, budget_length=9)
    table, short = method.added(), method.short
    assert table is not None
    attention = torch.softmax(short @ table.T / math.sqrt(64), -1)
    torch.testing.assert_close(method.fused(), short + attention @ table)


def test_ept_gates_share_one_among_the_spaces() -> None:
    gates = make("ept", source_length=24, prompt_length=5, budget_length=9).gate_weights()
    assert gates.shape == (4, 5, 1)
    torch.testing.assert_close(gates.sum(0), torch.ones(5, 1, dtype=gates.dtype))


def test_ept_keeps_the_prompt_that_it_trains() -> None:
    method = make("ept", source_length=24, prompt_length=5, budget_length=9)
    kept = method.kept()
    torch.testing.assert_close(kept["prompt"], method.prompt())
    torch.testing.assert_close(kept["a"] @ kept["b"], method.added())


def test_ept_table_is_the_best_low_rank_copy_of_the_aligned_prompt() -> None:
    method = make("ept", source_length=24, prompt_length=5, budget_length=24, rank=24)
    table = method.added()
    assert table is not None
    torch.testing.assert_close(table[:5], method.short, rtol=1e-9, atol=1e-9)


def test_lora_equals_peft_with_the_same_tensors() -> None:
    backbone = tiny_backbone(precision="float64")
    own = REGISTRY["lora"].cls
    assert own is not None
    assert issubclass(own, Method)
    torch.manual_seed(0)
    method: Any = own(own.HP(**{"rank": 4, "dropout": 0.0}), backbone)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    embeds, labels = torch.randn(2, 7, 64, dtype=torch.float64), torch.tensor([[5, 1], [6, 1]])
    mask = torch.ones(2, 7, dtype=torch.long)
    plain = backbone.token_losses(embeds, mask, labels)
    method.attach(backbone)
    ours = backbone.token_losses(embeds, mask, labels)
    method.detach(backbone)
    assert not torch.allclose(plain, ours)
    assert torch.equal(plain, backbone.token_losses(embeds, mask, labels)), "detaching restores the backbone"

    other = tiny_backbone(precision="float64")
    config = LoraConfig(r=4, lora_alpha=32, lora_dropout=0.0, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    wrapped = get_peft_model(other.model, config)
    theirs = dict(wrapped.named_parameters())
    with torch.no_grad():
        for name, tensor in method.tensors.items():
            theirs["base_model.model." + name.replace("/", ".")].copy_(tensor)
    out = wrapped(inputs_embeds=embeds, attention_mask=mask, labels=labels)
    torch.testing.assert_close(ours.mean(), out.loss, rtol=1e-6, atol=1e-6)


def test_prompt_tuning_equals_a_prompt_put_in_front_by_hand() -> None:
    backbone = tiny_backbone()
    cls = REGISTRY["prompt_tuning"].cls
    assert cls is not None
    assert issubclass(cls, Method)
    method: Any = cls(cls.HP(**{"prompt_length": 3, "init": "first_m"}), backbone)
    assert torch.equal(method.prompt(), backbone.embedding.weight[:3])


def test_vocabulary_rules_draw_the_rows_they_name() -> None:
    backbone = tiny_backbone()
    weight = backbone.embedding.weight
    ids = backbone.tokenizer(DEPT_SENTENCE)["input_ids"]
    assert torch.equal(vocabulary_rows(backbone, len(ids) + 2, "text_repeat"), weight[[*ids, *ids[:2]]])
    assert torch.equal(vocabulary_rows(backbone, 4, "first_m"), weight[:4])
    drawn = vocabulary_rows(backbone, 100, "top5000")
    assert len(torch.unique(drawn, dim=0)) == 100, "no row twice while the vocabulary lasts"
    assert vocabulary_rows(backbone, 300, "top5000").shape == (300, 64)


def test_fine_tuning_keeps_tied_weights_tied() -> None:
    backbone = tiny_backbone()
    cls = REGISTRY["finetune"].cls
    assert cls is not None
    assert issubclass(cls, Method)
    method: Any = cls(cls.HP(), backbone)
    assert method.num_trained == backbone.num_params
    method.attach(backbone)
    assert backbone.model.lm_head.weight is backbone.model.shared.weight
    assert backbone.model.shared.weight is method.weights["shared/weight"]
