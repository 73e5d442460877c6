"""Checkpoints: the state of a bundle in training, so that a killed run goes on where it was and not from the start.

One safetensors file holds all of it: tensors, and JSON in its header. A state is written between two steps. A run that
goes on from it repeats an uninterrupted one bit for bit, on a CPU, in the same bundle and with the same versions.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.backbone import TokenBudget
from harness.files import put_in_place, sync_folder, write_aside
from harness.results import DevScore, Failure, Forgetting, SplitScore
from harness.suite import Cell, Key, digest
from harness.train.cell_state import CellState, Work
from harness.train.data_parallel import ALONE, Team
from harness.train.optimizer import JointAdamW, is_sharded, joined_shards, local_shard, sharded_like

FORMAT = 3
"""Number of the file's format; a file with another number is ignored, and its cells start anew."""
MOST_OVERHEAD = 0.05
"""Largest share of the time that writing may take. A state that takes 6 s to write is written every 2 minutes at most,
even if the suite asks for more: a checkpoint saves at most what was trained since the last one."""

MARKER = ".driver"
"""Ending of the files by which processes see whether they share a folder."""
COPIES = 4
"""Tensors of a weight's size in a state: the weight, its two moments, and the copy from the best step."""

PLAIN = ("selected_step", "answers", "failed_at", "raced_out_at", "num_steps", "train_s", "eval_s",
         "eval_prompt_tokens", "micro_batch_tokens", "num_out_of_memory")  # fmt: skip
"""Fields of an outcome that JSON holds as they are."""
_history = TypeAdapter(list[DevScore])
_scores = TypeAdapter(dict[str, SplitScore])


@dataclass(frozen=True)
class CheckpointPlan:
    """Where a bundle's checkpoint lies, how often it is written, and which runs may go on from it."""

    path: Path
    key: str
    """Digest of rows, weights, budget, versions and device; it must be the same in the run that goes on."""
    every_s: float | None = None
    """Seconds between two checkpoints."""
    every_steps: int | None = None
    """Steps between two checkpoints, where the suite counts in steps."""
    sources: Mapping[Key, str] = field(default_factory=dict)
    """By cell key, hashes of the method's file and of the tensors that the cell started from. They are not part of
    `key`: when a run goes on, some cells may be finished, and a change of their methods does not matter."""

    def of_cells(self, cells: Sequence[Cell]) -> CheckpointPlan:
        """The plan, with a file of its own, for some of the cells that go on without the others."""
        part = digest([cell.key for cell in cells])
        return replace(self, path=self.path.with_name(f"{self.path.stem}-{part}{self.path.suffix}"))


@dataclass
class TrainingState:
    """All of a bundle that changes in training; `restore_checkpoint` changes states, optimizer and budgets in place."""

    states: Sequence[CellState]
    optimizer: JointAdamW
    budgets: Sequence[TokenBudget]
    """Of training and of evaluation."""
    active: Sequence[int]
    """Cells still in training."""
    open: Sequence[int]
    """Cells whose outcome has not been passed on, those in training included."""
    step: int
    """Steps done."""
    team: Team = ALONE


@dataclass
class Header:
    """The JSON part of a checkpoint."""

    key: str
    step: int
    cells: list[dict[str, Any]]
    """The values of each cell, in the order of the bundle."""
    budgets: list[tuple[int, int]]
    """(tokens, number of halvings) of each token budget."""
    random: list[dict[str, Any]]
    """By process, what of the random streams' states is no tensor."""
    format: int = FORMAT

    @property
    def keys(self) -> list[Key]:
        """Keys of its cells, in the order of the bundle."""
        return [(cell["suite"], cell["label"], cell["cell_id"]) for cell in self.cells]


def read_header(path: Path) -> Header | None:
    """Read the header of a checkpoint; None if the file is gone, damaged, or of another format."""
    try:
        with safe_open(path, "numpy") as file:
            content = json.loads((file.metadata() or {})["checkpoint"])
        return Header(**content) if content.get("format") == FORMAT else None
    except Exception:  # a checkpoint only saves time, so one that cannot be read counts as missing
        return None


def new_marker(folder: Path) -> Path:
    """Name for a file beside the checkpoints. A worker that sees this file has the same folder as this process."""
    return folder / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}{MARKER}"


