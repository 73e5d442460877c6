"""Data parallel: several processes train one bundle together, each on its own device.

Every process holds all tensors and draws the same batches, and computes its share of the rows. Gradients and losses are
added up over the processes, so all of them take the same step, which is the step of a single process. The process that
started them receives signals for all of them, and they end when it ends. `ALONE` is a team of one, which exchanges
nothing.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from harness import stop
from harness.backbone import TokenBudget, until_it_fits
from harness.errors import UserError
from harness.method import Method
from harness.train.optimizer import is_sharded

T = TypeVar("T")

POLL_S = 0.5
"""Seconds between two looks at whether a process has died or a stop was requested: soon enough for a user's Ctrl-C."""
Send = Callable[[Any], None]
"""Passes a picklable message to the process that started the team."""


class TeamError(RuntimeError):
    """The work failed in a process of a team; the cause holds that process's traceback."""


class MemberDied(TeamError):
    """A signal killed a process of a team, perhaps for no fault of its work; it may be tried again."""


@dataclass(frozen=True)
class Team:
    """This process, and how it works together with the others that train the same bundle."""

    rank: int = 0
    """Number of this process; 0 is the one that reports and writes."""
    size: int = 1
    """Number of processes."""
    control: Any = field(default=None, compare=False, repr=False)
    """A process group on the CPU (gloo) for messages; through the GPU's group, a process would first wait for its GPU
    to finish."""
    requested: Callable[[], int] = field(default=stop.requested_signal, compare=False, repr=False)
    """Returns the signal by which a stop was requested, or 0. Ask it only where all processes can stop together."""

    @property
    def share(self) -> slice:
        """Which rows this process computes."""
        return self.shares[self.rank]

    @property
    def shares(self) -> list[slice]:
        """Which rows each process computes: every `size`-th, so that long and short ones are spread."""
        return [slice(rank, None, self.size) for rank in range(self.size)]

    def add_up(self, losses: Tensor, parameters: Sequence[Tensor]) -> None:
        """Replace losses, [C], and gradients by their sums over all processes.

        A tensor without a gradient in every process keeps none, so that the optimizer skips it as it would in one
        process. The gradient of a sharded tensor is a sum already.
        """
        if self.size == 1:
            return
        parameters = [parameter for parameter in parameters if not is_sharded(parameter)]
        has_gradient = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        dist.all_reduce(has_gradient, group=self.control)
        dist.all_reduce(losses)
        for parameter, number in zip(parameters, has_gradient.tolist(), strict=True):
            if number:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def merge(self, answers: dict[int, list[str]]) -> dict[int, list[str]]:
        """Put together the answers by cell of all processes; each has filled in its `share` of the rows."""
        if self.size == 1:
            return answers
        merged = {cell: list(rows) for cell, rows in answers.items()}
        for share, others in zip(self.shares, self.gather(answers), strict=True):
            for cell, rows in others.items():
                merged[cell][share] = rows[share]
        return merged

    def gather(self, own: Any) -> list[Any]:
        """The value of each process, by rank; it must be picklable."""
        values: list[Any] = [own] * self.size
        if self.size > 1:
            dist.all_gather_object(values, own, group=self.control)
        return values

    def agree(self, value: int) -> int:
        """The value of the first process, in all of them, so that they decide alike."""
        if self.size == 1:
            return value
        word = torch.tensor([value])
        dist.broadcast(word, 0, group=self.control)
        return int(word)


ALONE = Team()
"""One process that trains by itself."""


class Unsharded:
    """Weights that every process holds whole, so that each computes by itself."""

    is_sharded = False
    default_tokens: int | None = None
    """Token budget of a micro-batch if the suite sets none; None if a probe or the kind of device decides."""

    def forward(self, compute: Callable[[], T]) -> T:
        """Call `compute`, a forward pass that will be followed by a backward pass."""
        return compute()

    def within_memory(
        self, step: Callable[[int], T], budget: TokenBudget, shortest: int, undo: Callable[[], None]
    ) -> T:
        """Call `step(tokens)` with the budget, and with half of it each time memory runs out; see `until_it_fits`."""
        return until_it_fits(step, budget, shortest, undo)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, all weights are whole, and a process may compute with them without the others."""
        yield

    def most(self, count: int) -> int:
        """The largest `count` of the processes that must compute equally often; without shards each stands alone."""
        return count

    def whole_tensors(self, method: Method) -> dict[str, Tensor]:
        """A method's tensors by name, on the CPU."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in method.state_dict().items()}


