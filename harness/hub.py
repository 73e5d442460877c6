"""Whether the hub can be asked at all: found out once, in seconds, before libraries try again for minutes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

TIMEOUT_S = 5.0
"""For the one question. The hub's client would ask each file of each copy six times, 23 seconds in all."""


@functools.cache
def why_unreachable() -> str | None:
    """Why nothing can be had from the hub, in words; None where it answers. Asked once in a process."""
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE forbids to ask the hub"
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_S)
    except Exception as error:  # of whatever client, proxy or certificate
        lines = str(error).strip().splitlines()
        return f"{constants.ENDPOINT} does not answer ({lines[0] if lines else type(error).__name__})"
    return None


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """What is asked of the hub within comes from its cache on this machine, or fails at once."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
