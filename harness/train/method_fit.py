"""Creates the method of a cell, and finds out before that, from shapes alone, whether it fits the network.

The plan, the run, `harness check` and `harness params` all ask here. A method fits where its tensors can be created,
and where one step of training and two written tokens, or what a head reads off an encoder, can be computed with it on
tensors that have shapes and no values. A ValueError says that settings do not fit. Anything else that is raised on a
tiny network of the same kind too is a mistake in the method's code: nothing is said then, and its cells fail.

Shapes: N rows, L positions, H hidden width, T target tokens.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from harness.backbone import (
    Backbone,
    BackboneChanged,
    CannotWrite,
    KindName,
    Scheme,
    Seal,
    backbone_config,
    meta_backbone,
)
from harness.data import Task
from harness.errors import UserError, shortened
from harness.method import HeadReader, LinearHead, Method, SourceFile, num_outputs, read_source_tensors
from harness.shipped import PACKAGE
from harness.suite import Cell
from harness.train.cell_state import checked_groups
from harness.train.known_shapes import KnownShapes
from harness.train.tiny_backbones import TinyTokenizer, tiny_backbone

ROWS, LENGTH, TARGETS = 2, 5, 3
"""N, L and T of the trial. They differ, so that a method which mixes up two dimensions fails here."""
MOST_SHOWN = 300
"""Characters of a reason that are shown, about three lines; some exceptions print whole tensors."""

UNDECIDED = (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException,
             fake_tensor.UnsupportedOperatorException, fake_tensor.UnsupportedFakeTensorException)  # fmt: skip
"""Exceptions which say that shapes alone cannot decide; the method then counts as fitting."""

Sources = Sequence[Mapping[str, Tensor]]
"""Tensors by name, of each cell that a method starts from."""
Shapes = tuple[tuple[tuple[str, torch.Size, torch.dtype], ...], ...]
"""Name, shape and type of the tensors of each source: all of them that counts here, and a key of a cache."""


class Sizes(NamedTuple):
    """How large a method is on a network."""

    num_positions: int
    num_prompt_tokens: int
    num_trained: int


class _Trial(NamedTuple):
    """What came of trying a method on a network."""

    error: Exception | None
    kind: KindName
    sizes: Sizes | None = None
    """None where the method could not be created."""


def misfit(
    cls: type[Method],
    hp: Mapping[str, Any],
    name_or_path: str,
    quantization: Scheme = "none",
    lr: float = 1e-3,
    sources: Sources = (),
) -> str | None:
    """Return in one sentence why a method with these settings does not fit a backbone; None where it fits.

    `name_or_path` names the backbone; `sources` are the tensors that the method starts from, whose values do not
    count. Raises UserError where the backbone has no configuration.
    """
    return _asked(cls, hp, name_or_path, quantization, lr, sources)[0]


def sizes_of(
    cls: type[Method], hp: Mapping[str, Any], name_or_path: str, quantization: Scheme = "none", lr: float = 1e-3
) -> Sizes | None:
    """Return how large the method was that `misfit` tried; None where it could not be created.

    Raises UserError where the backbone has no configuration.
    """
    return _asked(cls, hp, name_or_path, quantization, lr, ())[1]


def _asked(
    cls: type[Method], hp: Mapping[str, Any], name_or_path: str, quantization: Scheme, lr: float, sources: Sources
) -> tuple[str | None, Sizes | None]:
    network = json.dumps(backbone_config(name_or_path), sort_keys=True, default=str)
    shapes = tuple(tuple((name, item.shape, item.dtype) for name, item in tensors.items()) for tensors in sources)
    key: Any = cls
    return _remembered(key, json.dumps(dict(hp), sort_keys=True), name_or_path, network, quantization, lr, shapes)


@functools.lru_cache(maxsize=4096)  # a suite asks the same for every seed and task; an answer is a short text
def _remembered(
    cls: type[Method], hp: str, name_or_path: str, network: str, quantization: Scheme, lr: float, shapes: Shapes
) -> tuple[str | None, Sizes | None]:
    """Do as `misfit` and `sizes_of`, once for each set of arguments.

    `network` is the configuration: that of a folder may change.
    """
    sources = [
        {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape, dtype in tensors} for tensors in shapes
    ]
    alone = _network_error(name_or_path, network, quantization)
    return _judged(cls, json.loads(hp), lambda: meta_backbone(name_or_path, quantization), lr, sources, alone)


@functools.lru_cache(maxsize=64)
def _network_error(name_or_path: str, network: str, quantization: Scheme) -> Exception | None:
    """Return what a network raises on shapes without any method, or None; `network` is its configuration."""
    backbone = _OnShapes(meta_backbone(name_or_path, quantization))
    try:
        _on_shapes(functools.partial(_compute, None, backbone))
    except Exception as error:  # whatever the network's own code raises
        return error.with_traceback(None)
    return None


def _judged(
    cls: type[Method],
    hp: Mapping[str, Any],
    build: Callable[[], Backbone],
    lr: float,
    sources: Sources,
    alone: Exception | None,
) -> tuple[str | None, Sizes | None]:
    """Try the method on the network that `build` returns; where that raises, try it on a tiny one of the same kind.

    `alone` is what that network raises without a method: mostly an operator that has no answer for shapes, such as
    those of mixtures of experts.
    """
    if isinstance(alone, CannotWrite):
        return _sentence(str(alone)), None
    error, kind, sizes = _tried(cls, hp, build, lr, sources)
    if error is None:
        return None, sizes
    # a method that may fit is not refused; where it does not, its cells fail by themselves
    if isinstance(error, UNDECIDED) or (alone is not None and _told_apart(error) == _told_apart(alone)):
        return None, sizes
    if isinstance(error, ValueError):  # a method's own way to say that settings do not fit
        return _sentence(str(error)), sizes
    on_tiny = _tried(cls, hp, lambda: tiny_backbone(kind, meta=True), lr, ()).error
    if on_tiny is not None and not isinstance(on_tiny, ValueError):
        return None, sizes
    return _sentence(f"it is not written for networks of this kind: {_told(error)}"), sizes


def _tried(
    cls: type[Method], hp: Mapping[str, Any], build: Callable[[], Backbone], lr: float, sources: Sources
) -> _Trial:
    """Try a method without the values that it draws; where that raises, try it with them, which decides."""
    trial = _tried_once(cls, hp, build, lr, sources, _without_values)
    return trial if trial.error is None else _tried_once(cls, hp, build, lr, sources, contextlib.nullcontext)


def _tried_once(
    cls: type[Method],
    hp: Mapping[str, Any],
    build: Callable[[], Backbone],
    lr: float,
    sources: Sources,
    context: Callable[[], contextlib.AbstractContextManager[None]],
) -> _Trial:
    """Return what comes of a method that is created inside `context()`."""
    backbone = _OnShapes(build())
    kind, sizes = backbone.kind.name, None
    try:
        with context():
            # moved as for training: a method need not make its tensors where the backbone's are
            method = cls(cls.HP(**hp), backbone).to(backbone.device)
        sizes = Sizes(method.num_positions, method.num_prompt_tokens, method.num_trained)
        _try(method, backbone, lr, sources)
    except Exception as error:  # a method file, PEFT and transformers may raise anything
        return _Trial(error, kind, sizes)
    return _Trial(None, kind, sizes)


@contextlib.contextmanager
def _without_values() -> Iterator[None]:
    """Let tensors that name no device be made on the meta device, where drawing them costs nothing.

    Some types of PEFT permute all 9 million places of a weight in every layer, or multiply square matrices.
    """
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Drops generators: none draws on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{name: value for name, value in (kwargs or {}).items() if name != "generator"})


def _try(method: Method, backbone: Backbone, lr: float, sources: Sources) -> None:
    """Form the parameter groups, then compute a step and an answer where the method has to do with the network."""
    checked_groups(method, lr)
    if sources:
        method.start_from(sources)
    elif type(method).takes_sources[0]:
        return  # its sources are not known here, and without them nothing can be computed
    if not (type(method).is_layer_side() or type(method).runs_alone()):
        return  # the network reads embeddings as it always does; `harness.train.batch_input` checks their shapes
    _on_shapes(functools.partial(_compute, method, backbone))


def _on_shapes(compute: Callable[[], None]) -> None:
    """Call `compute`, which works on the meta device."""
    try:
        with KnownShapes():
            compute()
    except (RuntimeError, NotImplementedError) as error:
        if "meta tensors" not in str(error):
            raise
        # some networks read values unless they are traced by FakeTensorMode, which is ten times as slow
        with _quiet(), FakeTensorMode(allow_non_fake_inputs=True):
            compute()


def _told_apart(error: Exception) -> tuple[type[Exception], str]:
    """Return type and words of an exception without numbers: a prompt makes a sequence longer."""
    return type(error), re.sub(r"\d+", "", str(error))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch from logging the operators that it refused; the exception names them."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _compute(method: Method | None, backbone: Backbone) -> None:
    """Compute the losses of [N, L, H] embeddings, and two tokens of an answer or a head's, on the meta device."""
    embeds = torch.zeros(ROWS, LENGTH, backbone.hidden, device="meta")
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long, device="meta")
    labels = torch.zeros(ROWS, TARGETS, dtype=torch.long, device="meta")
    reader = backbone
    if not backbone.writes_text:
        cells = np.zeros(ROWS, np.int64)
        reader, labels = HeadReader(backbone, [LinearHead(TARGETS, backbone)], cells), labels[:, :1]
    if method is None:
        reader.token_losses(embeds, mask, labels)
        if backbone.writes_text:
            backbone.decode(embeds, mask, 2)
        return
    if not type(method).is_layer_side():
        embeds, mask = method(embeds, mask)
    method.attach(backbone)
    try:
        method.token_losses(reader, embeds, mask, labels)
        if backbone.writes_text:
            backbone.decode(embeds, mask, 2)
    finally:
        method.detach(backbone)


