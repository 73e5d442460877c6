"""Whether a method fits a network, judged on shapes alone: before weights, rows or a device are asked for.

One judgement for the plan, the run, `harness check`, `harness params` and whoever else asks. A method fits where its
tensors can be created and where one step of training and two written tokens can be computed with it, on tensors that
have shapes and no values. What raises on a tiny network of the same kind too is no question of fit: that is a mistake
in the method's code, and the failure of its cells.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.backbone import Backbone
from harness.cell_state import checked_groups
from harness.errors import shortened
from harness.loading import meta_backbone, source_config
from harness.method import Method
from harness.quantization import Scheme
from harness.tiny import TinyTokenizer, tiny_backbone

ROWS, LENGTH, TARGETS = 2, 5, 3
MOST_SHOWN = 300
"""Characters of a reason."""

UNDECIDED = (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException,
             fake_tensor.UnsupportedOperatorException, fake_tensor.UnsupportedFakeTensorException)  # fmt: skip
"""What says that shapes alone do not tell."""

Sources = Sequence[Mapping[str, Tensor]]


def misfit(
    cls: type[Method],
    hp: Mapping[str, Any],
    source: str,
    quantization: Scheme = "none",
    lr: float = 1e-3,
    sources: Sources = (),
) -> str | None:
    """Why a method with these settings does not fit the backbone of that name, in one sentence; None where it does.

    `sources` are tensors, with or without values, that it starts from. Raises UserError where the backbone has no
    configuration.
    """
    if sources:
        return _judged(cls, hp, lambda: meta_backbone(source, quantization), lr, sources)
    # a suite asks the same for every seed, learning rate and task
    network = json.dumps(source_config(source), sort_keys=True, default=str)
    key: Any = cls
    return _remembered(key, json.dumps(dict(hp), sort_keys=True), source, network, quantization, lr)


@functools.lru_cache(maxsize=4096)
def _remembered(cls: type[Method], hp: str, source: str, network: str, quantization: Scheme, lr: float) -> str | None:
    """`network` is the configuration, which a folder may change meanwhile."""
    return _judged(cls, json.loads(hp), lambda: meta_backbone(source, quantization), lr, ())


def _judged(
    cls: type[Method], hp: Mapping[str, Any], build: Callable[[], Backbone], lr: float, sources: Sources
) -> str | None:
    """Try the method on the network of `build`, and where that raises, on a tiny one of the same kind."""
    error, kind = _tried(cls, hp, build, lr, sources)
    if error is None:
        return None
    if isinstance(error, UNDECIDED):
        return None
    if isinstance(error, ValueError):  # what methods raise of settings that do not fit
        return _sentence(str(error))
    usual, _ = _tried(cls, hp, lambda: tiny_backbone(kind, meta=True), lr, ())
    if usual is not None and not isinstance(usual, ValueError):
        return None
    return _sentence(f"it asks for what this network does not have ({_told(error)})")


def _tried(
    cls: type[Method], hp: Mapping[str, Any], build: Callable[[], Backbone], lr: float, sources: Sources
) -> tuple[Exception | None, Any]:
    """What a method raises on a network, if anything, and the kind of the network."""
    backbone = _OnShapes(build())
    kind: Any = "encoder-decoder" if backbone.is_encoder_decoder else "decoder"
    try:
        _try(cls(cls.HP(**hp), backbone), backbone, lr, sources)
    except Exception as error:  # whatever someone's file, PEFT or transformers raises
        return error, kind
    return None, kind


def _try(method: Method, backbone: Backbone, lr: float, sources: Sources) -> None:
    """Create the tensors' groups, then compute a step and an answer, if the method meets the network in either."""
    checked_groups(method, lr)
    if sources:
        method.start_from(sources)
    elif type(method).takes_sources[0]:
        return  # what it starts from is not known, and nothing can be computed without
    if not (type(method).is_layer_side() or type(method).runs_alone()):
        return  # the network sees embeddings, as always; `fused` looks at their shapes
    try:
        _compute(method, backbone)
    except (RuntimeError, NotImplementedError) as error:
        if "meta tensors" not in str(error):
            raise
        # some networks ask for values unless they are being traced, which is ten times as slow
        with _quiet(), FakeTensorMode(allow_non_fake_inputs=True):
            _compute(method, backbone)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the log of operators that were refused: the exception says it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _compute(method: Method, backbone: Backbone) -> None:
    embeds = torch.zeros(ROWS, LENGTH, backbone.hidden, device="meta")
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long, device="meta")
    labels = torch.zeros(ROWS, TARGETS, dtype=torch.long, device="meta")
    if not type(method).is_layer_side():
        embeds, mask = method(embeds, mask)
    method.attach(backbone)
    try:
        method.token_losses(backbone, embeds, mask, labels)
        backbone.decode(embeds, mask, 2)
    finally:
        method.detach(backbone)


class _OnShapes(Backbone):
    """A backbone that writes two tokens, since without values nothing says where an answer ends."""

    def __init__(self, backbone: Backbone) -> None:
        vars(self).update(vars(backbone))
        if not self.is_encoder_decoder and self.model._can_set_attn_implementation():
            # others ask whether a mask masks anything, to do without it; no values can tell (see harness.attention)
            self.model.set_attn_implementation("eager")
        self.tokenizer = TinyTokenizer()

    def _greedy(self, step: Any, logits: Tensor, max_new_tokens: int) -> Tensor:
        token = logits.argmax(-1)[:, None]
        return torch.cat([token, step(token).argmax(-1)[:, None]], 1)


def _told(error: Exception) -> str:
    """Type and first line of an exception, and the line of a method's or the program's own file that met it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in Path(frame.filename).parts]  # not those of a library
    frame = (own or frames)[-1]
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}, {Path(frame.filename).name}:{frame.lineno}"


def _sentence(text: str) -> str:
    """One line without a full stop."""
    return shortened(" ".join(text.split()), MOST_SHOWN).removesuffix(".")
