"""The contract that every method file must meet, run on a tiny random backbone in seconds."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.backbone import Backbone
from harness.errors import UserError
from harness.fused import FusedInput, Rows
from harness.method import Method, Rule, checked_groups, load_file
from harness.tiny import tiny_backbone, tiny_rows

SOURCE_LENGTH = 24


@dataclass(frozen=True)
class Finding:
    """One check of the contract and how it went."""

    check: str
    ok: bool
    detail: str = ""


def check_method_file(path: Path) -> list[Finding]:
    """Hold one file to the contract. Raises UserError when there is no such file."""
    if not path.is_file():
        raise UserError("no such file", where=str(path))
    registered = load_file(path)
    if registered.cls is None:
        return [Finding("the file imports and defines one method of its own name", False, registered.problem)]
    findings = [Finding("the file imports and defines one method of its own name", True, registered.spec.name)]
    if issubclass(registered.cls, Rule):
        return [*findings, _finding("answers are texts, one per row", lambda: _check_rule(registered.cls))]  # type: ignore[arg-type]
    cls = registered.cls
    checks: Sequence[tuple[str, Callable[[type[Method]], str]]] = (
        ("the same seed gives the same tensors", _check_seed),
        ("the backbone is frozen, and unchanged after training and detach", _check_backbone),
        ("every trainable tensor gets a gradient", _check_gradients),
        ("a few steps lower the loss on a fixed batch", _check_loss),
        ("save and load give the same loss", _check_reload),
        ("one row and rows of the shortest and longest text work", _check_extremes),
        ("rows computed together equal rows computed alone", _check_together),
        ("a decoder-only backbone works", _check_decoder),
        ("parameters can be counted without weights", _check_count),
    )
    return [*findings, *(_finding(name, lambda check=check: check(cls)) for name, check in checks)]  # type: ignore[misc]


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except AssertionError as error:
        return Finding(name, False, str(error))
    except Exception as error:  # anything a method raises is a finding
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return Finding(name, False, f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})")


def _check_rule(cls: type[Rule]) -> str:
    for labels, targets in ((["0", "1"], ["0", "1", "1"]), ([], ["Rome", "in 1990"])):
        answers = cls(labels).answers(targets, 5, 0)
        assert len(answers) == 5, f"{len(answers)} answers for 5 rows"
        assert all(isinstance(answer, str) for answer in answers), "an answer is no text"
        assert answers == cls(labels).answers(targets, 5, 0), "the same seed gives other answers"
    return ""


def build(cls: type[Method], backbone: Backbone, seed: int = 0) -> Method:
    """Create a method with its default hp, its tables cut to the tiny source length."""
    hp = {"source_length": SOURCE_LENGTH} if "source_length" in cls.HP.__dataclass_fields__ else {}
    torch.manual_seed(seed)
    return cls(cls.HP(**hp), backbone)


class _Attached:
    """A method in place on its backbone, in evaluation mode, taken off again at the end."""

    def __init__(self, cls: type[Method], backbone: Backbone | None = None) -> None:
        self.backbone = backbone or tiny_backbone()
        self.method = build(cls, self.backbone)

    def __enter__(self) -> _Attached:
        if self.method.is_layer_side():
            self.method.attach(self.backbone)
        self.backbone.model.eval()
        self.method.eval()
        return self

    def __exit__(self, *_: object) -> None:
        if self.method.is_layer_side():
            self.method.detach(self.backbone)

    def losses(self, lengths: Sequence[int], only: int | None = None) -> Tensor:
        """Loss per row of texts with these token counts, or of one of them; gradients reach the method."""
        encoded = tiny_rows(lengths, self.backbone)
        chosen = np.arange(len(lengths)) if only is None else np.array([only])
        fused = FusedInput([self.method], self.backbone, SOURCE_LENGTH)
        fused.refresh(grad=True, cells=[0])
        embeds, mask, rows = fused.build(encoded, Rows(np.zeros_like(chosen), chosen))
        labels = torch.as_tensor(encoded.targets(rows.rows))
        losses = self.backbone.token_losses(embeds, mask, labels).sum(1)
        if losses.requires_grad:
            losses.mean().backward()  # type: ignore[no-untyped-call]
            fused.backward()
        return losses.detach()


def _check_seed(cls: type[Method]) -> str:
    first, second = (build(cls, tiny_backbone(), seed=7).state_dict() for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), f"{name} differs between two builds with one seed"
    return f"{len(first)} tensors"


def _check_backbone(cls: type[Method]) -> str:
    backbone = tiny_backbone()
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    _train(_Attached(cls, backbone), steps=2)
    after = backbone.model.state_dict()
    assert before.keys() == after.keys(), f"tensors came or went: {sorted(before.keys() ^ after.keys())[:3]}"
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert not changed, f"changed: {', '.join(changed[:3])}"
    thawed = [name for name, p in backbone.model.named_parameters() if p.requires_grad]
    assert not thawed, f"left trainable: {', '.join(thawed[:3])}"
    return ""


def _check_gradients(cls: type[Method]) -> str:
    with _Attached(cls) as attached:
        # tensors behind a zero-initialised factor get their first gradient after one step
        _step(attached, _optimizer(attached.method))
        attached.losses([5, 9, SOURCE_LENGTH])
        without = [n for n, p in attached.method.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, f"no gradient: {', '.join(without[:3])}"
        zero = [n for n, p in attached.method.named_parameters() if p.grad is not None and not p.grad.any()]
        assert not zero, f"gradient all zero: {', '.join(zero[:3])}"
    return f"{attached.method.num_trained:,} parameters"


def _check_loss(cls: type[Method]) -> str:
    attached = _Attached(cls)
    first, last = _train(attached, steps=12)
    assert last < first, f"loss went from {first:.3f} to {last:.3f}"
    return f"{first:.3f} to {last:.3f}"


def _check_reload(cls: type[Method]) -> str:
    trained = _Attached(cls)
    _train(trained, steps=2)
    fresh = _Attached(cls)
    fresh.method = build(cls, fresh.backbone, seed=99)
    fresh.method.load_state_dict(trained.method.state_dict())
    with trained:
        expected = trained.losses([5, 9])
    with fresh:
        _assert_close(fresh.losses([5, 9]), expected)
    return ""


def _check_extremes(cls: type[Method]) -> str:
    with _Attached(cls) as attached:
        for lengths in ([1], [SOURCE_LENGTH], [1, SOURCE_LENGTH]):
            assert attached.losses(lengths).isfinite().all(), f"loss not finite for texts of {lengths} tokens"
    return ""


def _check_together(cls: type[Method]) -> str:
    lengths = [3, SOURCE_LENGTH, 9]
    with _Attached(cls) as attached:
        together = attached.losses(lengths)
        alone = torch.cat([attached.losses(lengths, only=i) for i in range(3)])
        _assert_close(together, alone)
    return ""


def _check_decoder(cls: type[Method]) -> str:
    with _Attached(cls, tiny_backbone("decoder")) as attached:
        assert attached.losses([4, 7]).isfinite().all(), "loss not finite"
    return ""


def _check_count(cls: type[Method]) -> str:
    method = build(cls, tiny_backbone(meta=True))
    with_weights = build(cls, tiny_backbone())
    assert method.num_trained == with_weights.num_trained, (
        f"{method.num_trained} without, {with_weights.num_trained} with"
    )
    return f"{method.num_trained:,} trained, {method.num_kept:,} kept"


def _train(attached: _Attached, steps: int) -> tuple[float, float]:
    """Train on one fixed batch; return the loss before and after."""
    with attached:
        optimizer = _optimizer(attached.method)
        losses = [_step(attached, optimizer) for _ in range(steps)]
        return losses[0], float(attached.losses([5, 9, 13]).mean())


def _optimizer(method: Method) -> torch.optim.Optimizer:
    return torch.optim.AdamW(checked_groups(method, 0.01), lr=0.01, weight_decay=0.0)


def _step(attached: _Attached, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = attached.losses([5, 9, 13]).mean()
    optimizer.step()
    return float(loss)


def _assert_close(got: Tensor, expected: Tensor) -> None:
    difference = float((got - expected).abs().max())
    assert difference < 1e-4, f"losses differ by {difference:.2g}"
