"""Where every tensor of every method starts, against the authors' modules run to their end.

Their own classes were built with the libraries that they pin, at small widths and under several seeds, by the model
class whose `_init_weights` goes over them (docs/protocol.md lists repositories, commits and classes). Each distribution
is stated here by shape, and never read from the method under test.
"""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from start_checks import (
    REGISTRY,
    VOCABULARY,
    WIDTH,
    Check,
    Drawn,
    backbones_own,
    build,
    constant,
    fan_in,
    fixed,
    kaiming,
    magnitude,
    normal,
    pad_row,
    position_table,
    sentence,
    submatrix,
    uniform,
    vocabulary,
    xavier,
)
from torch import Tensor


def tiled_svd(name: str, tensor: Tensor) -> None:
    """A and B of EPT share singular values by their square roots: rows of A^T and of B have the same norms."""
    method: Any = build("ept")
    norms = method.a.norm(dim=0)
    torch.testing.assert_close(norms, method.b.norm(dim=1))
    assert bool((norms.diff() <= 1e-5).all()), name


Rows = list[tuple[str, Check | Drawn]]
ZERO, ONE, NORMS = constant(0.0), constant(1.0), (r"norms\.copies\..*", backbones_own)
WHOLE_VOCABULARY = vocabulary(0, VOCABULARY)
BOTTLENECK: Rows = [(r"inserted\..*\.(down|up)\.weight", normal(0.01)), (r"inserted\..*\.bias", ZERO), NORMS]
LORA: Rows = [(r".*lora_A.*", uniform(fan_in)), (r".*lora_B.*", ZERO)]
LINEAR: Rows = [(r"(head|network).*weight", uniform(fan_in)), (r"(head|network).*bias", uniform(fixed(WIDTH**-0.5)))]
LADDER: Rows = [(r"ladders\.\w+\.gates", ZERO), (r".*(down\.\d|^up)\.weight", normal(0.01)),
                (r".*(down\.\d|^up)\.bias", ZERO)]  # fmt: skip
SIZE = 2_048
"""Of the layer embeddings of HyperDecoder: two of the usual 10 numbers would say nothing of their deviation."""

