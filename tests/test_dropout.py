"""Fast dropout is dropout: same law, same gradients, and it reaches every dropout of a real network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.dropout import LEVELS, dropout, fast_dropout, keep_mask
from harness.loading import load_backbone


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
    assert torch.equal(x.grad, out.detach())
    assert (out == 0).any()


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False)])
def test_without_dropout_values_are_untouched(p: float, training: bool) -> None:
    x = torch.randn(8, 8)
    assert torch.equal(dropout(x, p, training), x)


def test_all_of_p_one_is_dropped() -> None:
    assert dropout(torch.ones(8), 1.0).abs().sum() == 0


def test_attention_equals_that_of_torch_where_all_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.dropout.keep_mask", lambda like, p: torch.ones_like(like))
    query, key, value = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    padding = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    padding[0, ..., 3:] = False
    for mask in (None, bias, padding):
        for scale in (None, 1.0):
            expected = F.scaled_dot_product_attention(query, key, value, mask, scale=scale)
            with fast_dropout():
                given = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=0.5, scale=scale)
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
    monkeypatch.setattr("harness.dropout.keep_mask", lambda like, p: torch.ones_like(like))
    torch.testing.assert_close(backbone.token_losses(embeds, mask, labels), expected)


def test_modules_keep_their_own_dropout_outside_the_context() -> None:
    layer = nn.Dropout(0.5)
    torch.manual_seed(3)
    first = layer(torch.ones(100))
    torch.manual_seed(3)
    assert torch.equal(first, F.dropout(torch.ones(100), 0.5))
