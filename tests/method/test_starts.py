"""Where every tensor of every method starts, and the constants that no tensor shows, against the authors' code.

The distributions are those of the authors' modules run to their end, what a parent class redraws included. Each is
stated here with its file, by shape, and never read from the method under test.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from test_fused import make_cell, trainer
from test_layer_methods import attached, batch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from harness.backbone.network import Backbone
from harness.method.method import Method
from harness.method.registry import discover
from harness.train.tiny_backbones import TinyTokenizer, tiny_backbone

REGISTRY: dict[str, type[Method]] = {
    name: found.cls for name, found in discover().items() if found.cls and issubclass(found.cls, Method)
}
WIDTH, VOCABULARY = 128, 1_200
HP: dict[str, dict[str, Any]] = {"adapter": {"reduction": 4}, "adapter_drop": {"reduction": 4, "dropped_layers": 1}}


@functools.cache
def backbone() -> Backbone:
    """A T5 wide enough for statistics, with norms that differ from each other and from ones."""
    config = T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=32, d_ff=256, num_layers=2, num_decoder_layers=2, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(config).eval()
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                nn.init.normal_(parameter, mean=1.0)
    return Backbone("wide", model, TinyTokenizer(), None, "float32")


@functools.cache
def build(name: str) -> Method:
    torch.manual_seed(5)
    return REGISTRY[name](REGISTRY[name].HP(**HP.get(name, {})), backbone())


Check = Callable[[str, Tensor], None]


def around(expected: float, got: float, tolerance: float, what: str) -> None:
    assert abs(got - expected) <= tolerance, f"{what}: {got:.4g}, not {expected:.4g}"


def normal(std: float) -> Check:
    """N(0, std): mean and deviation within 5 standard errors, and tails that no uniform distribution has."""

    def check(name: str, tensor: Tensor) -> None:
        values, n = tensor.double().flatten() / std, tensor.numel()
        around(0, float(values.mean()), 5 / n**0.5, f"mean of {name}")
        around(1, float(values.std()), 5 / (2 * n) ** 0.5, f"deviation of {name}")
        assert n < 500 or float(values.abs().max()) > 2.2, f"{name} has no tails"

    return check


def uniform(bound: Callable[[Sequence[int]], float]) -> Check:
    """U(-b, b) with b by shape: mean and deviation within 5 standard errors, nothing outside, the edge all but met."""

    def check(name: str, tensor: Tensor) -> None:
        values, n = tensor.double().flatten() / bound(tensor.shape), tensor.numel()
        around(0, float(values.mean()), 5 / (3 * n) ** 0.5, f"mean of {name}")
        assert float(values.abs().max()) <= 1 + 1e-6, f"{name} leaves its bound"
        assert float(values.abs().max()) >= 1 - 12 / n, f"{name} stays far within its bound"
        assert n < 50 or abs(float(values.std()) - 3**-0.5) < 4 / n**0.5, f"deviation of {name}"

    return check


def constant(value: float) -> Check:
    def check(name: str, tensor: Tensor) -> None:
        assert bool((tensor == value).all()), f"{name} is not {value}"

    return check


def ids_of(rows: Tensor) -> list[int]:
    """Which token's embedding each row is, [P, H]."""
    equal = (rows[:, None] == backbone().embedding.weight[None]).all(-1)
    assert bool(equal.any(1).all()), "rows are not those of the embedding"
    return equal.int().argmax(1).tolist()


def vocabulary(first: int, stop: int, once: bool = True) -> Check:
    def check(name: str, tensor: Tensor) -> None:
        found = ids_of(tensor.reshape(-1, WIDTH))
        assert all(first <= token < stop for token in found), name
        assert (len(set(found)) == len(found)) == once or not once, f"{name} repeats a row"
        assert found != sorted(found), f"{name} is in the order of the vocabulary"

    return check


def sentence(name: str, tensor: Tensor) -> None:
    """The tokens of one sentence with its end, again and again (the authors' spelling)."""
    tokens = TinyTokenizer()("Classify this text is postive or not:")["input_ids"]
    assert ids_of(tensor) == (tokens * 9)[: len(tensor)], name


def backbones_own(name: str, tensor: Tensor) -> None:
    own = name.split(".", 1)[1].removeprefix("copies.").replace("/", ".")
    assert torch.equal(tensor, backbone().model.get_parameter(own)), name