UNSHARDED = Unsharded()


def run_team(size: int, work: Callable[..., None], arguments: Sequence[Any], take: Callable[[Any], None]) -> None:
    """Call `work(team, send, *arguments)` in `size` new processes; call `take` with each message of the first one.

    `work` and its arguments must be picklable. When one process fails, the others are ended. Raises TeamError then, and
    MemberDied if a signal killed it. Raises UserError for a user's mistake, and Stopped after a request to stop, which
    `work` learns of from `team.requested`.
    """
    context = mp.get_context("spawn")
    messages: Any = context.Queue()
    asked: Any = context.Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        settings = (size, str(Path(folder) / "meeting"), messages, asked, work, tuple(arguments))
        members = [context.Process(target=_member, args=(rank, *settings), daemon=True) for rank in range(size)]
        for member in members:
            member.start()
        try:
            _listen(members, messages, asked, take)
        finally:
            for member in members:
                member.kill()
                member.join()


def _listen(members: Sequence[Any], messages: Any, asked: Any, take: Callable[[Any], None]) -> None:
    """Take in messages until every process is done, or has stopped after a request to stop.

    Processes that do not stop within the grace period of `stop` are not waited for.
    """
    done = num_stopped = 0
    deadline = float("inf")
    while done < len(members):
        if stop.requested_signal() and not asked.value:
            asked.value, deadline = stop.requested_signal(), time.monotonic() + stop.GRACE_S + stop.CLOSING_S
        if num_stopped == len(members) or time.monotonic() > deadline:
            raise stop.Stopped(asked.value)
        try:
            kind, value = messages.get(timeout=POLL_S)
        except queue.Empty:
            if messages.empty():
                _check_alive(members)
            continue
        num_stopped += kind == "stopped"
        if kind == "mistake":
            raise UserError(value)
        if kind == "failed":
            time.sleep(POLL_S)  # a process that is killed fails the others, which may say so first
            _check_alive(members)
            raise TeamError(value[0]) from RuntimeError(value[1])
        if kind == "sent":
            take(value)
        done += kind == "done"


def _check_alive(members: Sequence[Any]) -> None:
    """Raise MemberDied if a signal has killed a process, TeamError if one has ended with an error."""
    for rank, member in enumerate(members):
        if member.exitcode:
            how = f"was killed by signal {-member.exitcode}" if member.exitcode < 0 else f"ended with {member.exitcode}"
            kind = MemberDied if member.exitcode < 0 else TeamError
            raise kind(f"process {rank} of {len(members)} {how}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _member(
    rank: int, size: int, meeting: str, messages: Any, asked: Any, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """What one process does: join the others, call `work`, and tell the starting process how it ended."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal or a scheduler sends them to all processes alike
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, torch.get_num_threads() // size))  # they share this machine's processors
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
        control = dist.new_group(backend="gloo") if on_gpus else None
        work(
            Team(rank, size, control, lambda: int(asked.value)),
            lambda value: messages.put(("sent", value)) if rank == 0 else None,
            *arguments,
        )
        dist.destroy_process_group()
        messages.put(("done", rank))
    except stop.Stopped as request:
        messages.put(("stopped", request.signum))
    except UserError as error:
        messages.put(("mistake", str(error)))
    except Exception as error:  # handed over as text: the exception itself may not be picklable
        messages.put(("failed", (f"process {rank} of {size}: {_first_line(error)}", traceback.format_exc())))
    finally:
        messages.close()
        messages.join_thread()
        os._exit(0)  # a usual exit would wait for operations that the other processes may never answer


def _end_with_parent() -> None:
    """End this process when the one that started it is gone."""
    if (parent := mp.parent_process()) is not None:
        parent.join()
        os._exit(1)
