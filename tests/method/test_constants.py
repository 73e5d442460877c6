"""The constants of every method that no starting tensor shows, against the authors' code and configurations.

Settings, rates, scales, eps, dropout and smoothing are those that the authors' own argument classes hold after their
configuration files or scripts were read; docs/protocol.md lists which.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from start_checks import REGISTRY, WIDTH, build
from test_fused import make_cell, trainer
from test_layer_methods import attached, batch
from torch import nn

from harness.method.method import Method
from harness.train.tiny_backbones import tiny_backbone


def norm_eps(method: Method) -> set[float]:
    return {module.eps for module in method.modules() if isinstance(module, nn.LayerNorm)}


def low_rank_constants(method: Any) -> list[float]:
    """Scale and dropout of all updates."""
    tuners = [tuner for _, tuner in method.tuners()]
    scales, dropouts = ({t.scaling["default"] for t in tuners}, {t.lora_dropout["default"].p for t in tuners})
    return [*scales, *dropouts]


@dataclass
class Constants:
    """`read` gives the method's own values in the order of `authors`; `settings` are defaults by name."""

    authors: list[Any] = field(default_factory=list)
    read: Callable[[Any], list[Any]] = lambda method: []
    settings: dict[str, Any] = field(default_factory=dict)
    lr: float | None = None
    """The authors' rate, which the default grid has to hold."""
    eps: set[float] = field(default_factory=set)
    """Of the norms that the method brings."""
    sums_losses: bool = False


CONSTANTS: dict[str, Constants] = {
    "accept": Constants([1e-4], lambda m: [m.added_lr], lr=0.3),
    # bert_base_mnli_expert_soup.sh: 4 experts, consistency loss; the Trainer keeps decay from biases
    "adamix": Constants(
        [1.0, "weights", 0.0],
        lambda m: [m.consistency, *[group.get("weight_decay", "weights") for group in m.param_groups(1.0)]],
        {"rank": 48, "experts": 4}, 4e-4,
    ),
    # configs/adapters.json and adapters_drop.json
    "adapter": Constants(settings={"reduction": 32, "cross_attention": False, "train_norms": True}, lr=3e-4),
    "adapter_drop": Constants(settings={"reduction": 32, "variant": "specialized"}, lr=3e-4),
    # nn.LayerNorm's eps; temperature floor(768 e) = 2087 in the configurations, attn_learning_rate in three of them
    "attempt": Constants(
        [math.floor(WIDTH * math.e)], lambda m: [m.temperature],
        {"prompt_length": 100, "bottleneck": 100, "attention_lr": 0.1}, 0.3, {1e-5},
    ),
    # configs/bitfit.json
    "bitfit": Constants(settings={"head": "tokenizer", "final_norms": False}, lr=3e-4),
    # configs/compacter.json: hypercomplex_division, task_reduction_factor; adapter_configuration.py: phm_rank
    "compacter": Constants(settings={"n": 4, "rank": 1, "reduction": 32, "sublayers": "both"}, lr=3e-3),
    # peft/tuners/prompt_tuning_lora.py: scaling 8 / sqrt(r)
    "dept": Constants([8.0], lambda m: [m.scale * math.sqrt(m.a.shape[1])], lr=0.3),
    "dora": Constants([1.0, 0.1], lambda m: low_rank_constants(m)),
    # options.py and the command of the README
    "dpt": Constants(settings={"prompt_length": 100, "rank": 10}, lr=0.3),
    "ept": Constants([4], lambda m: [len(m.experts)]),
    "finetune": Constants(),
    "head_only": Constants(),
    "imported": Constants(),
    "none": Constants(),
    # configs/experiments/glue_t5_base.json; adapter_generators.py: 10
    "hyperdecoder": Constants(
        [0.1], lambda m: [m.smoothing], {"width": 64, "layer_embedding": 10, "middle": 128}, 3e-4, sums_losses=True
    ),
    # adapter_modeling.py, layer_norm_epsilon; configs/hyperformer++.json; utils.py sums
    "hyperformer": Constants(
        [0.1], lambda m: [m.smoothing], {"reduction": 32, "embedding": 64, "middle": 128}, 3e-4, {1e-6},
        sums_losses=True,
    ),
    # configs/ia3.json
    "ia3": Constants(lr=3e-3),
    # seq2seq/lora/config.py and scripts/lora.sh: alpha 32 at rank 32, dropout 0.1
    "lora": Constants([1.0, 0.1], lambda m: low_rank_constants(m), {"rank": 32}, 3e-4),
    # training_args.py: gate_T; T5's dropout_rate and layer_norm_epsilon; scripts/ladder_side_tuning_base.sh
    "lst": Constants(
        [0.1, 0.1, 1e-6],
        lambda m: [m.ladders["encoder"].temperature, m.ladders["encoder"].dropout.p,
                   m.ladders["encoder"].side.final_layer_norm.variance_epsilon],
        {"reduction": 8, "skip_every": 4}, 3e-3,
    ),
    # Wang et al. 2023, sections 3.2 and 3.3
    "mpt": Constants([0.9, 0.4], lambda m: [m.hp.distillation, m.hp.factor_lr]),
    "p_tuning": Constants(),
    "peft": Constants(),
    # P-tuning v2, run_script/run_rte_bert.sh
    "prefix_tuning": Constants(lr=1e-2),
    # configs/runs/prompt_finetune.gin; ATTEMPT's and Compacter's configurations
    "prompt_tuning": Constants(settings={"prompt_length": 100}, lr=0.3),
    # train.py
    "residual_prompt_tuning": Constants(
        [None], lambda m: [m.network_lr],
        {"prompt_length": 10, "bottleneck": 800, "network": "shared", "layer_norm": True, "skip": True}, 0.3, {1e-5},
    ),
    "spot": Constants(settings={"prompt_length": 100}, lr=0.3),
    # bash/ConstructBank/train.sh
    "tpt": Constants(settings={"bank_size": 600, "prompt_length": 100, "top_k": 100}, lr=0.3),
    "vera": Constants(settings={"d_initial": 0.1}),
}  # fmt: skip