def submatrix(name: str, tensor: Tensor) -> None:
    """Rows and columns of the backbone's, so nothing that is not there; which ones, `test_layer_equations` says."""
    stack, rest = name.removeprefix("ladders.").split(".side.")
    full = backbone().model.get_parameter(f"{stack}.{re.sub('^block.0', 'block.1', rest)}")
    assert set(tensor.flatten().tolist()) <= set(full.flatten().tolist()), name
    assert tensor.numel() < full.numel()


def position_table(name: str, tensor: Tensor) -> None:
    stack, rest = name.removeprefix("ladders.").split(".side.")
    assert torch.equal(tensor, backbone().model.get_parameter(f"{stack}.{rest}"))


def magnitude(name: str, tensor: Tensor) -> None:
    path = name.removeprefix("tensors.").removesuffix("/lora_magnitude_vector/default/weight").replace("/", ".")
    torch.testing.assert_close(tensor.data, backbone().model.get_submodule(path).weight.norm(dim=1))


def tiled_svd(name: str, tensor: Tensor) -> None:
    """A and B of EPT share singular values by their square roots: rows of A^T and of B have the same norms."""
    method: Any = build("ept")
    norms = method.a.norm(dim=0)
    torch.testing.assert_close(norms, method.b.norm(dim=1))
    assert bool((norms.diff() <= 1e-5).all()), name


def fan_in(shape: Sequence[int]) -> float:
    """PyTorch's Linear, weight [out, in]: kaiming-uniform with a = sqrt(5)."""
    return float(shape[1] ** -0.5)


def xavier(gain: float) -> Callable[[Sequence[int]], float]:
    return lambda shape: gain * math.sqrt(6 / (shape[-1] + shape[-2]))


def fixed(bound: float) -> Callable[[Sequence[int]], float]:
    return lambda shape: bound


def kaiming(a: float) -> Callable[[Sequence[int]], float]:
    """`kaiming_uniform_`, whose fan-in of a tensor with more than two dimensions is all but the first."""
    return lambda shape: math.sqrt(6 / ((1 + a * a) * math.prod(shape[1:])))


ZERO, ONE, NORMS = constant(0.0), constant(1.0), (r"norms\.copies\..*", backbones_own)
WHOLE_VOCABULARY = vocabulary(0, VOCABULARY)
BOTTLENECK = [(r"inserted\..*\.(down|up)\.weight", normal(0.01)), (r"inserted\..*\.bias", ZERO), NORMS]
LORA = [(r".*lora_A.*", uniform(fan_in)), (r".*lora_B.*", ZERO)]

