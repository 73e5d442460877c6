"""One worker process of the Ray engine: trains the bundles that the driver sends and tells what happens.

It needs nothing of Ray itself: Ray makes an actor of `Worker`. Training runs in a thread, so that the driver can ask
for news, and for a stop, at any time.
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
from harness.bundle import Bundle, Listener, execute
from harness.caches import cached_backbone, cached_task
from harness.cell_state import describe_failure
from harness.errors import UserError
from harness.products import Product
from harness.provenance import sha256_file
from harness.schema import DevScore, Failure, Key
from harness.starting import StartFile

POLL_S = 0.5
"""How long a question for news waits for some."""


@dataclass(frozen=True)
class Parcel:
    """A bundle on its way to a worker, with what the worker's machine may not have."""

    bundle: Bundle
    sources: dict[str, bytes]
    """Content of the method files, by method."""
    is_rule: bool
    cwd: Path
    """The driver's working directory, to which the paths of a bundle may be relative."""
    folders: dict[str, Path]
    """What the bundle reads, by kind: absolute paths that every machine needs."""
    marker: Path | None
    """A file in the driver's results folder: where it is not seen, the folder is not shared."""
    start_methods: Mapping[Path, bytes] = field(default_factory=dict)
    """Content of the method files of cells that others start from."""
    tensors: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    """By SHA-256, how to get the files of tensors that cells start from."""


@dataclass
class News:
    """What happened on a worker since the last time it was asked."""

    worker: str = field(default_factory=lambda: f"{socket.gethostname()} {os.getpid()}")
    """Its machine and process number."""
    products: list[Product] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    step: tuple[int, int, dict[Key, DevScore]] | None = None
    """The newest (step, steps of the bundle, dev scores by key)."""
    ended: bool = False
    """Whether the bundle has no more to tell: finished, stopped, refused or crashed."""
    refused: UserError | None = None
    """What this machine lacks."""
    crash: Failure | None = None


class Worker:
    """Trains one bundle at a time; keeps backbone and rows for the next."""

    def __init__(self, threads: int, gpu_share: float = 1.0) -> None:
        torch.set_num_threads(threads)
        if gpu_share < 1 and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(gpu_share)
        self._events: queue.Queue[Product | str | None] = queue.Queue()
        self._step: tuple[int, int, dict[Key, DevScore]] | None = None
        self._end = News()

    def start(self, parcel: Parcel) -> None:
        """Begin a bundle; `poll` tells of it."""
        self._step, self._end = None, News(ended=True)
        threading.Thread(target=self._work, args=(parcel,), daemon=True, name="bundle").start()

    def poll(self, signum: int | None = None) -> News:
        """What is new, after a short wait for anything; a signal's number asks to stop after the step at hand."""
        if signum is not None:
            stop.request(signum)
        news, end = News(), time.monotonic() + POLL_S
        while not news.ended:
            try:
                event = self._events.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            if isinstance(event, Product):
                news.products.append(event)
                end = 0.0  # whatever else is there, without waiting for more
            elif isinstance(event, str):
                news.lines.append(event)
            else:
                news = replace(self._end, products=news.products, lines=news.lines)
        news.step, self._step = self._step, None
        return news

    def _work(self, parcel: Parcel) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="harness-methods-") as folder:
                if parcel.cwd.is_dir():
                    os.chdir(parcel.cwd)
                bundle = self._unpacked(parcel, Path(folder))
                _require_inputs(parcel)
                execute(bundle, Listener(self._on_step, self._events.put, self._events.put))
        except stop.Stopped:
            pass
        except UserError as error:
            self._end.refused = error
        except BaseException as error:  # a thread would end without a word
            self._end.crash = describe_failure(error)
        finally:
            self._events.put(None)

    def _on_step(self, step: int, steps: int, scores: dict[Key, DevScore]) -> None:
        self._step = (step, steps, scores)

    def _unpacked(self, parcel: Parcel, folder: Path) -> Bundle:
        """The bundle with method files of this machine, and without a checkpoint where the folder is not shared."""
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


def _method_file(path: Path, source: bytes, folder: Path) -> Path:
    """The file as the driver has it: the one at the same place, or a copy."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == source:
            return path
    copy = folder / hashlib.sha256(source).hexdigest()[:16] / path.name
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(source)
    return copy


def _start_file(start: StartFile, parcel: Parcel, folder: Path) -> StartFile:
    """What a cell starts from as the driver has it: the files at the same places, or copies."""
    if start.method_file is not None and start.method_file in parcel.start_methods:
        source = parcel.start_methods[start.method_file]
        start = replace(start, method_file=_method_file(start.method_file, source, folder))
    if (
        start.sha256 is None
        or start.sha256 not in parcel.tensors
        or (start.path.is_file() and sha256_file(start.path) == start.sha256)
    ):
        return start
    copy = folder / f"{start.sha256}.safetensors"
    if not copy.exists():
        copy.write_bytes(parcel.tensors[start.sha256]())
    return replace(start, path=copy)


def _require_inputs(parcel: Parcel) -> None:
    """Raise UserError for rows or weights that this machine does not have; other mistakes become failed cells."""
    bundle, cell, here = parcel.bundle, parcel.bundle.cells[0], f"machine {socket.gethostname()}"
    for what, folder in parcel.folders.items():
        if not folder.is_dir():
            hint = "Every machine needs it under the same path; a shared file system is the easy way."
            raise UserError(f"the {what} folder '{folder}' is not there", where=here, hint=hint)
    try:
        cached_task(cell, bundle.data_dir, bundle.suite_folder)
        if not parcel.is_rule and bundle.processes == 1:
            recipe = cell.recipe
            cached_backbone(bundle.backbone, recipe.precision, recipe.quantization, bundle.placement)
    except UserError as error:
        raise UserError(str(error), where=here) from None
    except Exception:  # met again when the bundle is trained, and recorded there
        return