def drop_markers(folder: Path) -> None:
    """Remove the markers that dead processes of this machine have left."""
    here = f"{socket.gethostname()}-"
    for marker in folder.glob(f"{here}*{MARKER}"):
        pid = marker.name.removeprefix(here).split("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            with contextlib.suppress(OSError):
                marker.unlink(missing_ok=True)


@dataclass
class CheckpointWriter:
    """Writes a bundle's checkpoint when it is due. If it cannot be written, it warns once, and training goes on."""

    plan: CheckpointPlan | None
    warn: Callable[[str], None] = field(default=lambda text: None)
    _last_step: int = 0
    _last_time: float = field(default_factory=time.monotonic)
    _cost_s: float = 0.0
    _warned: bool = False

    def is_due(self, training: TrainingState) -> bool:
        """Whether enough steps or seconds have passed since the last checkpoint. All processes of a team must call it.

        The first one decides, since their clocks differ.
        """
        return self.plan is not None and bool(training.team.agree(self._is_due(self.plan, training.step)))

    def _is_due(self, plan: CheckpointPlan, step: int) -> bool:
        waited = time.monotonic() - self._last_time
        due = plan.every_steps is not None and step - self._last_step >= plan.every_steps
        return due or (plan.every_s is not None and waited >= max(plan.every_s, self._cost_s / MOST_OVERHEAD))

    def save(self, training: TrainingState) -> bool:
        """Write the checkpoint now; return whether that worked. All processes of a team must call it."""
        if self.plan is None or not training.open:
            return False
        started = time.monotonic()
        try:
            write_checkpoint(self.plan, training)
        except Exception as error:  # a full disk, tensors of a kind that has no file format
            if not self._warned:
                self.warn(f"no checkpoint could be written, so a kill costs more: {type(error).__name__}: {error}")
            self._warned = True
            return False
        finally:
            self._last_step, self._last_time = training.step, time.monotonic()
            self._cost_s = self._last_time - started
        return True

    def clear(self) -> None:
        """Delete the checkpoint; call it when every cell of the bundle is stored."""
        if self.plan is not None:
            with contextlib.suppress(OSError):
                self.plan.path.unlink(missing_ok=True)
                self.plan.path.parent.rmdir()  # only where it is empty


def write_checkpoint(plan: CheckpointPlan, training: TrainingState) -> None:
    """Write the state of a bundle between two steps. All processes of a team call it, and the first one writes.

    Raises OSError and SafetensorError, and MemoryError if the shards of all processes would not fit into this machine's
    memory together.
    """
    _require_memory(training)
    tensors: dict[str, Tensor] = {}
    cells = []
    for number, i in enumerate(training.open):
        values, own = _cell_state(training, i)
        cells.append({**values, "source": plan.sources.get(training.states[i].outcome.cell.key, "")})
        for name, (tensor, like) in own.items():
            joined = joined_shards(tensor, like)
            if training.team.rank == 0:
                tensors[f"{number}.{name}"] = joined.detach().cpu().contiguous()
    numbers, states = zip(*training.team.gather(_random_state(training.team)), strict=True)
    if training.team.rank > 0:
        return
    tensors |= {f"random.{rank}.{name}": tensor for rank, own in enumerate(states) for name, tensor in own.items()}
    budgets = [(budget.tokens, budget.num_halvings) for budget in training.budgets]
    header = Header(plan.key, training.step, cells, budgets, list(numbers))
    metadata = {"checkpoint": json.dumps(asdict(header))}
    plan.path.parent.mkdir(parents=True, exist_ok=True)
    put_in_place([write_aside(plan.path, lambda aside: save_file(tensors, aside, metadata))])
    sync_folder(plan.path.parent)


def restore_checkpoint(plan: CheckpointPlan, training: TrainingState) -> tuple[int, list[int]] | None:
    """Load a bundle's checkpoint into `training`; return the step, and the cells still in training.

    Returns None, with nothing changed, unless there is a checkpoint with the same key that holds all cells of the
    bundle, made from the same method files and starting tensors. A state that does not fit raises whatever its tensors
    raise; the bundle is half changed then, and must be built anew.
    """
    header = read_header(plan.path)
    if header is None or header.key != plan.key:
        return None
    numbers = {key: number for number, key in enumerate(header.keys)}
    wanted = [state.outcome.cell.key for state in training.states]
    if not set(wanted) <= set(numbers):
        return None
    kept = [header.cells[numbers[key]]["source"] for key in wanted]
    if kept != [plan.sources.get(key, "") for key in wanted]:
        return None
    active = []
    with safe_open(plan.path, "pt") as file:
        names = list(file.keys())
        for i, number in enumerate(numbers[key] for key in wanted):
            prefix = f"{number}."
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}
            _restore_cell(training, i, header.cells[number], tensors)
            if header.cells[number]["active"]:
                active.append(i)
        rank = training.team.rank
        prefix = f"random.{rank}."
        own = {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}
        _restore_random(header.random[rank], own)
    for budget, (tokens, halvings) in zip(training.budgets, header.budgets, strict=True):
        budget.tokens, budget.num_halvings = tokens, halvings
    return header.step, active


