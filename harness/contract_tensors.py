"""Checks of the contract on a method's own tensors: all are seen, kept() suffices, counts are those that it states."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from harness.backbone import Backbone
from harness.contract_checks import TOLERANCE, Bench, build
from harness.export import serve
from harness.loading import known_backbones, meta_backbone
from harness.method import Method, explain_figure
from harness.tiny import tiny_backbone

FULL_SIZE = "t5-base"
NEAR = 1e-9
"""How far apart two numbers of float64 may be that are the same."""


def registered(cls: type[Method]) -> str:
    """No trained tensor stands where PyTorch does not look: such a one is neither moved, nor trained, nor stored."""
    backbone = tiny_backbone()
    method = build(cls, backbone)
    found = dict(unregistered(method, backbone))
    assert not found, (
        f"{', '.join(list(found)[:3])}: trained tensors in a list, dict or object of one's own, which nobody trains or "
        "stores; use nn.ParameterList, nn.ParameterDict, nn.ModuleList, or an attribute of the method"
    )
    return f"{sum(1 for _ in method.parameters())} tensors"


def unregistered(method: Method, backbone: Backbone, trained: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Tensors that a method holds beside its parameters and buffers, with the place of each; `trained` ones only."""
    known = {id(tensor) for tensor in (*method.parameters(), *method.buffers(), *backbone.model.parameters())}
    known |= {id(tensor) for tensor in backbone.model.buffers()}
    seen = {id(backbone), *map(id, backbone.model.modules())}
    for place, tensor in _tensors_in(method, "", seen):
        takes_gradients = isinstance(tensor, nn.Parameter) or (tensor.requires_grad and tensor.is_leaf)
        if id(tensor) not in known and tensor.numel() and (takes_gradients or not trained):
            yield place, tensor


def _tensors_in(value: Any, place: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that can be reached from a value: through containers, objects, partial and inner functions."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield place, value
        return
    for name, part in _parts(value):
        inner = name if name.startswith("[") or not place else f".{name}"
        yield from _tensors_in(part, f"{place}{inner}", seen)


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    if isinstance(value, functools.partial):
        return [("function", value.func), *_parts(value.args), *_parts(value.keywords)]
    if isinstance(value, MethodType):
        return [("owner", value.__self__)]
    if isinstance(value, FunctionType):
        names = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        return [(name, cell.cell_contents) for name, cell in names if _is_filled(cell)]
    if isinstance(value, nn.Module):
        own = {**vars(value), **value._parameters, **value._buffers, **value._modules}
        return [(name, part) for name, part in own.items() if name not in ("_parameters", "_buffers", "_modules")]
    if isinstance(value, type) or not hasattr(value, "__dict__") or hasattr(value, "to_dict"):
        return []
    return list(vars(value).items())


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def repeats(cls: type[Method]) -> str:
    """Evaluation draws no random numbers: the same rows give the same logits twice."""
    bench = Bench(cls)
    bench.train(steps=2)
    with bench.attached():
        first, second = bench.logits(), bench.logits()
    difference = float((first - second).abs().max())
    assert difference < TOLERANCE, (
        f"evaluation is random: the same rows give logits that differ by {difference:.2g}; dropout and noise are for "
        "training, so ask self.training"
    )
    return ""


def kept_suffices(cls: type[Method]) -> str:
    """What inference stores is enough: the numbers of kept(), put into a fresh method of the same seed.

    What kept() leaves out has the value that the seed gives it. What it computes counts where export() gives it too.
    """
    trained = Bench(cls)
    trained.train(steps=2)
    with trained.attached():
        expected = trained.logits()
    kept, exported = trained.method.kept(), trained.method.export()
    fresh = Bench(cls)
    with torch.no_grad():
        own = {tensor.untyped_storage().data_ptr() for tensor in fresh.method.state_dict().values()}
        for name, tensor in fresh.method.kept().items():
            if tensor.untyped_storage().data_ptr() in own:
                tensor.detach().copy_(kept[name])
        tensors = fresh.method.export()
        for name, tensor in exported.items():
            if any(_is_same(tensor, stored) for stored in kept.values()):
                tensors[name] = tensor
    fresh.method = serve(fresh.method, tensors, fresh.backbone)
    with fresh.attached():
        difference = float((fresh.logits() - expected).abs().max())
    lacking = [name for name, tensor in exported.items() if not _is_same(tensor, tensors[name])]
    assert difference < TOLERANCE, (
        f"the {sum(tensor.numel() for tensor in kept.values()):,} numbers of kept() do not answer alone: logits differ "
        f"by {difference:.2g}; it leaves out {', '.join(lacking[:3]) or 'what export() does not give either'}"
    )
    return ""


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    return tensor.shape == other.shape and torch.allclose(tensor.to(other.dtype), other.detach(), rtol=0, atol=NEAR)


def count(cls: type[Method]) -> str:
    method, with_weights = build(cls, tiny_backbone(meta=True)), build(cls, tiny_backbone())
    assert method.num_trained == with_weights.num_trained, (
        f"{method.num_trained} without weights, {with_weights.num_trained} with"
    )
    full = cls(cls.HP(), _shapes(FULL_SIZE))
    exported = sum(tensor.numel() for tensor in full.export().values())
    assert full.num_kept <= exported, (
        f"{FULL_SIZE}: kept() counts {full.num_kept:,} numbers, but {exported:,} exported ones answer alone; "
        "override kept()"
    )
    return f"{FULL_SIZE}: {full.num_trained:,} trained, {full.num_kept:,} kept, {exported:,} exported"


def published(cls: type[Method]) -> str:
    """Every published figure is the count with the default settings, or a note says why not."""
    details = []
    for name, figure in cls.paper.params.items():
        if name not in known_backbones():
            continue
        method = cls(cls.HP(), _shapes(name))
        trained, kept = (round(count / method.num_tasks) for count in (method.num_trained, method.num_kept))
        reason = explain_figure(figure, trained, kept)
        assert reason or cls.paper.params_note, (
            f"{name}: {trained:,} trained, {kept:,} kept, but paper.params says {figure:,} and no params_note says why"
        )
        details.append(f"{name}: {trained:,} trained, {kept:,} kept, {figure:,} published")
    return "; ".join(details)


@functools.cache
def _shapes(name: str) -> Backbone:
    return meta_backbone(name)
