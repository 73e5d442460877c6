"""Methods inside the layers: published counts, parity with independent computation, invariants, clean removal."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, VeraConfig, get_peft_model
from torch import Tensor

from harness.backbone.load import meta_backbone
from harness.backbone.network import Backbone
from harness.method.method import Method
from harness.method.registry import discover
from harness.train.tiny_backbones import tiny_backbone

REGISTRY = discover()
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("adapter", {}), ("adapter", {"cross_attention": True, "train_norms": False}),
    ("adapter_drop", {"dropped_layers": 1}), ("adapter_drop", {"dropped_layers": 1, "variant": "robust"}),
    ("adamix", {"rank": 4}), ("adamix", {"rank": 4, "consistency": 0.0}),
    ("bitfit", {}), ("bitfit", {"head": "none", "final_norms": True}),
    ("lora", {"rank": 4}), ("lora", {"rank": 4, "biases": True}), ("dora", {"rank": 4}),
    ("ia3", {}), ("ia3", {"targets": "attention"}), ("vera", {}),
    ("compacter", {}), ("compacter", {"sublayers": "ffn", "rank": 2}),
    ("lst", {}), ("lst", {"init": "random", "reduction": 4, "skip_every": 2}),
]  # fmt: skip
KINDS = ("encoder-decoder", "decoder")
every_variant = pytest.mark.parametrize(
    ("name", "hp"), VARIANTS, ids=lambda x: x if isinstance(x, str) else "-".join(x)
)


def build(name: str, backbone: Backbone, **hp: object) -> Any:
    cls = REGISTRY[name].cls
    assert cls is not None, REGISTRY[name].problem
    assert issubclass(cls, Method)
    torch.manual_seed(0)
    return cls(cls.HP(**hp), backbone).eval()


def shake(method: Method, std: float = 0.1) -> None:
    """Move every tensor away from its start, which may be zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=std)


@contextmanager
def attached(method: Method, backbone: Backbone) -> Iterator[None]:
    method.attach(backbone)
    try:
        yield
    finally:
        method.detach(backbone)


def batch(backbone: Backbone, rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, a mask with padding, labels with padding."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 100, (rows, 7), generator=generator)
    mask = torch.ones(rows, 7, dtype=torch.long)
    mask[0, 4:] = 0
    labels = torch.tensor([[5, 9, 1], [6, 1, -100], [7, 8, 1]])[:rows]
    return backbone.embedding(ids).detach(), mask, labels


@functools.cache
def t5_base() -> Backbone:
    return meta_backbone("t5-base")


@pytest.mark.parametrize(
    ("name", "hp", "trained", "kept"),
    [
        ("adapter", {}, 1_855_104, 1_855_104),
        ("adapter", {"train_norms": False}, 1_807_488, 1_807_488),
        ("adapter_drop", {}, 1_101_984, 1_101_984),
        ("adapter_drop", {"variant": "robust"}, 1_855_104, 1_101_984),
        ("adamix", {}, 4_446_720, 1_789_056),
        ("bitfit", {}, 280_932, 280_932),
        ("bitfit", {"head": "all"}, 280_960, 280_960),
        ("bitfit", {"head": "none"}, 248_832, 248_832),
        ("bitfit", {"head": "none", "final_norms": True}, 250_368, 250_368),
        ("bitfit", {"head": "all", "final_norms": True}, 282_496, 282_496),
        ("lora", {}, 3_538_944, 3_538_944),
        ("lora", {"biases": True}, 3_820_644, 3_820_644),
        ("lst", {}, 3_878_712, 3_878_712),
        ("ia3", {}, 129_024, 129_024),
        ("ia3", {"targets": "attention"}, 55_296, 55_296),
        ("compacter", {}, 161_728, 161_728),
        ("compacter", {"sublayers": "ffn"}, 104_704, 104_704),
        ("vera", {}, 73_728, 73_728),
        ("dora", {}, 3_594_240, 3_594_240),
    ],
)
def test_counts_on_t5_base(name: str, hp: dict[str, object], trained: int, kept: int) -> None:
    method = build(name, t5_base(), **hp)
    assert (method.num_trained, method.num_kept) == (trained, kept)


@every_variant
@pytest.mark.parametrize("kind", KINDS)
def test_detaching_leaves_no_trace(name: str, hp: dict[str, object], kind: Any) -> None:
    backbone = tiny_backbone(kind)
    before = {key: tensor.clone() for key, tensor in backbone.model.state_dict().items()}
    plain = backbone.target_logits(*batch(backbone))
    method = build(name, backbone, **hp)
    shake(method)
    for _ in range(2):
        with attached(method, backbone):
            assert not torch.allclose(backbone.target_logits(*batch(backbone)), plain)
        assert torch.equal(backbone.target_logits(*batch(backbone)), plain)
    after = backbone.model.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert before.keys() == after.keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.model.modules())
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


@every_variant
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_step_by_step_agrees_with_teacher_forcing(name: str, hp: dict[str, object], kind: Any) -> None:
    backbone = tiny_backbone(kind, precision="float64")
    method = build(name, backbone, **hp)
    shake(method)
    embeds, mask, _ = batch(backbone)
    with attached(method, backbone):
        written = backbone.decode(embeds, mask, 6)
        forced = backbone.target_logits(embeds, mask, written).argmax(-1)
    for row, expected in zip(written.tolist(), forced.tolist(), strict=True):
        length = row.index(backbone.eos_id) + 1 if backbone.eos_id in row else len(row)
        assert row[:length] == expected[:length]


