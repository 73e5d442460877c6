"""Whether the Hugging Face hub answers: asked once, within seconds, before libraries retry for minutes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

TIMEOUT_S = 5.0
"""Longest wait for the one question. Without it the hub's client asks for each file of each copy six times, 23 seconds
in all, before it says that there is no network."""


@functools.cache
def why_unreachable() -> str | None:
    """Return why nothing can be had from the hub, in words; None if it answers. Each process asks once."""
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE forbids to ask the hub"
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_S)
    except Exception as error:  # the HTTP client, a proxy and certificates each raise their own
        lines = str(error).strip().splitlines()
        return f"{constants.ENDPOINT} does not answer ({lines[0] if lines else type(error).__name__})"
    return None


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """While active, what is asked of the hub comes from its cache on this machine, or fails at once."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
