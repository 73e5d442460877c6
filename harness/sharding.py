"""Full fine-tuning whose tensors no device holds whole: fully sharded data parallel, by PyTorch's `fully_shard`.

Every process holds a part of each weight, with its gradient and moments. A layer's weights are gathered for its forward
and backward pass and let go of again; an evaluation gathers all of them once (Rajbhandari et al. 2020, stage 3).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.backbone import Backbone
from harness.distributed import Team
from harness.memory import TokenBudget, is_out_of_memory, until_it_fits
from harness.method import Method
from harness.optimizer import is_sharded

Made = TypeVar("Made")


class Unsharded:
    """Weights that every process holds whole; computing with them is up to each."""

    is_sharded = False
    default_tokens: int | None = None
    """Token budget of a micro-batch where the suite sets none; None leaves it to the device."""

    def forward(self, compute: Callable[[], Made]) -> Made:
        """Call `compute`, which runs the backbone for a backward pass."""
        return compute()

    def within_memory(
        self, step: Callable[[int], Made], budget: TokenBudget, shortest: int, undo: Callable[[], None]
    ) -> Made:
        """Call `step(tokens)` of a micro-batch's budget, again with half of it where memory runs out."""
        return until_it_fits(step, budget, shortest, undo)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, all weights are whole, and a process computes with them by itself."""
        yield

    def most(self, count: int) -> int:
        """The largest `count` of those that have to compute equally often."""
        return count

    def whole_tensors(self, method: Method) -> dict[str, Tensor]:
        """A method's tensors on the CPU."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in method.state_dict().items()}


UNSHARDED = Unsharded()


class Sharded(Unsharded):
    """A backbone, with the weights that a method has put into it, divided among the processes of a team.

    Every call is one of all processes: each must come to it equally often.
    """

    is_sharded = True
    default_tokens = 4_096  # no probe: one in a single process would leave the others waiting

    def __init__(self, backbone: Backbone, method: Method, team: Team) -> None:
        """`method`, whose tensors stand in the layers now, holds this process's parts of them afterwards."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from transformers.modeling_layers import GradientCheckpointingLayer

        on_gpu = dist.get_backend() == "nccl"
        mesh = init_device_mesh("cuda" if on_gpu else "cpu", (team.size,))
        self._team = team
        self._root: Any = _Root(backbone.model)
        self._layers: list[Any] = [m for m in self._root.modules() if isinstance(m, GradientCheckpointingLayer)]
        before = _places(self._root)
        for module in (*self._layers, self._root):  # the root has what no layer has
            fully_shard(module, mesh=mesh)
            # losses are shares of one mean, so gradients are summed; by a sum alone, as gloo has no other reduction
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        _replace(method, before, _places(self._root), backbone.device)

    def forward(self, compute: Callable[[], Made]) -> Made:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nothing changes it in place
            made: Made = self._root(compute)
        return made

    def within_memory(
        self, step: Callable[[int], Made], budget: TokenBudget, shortest: int, undo: Callable[[], None]
    ) -> Made:
        """Call `step(tokens)` once: a process cannot repeat it while the others wait in the middle of theirs."""
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
        """A method's tensors on the CPU of the first process; none elsewhere."""
        found = {}
        for name, tensor in method.state_dict().items():
            whole = tensor.full_tensor() if is_sharded(tensor) else tensor
            if self._team.rank == 0:
                found[name] = whole.detach().cpu().contiguous()
        return found


class _Root(nn.Module):
    """All that is computed with the weights of a backbone, its embedding included, as one forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Any]) -> Any:
        return compute()


def trains_backbone(method: Method, backbone: Backbone) -> bool:
    """Whether a method trains every weight in the backbone's place, so that sharding them pays."""
    if not method.is_layer_side() or backbone.quantization != "none":
        return False
    own = {id(parameter) for parameter in method.parameters()}
    method.attach(backbone)
    try:
        return all(id(parameter) in own for parameter in backbone.model.parameters())
    finally:
        method.detach(backbone)


def shard(backbone: Backbone, method: Method, team: Team) -> Sharded:
    """Attach a method for good and divide all weights; those of the backbone that it replaced are let go of."""
    frozen = list(backbone.model.parameters())
    method.attach(backbone)
    in_use = {id(parameter) for parameter in backbone.model.parameters()}
    for parameter in frozen:
        if id(parameter) not in in_use:
            _let_go(parameter)
    return Sharded(backbone, method, team)


def _places(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(remove_duplicate=False))


def _replace(
    method: Method, before: dict[str, nn.Parameter], after: dict[str, nn.Parameter], device: torch.device
) -> None:
    """Give a method the parts in place of its whole tensors, and move what is not divided to the same device."""
    parts = {id(tensor): after[name] for name, tensor in before.items()}
    for module in method.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) in parts:
                module._parameters[key] = parts[id(parameter)]
            elif parameter is not None:
                parameter.data = parameter.data.to(device)
    for parameter in before.values():
        _let_go(parameter)


def _let_go(parameter: Tensor) -> None:
    """Free the memory of a tensor that others may still refer to."""
    parameter.data = parameter.data.new_empty(0)
