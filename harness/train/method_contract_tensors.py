"""Checks of the method contract on a method's own tensors.

PyTorch sees all of them, evaluation is not random, kept() is enough to answer, and counts agree with what is stated.
Each check takes the class, raises AssertionError with what to do, and returns details for the report, maybe empty.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from harness.backbone import Backbone, known_backbones, meta_backbone
from harness.method import Method, explain_figure, kept_tensors, own_export, serve
from harness.train.method_contract_checks import LENGTHS, TOLERANCE, Bench, build, moved_bench
from harness.train.tiny_backbones import tiny_backbone

FULL_SIZE = "t5-base"
REPEATS = 8
"""How often the same rows are evaluated. Noise that is drawn every second time escapes once in 128."""
NEAR = 1e-9
"""How far apart two float64 numbers may be that count as the same: far above rounding, which is 1e-16 of a number near
1, and far below what a step of training changes."""


def registered(cls: type[Method]) -> str:
    """No trained tensor is where PyTorch does not find it. It would not be moved, trained or stored."""
    bench = Bench(cls)
    method = bench.method
    acting = acting_leaves(bench)  # before the search, since it runs code that may make tensors
    found = [path for path, _ in unregistered(method, bench.backbone)]
    known = {id(tensor) for tensor in (*method.parameters(), *bench.backbone.model.parameters())}
    found = found or [f"a tensor {list(tensor.shape)}" for tensor in acting if id(tensor) not in known]
    assert not found, (
        f"{', '.join(found[:3])}: trained tensors in a list, dict or object of one's own, or outside of the method, "
        "which nobody trains or stores; use nn.ParameterList, nn.ParameterDict, nn.ModuleList, or an attribute of the "
        "method"
    )
    return f"{sum(1 for _ in method.parameters())} tensors"


def acting_leaves(bench: Bench) -> list[Tensor]:
    """Return the tensors that take gradients when a loss is computed, wherever the method keeps them."""
    with bench.attached():
        fused, embeds, mask, labels = bench.inputs(LENGTHS)
        loss = bench.backbone.token_losses(embeds, mask, labels).sum()
    seen: set[Any] = set()
    leaves: list[Tensor] = []
    waiting = [root.grad_fn for root in (loss, *fused.pieces)]
    leaves += [piece for piece in fused.pieces if piece.is_leaf and piece.requires_grad]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # only the node of a leaf has it
        if variable is not None and variable is not fused.table:
            leaves.append(variable)
        waiting += [next_node for next_node, _ in node.next_functions]
    return leaves


def unregistered(method: Method, backbone: Backbone, trained: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors that a method holds beside its parameters and buffers, each with the path that leads to it.

    With `trained` only those that take gradients. Tensors of the backbone do not count, and neither do other tensors in
    their memory that take no gradient, as those of a view of the network.
    """
    known = {id(tensor) for tensor in (*method.parameters(), *method.buffers(), *backbone.model.parameters())}
    known |= {id(tensor) for tensor in backbone.model.buffers()}
    memory = {_address(tensor) for tensor in (*backbone.model.parameters(), *backbone.model.buffers())} - {0}
    seen = {id(backbone), *map(id, backbone.model.modules())}
    for path, tensor in _tensors_in(method, "", seen):
        takes_gradients = isinstance(tensor, nn.Parameter) or (tensor.requires_grad and tensor.is_leaf)
        is_backbones = id(tensor) in known or (not tensor.requires_grad and _address(tensor) in memory)
        if not is_backbones and tensor.numel() and (takes_gradients or not trained):
            yield path, tensor


def _address(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; 0 on the meta device."""
    return tensor.untyped_storage().data_ptr()


def _tensors_in(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor that can be reached from a value, with its path.

    The search goes through containers, objects, partial functions and what inner functions close over.
    """
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield path, value
        return
    for name, member in _members(value):
        step = name if name.startswith("[") or not path else f".{name}"
        yield from _tensors_in(member, f"{path}{step}", seen)


def _members(value: Any) -> list[tuple[str, Any]]:
    """Return what a value holds, by name: `[key]` in containers, attributes of objects, variables of functions."""
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", member) for key, member in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(f"[{index}]", member) for index, member in enumerate(value)]
    if isinstance(value, functools.partial):
        return [("function", value.func), *_members(value.args), *_members(value.keywords)]
    if isinstance(value, MethodType):
        return [("owner", value.__self__)]
    if isinstance(value, FunctionType):
        names = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        return [(name, cell.cell_contents) for name, cell in names if _is_filled(cell)]
    if isinstance(value, nn.Module):
        own = {**vars(value), **value._parameters, **value._buffers, **value._modules}
        return [(name, member) for name, member in own.items() if name not in ("_parameters", "_buffers", "_modules")]
    # classes and configurations hold no trained tensors, and lead to all of transformers
    if isinstance(value, type) or not hasattr(value, "__dict__") or hasattr(value, "to_dict"):
        return []
    return list(vars(value).items())


def _is_filled(cell: Any) -> bool:
    """Whether a closure's variable has a value yet; Python tells only by raising."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def repeats(cls: type[Method]) -> str:
    """Evaluation draws no random numbers: the same rows give the same logits again and again."""
    bench = moved_bench(cls)  # noise times zero would not show
    with bench.attached():
        first, *others = (bench.logits() for _ in range(REPEATS))
    difference = max(float((first - other).abs().max()) for other in others)
    assert difference < TOLERANCE, (
        f"evaluation is random: the same rows give logits that differ by {difference:.2g}; dropout and noise are for "
        "training, so ask self.training"
    )
    return ""


def kept_suffices(cls: type[Method]) -> str:
    """What inference stores is enough: a new method of the same seed answers alike when it gets the numbers of kept().

    Tensors that kept() leaves out have the value that the seed gives them. Tensors that kept() computes, such as
    products, count where export() gives them too.
    """
    trained = moved_bench(cls)
    with trained.attached():
        expected = trained.logits()
    kept, exported = kept_tensors(trained.method), own_export(trained.method)
    fresh = Bench(cls)
    with torch.no_grad():
        # tensors of kept() that are the method's own, not computed, are filled in place
        own = {tensor.untyped_storage().data_ptr() for tensor in fresh.method.state_dict().values()}
        for name, tensor in kept_tensors(fresh.method).items():
            if tensor.untyped_storage().data_ptr() in own:
                tensor.detach().copy_(kept[name])
        tensors = dict(own_export(fresh.method))
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
    """Counts do not depend on whether there are weights, and kept() counts no more numbers than export() writes."""
    method, with_weights = build(cls, tiny_backbone(meta=True)), build(cls, tiny_backbone())
    assert method.num_trained == with_weights.num_trained, (
        f"{method.num_trained} without weights, {with_weights.num_trained} with"
    )
    full = cls(cls.HP(), _shapes(FULL_SIZE))
    exported = sum(tensor.numel() for tensor in own_export(full).values())
    assert full.num_kept <= exported, (
        f"{FULL_SIZE}: kept() counts {full.num_kept:,} numbers, but {exported:,} exported ones answer alone; "
        "override kept()"
    )
    return f"{FULL_SIZE}: {full.num_trained:,} trained, {full.num_kept:,} kept, {exported:,} exported"


def published(cls: type[Method]) -> str:
    """Every published figure is the count with the default settings, or `params_note` says why it is not."""
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
