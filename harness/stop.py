"""Stopping on request: the first signal lets a run come to a safe point, the second ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_S = 20.0
"""A training step that takes longer is broken off: systems that preempt a job kill it after 30 seconds."""
CLOSING_S = 10.0
"""How long other processes may take to keep their state, beyond the longest step."""


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, and has come to a point where nothing is half done; or it was asked twice."""

    def __init__(self, signum: int, at_once: bool = False) -> None:
        self.signum = signum
        self.at_once = at_once
        super().__init__(signal.Signals(signum).name)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


class _Request:
    signum: int | None = None
    since: float = 0.0


_request = _Request()


def check(grace_s: float = 0.0) -> None:
    """Raise Stopped if a stop was requested more than `grace_s` seconds ago."""
    if _request.signum is not None and time.monotonic() - _request.since >= grace_s:
        raise Stopped(_request.signum)


def requested() -> int:
    """The signal by which a stop was requested; 0 if none was."""
    return _request.signum or 0


def request(signum: int) -> None:
    """Ask this process to stop after the step at hand, as a first signal does."""
    if _request.signum is None:
        _request.signum, _request.since = signum, time.monotonic()


def sleep(seconds: float) -> None:
    """Sleep, but not past a request to stop. Raises Stopped."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check()
        time.sleep(min(left, 0.1))
    check()


@contextmanager
def on_signals() -> Iterator[None]:
    """While active, SIGINT and SIGTERM ask to stop; outside the main thread, signals stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _request.signum = None


def _handle(signum: int, frame: FrameType | None) -> None:
    if _request.signum is not None:
        raise Stopped(signum, at_once=True)
    request(signum)
    # a handler may interrupt a print, so it must not print itself
    os.write(2, b"\nstopping after this step; once more stops at once\n")