def test_every_method_has_its_constants_stated() -> None:
    assert CONSTANTS.keys() == REGISTRY.keys()


@pytest.mark.parametrize("name", REGISTRY)
def test_a_method_file_names_where_its_constants_come_from(name: str) -> None:
    assert re.search(r"\bSource: \w", sys.modules[REGISTRY[name].__module__].__doc__ or "")


@pytest.mark.parametrize("name", REGISTRY)
def test_constants_are_those_of_the_authors_code(name: str) -> None:
    method, stated = build(name), CONSTANTS[name]
    expected = [pytest.approx(value) if isinstance(value, float) else value for value in stated.authors]
    assert stated.read(method) == expected
    defaults = REGISTRY[name].HP()
    assert {key: getattr(defaults, key) for key in stated.settings} == stated.settings
    assert norm_eps(method) == stated.eps
    assert method.sums_losses == stated.sums_losses
    assert stated.lr is None or stated.lr in REGISTRY[name].defaults.recipe["lr"]["sweep"]


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


# noise, dropout, ranks and terms of a loss that are left out then, as ablations of the papers do; a seed
MAY_BE_ZERO = {
    "adamix.consistency", "adapter_drop.dropped_layers", "dora.dropout", "ept.prompt_length", "ept.rank", "ept.spaces",
    "hyperdecoder.label_smoothing", "hyperformer.label_smoothing", "lora.dropout", "mpt.distillation", "vera.dropout",
    "vera.projection_seed",
}  # fmt: skip
MAY_BE_NEGATIVE = {"vera.d_initial", "vera.projection_seed"}  # a starting value whose sign means nothing; a seed
FILLED_IN = {"imported.source_length", "imported.num_tasks"}
"""Numbers of a row whose method is no file, so that no suite states them."""


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_number_at_which_nothing_would_train_is_refused(name: str) -> None:
    """A scale of 0 trains nothing, a negative learning rate climbs, and neither makes a noise."""
    hp_type = REGISTRY[name].HP
    for setting in dataclasses.fields(hp_type):
        key = f"{name}.{setting.name}"
        if key in FILLED_IN or not re.search(r"\b(int|float)\b", str(setting.type)):
            continue
        for value, allowed in ((0, MAY_BE_ZERO), (-1, MAY_BE_NEGATIVE)):
            refused = False
            try:
                hp_type(**{setting.name: value})
            except ValueError:
                refused = True
            assert refused != (key in allowed), f"{key}: {value}"
