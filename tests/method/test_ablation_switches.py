"""Methods with a part left out, as the papers' ablations need them: what is left, and at which parameter count."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.backbone.load import meta_backbone
from harness.method.method import Method
from harness.method.registry import discover
from harness.train.tiny_backbones import tiny_backbone

METHODS = discover()


def build(name: str, backbone: Any = None, **hp: Any) -> Any:
    cls = METHODS[name].cls
    assert cls is not None
    assert issubclass(cls, Method)
    torch.manual_seed(0)
    return cls(cls.HP(**hp), backbone or tiny_backbone())


@pytest.mark.parametrize(
    ("hp", "count"),
    [
        # r = floor(100 d / (d + 100 K)) codewords for a prompt of 100 vectors: 88 whole ones, or 24 in each of 24 parts
        ({"prompt_length": 100, "prompt_width": 768, "added_side": "none"}, 88 * (768 + 100)),
        ({"prompt_length": 100, "prompt_width": 32, "added_side": "none"}, 24 * (768 + 100 * 24)),
        # r = floor(100 d / (d + 256 K)) for an added table that has the whole budget
        ({"prompt_length": 0, "prompt_side": "none"}, 60 * (768 + 256 * 2)),
        ({"prompt_width": 768, "added_width": 768}, 55 * (768 + 60) + 30 * (768 + 256)),
    ],
)
def test_what_is_left_of_accept_has_the_whole_budget(hp: dict[str, Any], count: int) -> None:
    assert build("accept", meta_backbone("t5-base"), **hp).num_trained == count


def test_a_side_of_accept_that_is_left_out_adds_nothing() -> None:
    small = {"budget_length": 30, "source_length": 12}
    behind = build("accept", prompt_length=0, prompt_side="none", **small)
    assert behind.prompt() is None
    assert behind.added().shape == (12, 64)
    front = build("accept", prompt_length=30, added_side="none", prompt_width=16, **small)
    assert front.added() is None
    assert front.prompt().shape == (30, 64)
    for method in (behind, front):
        assert len(method.param_groups(0.1)) == 1


@pytest.mark.parametrize(
    "hp",
    [
        {"prompt_length": 0},
        {"prompt_side": "none"},
        {"prompt_length": 0, "prompt_side": "none", "added_side": "none"},
        {"prompt_length": 60, "added_side": "none"},
        {"prompt_length": 100},
    ],
)
def test_sides_of_accept_that_do_not_fit_the_budget_are_refused(hp: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"prompt_length|none|budget"):
        build("accept", **hp)


def test_ept_without_fusion_and_spaces_is_its_decomposition_alone() -> None:
    small = {"prompt_length": 6, "budget_length": 20, "source_length": 12}
    parts = build("ept", fusion="none", spaces=0, **small)
    torch.testing.assert_close(parts.prompt(), parts.short)
    assert sorted(name for name, _ in parts.named_parameters()) == ["a", "b", "short"]
    fused = build("ept", spaces=0, **small)
    attention = torch.softmax(fused.short @ (fused.a @ fused.b).T / 8, -1)  # sqrt of the width 64
    torch.testing.assert_close(fused.prompt(), fused.short + attention @ (fused.a @ fused.b))
    spaced = build("ept", fusion="none", **small)
    projected = sum(g * e(spaced.short) for g, e in zip(spaced.gate_weights(), spaced.experts, strict=True))
    torch.testing.assert_close(spaced.prompt(), spaced.short + projected)
