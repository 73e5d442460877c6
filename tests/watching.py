"""Something done beside a run, at a moment that only the run's own files or state tell."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def meanwhile(act: Callable[[], bool]) -> Iterator[None]:
    """Call `act` again and again beside the test until it says that it is done."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and not act():
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
