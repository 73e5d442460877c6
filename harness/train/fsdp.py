"""Full fine-tuning of networks that no device can hold whole: fully sharded data parallel (PyTorch's `fully_shard`).

Every process holds a part, a shard, of each weight with its gradient and moments (ZeRO stage 3, Rajbhandari et al.
2020). A layer's weights are gathered for its forward and its backward pass, and freed afterwards. An evaluation gathers
all weights once.

`Unsharded` in data_parallel.py is the usual case, in which each process holds all weights; the trainer calls the same
functions on either.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.backbone import Backbone, TokenBudget, is_out_of_memory
from harness.method import Method
from harness.train.data_parallel import T, Team, Unsharded
from harness.train.optimizer import is_sharded


class Sharded(Unsharded):
    """A backbone, with a method's weights in it, divided among the processes of a team.

    All processes must call each function equally often, since each call exchanges shards.
    """

    is_sharded = True
    default_tokens = 4_096
    """A fixed budget instead of a probe: a process that runs out of memory in a probe would leave the others waiting.
    About 11 rows of 356 positions; `harness plan --device NAME` tells what fits."""

    def __init__(self, backbone: Backbone, method: Method, team: Team) -> None:
        """Divide the weights. `method` must be attached; afterwards it holds this process's parts of its tensors."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from transformers.modeling_layers import GradientCheckpointingLayer

        on_gpu = dist.get_backend() == "nccl"
        mesh = init_device_mesh("cuda" if on_gpu else "cpu", (team.size,))
        self._team = team
        self._root: Any = _Root(backbone.model)
        self._layers: list[Any] = [m for m in self._root.modules() if isinstance(m, GradientCheckpointingLayer)]
        before = _parameters_by_path(self._root)
        for module in (*self._layers, self._root):  # the root takes the weights that are in no layer
            fully_shard(module, mesh=mesh)
            # each process's loss is its part of one mean, so gradients are summed, not averaged; FSDP would by default
            # divide by the number of processes, and gloo cannot divide
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        _replace(method, before, _parameters_by_path(self._root), backbone.device)

    def forward(self, compute: Callable[[], T]) -> T:
        with warnings.catch_warnings():
            # the warning is about changing the output in place, which nothing here does
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
            output: T = self._root(compute)
        return output

    def within_memory(
        self, step: Callable[[int], T], budget: TokenBudget, shortest: int, undo: Callable[[], None]
    ) -> T:
        """Call `step(tokens)` once: a process cannot repeat it while the others wait in the middle of the same step.

        Raises RuntimeError, with what to change, when memory runs out.
        """
        try:
            return step(budget.tokens)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise RuntimeError(
                f"a step with micro-batches of {budget.tokens:,} tokens ran out of memory; shards cannot repeat it: "
                "lower execution.micro_batch_tokens, or raise execution.processes"
            ) from error

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        for module in (*self._layers, self._root):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in (*self._layers, self._root):
                module.set_reshard_after_forward(module is not self._root, recurse=False)
                module.reshard()

    def most(self, count: int) -> int:
        return int(max(self._team.gather(count)))

    def whole_tensors(self, method: Method) -> dict[str, Tensor]:
        """A method's tensors by name, on the CPU of the first process; nothing in the others."""
        tensors = {}
        for name, tensor in method.state_dict().items():
            whole = tensor.full_tensor() if is_sharded(tensor) else tensor
            if self._team.rank == 0:
                tensors[name] = whole.detach().cpu().contiguous()
        return tensors


class _Root(nn.Module):
    """The module that FSDP sees as the whole network.

    A step calls the embedding, the layers and the loss one by one. FSDP gathers weights around a module's `forward`, so
    this `forward` runs all of that as one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Any]) -> Any:
        return compute()


def trains_backbone(method: Method, backbone: Backbone) -> bool:
    """Whether a method puts a trainable tensor in the place of every weight: full fine-tuning, which sharding is
    for."""
    if not method.is_layer_side() or backbone.quantization != "none":
        return False
    own = {id(parameter) for parameter in method.parameters()}
    method.attach(backbone)
    try:
        return all(id(parameter) in own for parameter in backbone.model.parameters())
    finally:
        method.detach(backbone)


def shard(backbone: Backbone, method: Method, team: Team) -> Sharded:
    """Attach a method for good, and divide all weights; free the backbone's weights that the method replaced."""
    frozen = list(backbone.model.parameters())
    method.attach(backbone)
    in_use = {id(parameter) for parameter in backbone.model.parameters()}
    for parameter in frozen:
        if id(parameter) not in in_use:
            _free(parameter)
    return Sharded(backbone, method, team)


def _parameters_by_path(module: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by each of its names; a shared one has several."""
    return dict(module.named_parameters(remove_duplicate=False))


def _replace(
    method: Method, before: dict[str, nn.Parameter], after: dict[str, nn.Parameter], device: torch.device
) -> None:
    """Let a method hold its shards (`after`) instead of whole tensors (`before`); move its other tensors to
    `device`."""
    shards = {id(tensor): after[path] for path, tensor in before.items()}
    for module in method.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) in shards:
                module._parameters[key] = shards[id(parameter)]
            elif parameter is not None:
                parameter.data = parameter.data.to(device)
    for parameter in before.values():
        _free(parameter)


def _free(parameter: Tensor) -> None:
    """Free the memory of a tensor to which other objects may still refer."""
    parameter.data = parameter.data.new_empty(0)
