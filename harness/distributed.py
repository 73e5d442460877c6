"""Several processes that train one bundle together, each with its own device: data parallel.

Every process holds all tensors and draws the same batches. Each computes its share of the rows; gradients and losses
are added up, so that all take the same step, and it is the step that one process alone would take.
"""

from __future__ import annotations

import os
import queue
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from harness.errors import UserError
from harness.fused import Index
from harness.optimizer import is_sharded

POLL_S = 0.5
Send = Callable[[Any], None]


class TeamError(RuntimeError):
    """A process of a team ended before its work was done; the message holds what it said."""


@dataclass(frozen=True)
class Team:
    """This process among those that share a bundle."""

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> Index:
        """Numbers of the rows, out of `count`, that are this process's."""
        return np.arange(self.rank, count, self.size)

    def add_up(self, losses: Tensor, parameters: Sequence[Tensor]) -> None:
        """Replace losses and gradients by their sums over all processes.

        A tensor that no process has a gradient for keeps none; a sharded one has its sum already.
        """
        if self.size == 1:
            return
        parameters = [parameter for parameter in parameters if not is_sharded(parameter)]
        has_gradient = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=losses.device)
        dist.all_reduce(has_gradient)
        dist.all_reduce(losses)
        for parameter, number in zip(parameters, has_gradient.tolist(), strict=True):
            if number:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def merge(self, answers: dict[int, list[str]]) -> dict[int, list[str]]:
        """Put together the answers of all processes, each of which has filled in its share of the rows."""
        if self.size == 1:
            return answers
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, answers)
        merged = {cell: list(rows) for cell, rows in answers.items()}
        for rank, part in enumerate(parts):
            for cell, rows in part.items():
                merged[cell][rank :: self.size] = rows[rank :: self.size]
        return merged


ALONE = Team()


def run_team(size: int, work: Callable[..., None], arguments: Sequence[Any], take: Callable[[Any], None]) -> None:
    """Call `work(team, send, *arguments)` in `size` new processes; hand what the first one sends to `take`.

    `work` and its arguments must be picklable. Raises TeamError, and ends the others, when one process fails;
    UserError for a mistake of the user's.
    """
    context = mp.get_context("spawn")
    messages: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        settings = (size, str(Path(folder) / "meeting"), messages, work, tuple(arguments))
        members = [context.Process(target=_member, args=(rank, *settings), daemon=True) for rank in range(size)]
        for member in members:
            member.start()
        try:
            _listen(members, messages, take)
        finally:
            for member in members:
                if member.is_alive():
                    member.terminate()
                member.join()


def _listen(members: Sequence[Any], messages: Any, take: Callable[[Any], None]) -> None:
    """Until every process has said that it is done."""
    done = 0
    while done < len(members):
        try:
            kind, value = messages.get(timeout=POLL_S)
        except queue.Empty:
            ended = [member.exitcode for member in members if member.exitcode]
            if ended and messages.empty():
                raise TeamError(f"a process ended with exit code {ended[0]}") from None
            continue
        if kind == "mistake":
            raise UserError(value)
        if kind == "failed":
            raise TeamError(value)
        if kind == "sent":
            take(value)
        done += kind == "done"


def _member(
    rank: int, size: int, meeting: str, messages: Any, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """One process: meet the others, work, say how it ended."""
    torch.set_num_threads(max(1, torch.get_num_threads() // size))
    on_gpus = torch.cuda.device_count() >= size
    if on_gpus:
        torch.cuda.set_device(rank)
    elif torch.cuda.is_available():
        messages.put(("mistake", f"execution.processes is {size}, but there are {torch.cuda.device_count()} GPUs"))
        return
    try:
        dist.init_process_group(
            "nccl" if on_gpus else "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size
        )
        work(Team(rank, size), lambda value: messages.put(("sent", value)) if rank == 0 else None, *arguments)
        dist.destroy_process_group()
        messages.put(("done", rank))
    except UserError as error:
        messages.put(("mistake", str(error)))
    except Exception:  # handed over as text: the exception itself may not be picklable
        messages.put(("failed", f"process {rank} of {size}:\n{traceback.format_exc()}"))
    finally:
        messages.close()
        messages.join_thread()
        os._exit(0)  # without waiting for others that this process may have left hanging