STARTS: dict[str, Rows] = {
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
    # AkariAsai/ATTEMPT, attempt/third_party/models/t5/modeling_t5.py: _init_weights, nn.LayerNorm. The target prompt is
    # replaced by the first source, without which the method does not train
    "attempt": [
        (r"vectors", WHOLE_VOCABULARY), (r"(down|up)\.weight", normal(0.01)), (r"norm\.weight", ONE),
        (r"norm\.bias|sources", ZERO), (r"pad", pad_row),
    ],
    # rabeehk/compacter, modeling_t5.py: zero biases where T5 has none
    "bitfit": [(r".*", ZERO)],
    # rabeehk/compacter, seq2seq/hypercomplex/inits.py (gain sqrt 2), modeling_t5.py (rules), configs/compacter.json
    "compacter": [
        (r"rules", normal(1e-4)), (r".*\.(left|right)", uniform(xavier(math.sqrt(2)))), (r".*\.bias", ZERO), NORMS,
    ],
    # ZhengxiangShi/DecomposedPromptTuning, train.py and peft/tuners/prompt_tuning_lora.py
    "dept": [(r"vectors", sentence), (r"a", uniform(fan_in)), (r"b", ZERO)],
    # NVlabs/DoRA, peft/src/peft/tuners/dora.py, as huggingface/peft
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
    # no tensor of its own: the head is the harness's, N(0, 0.02), tests/backbone/test_encoders.py
    "head_only": [],
    "imported": [],
    "none": [],
    # allenai/hyperdecoders, hyperdecoder/modeling/adapter_layer.py and adapter_generators.py
    "hyperdecoder": [
        (r"plain.*weight", uniform(xavier(1e-4))), (r"writer\.layer\.weight", normal(1.0)),
        (r"writer\.first\.weight", uniform(fan_in)), (r"writer\.first\.bias", uniform(fixed((WIDTH + SIZE) ** -0.5))),
        (r"writer\.heads\.down\.weight", uniform(lambda shape: 1e-3 * math.sqrt(3 / (shape[1] * WIDTH)))),
        (r"writer\.heads\.up\.weight", uniform(lambda shape: 1e-3 * math.sqrt(3 / (shape[1] * 64)))),
        (r"writer\.heads\..*_bias\.weight", uniform(lambda shape: 1e-3 * math.sqrt(3 / shape[1]))), (r".*bias", ZERO),
    ],
    # rabeehk/hyperformer, hyperformer/adapters/adapter_utils.py (linear_layer, set_task_embeddings)
    "hyperformer": [
        NORMS, (r"task\.weight|.*\.(layer|block)\.weight", normal(1.0)), (r".*\.norm\.weight", ONE),
        (r".*\.(mlp\.\d|heads\.\w+)\.weight", normal(0.01)), (r".*\.bias", ZERO),
    ],
    # r-three/t-few, src/models/lora.py with configs/ia3.json (init scale 0), as huggingface/peft
    "ia3": [(r".*", ONE)],
    # microsoft/LoRA, loralib/layers.py, and its copy in seq2seq/lora of ylsung/Ladder-Side-Tuning
    "lora": LORA,
    # ylsung/Ladder-Side-Tuning, seq2seq/third_party/models/t5/modeling_side_t5.py (_init_weights: nn.Linear),
    # training_args.py (gate_alpha), pruning/pruning_methods.py (pruning_v2), run_seq2seq.py (loads what that gives)
    "lst": [
        *LADDER, (r".*relative_attention_bias\.weight", position_table), (r"ladders\.\w+\.side\..*", submatrix),
    ],
    # Wang et al. 2023; u = v = 1 is ours, see the docstring
    "mpt": [(r"shared", WHOLE_VOCABULARY), (r"u|v", ONE)],
    # THUDM/P-tuning, LAMA/p_tuning/prompt_encoder.py, as huggingface/peft
    "p_tuning": [(r"vectors", normal(1.0)), *LINEAR],
    # THUDM/P-tuning-v2, model/prefix_encoder.py, redrawn by BertPreTrainedModel._init_weights
    "prefix_tuning": [(r"vectors", normal(0.02))],
    # every other type starts as PEFT starts it: tests/method/test_peft_types.py
    "peft": LORA,
    # google-research/prompt-tuning, prompts.py (from_sample_of_embeddings, without replacement)
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
    "tpt": [(r"bank", vocabulary(100, 1_000)), (r"vectors", vocabulary(100, 600)), (r"pad", pad_row)],
    # huggingface/peft, tuners/vera/layer.py and config.py (d_initial)
    "vera": [(r".*lambda_d.*", constant(0.1)), (r".*lambda_b.*", ZERO)],
}  # fmt: skip

HP: dict[str, dict[str, Any]] = {
    "adapter": {"reduction": 4}, "adapter_drop": {"reduction": 4, "dropped_layers": 1}, "compacter": {"n": 32},
    "hyperdecoder": {"layer_embedding": SIZE},
}  # fmt: skip
"""Where the defaults would give too few numbers for statistics."""

FORMS: dict[str, tuple[str, dict[str, Any], Rows]] = {
    # Accept: with `scap` off the pair is DePT's, with `scpp` off the prompt is nn.Embedding's
    "SCPP alone": (
        "accept", {"added_side": "lowrank"},
        [(r"front\..*", uniform(kaiming(math.sqrt(5)))), (r"offset\.a", uniform(fan_in)), (r"offset\.b", ZERO)],
    ),
    "SCAP alone": (
        "accept", {"prompt_side": "free", "free_init": "normal"},
        [(r"front\.vectors", normal(1.0)), (r"offset\.weights", uniform(kaiming(math.sqrt(5)))),
         (r"offset\.codebooks", uniform(kaiming(0.0)))],
    ),
    # hyperdecoders: process_encoder_output, decoder.mlp
    "pooled by a network": (
        "hyperdecoder", {"pool_network": True},
        [(r"pool\..*weight", uniform(fan_in)), (r"pool\..*bias", uniform(fixed(WIDTH**-0.5))), (r"(plain|writer).*",
         lambda name, tensor: None)],
    ),
    # Ladder-Side-Tuning: configs/lora.json with `bitfit`
    "LoRA with biases": ("lora", {"biases": True}, [*LORA, (r"biases\..*", ZERO), (r"positions\..*", backbones_own)]),
    # Ladder-Side-Tuning: load_side_pretrained_weights "", so that _init_weights alone has drawn the side layers
    "side layers not pruned": (
        "lst", {"init": "random", "reduction": 4},
        [*LADDER, (r".*norm\.weight", ONE), (r".*relative_attention_bias\.weight", normal(1.0, rough=True)),
         (r"ladders\.\w+\.side\..*", normal(0.01))],
    ),
    # PEFT's LSTM has twice the units of the one in P-tuning's LAMA; both start as PyTorch's
    "encoder with an LSTM": (
        "p_tuning", {"encoder": "lstm"},
        [(r"vectors", normal(1.0)), (r"lstm.*", uniform(fixed(WIDTH**-0.5))), (r"head.*weight", uniform(fan_in)),
         (r"head.*bias", uniform(fixed((2 * WIDTH) ** -0.5)))],
    ),
    # XiangLi1999/PrefixTuning, gpt2/train_control.py and seq2seq/prefixTuning.py: never given to init_weights
    "prefix by a network": ("prefix_tuning", {"network": "mlp"}, [(r"vectors", normal(1.0)), *LINEAR]),
    # compacter: prompt_tuning_random_init.json
    "prompt from U(-0.5, 0.5)": ("prompt_tuning", {"init": "uniform"}, [(r"vectors", uniform(fixed(0.5)))]),
    # ATTEMPT: baselines/prompt_tuning.json, and compacter: prompt_tuning_tokens_init.json
    "prompt from N(0, 1)": ("prompt_tuning", {"init": "normal"}, [(r"vectors", normal(1.0))]),
}  # fmt: skip


