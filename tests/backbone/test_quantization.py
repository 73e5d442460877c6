"""Backbones in 4 bits, 8 bits and bfloat16: what is lost is what the format costs, and methods train through them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from typing_help import present

from harness.backbone.fingerprint import weights_fingerprint
from harness.backbone.load import Placement, load_backbone, meta_backbone
from harness.backbone.network import Backbone
from harness.backbone.quantization import NF4_BITS, num_weights
from harness.errors import UserError
from harness.method.method import Method
from harness.method.registry import discover
from harness.results.store import load_results
from harness.runner.plan import make_plan
from harness.runner.run_suite import run
from harness.suite.make_groups import Overrides
from harness.train.batch_input import BatchInput, Rows
from harness.train.tiny_backbones import TinyTokenizer, tiny_backbone, tiny_rows

pytestmark = pytest.mark.usefixtures("few_rows")

Write = Callable[[str], Path]
REGISTRY = discover()
LENGTHS = [5, 9, 13, 7]
SOURCE_LENGTH = 24
Kind = Literal["encoder-decoder", "decoder"]
KINDS: tuple[Kind, ...] = ("encoder-decoder", "decoder")
# Dettmers et al. 2023 (QLoRA), appendix E
NF4 = np.array([-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
                0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0])  # fmt: skip
HP = {
    "prompt_tuning": {"prompt_length": 7},
    "dept": {"prompt_length": 5, "budget_length": 9, "source_length": SOURCE_LENGTH},
    "accept": {"prompt_length": 6, "budget_length": 12, "source_length": SOURCE_LENGTH},
    "ept": {"prompt_length": 4, "budget_length": 8, "source_length": SOURCE_LENGTH},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders with a tiny random T5 and a tiny random Llama, by kind."""
    words = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *map(str, range(100))])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
        pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
    )  # fmt: skip
    folders: dict[str, str] = {}
    for kind in KINDS:
        folders[kind] = str(tmp_path_factory.mktemp(kind))
        tiny_backbone(kind).model.save_pretrained(folders[kind])
        tokenizer.save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="module")
def nf4(checkpoints: dict[str, str]) -> dict[str, Backbone]:
    return {kind: load_tiny(kind, checkpoints, "nf4") for kind in KINDS}


def load_tiny(kind: str, checkpoints: dict[str, str], scheme: Any) -> Backbone:
    """Loaded as a user's folder is; the tokenizer of the tiny backbones has no ids beyond their vocabulary."""
    backbone = load_backbone(checkpoints[kind], "bfloat16", "cpu", scheme)
    backbone.tokenizer = TinyTokenizer()
    return backbone


def build(name: str, backbone: Backbone, **hp: object) -> Method:
    cls = REGISTRY[name].cls
    assert cls is not None
    assert issubclass(cls, Method)
    torch.manual_seed(1)
    return cls(cls.HP(**{**HP.get(name, {}), **hp}), backbone)


