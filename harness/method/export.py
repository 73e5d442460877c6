"""Writes what inference needs of a trained method to a file of plain tensors, and answers from such a file.

Shapes: P prompt vectors, S source length, H hidden width, W width of the states that a head reads, C its outputs.

A method whose vectors do not depend on the text collapses to a prompt [P, H], a table [S, H] that is added to the token
embeddings, or both; its networks and factors are not stored. Other methods export tensors that their class reads back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from harness.backbone import Backbone, Seal, load_backbone, meta_backbone
from harness.data import DataRecord
from harness.errors import UserError
from harness.method.linear_head import LinearHead
from harness.method.method import Method, own_export
from harness.method.registry import Registered, discover, get_class
from harness.provenance import sha256_file
from harness.results import Result, read_result, tensors_path

HEAD = "linear_head."
"""Prefix of the tensors of a head."""


class Exported(Method):
    """A method that has collapsed: it answers from a prompt [P, H] (or [K, P, H]) and an added table [S, H] alone."""

    def __init__(self, tensors: Mapping[str, Tensor], backbone: Backbone) -> None:
        super().__init__(None, backbone)
        for name in ("prompt", "added"):
            tensor = tensors.get(name)
            self.register_buffer(f"{name}_vectors", None if tensor is None else tensor.to(backbone.embedding.weight))
        prompt = self.prompt_vectors
        self.num_tasks = len(prompt) if prompt is not None and prompt.dim() == 3 else 1

    prompt_vectors: Tensor | None
    added_vectors: Tensor | None

    def prompt(self) -> Tensor | None:
        return self.prompt_vectors

    def added(self) -> Tensor | None:
        return self.added_vectors


def is_collapsible(method: Method | type[Method]) -> bool:
    """Whether a prompt and an added table are all that the method does."""
    return not method.is_layer_side() and not method.depends_on_text()


def serve(method: Method, tensors: Mapping[str, Tensor], backbone: Backbone) -> Method:
    """Return a method that answers from exported tensors.

    `method` is any instance of the class that made them. It is filled and returned unless it collapses.
    """
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEAD)}
    served = Exported(own, backbone) if is_collapsible(method) else method
    if served is method:
        method.load_export(own)
    _put_on_head(served, tensors, backbone)
    return served


def exported_tensors(method: Method) -> dict[str, Tensor]:
    """Return what `method.export` gives, and the head's weights [C, W] and bias [C], where there is one.

    A hidden layer has a weight [W, W] and a bias [W] beside them.
    """
    # a method that exports its whole state has the head in it, one that collapses has not: it is added here for both
    tensors = {name: tensor for name, tensor in own_export(method).items() if not name.startswith(HEAD)}
    head = {} if method.linear_head is None else dict(method.linear_head.named_parameters())
    return tensors | {f"{HEAD}{name}": tensor.detach().clone() for name, tensor in head.items()}


def _put_on_head(method: Method, tensors: Mapping[str, Tensor], backbone: Backbone) -> None:
    """Give a method the head that is among the tensors, if there is one."""
    if own := _head_tensors(tensors):
        method.linear_head = _head_of(own, backbone)
        method.linear_head.load_state_dict(own)


def _head_of(own: Mapping[str, Tensor], backbone: Backbone) -> LinearHead:
    """Return an untrained head of the same make as the one that these tensors are of, by name without prefix."""
    return LinearHead(len(own["weight"]), backbone, "hidden.weight" in own)


def _head_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(HEAD): tensor for name, tensor in tensors.items() if name.startswith(HEAD)}


@dataclass(frozen=True)
class Export:
    """A report on the file that `export_result` wrote."""

    path: Path
    shapes: dict[str, list[int]]
    """Of each tensor, by name."""
    num_kept: int
    """Parameters that inference needs; factors may be fewer numbers than the exported product."""
    source_changed: bool
    """Whether the method's file is no longer the one that trained the result."""


def export_result(path: Path, out: Path, backbone: str | None, method_dirs: tuple[str, ...] = ()) -> Export:
    """Write the exported tensors of the result whose JSON is at `path` to `out`, a safetensors file.

    `backbone` is a name or path of the weights; needed where the result has a folder's name only. Raises UserError for
    a result without tensors, for tensors that changed after they were stored, or that no longer fit their method.
    """
    if not path.exists():
        raise UserError("no such file", where=str(path))
    result = read_result(path)
    tensors = stored_tensors(path, result)
    # what a result stores is never overwritten, by a slip of the command line either
    if out.resolve() in {path.resolve(), path.with_suffix(".safetensors").resolve()}:
        raise UserError("would overwrite the result itself", where=str(out))
    registered = discover(*method_dirs)
    network = _network(result, registered, backbone or result.cell.backbone)
    method = rebuild(path, result, registered, network, tensors)
    exported = exported_tensors(method)
    cell = result.cell
    metadata = {
        "method": cell.method,
        "hp": json.dumps(cell.hp),
        "backbone": cell.backbone,
        "backbone_fingerprint": result.backbone.fingerprint if result.backbone else "",
        "cell_id": result.cell_id,
        "answering": json.dumps({} if result.data is None else _answering(result.data)),
    }
    try:
        out.write_bytes(safetensors_bytes(exported, metadata))
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(out)) from None
    changed = registered[cell.method].spec.source_sha256 != result.method_sha256
    return Export(out, {name: list(t.shape) for name, t in exported.items()}, method.num_kept, changed)