class _OnShapes(Backbone):
    """A backbone that always writes two tokens: without values nothing says where an answer ends."""

    def __init__(self, backbone: Backbone) -> None:
        vars(self).update(vars(backbone))
        if self.kind.pads_left and self.model._can_set_attn_implementation():
            # other kinds of attention ask whether a mask hides anything, which needs values
            self.model.set_attn_implementation("eager")
        self.tokenizer = TinyTokenizer()

    def greedy(self, read: Any, logits: Tensor, writing: Any, follow: Any) -> Tensor:
        token = logits.argmax(-1)[:, None]
        return torch.cat([token, read(token).argmax(-1)[:, None]], 1)


def _told(error: Exception) -> str:
    """Return type and first line of an exception, and the innermost line of a method's file that it came from.

    A line of the program itself is left out: it says nothing to a user, and moves with every version.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if "site-packages" not in Path(frame.filename).parts and not Path(frame.filename).is_relative_to(PACKAGE)
    ]
    lines = str(error).strip().splitlines() or [""]
    what = f"{type(error).__name__} ({lines[0]})"
    return f"{Path(own[-1].filename).name}:{own[-1].lineno} stops with {what}" if own else what


def _sentence(text: str) -> str:
    """Return a text as one line of at most MOST_SHOWN characters, without a full stop."""
    return shortened(" ".join(text.split()), MOST_SHOWN).removesuffix(".")


def build_method(cell: Cell, cls: type[Method], backbone: Backbone, where: str | None = None) -> Method:
    """Create a cell's method on the backbone's device, to see whether it can be.

    Raises UserError, at `where`, if settings do not fit.
    """
    try:
        method = cls(cls.HP(**cell.hp), backbone).to(backbone.device)
        checked_groups(method, cell.recipe.lr)  # wrong groups are found here, not in the first step of a long run
        return method
    except ValueError as error:
        problem = f"does not fit backbone '{cell.backbone}': {error}"
        raise UserError(problem, where=where, field=f"methods.{cell.label}") from None


def build_on_shapes(cell: Cell, cls: type[Method], where: str | None, build: Callable[[], Backbone]) -> Method:
    """Do as `build_method` on a network of the meta device that `build` returns, without values where that goes.

    Raises UserError, at `where`, if settings do not fit.
    """
    try:
        with _without_values():
            return build_method(cell, cls, build(), where)
    except Exception:  # code that reads what it has drawn may raise anything; what is raised with values counts
        return build_method(cell, cls, build(), where)


def build_to_train(
    cell: Cell, cls: type[Method], backbone: Backbone, task: Task, starts: Sequence[SourceFile], seal: Seal | None
) -> Method:
    """Create a cell's method, ready to train, on the backbone's device.

    The cell's seed is set first, so its tensors do not depend on what else is in the bundle. Raises BackboneChanged
    where `__init__` or `start_from` has changed the backbone, even if it also raised something else. A write through
    `.data` is found later, by `Seal.difference`.
    """
    try:
        torch.manual_seed(cell.seed)
        method = cls(cls.HP(**cell.hp), backbone).to(backbone.device)
        if starts:
            method.start_from([read_source_tensors(start) for start in starts])
        if cell.recipe.has_head:
            # drawn last, so that the method starts from the same numbers with and without a head
            method.linear_head = LinearHead(num_outputs(task), backbone, cell.recipe.head == "hidden")
            if method.given_head:
                method.linear_head.load_state_dict(dict(method.given_head))
            method.linear_head.requires_grad_(method.trains)
        checked_groups(method, cell.recipe.lr, cell.recipe.head_lr)
    finally:  # a method that raises may have changed the backbone as well, which other cells go on to use
        what = None if seal is None else seal.structure() or seal.written()
        if what is not None:
            raise BackboneChanged(what)
    return method


def try_detaching(method: Method, backbone: Backbone, seal: Seal) -> None:
    """Attach and detach a method that overrides `attach`. Raises BackboneChanged where something stays behind.

    Methods that only list `layer_changes` are attached by the harness itself, and need no trial.
    """
    if type(method).attach is Method.attach:
        return
    try:
        method.attach(backbone)
    finally:
        method.detach(backbone)
        what = seal.difference()
        if what is not None:
            raise BackboneChanged(f"{type(method).__name__}.detach() leaves {what} changed")
