"""What operators give on tensors without values is the same whether it was worked out before or not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.train import known_shapes
from harness.train.known_shapes import KnownShapes

X = torch.empty(2, 3, 4, device="meta")
WHOLE = torch.empty(2, 3, 4, device="meta", dtype=torch.long)
OTHERS: list[Callable[[], Tensor]] = [
    lambda: X + 1, lambda: X + X[:, :1], lambda: WHOLE + 1, lambda: WHOLE + 1.0, lambda: WHOLE + True,
    lambda: WHOLE / 2, lambda: X.transpose(1, 2) * 2, lambda: X.double() + X, lambda: X.to(torch.bfloat16),
    lambda: X.sum(), lambda: X.sum(1), lambda: X.sum(1, keepdim=True), lambda: X.mean((0, 2)),
    lambda: torch.cat([X, X[:1]]), lambda: torch.cat([X, X], 2), lambda: X @ X.transpose(1, 2),
    lambda: F.softmax(X, -1), lambda: F.softmax(X, -1, dtype=torch.float64), lambda: X.view(6, 4), lambda: X[0],
    lambda: F.linear(X, torch.empty(5, 4, device="meta")), lambda: X.expand(7, 2, 3, 4), lambda: X.clone().add_(1),
    lambda: F.embedding(WHOLE, X[0]), lambda: torch.where(X > 0, X, 0.0), lambda: torch.arange(4, device="meta"),
    lambda: torch.arange(4.0, device="meta"), lambda: torch.full((2,), 1, device="meta"),
]  # fmt: skip


def facts(tensor: Tensor) -> tuple[object, ...]:
    return type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device.type, tensor.requires_grad


def test_every_result_is_the_one_without_memory_the_first_time_and_the_next() -> None:
    known_shapes._known.clear()
    expected = [facts(work()) for work in OTHERS]
    for _ in range(2):
        with KnownShapes():
            assert [facts(work()) for work in OTHERS] == expected


def test_an_operator_is_worked_out_once_for_equal_shapes() -> None:
    known_shapes._known.clear()
    with KnownShapes():
        for tensor in (X, X.clone(), torch.nn.Parameter(X)):
            assert (tensor * 3).shape == X.shape
        count = len(known_shapes._known)
        _ = X[:1] * 3
    assert count == 2, "the copy and the product"
    assert len(known_shapes._known) == 3


def test_gradients_flow_and_views_stay_views() -> None:
    weight = torch.nn.Parameter(torch.empty(4, 4, device="meta"))
    for _ in range(2):
        with KnownShapes():
            (X @ weight).relu().sum().backward()
            assert X.view(-1)._base is X
        assert weight.grad is not None
        assert weight.grad.shape == (4, 4)


def test_what_has_values_is_computed() -> None:
    ones = torch.ones(3)
    with KnownShapes():
        assert [(ones * factor).tolist() for factor in (2, 3)] == [[2.0] * 3, [3.0] * 3]
        assert (ones + ones).tolist() == [2.0] * 3
        for _ in range(2):
            with pytest.raises(RuntimeError, match="meta tensors"):
                X.sum().item()


def test_shapes_that_do_not_fit_are_told_each_time() -> None:
    with KnownShapes():
        for _ in range(2):
            with pytest.raises(RuntimeError):
                _ = X @ X


def test_memory_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    known_shapes._known.clear()
    monkeypatch.setattr(known_shapes, "MOST_KNOWN", 5)
    with KnownShapes():
        for length in range(1, 20):
            assert (torch.empty(length, device="meta") + 1).shape == (length,)
            assert len(known_shapes._known) <= 5