def _answering(data: DataRecord) -> dict[str, Any]:
    """Return how texts became prompts and answers were written, of the task or of each task of a mixture.

    Tensors that were trained on one form answer badly in another.
    """
    if data.parts:
        return {"parts": {name: _answering(part) for name, part in data.parts.items()}}
    writing = None if data.writing is None else data.writing.model_dump()
    return {"prompt": data.prompt.model_dump(), "writing": writing}


def load_export(path: Path, backbone: Backbone, method_dirs: tuple[str, ...] = ()) -> Method:
    """Return a method that answers from an exported file on `backbone`. The caller attaches it if it is layer-side.

    Raises UserError if the file is no export, if it does not fit the backbone, or if its method changes the backbone.
    """
    try:
        tensors = load_tensors(path)
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from None
    if "method" not in metadata:
        raise UserError("is not an export of this program", where=str(path), hint="Make one with harness export.")
    if {name for name in tensors if not name.startswith(HEAD)} <= {
        "prompt",
        "added",
    }:  # collapsed, so no method file is needed
        width = next((tensors[name].shape[1] for name in ("prompt", "added") if name in tensors), backbone.hidden)
        if width != backbone.hidden:
            raise UserError(f"holds vectors of width {width}, '{backbone.name}' has {backbone.hidden}", where=str(path))
        if "added" in tensors and backbone.kind.pads_left:
            hint = "Its rows count from the padded start there; answer through harness.fused.FusedInput instead."
            raise UserError("holds a table that cannot be served alone on a decoder", where=str(path), hint=hint)
        served: Method = Exported(tensors, backbone)
        _put_on_head(served, tensors, backbone)
        return served.to(backbone.device).eval()
    cls = get_class(discover(*method_dirs), metadata["method"])
    assert issubclass(cls, Method)
    # the caller may use the backbone for other things too, and a method file is anybody's code
    seal = Seal(backbone)
    method = cls(cls.HP(**json.loads(metadata["hp"])), backbone)
    try:
        method = serve(method, tensors, backbone)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"does not fit '{backbone.name}': {first_line(error)}", where=str(path)) from None
    if (what := seal.difference()) is not None:
        raise UserError(f"its method has changed the backbone, which has to be loaded again: {what}", where=str(path))
    return method.eval()


def stored_tensors(path: Path, result: Result) -> dict[str, Tensor]:
    """Read the selected tensors beside a result. Raises UserError where there are none, or not those once stored."""
    if result.status != "done" or result.files.tensors is None:
        reason = "failed" if result.status != "done" else "has no trained tensors"
        raise UserError(f"{reason}, so there is nothing to export", where=str(path))
    file = tensors_path(path)
    if not file.exists():
        raise UserError("is missing; it belongs to the result", where=str(file))
    if sha256_file(file) != result.files.tensors:
        raise UserError("is not the file that was stored with the result", where=str(file))
    return load_tensors(file)


def _network(result: Result, registered: Mapping[str, Registered], name_or_path: str) -> Backbone:
    """Load the backbone of a result: shapes alone for a method that collapses, which never reads its weights."""
    cls = _method_class(result, registered)
    collapsible = is_collapsible(cls.for_settings(cls.HP(**result.cell.hp)))
    return meta_backbone(name_or_path) if collapsible else load_backbone(name_or_path, device="cpu")


def _method_class(result: Result, registered: Mapping[str, Registered]) -> type[Method]:
    cls = get_class(registered, result.cell.method)
    assert issubclass(cls, Method)
    return cls


def rebuild(
    path: Path, result: Result, registered: Mapping[str, Registered], backbone: Backbone, tensors: dict[str, Tensor]
) -> Method:
    """Build the method of a result and fill it with its trained tensors. Raises UserError where they do not fit."""
    cls = _method_class(result, registered)
    with torch.random.fork_rng():  # a method draws when it is created; the caller's random numbers stay as they are
        method = cls(cls.HP(**result.cell.hp), backbone)
    if own := _head_tensors(tensors):
        method.linear_head = _head_of(own, backbone)
    try:
        # tensors on the meta device have no memory to copy into, so they are exchanged
        options: dict[str, Any] = {"assign": True} if backbone.device.type == "meta" else {}
        method.load_state_dict(tensors, **options)
    except RuntimeError as error:
        hint = "The method's file or the backbone is not the one that was trained; harness run --rerun stale."
        raise UserError(f"does not fit its method: {first_line(error)}", where=str(path), hint=hint) from None
    return method.eval()


def first_line(error: BaseException) -> str:
    """Return the first line that says something: PyTorch's errors on loading have a heading above it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(1, len(lines) - 1)] if lines else type(error).__name__
