"""What one input may do: end in time, end without a traceback, and write nowhere but in its folder."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from harness.errors import UserError

DEADLINE_S = 20
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGING = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate"}
_RUNNING = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}


class Hang(BaseException):
    """The deadline passed; no handler of ordinary errors may swallow it."""


@dataclass
class Watch:
    """Files written outside `allowed`, and programs started, while `active`; filled by an audit hook."""

    allowed: str = ""
    active: bool = False
    seen: list[str] = field(default_factory=list)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in _RUNNING:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and _writes(arguments):
            self._written(arguments[0])
        elif event in _CHANGING:
            paths = arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]
            for path in paths:
                self._written(path)

    def _written(self, path: Any) -> None:
        if isinstance(path, (str, bytes, os.PathLike)):
            real = os.path.realpath(os.fsdecode(path))
            if not real.startswith((f"{self.allowed}{os.sep}", os.devnull)) and not real.endswith(".pyc"):
                self.seen.append(f"writes {real}")


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool((flags or 0) & _WRITING)


WATCH = Watch()
_hooked = False


@contextmanager
def watching(allowed: Path) -> Iterator[None]:
    """Record what is written outside `allowed`."""
    global _hooked
    if not _hooked:
        sys.addaudithook(WATCH.hook)
        _hooked = True
    WATCH.allowed, WATCH.active, WATCH.seen = os.path.realpath(allowed), True, []
    try:
        yield
    finally:
        WATCH.active = False


@dataclass
class Figures:
    """What came of a target's inputs."""

    accepted: int = 0
    refused: int = 0
    """With one message, a UserError."""
    slowest_s: float = 0.0
    broken: list[str] = field(default_factory=list)


def try_one(act: Callable[[], None], allowed: Path, figures: Figures) -> None:
    """Run one input and count what came of it."""

    def ring(signum: int, frame: FrameType | None) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, ring)
    signal.alarm(DEADLINE_S)
    try:
        with watching(allowed):
            act()
        figures.accepted += 1
    except UserError as error:
        figures.refused += 1
        if not str(error).strip():
            figures.broken.append("a message without text")
    except Hang:
        figures.broken.append(f"took longer than {DEADLINE_S} s\n{traceback.format_exc(limit=-6)}")
    except Exception:
        figures.broken.append(traceback.format_exc(limit=-6))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    figures.broken += WATCH.seen