def digest(backbone: Backbone) -> str:
    """Every byte of the backbone, scales of quantised weights included."""
    found = hashlib.sha256()
    for name, tensor in backbone.model.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def logits(backbone: Backbone) -> Tensor:
    """Of a fixed random input, [4, 3, V]."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 100, (4, 15), generator=generator)
    with torch.no_grad():
        embeds, mask = backbone.embedding(ids[:, :12]), torch.ones(4, 12, dtype=torch.long)
        return backbone.target_logits(embeds, mask, ids[:, 12:]).double()


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def rounded(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """NF4 by its definition: blocks of 64 divided by their largest magnitude, each value to the nearest level."""
    blocks = weight.reshape(-1, 64)
    scale = np.abs(blocks).max(1, keepdims=True)
    nearest = np.abs((blocks / scale)[..., None] - NF4).argmin(-1)
    values: np.ndarray[Any, Any] = (NF4[nearest] * scale).reshape(weight.shape)
    return values


def packed_names(backbone: Backbone) -> list[str]:
    return [name for name, module in backbone.model.named_modules() if hasattr(module, "quant_state") or
            type(module).__name__ == "Linear4bit"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_4_bit_weights_are_nf4_with_8_bit_scales(kind: Any, nf4: dict[str, Backbone]) -> None:
    from bitsandbytes.functional import dequantize_4bit

    full, names = tiny_backbone(kind), packed_names(nf4[kind])
    assert names
    for name in names:
        weight = nf4[kind].model.get_submodule(name).weight
        original = full.model.get_submodule(name).weight.to(torch.bfloat16).double().numpy()
        found = dequantize_4bit(weight.data, weight.quant_state).double().numpy()
        assert weight.quant_state.nested, "the scales are not quantised again"
        scale = np.abs(original.reshape(-1, 64)).max(1).repeat(64).reshape(original.shape)
        # half a step of the widest gap between levels, and what 8 bits for the scale and bfloat16 take away
        assert (np.abs(found - original) <= (np.diff(NF4).max() / 2 + 0.03) * scale).all()
        assert np.abs(found - rounded(original)).mean() < 0.01 * scale.mean()


def noisy_logits(kind: Any, relative_rms: float) -> Tensor:
    """Logits of the full network with independent noise of a relative size on each matrix that NF4 rounds."""
    backbone = tiny_backbone(kind)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, module in backbone.model.named_modules():
            if isinstance(module, nn.Linear) and "lm_head" not in name and not name.endswith(".wo"):
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight += relative_rms * module.weight.square().mean().sqrt() * noise
    return logits(backbone)


def nf4_relative_rms() -> float:
    """What NF4 takes from normal weights: the root mean square of its error over that of the weights."""
    weights = np.random.default_rng(0).standard_normal((500, 64))
    return float(np.sqrt(((rounded(weights) - weights) ** 2).mean()))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_a_4_bit_backbone_are_off_by_what_4_bits_cost(kind: Any, nf4: dict[str, Backbone]) -> None:
    exact = logits(tiny_backbone(kind))
    # independent errors of the size of NF4's, put on the same matrices: what rounding must cost, not less nor more
    expected = relative_error(noisy_logits(kind, nf4_relative_rms()), exact)
    assert expected / 2 < relative_error(logits(nf4[kind]), exact) < 1.5 * expected + 0.01

    unscaled = tiny_backbone(kind)  # 4 bits over [-1, 1], without a scale per block
    with torch.no_grad():
        for name in packed_names(nf4[kind]):
            weight = unscaled.model.get_submodule(name).weight
            weight.copy_((weight.clamp(-1, 1) * 7).round() / 7)
    assert relative_error(logits(unscaled), exact) > 1.5 * expected + 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_input_side_methods_train_through_4_bits_and_leave_every_byte(kind: Any, nf4: dict[str, Backbone]) -> None:
    backbone, before = nf4[kind], digest(nf4[kind])
    encoded, methods = tiny_rows(LENGTHS, backbone), [build(name, backbone) for name in HP]
    fused, count = BatchInput(methods, backbone, SOURCE_LENGTH), len(LENGTHS)
    rows = Rows(np.repeat(np.arange(len(methods)), count), np.tile(np.arange(count), len(methods)))
    optimizer = torch.optim.Adam([p for method in methods for p in method.parameters()], lr=0.02)

    def losses() -> Tensor:
        fused.refresh(grad=True, cells=range(len(methods)))
        embeds, mask, placed = fused.build(encoded, rows)
        labels = torch.as_tensor(encoded.targets(placed.rows))
        found = backbone.token_losses(embeds, mask, labels).sum(1)
        found.sum().backward()
        fused.backward()
        return torch.zeros(len(methods)).index_add_(0, torch.as_tensor(placed.cells), found.detach())

    first = losses()
    for _ in range(8):
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():  # an evaluation in between must not change what the next step sees
            backbone.decode(torch.zeros(1, 4, backbone.hidden), torch.ones(1, 4, dtype=torch.long), 2)
        last = losses()
    assert (last < first).all(), f"{list(HP)}: {first.tolist()} to {last.tolist()}"
    assert digest(backbone) == before
    assert all(p.dtype == torch.float32 for method in methods for p in method.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in backbone.model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_trains_through_4_bits_or_says_why_not(kind: Any, nf4: dict[str, Backbone]) -> None:
    backbone, before, refused = nf4[kind], digest(nf4[kind]), {}
    encoded = tiny_rows(LENGTHS, backbone)
    for name, registered in REGISTRY.items():
        cls = registered.cls
        if cls is None or not issubclass(cls, Method) or not cls.is_layer_side() or not cls.trains:
            continue
        try:
            method = build(name, backbone)
        except ValueError as error:
            refused[name] = str(error)
            continue
        fused = BatchInput([method], backbone, SOURCE_LENGTH)
        method.attach(backbone)
        try:
            fused.refresh(grad=True, cells=[0])
            embeds, mask, _ = fused.build(encoded, Rows(np.zeros(4, np.int64), np.arange(4)))
            backbone.token_losses(embeds, mask, torch.as_tensor(encoded.targets(np.arange(4)))).sum().backward()
            fused.backward()
        finally:
            method.detach(backbone)
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        assert any(bool(grad.any()) for grad in gradients), f"{name} gets no gradient"
        assert all(p.dtype == torch.float32 for p in method.parameters() if p.requires_grad), name
        assert digest(backbone) == before, f"{name} changed the backbone"
    assert "nf4 weights cannot be trained" in refused.pop("finetune")
    about = ("nf4", kind, "layers", "encoder")  # a method of encoders says so to a decoder
    assert all(any(word in reason for word in about) for reason in refused.values()), refused


def test_sizes_count_weights_and_not_the_bytes_they_share(nf4: dict[str, Backbone]) -> None:
    for kind in KINDS:
        assert nf4[kind].num_params == tiny_backbone(kind).num_params
    matrix = nf4["decoder"].model.model.layers[0].mlp.up_proj.weight
    assert (num_weights(matrix), matrix.numel()) == (64 * 128, 64 * 128 // 2)
    assert pytest.approx(4.127, abs=1e-3) == NF4_BITS


@pytest.mark.parametrize(("scheme", "limit"), [("bf16", 0.02), ("int8", 0.05)])
def test_8_and_16_bits_lose_less(scheme: Any, limit: float, checkpoints: dict[str, str]) -> None:
    backbone = load_tiny("decoder", checkpoints, scheme)
    assert relative_error(logits(backbone), logits(tiny_backbone("decoder"))) < limit
    prompt: Any = build("prompt_tuning", backbone)
    given = prompt(torch.zeros(1, 3, backbone.hidden), torch.ones(1, 3, dtype=torch.long))
    backbone.token_losses(given[0], given[1], torch.tensor([[5, 1]])).sum().backward()
    assert prompt.vectors.grad is not None
    assert prompt.vectors.grad.abs().sum() > 0
    assert backbone.embedding.weight.dtype == prompt.vectors.dtype == torch.float32


def noted(kept: list[int], tensor: Tensor) -> Tensor:
    kept.append(tensor.nbytes)
    return tensor


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_layers_give_the_same_gradients_and_keep_less(kind: Any) -> None:
    found = []
    for recompute in (False, True):
        backbone = tiny_backbone(kind)
        if recompute:
            backbone.recompute_layers()
        for training in (False, True):
            backbone.model.train(training)
            torch.manual_seed(5)
            embeds = torch.randn(3, 20, backbone.hidden).requires_grad_()
            kept: list[int] = []
            with torch.autograd.graph.saved_tensors_hooks(functools.partial(noted, kept), lambda t: t):
                losses = backbone.token_losses(embeds, torch.ones(3, 20, dtype=torch.long), torch.tensor([[5, 1]] * 3))
            losses.sum().backward()
            found.append((embeds.grad, losses.detach(), sum(kept)))
    for plain, recomputed in zip(found[:2], found[2:], strict=True):
        assert torch.equal(present(plain[0]), present(recomputed[0]))
        assert torch.equal(plain[1], recomputed[1])
        assert recomputed[2] < plain[2] / 2


def test_a_prefix_in_the_layers_is_never_recomputed() -> None:
    backbone = tiny_backbone("decoder")
    backbone.recompute_layers()
    method = build("prefix_tuning", backbone)
    method.attach(backbone)
    assert not backbone.recomputes
    method.detach(backbone)
    assert backbone.recomputes


def test_layers_are_placed_by_a_device_map(checkpoints: dict[str, str]) -> None:
    spread = load_backbone(checkpoints["decoder"], device="cpu", placement=Placement(device_map="auto"))
    assert relative_error(logits(spread).cpu(), logits(tiny_backbone("decoder"))) < 1e-5


SUITE = """\
suite: small
backbones: [micro-t5]
tasks: [micro_sentiment]
seeds: [1]
recipe: {steps: 2, batch_size: 2, eval_every: 2, precision: bfloat16, quantization: nf4, backbone_dropout: false}
methods: {prompt_tuning: {prompt_length: 4, recipe: {lr: 0.1}}}
"""


def test_a_suite_trains_on_a_4_bit_backbone_and_its_results_say_so(write_suite: Write) -> None:
    path = write_suite(SUITE)
    summary = run(path, results=path.parent / "out", quiet=True)
    assert (summary.num_trained, summary.num_failed) == (1, 0)
    stored = make_plan(path, Overrides(), path.parent / "out", None)
    result = stored.results[0][(0, 1)]
    assert result.backbone is not None
    assert result.backbone.fingerprint == weights_fingerprint("micro-t5", "nf4") != weights_fingerprint("micro-t5")
    assert not stored.is_stale(result)
    assert set(load_results(path.parent / "out")["backbone"]) == {"micro-t5"}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"recipe.precision": "float32"}, "quantization nf4 needs recipe.precision: bfloat16, got float32"),
        ({"recipe.quantization": "nf5"}, "did you mean nf4?"),
    ],
)
def test_a_storage_that_cannot_be_is_refused(write_suite: Write, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        make_plan(write_suite(SUITE), Overrides(settings=settings), "out", None)
    assert problem in str(caught.value)


def test_full_fine_tuning_of_4_bit_weights_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(ValueError, match="nf4 weights cannot be trained"):
        build("finetune", meta_backbone("micro-t5", "nf4"))


def test_the_ept_protocol_stores_backbones_of_3b_and_more_in_4_bits(write_suite: Write) -> None:
    path = write_suite("suite: s\nbackbones: [t5-base]\ntasks: [cb]\nmethods: [prompt_tuning]\n")

    def storage(backbone: str, protocol: str) -> tuple[str, str]:
        plan = make_plan(path, Overrides(backbones=[backbone], protocol=protocol), "out", None)
        recipe = next(iter(plan.groups[0].cells.values())).recipe
        return recipe.quantization, recipe.precision

    assert storage("t5-3b", "ept-2025") == storage("llama-2-7b", "ept-2025") == ("nf4", "bfloat16")
    assert storage("t5-large", "ept-2025") == storage("t5-3b", "accept-2024") == ("none", "float32")


def test_a_setting_at_its_default_and_a_placement_leave_the_identity_of_cells_alone(write_suite: Write) -> None:
    path = write_suite(SUITE.replace(", precision: bfloat16, quantization: nf4", ""))
    cells = [
        next(iter(make_plan(path, Overrides(settings=settings), "out", None).groups[0].cells.values()))
        for settings in ({}, {"recipe.quantization": "none"}, {"execution.gradient_checkpointing": True})
    ]
    assert len({cell.cell_id for cell in cells}) == 1