def test_every_method_has_its_start_stated() -> None:
    assert STARTS.keys() == REGISTRY.keys()


@pytest.mark.parametrize("name", REGISTRY)
def test_every_tensor_starts_as_in_the_authors_code(name: str) -> None:
    hold(name, HP.get(name, {}), STARTS[name])


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_start_as_in_the_authors_code(form: str) -> None:
    hold(*FORMS[form])


def hold(name: str, hp: dict[str, Any], rows: Rows) -> None:
    """Hold each tensor to the first row whose pattern is its name, and what is drawn to its law over several seeds."""
    pooled: dict[int, list[Tensor]] = {i: [] for i, (_, check) in enumerate(rows) if isinstance(check, Drawn)}
    used: set[int] = set()
    for turn in range(70):
        method, drawn = build(name, 7 + turn, **hp), list[Tensor]()
        for key, tensor in [*method.named_parameters(), *method.named_buffers()]:
            row = next((i for i, (pattern, _) in enumerate(rows) if re.fullmatch(pattern, key)), None)
            assert row is not None, f"where {key} starts is not stated"
            used.add(row)
            check, values = rows[row][1], tensor.detach()
            if not isinstance(check, Drawn):
                if turn == 0:
                    check(key, values)
                    drawn += [values] if values.numel() > 1 and values.unique().numel() > 1 else []
            elif turn == 0 or missing(pooled[row], check):
                check(key, values)
                pooled[row].append(check.scaled(values))
                drawn.append(values)
        pairs = [(a, b) for i, a in enumerate(drawn) for b in drawn[:i] if a.shape == b.shape]
        assert not any(torch.equal(a, b) for a, b in pairs), "two tensors were drawn alike"
        laws = [(i, check) for i, (_, check) in enumerate(rows) if isinstance(check, Drawn)]
        if not any(missing(pooled[i], check) for i, check in laws):
            break
    unused = [pattern for i, (pattern, _) in enumerate(rows) if i not in used]
    assert not unused, f"no tensor is named like {unused}"
    for i, law in laws:
        law.pooled(torch.cat(pooled[i]), f"{name}: {rows[i][0]}")


def missing(tensors: list[Tensor], law: Drawn) -> bool:
    """Whether a row needs more numbers, [n] each."""
    return sum(len(values) for values in tensors) < law.enough


def test_experts_of_adamix_start_different() -> None:
    method: Any = build("adamix")
    for mixture in method.inserted.values():
        assert len({tuple(weight.flatten()[:9].tolist()) for weight in mixture.weights}) == 4


def test_projections_of_vera_are_kaiming_uniform() -> None:
    """No tensor of the method: A [R, in] and B [out, R] are drawn from the projection's seed, sqrt(6 / fan-in) wide."""
    method: Any = build("vera")
    (a,), (b,) = ({id(t.vera_A["default"]): t.vera_A["default"] for _, t in method.tuners()}.values(),
                  {id(t.vera_B["default"]): t.vera_B["default"] for _, t in method.tuners()}.values())  # fmt: skip
    for projection in (a, b):
        uniform(kaiming(0.0)).pooled(uniform(kaiming(0.0)).scaled(projection), "a projection")
