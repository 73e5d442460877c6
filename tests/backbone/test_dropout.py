"""Fast dropout is dropout: same law, same gradients, and it reaches every dropout of a real network."""

from __future__ import annotations

import functools
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typing_help import present

from harness.backbone.fast_functions import LEVELS, attention, dropout, fast_dropout, keep_mask
from harness.backbone.load import load_backbone


@pytest.mark.parametrize("p", [0.1, 0.5, 0.85])
def test_elements_are_dropped_with_the_given_probability_and_independently(p: float) -> None:
    torch.manual_seed(0)
    kept = (keep_mask(torch.empty(500, 401), p) > 0).double()
    error = (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(kept.mean().item() - (1 - p)) < 5 * error
    for lag in (1, 2, 3, 4, 5, 401):  # four neighbours come from one draw
        together = (kept.flatten()[lag:] * kept.flatten()[:-lag]).mean().item()
        assert abs(together - (1 - p) ** 2) < 8 * error


def test_factors_have_expectation_one() -> None:
    dropped = round(0.1 * LEVELS)
    factor = keep_mask(torch.empty(1000, dtype=torch.float64), 0.1).max().item()
    assert factor * (LEVELS - dropped) / LEVELS == pytest.approx(1.0, abs=1e-15)


def test_gradient_passes_where_the_value_passes() -> None:
    x = torch.ones(64, 64, requires_grad=True)
    out = dropout(x, 0.3)
    out.sum().backward()
    assert torch.equal(present(x.grad), out.detach())
    assert (out == 0).any()


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False)])
def test_without_dropout_values_are_untouched(p: float, training: bool) -> None:
    x = torch.randn(8, 8)
    assert torch.equal(dropout(x, p, training), x)


def test_all_of_p_one_is_dropped() -> None:
    assert dropout(torch.ones(8), 1.0).abs().sum() == 0


@pytest.mark.parametrize("p", [1e-7, 1 - 1e-7, 0.0, 1.0])
def test_what_the_levels_cannot_tell_from_all_or_nothing_is_left_to_torch(p: float) -> None:
    x = torch.randn(4, 4)
    torch.manual_seed(0)
    given = dropout(x, p)
    torch.manual_seed(0)
    assert torch.equal(given, F.dropout(x, p))


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_an_impossible_probability_is_what_torch_says_it_is(p: float) -> None:
    outcomes: list[type | str] = []
    for function in (dropout, F.dropout):
        try:
            outcomes.append(type(function(torch.ones(3), p)))
        except ValueError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def all_kept() -> Any:
    """Dropout that drops nothing, so that the two can be compared."""
    return patch("harness.backbone.fast_functions.keep_mask", lambda like, p: torch.ones_like(like))


@st.composite
def attention_calls(draw: st.DrawFn) -> dict[str, Any]:
    """Queries, keys, values and options of any call that PyTorch accepts; rows of the mask may be empty."""
    batch, heads, width, out = (draw(st.integers(1, 3)) for _ in range(4))
    queries, keys = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    torch.manual_seed(draw(st.integers(0, 99)))
    shared = draw(st.sampled_from([1, heads])) if draw(st.booleans()) else heads
    call: dict[str, Any] = {
        "query": torch.randn(batch, heads, queries, width, dtype=torch.float64),
        "key": torch.randn(batch, shared, keys, width, dtype=torch.float64),
        "value": torch.randn(batch, shared, keys, out, dtype=torch.float64),
        "scale": draw(st.sampled_from([None, 1.0, 0.3, 0.0])),
        "enable_gqa": shared != heads,
    }
    kind = draw(st.sampled_from(["none", "bool", "float", "causal"]))
    if kind == "causal":
        return call | {"is_causal": True}
    if kind == "none":
        return call
    shape = tuple(draw(st.sampled_from([1, size])) for size in (batch, heads, queries, keys))
    shape = shape[draw(st.integers(0, 2)) :]
    allowed = torch.rand(shape) < draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    if kind == "bool":
        return call | {"attn_mask": allowed}
    hidden = draw(st.sampled_from([float("-inf"), torch.finfo(torch.float64).min]))
    bias = torch.randn(shape, dtype=torch.float64).masked_fill(~allowed, hidden)
    return call | {"attn_mask": bias}


@settings(max_examples=60, deadline=None)
@given(attention_calls())
def test_attention_equals_that_of_torch_where_all_weights_are_kept(call: dict[str, Any]) -> None:
    """Values and gradients, over masks of both kinds that broadcast, and queries that may attend to nothing."""
    results = []
    is_left = bool(call.get("is_causal")) or call["enable_gqa"]  # to PyTorch, with its own dropout
    for function, p in ((F.scaled_dot_product_attention, 0.5 if is_left else 0.0), (attention, 0.5)):
        leaves = {
            name: value.clone().requires_grad_()
            for name, value in call.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        torch.manual_seed(0)
        with all_kept():
            out = function(**{**call, **leaves}, dropout_p=p)
        out.square().sum().backward()
        results.append((out, {name: leaf.grad for name, leaf in leaves.items()}))
    (theirs, their_grads), (ours, our_grads) = results
    torch.testing.assert_close(ours, theirs)
    for name, grad in their_grads.items():
        torch.testing.assert_close(our_grads[name], grad, msg=functools.partial("{}: {}".format, name))


def test_the_context_replaces_attention_and_its_arguments_reach_it() -> None:
    query, key, value = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    padding = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    padding[0, ..., 3:] = False
    expected = F.scaled_dot_product_attention(query, key, value, padding, scale=1.0)
    with fast_dropout(), all_kept():
        given = F.scaled_dot_product_attention(query, key, value, padding, dropout_p=0.5, scale=1.0)
    torch.testing.assert_close(given, expected)


def test_every_dropout_of_the_backbone_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mask that drops nothing, training mode gives what evaluation gives, so no other dropout is left."""
    backbone = load_backbone("micro-t5")
    embeds, mask = torch.randn(3, 9, backbone.hidden), torch.ones(3, 9, dtype=torch.long)
    labels = torch.tensor([[5, 6, 1]] * 3)
    expected = backbone.token_losses(embeds, mask, labels)
    backbone.model.train()
    dropped = backbone.token_losses(embeds, mask, labels)
    assert not torch.allclose(dropped, expected)
    monkeypatch.setattr("harness.backbone.fast_functions.keep_mask", lambda like, p: torch.ones_like(like))
    torch.testing.assert_close(backbone.token_losses(embeds, mask, labels), expected)


def test_modules_keep_their_own_dropout_outside_the_context() -> None:
    layer = nn.Dropout(0.5)
    torch.manual_seed(3)
    first = layer(torch.ones(100))
    torch.manual_seed(3)
    assert torch.equal(first, F.dropout(torch.ones(100), 0.5))