STARTS: dict[str, list[tuple[str, Check]]] = {
    # rabeehk/compacter, seq2seq/third_party/models/t5/modeling_t5.py, T5PreTrainedModel._init_weights: nn.Linear
    "adapter": BOTTLENECK,
    "adapter_drop": BOTTLENECK,
    # AI-Application-and-Integration-Lab/Accept, kaiming_uniform_ of all four, a = 0 for SCAP's codebook alone
    "accept": [
        (r"front\.(weights|codebooks)|offset\.weights", uniform(kaiming(math.sqrt(5)))),
        (r"offset\.codebooks", uniform(kaiming(0.0))),
    ],
    # microsoft/AdaMix, src/transformers/models/bert/modeling_bert.py, BertPreTrainedModel._init_weights
    "adamix": [(r".*(weights|up\.weight)", normal(0.02)), (r".*bias(es)?", ZERO)],
    # AkariAsai/ATTEMPT, attempt/third_party/models/t5/modeling_t5.py: _init_weights, init_prefix_weights, nn.LayerNorm
    "attempt": [
        (r"vectors", WHOLE_VOCABULARY), (r"(down|up)\.weight", normal(0.01)), (r"norm\.weight", ONE),
        (r"norm\.bias|sources", ZERO), (r"pad", lambda name, tensor: backbones_own("x.shared.weight", tensor)),
    ],
    # rabeehk/compacter, modeling_t5.py: zero biases where T5 has none
    "bitfit": [(r".*", ZERO)],
    # rabeehk/compacter, seq2seq/hypercomplex/inits.py (gain sqrt 2), modeling_t5.py (rules), configs/compacter.json
    "compacter": [
        (r"rules", normal(1e-4)), (r".*\.(left|right)", uniform(xavier(math.sqrt(2)))), (r".*\.bias", ZERO), NORMS,
    ],
    # ZhengxiangShi/DecomposedPromptTuning, train.py and peft/peft_model.py, prompt_tuning_lora
    "dept": [(r"vectors", sentence), (r"a", uniform(fan_in)), (r"b", ZERO)],
    # huggingface/peft, tuners/lora/layer.py (reset_lora_parameters) and tuners/lora/dora.py
    "dora": [*LORA, (r".*magnitude.*", magnitude)],
    # XYaoooo/DPT, modeling_t5.py, random_range 0.5
    "dpt": [(r"a|b", uniform(fixed(0.5)))],
    # no code: Lan et al. 2025, section 3; the networks as PyTorch's Linear
    "ept": [
        (r"short", WHOLE_VOCABULARY), (r"a|b", tiled_svd), (r"(experts|gates)\..*weight", uniform(fan_in)),
        (r"experts\.\d\.0\.bias|gates.*bias", uniform(fixed(WIDTH**-0.5))),
        (r"experts\.\d\.2\.bias", uniform(fixed(256**-0.5))),
    ],
    "finetune": [(r".*", backbones_own)],
    # allenai/hyperdecoders, hyperdecoder/modeling/adapter_layer.py and adapter_generators.py
    "hyperdecoder": [
        (r"plain.*weight", uniform(xavier(1e-4))), (r"writer\.layer\.weight", normal(1.0)),
        (r"writer\.first\.weight", uniform(fan_in)), (r"writer\.first\.bias", uniform(fixed((WIDTH + 10) ** -0.5))),
        (r"writer\.heads\.down\.weight", uniform(lambda shape: 1e-3 * math.sqrt(3 / (shape[1] * WIDTH)))),
        (r"writer\.heads\.up\.weight", uniform(lambda shape: 1e-3 * math.sqrt(3 / (shape[1] * 64)))),
        (r"writer\.heads\..*_bias\.weight", uniform(lambda shape: 1e-3 * math.sqrt(3 / shape[1]))), (r".*bias", ZERO),
    ],
    # rabeehk/hyperformer, hyperformer/adapters/adapter_utils.py (linear_layer, set_task_embeddings)
    "hyperformer": [
        NORMS, (r"task\.weight|.*\.(layer|block)\.weight", normal(1.0)), (r".*\.norm\.weight", ONE),
        (r".*\.(mlp\.\d|heads\.\w+)\.weight", normal(0.01)), (r".*\.bias", ZERO),
    ],
    # huggingface/peft, tuners/ia3/layer.py
    "ia3": [(r".*", ONE)],
    # microsoft/LoRA, loralib/layers.py, as in seq2seq/lora of ylsung/Ladder-Side-Tuning: nn.Linear's default, zeros
    "lora": LORA,
    # ylsung/Ladder-Side-Tuning, seq2seq/third_party/models/t5/modeling_side_t5.py (_init_weights: nn.Linear),
    # training_args.py (gate_alpha), run_seq2seq.py (load_side_pretrained_weights)
    "lst": [
        (r"ladders\.\w+\.gates", ZERO), (r".*(down\.\d|^up)\.weight", normal(0.01)), (r".*(down\.\d|^up)\.bias", ZERO),
        (r".*relative_attention_bias\.weight", position_table), (r"ladders\.\w+\.side\..*", submatrix),
    ],
    # Wang et al. 2023; u = v = 1 is ours, see the docstring
    "mpt": [(r"shared", WHOLE_VOCABULARY), (r"u|v", ONE)],
    # huggingface/peft, tuners/p_tuning/model.py
    "p_tuning": [
        (r"vectors", normal(1.0)), (r"head.*weight", uniform(fan_in)), (r"head.*bias", uniform(fixed(WIDTH**-0.5)))
    ],
    # every other type starts as PEFT starts it: tests/method/test_peft_types.py
    "peft": LORA,
    # huggingface/peft, tuners/prefix_tuning/model.py: nn.Embedding
    "prefix_tuning": [(r"vectors", normal(1.0))],
    # AkariAsai/ATTEMPT, modeling_t5.py, init_prefix_weights: np.random.permutation(range(5000))
    "prompt_tuning": [(r"vectors", WHOLE_VOCABULARY)],
    # arazd/ResidualPrompts, prompt_tuner2.py: init_new_prompt (with repetition), ResMLP
    "residual_prompt_tuning": [
        (r"vectors", vocabulary(0, VOCABULARY, once=False)), (r"networks\.0\.[02]\.weight", uniform(fan_in)),
        (r"networks\.0\.0\.bias", uniform(fixed(WIDTH**-0.5))), (r"networks\.0\.2\.bias", uniform(fixed(800**-0.5))),
        (r"networks\.0\.3\.weight", ONE), (r"networks\.0\.3\.bias", ZERO),
    ],
    # replaced by what it starts from, without which it does not train
    "spot": [(r"vectors", ZERO)],
    # mlwu22/TPT, models.py: np.random.permutation of range(100, 1000) and range(100, 600)
    "tpt": [
        (r"bank", vocabulary(100, 1_000)), (r"vectors", vocabulary(100, 600)),
        (r"pad", lambda name, tensor: backbones_own("x.shared.weight", tensor)),
    ],
    # huggingface/peft, tuners/vera/layer.py and config.py (d_initial)
    "vera": [(r".*lambda_d.*", constant(0.1)), (r".*lambda_b.*", ZERO)],
}  # fmt: skip


