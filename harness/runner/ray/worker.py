"""A worker of the Ray engine: a process that trains the bundles which the driver sends, and reports what happens.

Nothing here imports Ray, which makes an actor of `Worker`. Training runs in a thread, so that the driver can ask for
news or a stop at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from harness import stop
from harness.data import cell_rows
from harness.errors import UserError
from harness.method import SourceFile
from harness.provenance import sha256_file
from harness.results import DevScore, Failure
from harness.suite import Key
from harness.train import (
    Bundle,
    BundleListener,
    CellResult,
    cached_backbone,
    describe_failure,
    train_bundle,
)

POLL_S = 0.5
"""Seconds that `poll` waits for news. A shorter time sends more messages; the driver shows a step at most so late."""


@dataclass(frozen=True)
class Parcel:
    """A bundle as it is sent to a worker, with files that the worker's machine may not have."""

    bundle: Bundle
    sources: dict[str, bytes]
    """Content of the method files, by method name."""
    is_rule: bool
    """Whether the bundle needs no backbone."""
    cwd: Path
    """The driver's working directory; paths in the bundle may be relative to it."""
    folders: dict[str, Path]
    """Folders that every machine must have, by kind (data, backbone, suite): absolute paths."""
    marker: Path | None
    """A file in the driver's results folder. A machine that does not see it has another folder, and keeps no
    checkpoints."""
    start_methods: Mapping[Path, bytes] = field(default_factory=dict)
    """Content of the method files of cells that others start from."""
    tensors: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    """By SHA-256, functions that return the files of tensors which cells start from."""


@dataclass
class News:
    """What happened on a worker since the last `poll`."""

    worker: str = field(default_factory=lambda: f"{socket.gethostname()} {os.getpid()}")
    """Its machine and process number."""
    products: list[CellResult] = field(default_factory=list)
    """What is stored of the cells that ended."""
    lines: list[str] = field(default_factory=list)
    """Lines for the user."""
    step: tuple[int, int, dict[Key, DevScore]] | None = None
    """The newest (step, steps of the bundle, dev scores by key)."""
    ended: bool = False
    """Whether the bundle has no more to tell: finished, stopped, refused or crashed."""
    refused: UserError | None = None
    """The message for the user about rows or weights that this machine does not have."""
    crash: Failure | None = None
    """An error of the worker itself; errors of cells are in their results."""


class Worker:
    """Trains one bundle at a time, and keeps the backbone and the rows for the next one."""

    def __init__(self, threads: int, gpu_share: float = 1.0) -> None:
        torch.set_num_threads(threads)
        if gpu_share < 1 and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(gpu_share)
        self._events: queue.Queue[CellResult | str | None] = queue.Queue()
        self._step: tuple[int, int, dict[Key, DevScore]] | None = None
        self._end = News()

    def start(self, parcel: Parcel) -> None:
        """Begin to train a bundle in a thread; `poll` reports on it."""
        self._step, self._end = None, News(ended=True)
        threading.Thread(target=self._work, args=(parcel,), daemon=True, name="bundle").start()

    def poll(self, signum: int | None = None) -> News:
        """Return what is new, after at most POLL_S seconds; `signum` asks training to stop after the current step."""
        if signum is not None:
            stop.request_stop(signum)
        news, end = News(), time.monotonic() + POLL_S
        while not news.ended:
            try:
                event = self._events.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            if isinstance(event, CellResult):
                news.products.append(event)
                end = 0.0  # take what else is there, and wait no longer: a result should be stored soon
            elif isinstance(event, str):
                news.lines.append(event)
            else:
                news = replace(self._end, products=news.products, lines=news.lines)
        news.step, self._step = self._step, None
        return news

    def _work(self, parcel: Parcel) -> None:
        """Unpack and train a bundle. Whatever happens, an end (None) is put into the queue of events."""
        try:
            with tempfile.TemporaryDirectory(prefix="harness-methods-") as folder:
                if parcel.cwd.is_dir():
                    os.chdir(parcel.cwd)
                bundle = self._unpacked(parcel, Path(folder))
                _require_inputs(parcel)
                train_bundle(bundle, BundleListener(self._on_step, self._events.put, self._events.put))
        except stop.Stopped:
            pass
        except UserError as error:
            self._end.refused = error
        except BaseException as error:  # an exception in a thread would reach nobody
            self._end.crash = describe_failure(error)
        finally:
            self._events.put(None)

    def _on_step(self, step: int, steps: int, scores: dict[Key, DevScore]) -> None:
        self._step = (step, steps, scores)

    def _unpacked(self, parcel: Parcel, folder: Path) -> Bundle:
        """The bundle with paths of this machine, and without a checkpoint if the results folder is not shared."""
        bundle = parcel.bundle
        files = {name: _method_file(path, parcel.sources[name], folder) for name, path in bundle.method_files.items()}
        starts = {
            key: tuple(_start_file(start, parcel, folder) for start in given) for key, given in bundle.starts.items()
        }
        bundle = replace(bundle, method_files=files, starts=starts)
        if bundle.checkpoint is not None and (parcel.marker is None or not parcel.marker.exists()):
            text = "the results folder is not to be seen from here, so no checkpoints are kept"
            self._events.put(text)
            return replace(bundle, checkpoint=None)
        return bundle


def _method_file(path: Path, code: bytes, folder: Path) -> Path:
    """A method file with the driver's `code`: the one at the same path if it is equal, else a copy in `folder`."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == code:
            return path
    copy = folder / hashlib.sha256(code).hexdigest()[:16] / path.name
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(code)
    return copy


def _start_file(start: SourceFile, parcel: Parcel, folder: Path) -> SourceFile:
    """The files that a cell starts from, equal to the driver's: those at the same paths, or else copies."""
    if start.method_file is not None and start.method_file in parcel.start_methods:
        code = parcel.start_methods[start.method_file]
        start = replace(start, method_file=_method_file(start.method_file, code, folder))
    if (
        start.sha256 is None
        or start.sha256 not in parcel.tensors
        or (start.path.is_file() and sha256_file(start.path) == start.sha256)
    ):
        return start
    copy = folder / f"{start.sha256}{start.path.suffix}"  # the ending says how it is read
    if not copy.exists():
        copy.write_bytes(parcel.tensors[start.sha256]())
    return replace(start, path=copy)


def _require_inputs(parcel: Parcel) -> None:
    """Raise UserError if this machine lacks rows or weights; other errors are left to the cells, which will fail."""
    bundle, cell, here = parcel.bundle, parcel.bundle.cells[0], f"machine {socket.gethostname()}"
    for what, folder in parcel.folders.items():
        if not folder.is_dir():
            hint = "Every machine needs it under the same path; a shared file system is the easy way."
            raise UserError(f"the {what} folder '{folder}' is not there", where=here, hint=hint)
    try:
        cell_rows(cell, bundle.data_dir, bundle.suite_folder)
        if not parcel.is_rule and bundle.processes == 1:
            recipe = cell.recipe
            cached_backbone(bundle.backbone, recipe.precision, recipe.quantization, bundle.placement)
    except UserError as error:
        raise UserError(str(error), where=here) from None
    except Exception:  # training the bundle will raise it again, and record it
        return
