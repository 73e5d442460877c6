"""What answering costs: the bare backbone, a method beside it, and the method merged into it, side by side.

The three answer the same rows of dev in turn, in one process and in alternation, after one round that is not counted:
a machine that slows down slows all three. Merged weights stand in a view of the network, so the backbone stays what it
is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness import stop
from harness.backbone import Backbone
from harness.data import Encoded, Task
from harness.method import CannotMerge, Method, NetworkView
from harness.results import AnsweringCost, AnsweringForm
from harness.suite import LabelTokens, Measure
from harness.train.batch_input import BatchInput
from harness.train.evaluate import answer_split


@torch.no_grad()
def measure_answering(
    fused: BatchInput,
    cell: int,
    encoded: Encoded,
    task: Task,
    max_tokens: int,
    label_tokens: LabelTokens,
    measure: Measure,
) -> AnsweringCost | None:
    """Measure the cell at position `cell` on the first rows of a split.

    None where nobody asked for it, and for a method without tensors, which is the bare backbone.

    `max_tokens` is the token budget of a micro-batch, as in evaluation. Everything has to be in evaluation mode.
    """
    backbone, method = fused.backbone, fused.methods[cell]
    has_tensors = any(not name.startswith("linear_head.") for name in method.state_dict())
    if not (measure.answering and has_tensors):
        return None
    rows = slice(0, min(measure.rows, len(encoded)))
    with fused.detached():
        plain = _plain(method, backbone)
        forms: dict[str, tuple[Method, Backbone]] = {"bare": (plain, backbone), "beside": (method, backbone)}
        reason = ""
        try:
            forms["merged"] = (plain, merged_backbone(method, backbone))
        except CannotMerge as error:
            reason = str(error)
        inputs = {name: fused.of_one(own, network) for name, (own, network) in forms.items()}

        def answer(name: str) -> None:
            stop.raise_if_stopped()
            answer_split(inputs[name], [0], encoded, task, max_tokens, rows, label_tokens)
            if backbone.device.type == "cuda":
                torch.cuda.synchronize(backbone.device)

        seconds: dict[str, list[float]] = {name: [] for name in inputs}
        peaks: dict[str, int] = {}
        for round_number in range(measure.rounds + 1):
            for name, own in inputs.items():
                with own.attached():
                    if not round_number:
                        peaks[name] = peak_of(lambda name=name: answer(name), backbone)  # type: ignore[misc]
                        continue
                    started = time.perf_counter()
                    answer(name)
                    seconds[name].append(time.perf_counter() - started)
        network = sum(weight.numel() * weight.element_size() for weight in backbone.model.parameters())
        adapter = sum(tensor.numel() * tensor.element_size() for tensor in method.state_dict().values())
        on_disk = {"bare": 0, "beside": adapter, "merged": network}
        num_rows = rows.stop
        found = {
            name: AnsweringForm(
                ms_per_row=1000 * statistics.median(seconds[name]) / num_rows,
                peak_bytes=network + (adapter if name == "beside" else 0) + peaks[name],
                disk_bytes=on_disk[name],
            )
            for name in inputs
        }
    return AnsweringCost(
        num_rows=num_rows, num_rounds=measure.rounds, batch_tokens=max_tokens, not_merged=reason, **found
    )


def merged_backbone(method: Method, backbone: Backbone) -> Backbone:
    """Return a backbone with the method merged into it; weights that stay share their memory. Raises CannotMerge."""
    weights = method.merged()
    places: dict[nn.Parameter, list[tuple[str, str]]] = {}
    for path, module in backbone.model.named_modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight in weights:
                places.setdefault(weight, []).append((path, name))
    if any(len(found) > 1 for found in places.values()):
        raise CannotMerge("it changes a weight that two modules share")
    view = NetworkView(backbone.model)
    for weight, ((path, name),) in places.items():
        view.model.get_submodule(path)._parameters[name] = nn.Parameter(weights[weight], requires_grad=False)
    view.model.eval()
    return Backbone(
        backbone.name, view.model, backbone.tokenizer, backbone.record, backbone.precision, backbone.quantization
    )


def _plain(method: Method, backbone: Backbone) -> Method:
    """A method that changes nothing, with the same head."""
    plain = Method(None, backbone)
    plain.linear_head = method.linear_head
    return plain.eval()


def peak_of(work: Callable[[], None], backbone: Backbone) -> int:
    """Most bytes of tensors that `work` holds at once above those that were there before."""
    if backbone.device.type == "cuda":
        before = torch.cuda.memory_allocated(backbone.device)
        torch.cuda.reset_peak_memory_stats(backbone.device)
        work()
        return max(0, torch.cuda.max_memory_allocated(backbone.device) - before)
    # the memory of a process never falls on a CPU, so tensors are counted as they come and go
    with _Tensors() as seen:
        work()
    peak: int = seen.peak
    return peak


class _Tensors(TorchDispatchMode):
    """Counts the bytes of tensors that operations make and that are still held."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and (key := _storage(tensor)) not in given:
                storage = tensor.untyped_storage()
                self._held[key] = StorageWeakRef(storage), storage.nbytes()
        self._held = {key: item for key, item in self._held.items() if not item[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return found


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