def test_every_method_has_its_start_stated() -> None:
    assert STARTS.keys() == REGISTRY.keys()
    assert CONSTANTS.keys() == REGISTRY.keys()


@pytest.mark.parametrize("name", REGISTRY)
def test_a_method_file_names_where_its_constants_come_from(name: str) -> None:
    assert re.search(r"\bSource: \w", sys.modules[REGISTRY[name].__module__].__doc__ or "")


@pytest.mark.parametrize("name", REGISTRY)
def test_every_tensor_starts_as_in_the_authors_code(name: str) -> None:
    method, pooled = build(name), dict[int, list[Tensor]]()
    for key, tensor in [*method.named_parameters(), *method.named_buffers()]:
        row = next((i for i, (pattern, _) in enumerate(STARTS[name]) if re.fullmatch(pattern, key)), None)
        assert row is not None, f"where {key} starts is not stated"
        if key == "pad":
            assert torch.equal(tensor, backbone().embedding.weight[0])
            continue
        STARTS[name][row][1](key, tensor.detach())
        pooled.setdefault(row, []).append(tensor.detach())
    unused = [pattern for i, (pattern, _) in enumerate(STARTS[name]) if i not in pooled and pattern != "pad"]
    assert not unused, f"no tensor is named like {unused}"
    drawn = [t for tensors in pooled.values() for t in tensors if t.numel() > 1 and t.unique().numel() > 1]
    pairs = [(a, b) for i, a in enumerate(drawn) for b in drawn[:i] if a.shape == b.shape]
    assert not any(torch.equal(a, b) for a, b in pairs), "two tensors were drawn alike"


def test_experts_of_adamix_start_different() -> None:
    method: Any = build("adamix")
    for mixture in method.inserted.values():
        assert len({tuple(weight.flatten()[:9].tolist()) for weight in mixture.weights}) == 4


def norm_eps(method: Method) -> set[float]:
    return {module.eps for module in method.modules() if isinstance(module, nn.LayerNorm)}


def low_rank_constants(method: Any) -> list[float]:
    """Scale and dropout of all updates."""
    tuners = [tuner for _, tuner in method.tuners()]
    scales, dropouts = ({t.scaling["default"] for t in tuners}, {t.lora_dropout["default"].p for t in tuners})
    return [*scales, *dropouts]


@dataclass
class Constants:
    """What no tensor shows; `read` gives the method's own values in the order of `authors`."""

    authors: list[Any] = field(default_factory=list)
    read: Callable[[Any], list[Any]] = lambda method: []
    eps: set[float] = field(default_factory=set)
    """Of the norms that the method brings."""
    sums_losses: bool = False