def _require_memory(training: TrainingState) -> None:
    """Raise MemoryError if a state that is divided among processes would take more than half of the free memory.

    The first process puts the whole state together on the CPU before it is written. Half is left to the copy that
    safetensors makes and to everything else; running out here would kill the process, and with it the training.
    """
    parameters = [slot.parameter for i in training.open for slot in training.optimizer.slots_of(i)]
    if not any(is_sharded(parameter) for parameter in parameters):
        return
    needed = sum(COPIES * parameter.numel() * parameter.element_size() for parameter in parameters)
    free = psutil.virtual_memory().available
    if training.team.agree(needed > free / 2):
        raise MemoryError(
            f"the state takes {needed / 2**30:,.1f} GiB of this machine's memory, {free / 2**30:,.1f} are free"
        )


def _cell_state(training: TrainingState, i: int) -> tuple[dict[str, Any], dict[str, tuple[Tensor, Tensor]]]:
    """The values of cell `i`, and its tensors by name.

    With each tensor comes one that is divided among the processes in the same way: the moments of a sharded tensor are
    plain tensors, which do not know that they are parts.
    """
    state = training.states[i]
    outcome = state.outcome
    slots = training.optimizer.slots_of(i)
    values = {
        "suite": outcome.cell.suite,
        "label": outcome.cell.label,
        "cell_id": outcome.cell.cell_id,
        "active": i in training.active,
        "history": _history.dump_python(outcome.history, mode="json"),
        "scores": _scores.dump_python(outcome.scores, mode="json"),
        "failure": None if outcome.failure is None else outcome.failure.model_dump(mode="json"),
        "forgetting": None if outcome.forgetting is None else outcome.forgetting.model_dump(mode="json"),
        "work": asdict(outcome.work),
        "num_losses": state.num_losses,
        "num_updates": [slot.num_updates for slot in slots],
        **{name: getattr(outcome, name) for name in PLAIN},
    }
    tensors = {f"method.{name}": tensor for name, tensor in outcome.method.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    if state.loss_sum is not None:
        tensors["loss.sum"] = state.loss_sum.clone()
        tensors["loss.sound_sum"] = torch.as_tensor(state.sound_sum).clone()
        tensors["loss.num_sound"] = torch.as_tensor(state.num_sound).clone()
    tensors |= {f"order.{name}": tensor for name, tensor in state.order.state().items()}
    pairs = {name: (tensor, tensor) for name, tensor in tensors.items()}
    for number, slot in enumerate(slots):
        pairs |= {f"first.{number}": (slot.first, slot.parameter), f"second.{number}": (slot.second, slot.parameter)}
    return values, pairs


def _restore_cell(training: TrainingState, i: int, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Undo `_cell_state`: give cell `i` its tensors, moments, order of rows, losses and outcome back."""
    state = training.states[i]
    outcome = state.outcome

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}

    own = outcome.method.state_dict()
    outcome.method.load_state_dict(
        {name: sharded_like(tensor, own[name]) if name in own else tensor for name, tensor in part("method").items()}
    )
    state.best = {name: sharded_like(tensor, own[name]) for name, tensor in part("best").items()}
    state.order.restore(part("order"))
    for number, slot in enumerate(training.optimizer.slots_of(i)[: len(values["num_updates"])]):
        slot.first.copy_(local_shard(sharded_like(tensors[f"first.{number}"], slot.parameter)))
        slot.second.copy_(local_shard(sharded_like(tensors[f"second.{number}"], slot.parameter)))
        slot.num_updates = values["num_updates"][number]
    outcome.history = _history.validate_python(values["history"])
    outcome.scores = _scores.validate_python(values["scores"])
    outcome.failure = None if values["failure"] is None else Failure.model_validate(values["failure"])
    forgetting = values.get("forgetting")  # checkpoints of earlier versions do not have it
    outcome.forgetting = None if forgetting is None else Forgetting.model_validate(forgetting)
    outcome.work = Work(**values["work"])
    for name in PLAIN:
        setattr(outcome, name, values[name])
    state.num_losses = values["num_losses"]
    if "loss.sum" in tensors:
        loss = {name: tensor.to(state.parameters[0].device) for name, tensor in part("loss").items()}
        state.loss_sum = loss["sum"]
        # checkpoints of earlier versions do not have these two
        state.sound_sum = loss.get("sound_sum", state.loss_sum)
        state.num_sound = loss.get("num_sound", state.num_losses)


def _random_state(team: Team) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """States of the random streams that a method may draw from: PyTorch's on each device, NumPy's and Python's.

    The first value holds what is no tensor, the second the tensors by name.
    """
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    numbers = {"numpy": [kind, *rest], "python": [version, gauss]}
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "python": torch.tensor(internal, dtype=torch.int64),
    }
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count()) if team.size == 1 else [torch.cuda.current_device()]
        tensors |= {f"cuda.{i}": torch.cuda.get_rng_state(i) for i in devices}
    return numbers, tensors


def _restore_random(numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put every random stream where `_random_state` found it."""
    torch.set_rng_state(tensors["torch"])
    kind, *rest = numbers["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), *rest))
    version, gauss = numbers["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    for key, state in tensors.items():
        if key.startswith("cuda.") and int(key.split(".")[1]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(key.split(".")[1]))