@every_variant
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_stays_close_to_float32(name: str, hp: dict[str, object], kind: Any) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        backbone = tiny_backbone(kind, precision)
        method = build(name, backbone, **hp)
        shake(method, 0.02)
        with attached(method, backbone):
            losses.append(backbone.token_losses(*batch(backbone)))
            losses[-1].sum().backward()
        assert all(
            p.dtype == torch.float32 and p.grad.isfinite().all() for p in method.parameters() if p.grad is not None
        )
    torch.testing.assert_close(losses[1], losses[0], rtol=0.1, atol=0.3)


@every_variant
def test_training_steps_with_dropout_lower_the_loss(name: str, hp: dict[str, object]) -> None:
    backbone = tiny_backbone()
    method = build(name, backbone, **hp)
    optimizer = torch.optim.AdamW(method.param_groups(0.01), lr=0.01, weight_decay=0.0)
    with attached(method, backbone):
        first = backbone.token_losses(*batch(backbone)).mean()
        backbone.model.train()
        method.train()
        for _ in range(5):
            optimizer.zero_grad()
            method.token_losses(backbone, *batch(backbone)).mean().backward()
            optimizer.step()
        backbone.model.eval()
        method.eval()
        assert backbone.token_losses(*batch(backbone)).mean() < first


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "vera", "bitfit"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_method_changes_nothing(name: str, kind: Any) -> None:
    backbone = tiny_backbone(kind, precision="float64")
    plain = backbone.target_logits(*batch(backbone))
    with attached(build(name, backbone), backbone):
        torch.testing.assert_close(backbone.target_logits(*batch(backbone)), plain, rtol=1e-9, atol=1e-9)


PEFT: dict[str, tuple[dict[str, Any], Any]] = {
    "lora": ({"rank": 4, "dropout": 0.0}, LoraConfig(r=4, lora_alpha=32, target_modules=["q", "v"])),
    "dora": ({"rank": 4, "dropout": 0.0}, LoraConfig(r=4, lora_alpha=32, target_modules=["q", "v"], use_dora=True)),
    "ia3": ({}, IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"])),
    "vera": ({"rank": 8}, VeraConfig(r=8, target_modules=["q", "v"], d_initial=0.1)),
}


@pytest.mark.parametrize("name", PEFT)
def test_parity_with_peft_given_the_same_tensors(name: str) -> None:
    backbone, other = tiny_backbone(), tiny_backbone()
    hp, config = PEFT[name]
    method = build(name, backbone, **hp)
    shake(method)
    with attached(method, backbone):
        ours = backbone.target_logits(*batch(backbone))
    theirs = dict(get_peft_model(other.model, config).named_parameters())
    with torch.no_grad():
        for key, tensor in method.tensors.items():
            theirs["base_model.model." + key.replace("/", ".")].copy_(tensor)
    torch.testing.assert_close(ours, other.target_logits(*batch(other)), rtol=1e-6, atol=1e-6)


def merged_weight(name: str, weight: Tensor, own: dict[str, Tensor], rank: int) -> Tensor:
    """The equations, written out: W' [out, in] from W and one module's tensors."""
    if name == "ia3":
        return weight * own["ia3_l"]
    if name == "vera":
        generator = torch.Generator().manual_seed(0)
        a = (torch.rand(rank, weight.shape[1], generator=generator) * 2 - 1) * (6 / weight.shape[1]) ** 0.5
        b = (torch.rand(weight.shape[0], rank, generator=generator) * 2 - 1) * (6 / rank) ** 0.5
        added: Tensor = own["vera_lambda_b"].diag() @ b.to(weight) @ own["vera_lambda_d"].diag() @ a.to(weight)
        return weight + added
    changed: Tensor = weight + 32 / rank * own["lora_B"] @ own["lora_A"]
    if name == "lora":
        return changed
    directions: Tensor = changed / changed.norm(dim=1, keepdim=True)
    return own["lora_magnitude_vector"][:, None] * directions


@pytest.mark.parametrize("name", PEFT)
def test_parity_with_weights_merged_by_the_equation(name: str) -> None:
    backbone, other = tiny_backbone(precision="float64"), tiny_backbone(precision="float64")
    method = build(name, backbone, **PEFT[name][0])
    shake(method)
    with attached(method, backbone):
        ours = backbone.target_logits(*batch(backbone))
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in method.tensors.items():
        path, _, kind = key.replace("/", ".").removesuffix(".weight").removesuffix(".default").rpartition(".")
        tensors.setdefault(path, {})[kind] = tensor.detach()
    for path, own in tensors.items():
        weight = other.model.get_parameter(f"{path}.weight")
        weight.copy_(merged_weight(name, weight, own, PEFT[name][0].get("rank", 0)))
    torch.testing.assert_close(ours, other.target_logits(*batch(other)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "hp", "field"),
    [
        ("adapter", {"reduction": 0}, "reduction"),
        ("adapter", {"init_std": 0.0}, "init_std"),
        ("adapter_drop", {"dropped_layers": 2}, "dropped_layers"),
        ("adapter_drop", {"dropped_layers": -1}, "dropped_layers"),
        ("adamix", {"consistency": -1.0}, "consistency"),
        ("adamix", {"experts": 0}, "experts"),
        ("compacter", {"n": 3}, "n must divide"),
        ("vera", {"d_initial": 0.0}, "d_initial"),
        ("dora", {"dropout": 1.0}, "dropout"),
        ("lst", {"reduction": 3}, "reduction"),
        ("lst", {"skip_every": 1}, "skip_every"),
        ("lst", {"temperature": 0.0}, "temperature"),
    ],
)
def test_a_setting_that_cannot_be_is_named(name: str, hp: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}"):
        build(name, tiny_backbone(), **hp)