CONSTANTS: dict[str, Constants] = {
    "accept": Constants([1e-4], lambda m: [m.added_lr]),
    # bert_base_mnli_expert_soup.sh: 4 experts, consistency loss; the Trainer keeps decay from biases
    "adamix": Constants(
        [4, 1.0, "weights", 0.0],
        lambda m: [len(next(iter(m.inserted.values())).weights), m.consistency,
                   *[group.get("weight_decay", "weights") for group in m.param_groups(1.0)]],
    ),
    "adapter": Constants(),
    "adapter_drop": Constants(),
    # nn.LayerNorm's eps; temperature floor(768 e) = 2087 in the configurations
    "attempt": Constants([math.floor(WIDTH * math.e), 0.1], lambda m: [m.temperature, m.hp.attention_lr], {1e-5}),
    "bitfit": Constants(),
    # configs/compacter.json: hypercomplex_division
    "compacter": Constants([4, 1], lambda m: [len(m.rules), m.inserted["encoder/0/ffn"].down.left.shape[-1]]),
    # peft/tuners/prompt_tuning_lora.py: scaling 8 / sqrt(r)
    "dept": Constants([8.0], lambda m: [m.scale * math.sqrt(m.a.shape[1])]),
    "dora": Constants([1.0, 0.1], lambda m: low_rank_constants(m)),
    "dpt": Constants(),
    "ept": Constants([4], lambda m: [len(m.experts)]),
    "finetune": Constants(),
    # configs/experiments/glue_t5_base.json
    "hyperdecoder": Constants([0.1], lambda m: [m.smoothing], sums_losses=True),
    # adapter_modeling.py, layer_norm_epsilon; configs/hyperformer++.json; utils.py sums
    "hyperformer": Constants([0.1], lambda m: [m.smoothing], {1e-6}, sums_losses=True),
    "ia3": Constants(),
    # seq2seq/lora/config.py: alpha 32 at rank 32, dropout 0.1
    "lora": Constants([1.0, 0.1], lambda m: low_rank_constants(m)),
    # training_args.py: gate_T; T5's dropout_rate and layer_norm_epsilon
    "lst": Constants([0.1, 0.1], lambda m: [m.ladders["encoder"].temperature, m.ladders["encoder"].dropout.p]),
    # Wang et al. 2023, sections 3.2 and 3.3
    "mpt": Constants([0.9, 0.4], lambda m: [m.hp.distillation, m.hp.factor_lr]),
    "p_tuning": Constants(),
    "peft": Constants(),
    "prefix_tuning": Constants(),
    "prompt_tuning": Constants(),
    # prompt_tuner2.py: ResMLP
    "residual_prompt_tuning": Constants([None], lambda m: [m.network_lr], {1e-5}),
    "spot": Constants(),
    "tpt": Constants(),
    "vera": Constants(),
}  # fmt: skip


@pytest.mark.parametrize("name", REGISTRY)
def test_constants_are_those_of_the_authors_code(name: str) -> None:
    method, stated = build(name), CONSTANTS[name]
    assert [pytest.approx(value) if isinstance(value, float) else value for value in stated.authors] == stated.read(
        method
    )
    assert norm_eps(method) == stated.eps
    assert method.sums_losses == stated.sums_losses


@pytest.mark.parametrize("name", ["hyperformer", "hyperdecoder"])
def test_smoothing_spreads_a_tenth_over_the_whole_vocabulary(name: str) -> None:
    """0.9 (-log p_y) + 0.1 / V sum_v (-log p_v), hyperformer/third_party/utils/utils.py, label_smoothed_nll_loss."""
    network = tiny_backbone(precision="float64")
    method = REGISTRY[name](REGISTRY[name].HP(), network).eval()
    embeds, mask, labels = batch(network)
    with attached(method, network):
        losses = method.token_losses(network, embeds, mask, labels)
        logs = network.target_logits(embeds, mask, labels).log_softmax(-1)
    hit = logs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = (-0.9 * hit - 0.1 * logs.mean(-1)) * (labels != -100)
    torch.testing.assert_close(losses, expected)


def test_a_summed_loss_gives_the_gradient_of_the_sum_and_records_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Target tokens of 6 rows, two each, are 12: gradients grow twelvefold, whatever the micro-batches."""
    found = {}
    for sums, max_tokens in ((True, 10_000), (False, 10_000), (True, 40)):
        made = trainer([make_cell("hyperdecoder", {"width": 4}, 0.01, 1, 6, 5)], max_tokens)
        monkeypatch.setattr(type(made.states[0].outcome.method), "sums_losses", sums)
        with attached(made.states[0].outcome.method, made.backbone):
            losses = made._accumulate(made._draw())
        gradient = torch.cat([p.grad.flatten() for p in made.states[0].parameters if p.grad is not None])
        found[sums, max_tokens] = losses[0], gradient
    (loss, gradient), (mean_loss, mean_gradient), (cut_loss, cut_gradient) = found.values()
    torch.testing.assert_close(gradient, 12 * mean_gradient)
    torch.testing.assert_close(cut_gradient, gradient)
    assert loss == mean_loss == pytest.approx(float(cut_loss))
    assert np.isfinite(float(loss))
