"""The equations of the methods inside the layers that PEFT does not have, each against direct computation."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fused import make_cell, trainer
from test_layer_methods import attached, batch, build, shake
from torch import Tensor, nn

from harness.backbone import load_backbone
from harness.backbone.network import Backbone
from harness.method.layers import layers_of, stacks_of
from harness.method.shared_layers import SharedLayers
from harness.train.tiny_backbones import tiny_backbone
from tools.network_matrix.checkpoints import build as build_checkpoint


def test_an_adapter_stands_behind_attention_and_feed_forward_before_the_residual() -> None:
    backbone, other = tiny_backbone(precision="float64"), tiny_backbone(precision="float64")
    method = build("adapter", backbone, reduction=16)
    shake(method)
    with attached(method, backbone):
        ours = backbone.target_logits(*batch(backbone))
    assert all("cross" not in key for key in method.inserted)
    assert len(method.inserted) == 8

    class Both(nn.Module):
        def __init__(self, linear: nn.Module, inserted: Any) -> None:
            super().__init__()
            self.linear, self.weight, self.inserted = linear, linear.weight, inserted

        def forward(self, x: Tensor) -> Tensor:
            x, own = self.linear(x), self.inserted
            z = x @ own.down.weight.T + own.down.bias
            gelu = 0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))
            added: Tensor = gelu @ own.up.weight.T + own.up.bias
            return x + added

    for index in range(2):
        for stack in ("encoder", "decoder"):
            parts = getattr(other.model, stack).block[index].layer
            parts[0].SelfAttention.o = Both(parts[0].SelfAttention.o, method.inserted[f"{stack}/{index}/attention"])
            parts[-1].DenseReluDense.wo = Both(parts[-1].DenseReluDense.wo, method.inserted[f"{stack}/{index}/ffn"])
    for key, scale in method.norms.copies.items():
        other.model.get_parameter(key.replace("/", ".")).copy_(scale)
    torch.testing.assert_close(ours, other.target_logits(*batch(other)), rtol=1e-9, atol=1e-9)


def layer_outputs(backbone: Backbone) -> dict[str, Tensor]:
    """What every layer of every stack gives on the batch."""
    seen: dict[str, Tensor] = {}

    def keep(key: str, module: nn.Module, args: Any, output: Any) -> None:
        seen[key] = output[0] if isinstance(output, tuple) else output

    handles = [
        layer.register_forward_hook(functools.partial(keep, f"{name} {index}"))
        for name, stack in stacks_of(backbone).items()
        for index, layer in enumerate(layers_of(stack))
    ]
    backbone.token_losses(*batch(backbone))
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def total_loss(backbone: Backbone) -> float:
    return float(backbone.token_losses(*batch(backbone)).sum())


@pytest.mark.parametrize("variant", ["specialized", "robust"])
def test_a_dropped_layer_runs_as_pretrained(variant: str) -> None:
    backbone = tiny_backbone()
    plain = layer_outputs(backbone)
    method = build("adapter_drop", backbone, dropped_layers=1, variant=variant)
    with torch.no_grad():  # the norms, which train in every layer, stay as they were
        for parameter in method.inserted.parameters():
            parameter.add_(0.1)
    with attached(method, backbone):
        ours = layer_outputs(backbone)
    assert torch.equal(ours["encoder 0"], plain["encoder 0"])
    assert not torch.allclose(ours["encoder 1"], plain["encoder 1"])
    assert all("/0/" not in name for name in method.kept() if name.startswith("inserted"))


def test_robust_training_drops_a_random_number_of_layers_and_decoding_the_fixed_one() -> None:
    backbone = tiny_backbone()
    method = build("adapter_drop", backbone, dropped_layers=1, variant="robust")
    shake(method)
    with attached(method, backbone):
        fixed = total_loss(backbone)
        method.train()
        drawn = {total_loss(backbone) for _ in range(20)}
        method.eval()
        assert total_loss(backbone) == fixed
    assert len(drawn) == 2, "none or one of two layers"
    assert fixed in drawn


def adamix(backbone: Backbone, **hp: object) -> Any:
    method = build("adamix", backbone, rank=4, **hp)
    shake(method)
    return method


def test_adamix_inference_is_one_adapter_with_averaged_weights() -> None:
    backbone, other = tiny_backbone(precision="float64"), tiny_backbone(precision="float64")
    method = adamix(backbone)
    with attached(method, backbone):
        ours = backbone.target_logits(*batch(backbone))
    kept = method.kept()
    for stack in ("encoder", "decoder"):
        for index in range(2):
            own = {
                name: kept[f"{stack}/{index}/ffn.{name}"]
                for name in ("down.weight", "down.bias", "up.weight", "up.bias")
            }

            def adapt(m: nn.Module, a: Any, x: Tensor, own: dict[str, Tensor] = own) -> Tensor:
                return x + F.gelu(x @ own["down.weight"].T + own["down.bias"]) @ own["up.weight"].T + own["up.bias"]

            getattr(other.model, stack).block[index].layer[-1].DenseReluDense.register_forward_hook(adapt)
    torch.testing.assert_close(ours, other.target_logits(*batch(other)), rtol=1e-10, atol=1e-10)


def test_adamix_draws_one_expert_per_layer_anew_in_each_training_pass() -> None:
    backbone = tiny_backbone()
    method = adamix(backbone)
    with attached(method, backbone):
        assert total_loss(backbone) == total_loss(backbone)
        method.train()
        assert len({total_loss(backbone) for _ in range(12)}) > 6, "4 experts in 4 layers"
        method.zero_grad()
        backbone.token_losses(*batch(backbone)).sum().backward()
    for mixture in method.inserted.values():
        assert sum(bool(gradient.any()) for gradient in mixture.weights.grad) == 1


def test_adamix_adds_the_symmetric_divergence_of_two_passes_in_training() -> None:
    made = trainer([make_cell("adamix", {"rank": 4, "consistency": 0.5}, 0.01, 1, 4, 5)], 10_000)
    method, backbone = made.states[0].outcome.method, made.backbone
    shake(method)
    with attached(method, backbone):
        method.train()
        torch.manual_seed(3)
        losses = method.token_losses(backbone, *batch(backbone))
        torch.manual_seed(3)
        p, q = (backbone.target_logits(*batch(backbone)).softmax(-1) for _ in range(2))
        labels = batch(backbone)[2]
        divergence = 0.5 * (p * (p / q).log() + q * (q / p).log()).sum(-1)
        expected = (F.nll_loss(p.log().transpose(1, 2), labels, reduction="none") + 0.5 * divergence) * (labels != -100)
        torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-9)
        assert divergence.max() > 1e-3

        rows = made._draw()
        torch.manual_seed(4)
        with_divergence = made._accumulate(rows)
        setattr(method, "consistency", 0.0)  # noqa: B010
        torch.manual_seed(4)
        assert with_divergence > made._accumulate(rows), "the trainer asks the method for its loss"


def test_the_divergence_moves_each_pass_towards_the_other_alone() -> None:
    symmetric_kl = sys.modules[type(build("adamix", tiny_backbone())).__module__].symmetric_kl
    first, second = (torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    symmetric_kl(first, second).sum().backward()
    expected = 0.5 * (first.softmax(-1) - second.softmax(-1))
    torch.testing.assert_close(first.grad, expected)
    torch.testing.assert_close(second.grad, -expected)


def test_bitfit_equals_a_t5_that_has_biases() -> None:
    backbone, other = tiny_backbone(precision="float64"), tiny_backbone(precision="float64")
    method = build("bitfit", backbone)
    shake(method)
    with attached(method, backbone):
        ours = backbone.target_logits(*batch(backbone))
    own = {key.replace("/", "."): vector.detach() for key, vector in method.biases.vectors.items()}
    assert all(vector.dim() == 1 for vector in own.values())
    # a linear module takes the bias of the norm in front of it into its own
    for name, module in other.model.named_modules():
        if name in own and isinstance(module, nn.Linear):
            part = name.rsplit(".", 2)[0]
            behind_norm = name.endswith((".q", ".wi")) or (".SelfAttention." in name and name.endswith((".k", ".v")))
            shift = module.weight @ own[f"{part}.layer_norm"] if behind_norm else 0.0
            module.bias = nn.Parameter(own[name] + shift)
    theirs = other.target_logits(*batch(other)) + own["logits"]
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert not any("final_layer_norm" in key for key in own)


@pytest.mark.parametrize("name", ["BART", "GPT-2", "BLOOM", "OPT", "Qwen2", "BERT", "ELECTRA", "DeBERTa-v3"])
def test_bitfit_moves_every_bias_that_a_network_has(name: str, tmp_path: Path) -> None:
    """The norm of BERT's embeddings and GPT-2's last norm stand outside the layers, and were left out once."""
    build_checkpoint(name, tmp_path)
    precision = "float32" if name == "BLOOM" else "float64"  # its attention gives NaN for padding in float64
    ours, theirs = (load_backbone(str(tmp_path), precision, "cpu") for _ in range(2))
    method = build("bitfit", ours)
    shake(method)
    moved = {key.replace("/", "."): vector.detach() for key, vector in method.biases.vectors.items()}
    logits = moved.pop("logits", None)
    biases = {key.removesuffix(".bias"): p for key, p in theirs.model.named_parameters() if key.endswith(".bias")}
    assert biases.keys() <= moved.keys()
    for key, vector in moved.items():
        module = theirs.model.get_submodule(key)
        if key in biases:
            biases[key].data += vector
        else:  # a linear module or a norm in the layers without a bias
            module.register_forward_hook(lambda _, __, out, vector=vector: out + vector)
    with attached(method, ours):
        found = _seen(ours)
    expected = _seen(theirs)
    tolerance = 1e-9 if precision == "float64" else 1e-4
    expected = expected if logits is None else expected + logits
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def _seen(backbone: Backbone) -> Tensor:
    """The logits of a batch, or the state of each text where the network writes none."""
    embeds, mask, labels = batch(backbone)
    return backbone.target_logits(embeds, mask, labels) if backbone.writes_text else backbone.text_states(embeds, mask)


def test_a_bias_on_t5_keys_has_no_effect() -> None:
    backbone = tiny_backbone(precision="float64")
    method = build("bitfit", backbone)
    plain = total_loss(backbone)
    with torch.no_grad():
        for key, vector in method.biases.vectors.items():
            if key.endswith("/k"):
                vector.normal_()
    with attached(method, backbone):
        assert total_loss(backbone) == pytest.approx(plain, abs=1e-9)


def test_lora_with_biases_is_lora_plus_bitfit() -> None:
    backbone = tiny_backbone(precision="float64")
    both, lora, bitfit = (
        build("lora", backbone, rank=4, biases=True),
        build("lora", backbone, rank=4),
        build("bitfit", backbone),
    )
    shake(both)
    for key, table in both.positions.tables.items():  # they have a test of their own
        original = backbone.model.get_submodule(key.replace("/", ".")).relative_attention_bias
        table.data.copy_(original.weight)
    lora.load_state_dict({k: v for k, v in both.state_dict().items() if k.startswith("tensors")})
    bitfit.load_state_dict({k: v for k, v in both.state_dict().items() if k.startswith("biases")})
    with attached(both, backbone):
        together = backbone.target_logits(*batch(backbone))
    with attached(bitfit, backbone), attached(lora, backbone):
        torch.testing.assert_close(backbone.target_logits(*batch(backbone)), together)


@settings(max_examples=20, deadline=None)
@given(n=st.sampled_from([1, 2, 4]), rank=st.integers(1, 3), inputs=st.integers(1, 5), outputs=st.integers(1, 5))
def test_compacter_matrices_are_sums_of_kronecker_products(n: int, rank: int, inputs: int, outputs: int) -> None:
    backbone = tiny_backbone(precision="float64")
    method = build("compacter", backbone)
    linear = type(method.inserted["encoder/0/ffn"].down)(n * inputs, n * outputs, n, rank, backbone.embedding.weight)
    rules, x = torch.randn(n, n, n, dtype=torch.float64), torch.randn(3, n * inputs, dtype=torch.float64)
    with torch.no_grad():
        linear.bias.normal_()
    explicit = sum(torch.kron(rules[i], linear.left[i] @ linear.right[i]) for i in range(n))
    torch.testing.assert_close(linear.weight(rules), explicit, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(linear(x, rules), x @ explicit + linear.bias, rtol=1e-12, atol=1e-12)


def test_compacter_shares_one_set_of_rules() -> None:
    backbone = tiny_backbone(precision="float64")
    method = build("compacter", backbone)
    assert [name for name in method.state_dict() if "rules" in name] == ["rules"]
    plain = total_loss(backbone)
    with torch.no_grad():
        method.rules.zero_()
    with attached(method, backbone):
        assert total_loss(backbone) == pytest.approx(plain, abs=1e-12), "no rules, no change"
    assert build("compacter", tiny_backbone()).rules.detach().std().item() == pytest.approx(1e-4, rel=0.5)


def test_lora_with_biases_trains_the_tables_of_relative_positions() -> None:
    """Against the same tables in the backbone itself, and against a second cell with tables of its own."""
    backbone, other = tiny_backbone(precision="float64"), tiny_backbone(precision="float64")
    methods = [build("lora", backbone, rank=2, biases=True) for _ in range(2)]
    embeds, mask, labels = batch(backbone)
    expected = []
    for seed, method in enumerate(methods):
        torch.manual_seed(seed)
        for key, table in method.positions.tables.items():
            own = other.model.get_submodule(key.replace("/", ".")).relative_attention_bias.weight
            if not seed:
                assert torch.equal(table, own), "starts as the backbone's"
            table.data.normal_()
            own.data.copy_(table)
        expected.append(other.target_logits(embeds, mask, labels))
        with attached(method, backbone):
            torch.testing.assert_close(backbone.target_logits(embeds, mask, labels), expected[-1])
            backbone.token_losses(embeds, mask, labels).sum().backward()
        assert all(bool(table.grad.any()) for table in method.positions.tables.values())
    assert len(methods[0].positions.tables) == 2
    assert not torch.allclose(expected[0], expected[1])
    together = SharedLayers([method.layer_changes() for method in methods])
    together.order(np.array([0, 0, 1]))
    with together.attached():
        logits = backbone.target_logits(embeds, mask, labels)
    torch.testing.assert_close(logits, torch.cat([expected[0][:2], expected[1][2:]]))
    assert not any("compute_bias" in vars(module) for module in backbone.model.modules())


def test_lst_sends_no_gradient_through_the_backbone() -> None:
    backbone = tiny_backbone()
    method = build("lst", backbone)
    with attached(method, backbone):
        outputs = layer_outputs(backbone)
        assert not any(states.requires_grad for states in outputs.values())
        assert backbone.token_losses(*batch(backbone)).requires_grad


def test_lst_gates_weigh_the_side_against_the_backbone() -> None:
    backbone = tiny_backbone(precision="float64")
    method = build("lst", backbone)
    ladder = method.ladders["encoder"]
    embeds, mask, _ = batch(backbone)
    first, second = (torch.randn(3, 7, 64, dtype=torch.float64) for _ in range(2))

    def state(hidden: Tensor) -> Tensor:
        ended: Tensor = ladder(embeds, [hidden], attention_mask=mask)
        return ended

    assert torch.sigmoid(ladder.gates).tolist() == [0.5, 0.5]
    assert not torch.allclose(state(first), state(second))
    with torch.no_grad():
        ladder.gates.fill_(3.0)  # sigmoid(3 / 0.1) is 1
    torch.testing.assert_close(state(first), state(second), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        ladder.gates.fill_(-3.0)
        before = state(first)
        ladder.down[0].weight.normal_()
    torch.testing.assert_close(state(first), before, rtol=1e-9, atol=1e-9)


def test_lst_decoder_attends_to_the_side_of_the_encoder() -> None:
    backbone = tiny_backbone()
    method = build("lst", backbone)
    with attached(method, backbone):
        before = total_loss(backbone)
        with torch.no_grad():
            method.ladders["encoder"].side.final_layer_norm.weight.mul_(-1)
        assert total_loss(backbone) != before


def test_lst_side_layers_start_as_submatrices_of_the_backbone() -> None:
    backbone = tiny_backbone()
    method = build("lst", backbone, reduction=4, skip_every=2)
    small, full = method.ladders["decoder"].side.block[0].layer, backbone.model.decoder.block[1].layer
    hidden = [full[-1].layer_norm.weight.tolist().index(w) for w in small[-1].layer_norm.weight.tolist()]
    assert len(hidden) == 16
    for small_linear, full_linear in (
        (small[0].SelfAttention.q, full[0].SelfAttention.q),
        (small[1].EncDecAttention.o, full[1].EncDecAttention.o),
        (small[2].DenseReluDense.wi, full[2].DenseReluDense.wi),
    ):
        entries = set(full_linear.weight.flatten().tolist())
        assert set(small_linear.weight.flatten().tolist()) <= entries
        assert small_linear.weight.abs().mean() > full_linear.weight.abs().mean(), "the large ones stay"
    own, pretrained = (
        stack.block[0].layer[0].SelfAttention for stack in (method.ladders["encoder"].side, backbone.model.encoder)
    )
    assert torch.equal(own.relative_attention_bias.weight, pretrained.relative_attention_bias.weight)


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder"])
def test_lst_without_reduction_starts_as_the_backbones_own_layers(kind: Any) -> None:
    backbone = tiny_backbone(kind)
    method = build("lst", backbone, reduction=1)
    for name, stack in stacks_of(backbone).items():
        copied = dict(layers_of(method.ladders[name].side)[0].named_parameters())
        for key, weight in layers_of(stack)[1].named_parameters():
            assert torch.equal(copied[key], weight), key
