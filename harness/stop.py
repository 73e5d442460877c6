"""Stopping on request: after the first signal a run goes on to a safe point, the second ends it at once.

A safe point is between two training steps, where the state of a bundle can be kept.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_S = 20.0
"""Seconds that a training step may go on after a request; then it is broken off. Systems that preempt a job kill it
after 30 seconds (the default of Slurm and Kubernetes), so 10 are left to write the state."""
CLOSING_S = 10.0
"""Seconds that other processes may take to write their state, after GRACE_S: together the 30 of above."""


class Stopped(KeyboardInterrupt):
    """The run was asked to stop and has come to a safe point; or, with `at_once`, it was asked twice."""

    def __init__(self, signum: int, at_once: bool = False) -> None:
        self.signum = signum
        self.at_once = at_once
        super().__init__(signal.Signals(signum).name)

    @property
    def exit_code(self) -> int:
        """128 plus the number of the signal, as in shells: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


class _Request:
    """The signal that asked this process to stop, and when (time.monotonic)."""

    signum: int | None = None
    since: float = 0.0


_request = _Request()


def raise_if_stopped(grace_s: float = 0.0) -> None:
    """Raise Stopped if a stop was requested more than `grace_s` seconds ago."""
    if _request.signum is not None and time.monotonic() - _request.since >= grace_s:
        raise Stopped(_request.signum)


def requested_signal() -> int:
    """Return the signal by which a stop was requested; 0 if none was."""
    return _request.signum or 0


def request_stop(signum: int) -> None:
    """Ask this process to stop after the present step, as a first signal does."""
    if _request.signum is None:
        _request.signum, _request.since = signum, time.monotonic()


def sleep(seconds: float) -> None:
    """Sleep, but raise Stopped within 0.1 s of a request to stop."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        raise_if_stopped()
        time.sleep(min(left, 0.1))
    raise_if_stopped()


@contextmanager
def on_signals() -> Iterator[None]:
    """While active, SIGINT and SIGTERM ask this process to stop.

    Python allows signal handlers in the main thread only, so in another thread nothing changes.
    """
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
    request_stop(signum)
    # a handler may interrupt a print, so it must not print itself
    os.write(2, b"\nstopping after this step; once more stops at once\n")
