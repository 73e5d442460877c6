"""Log messages of libraries: only errors are shown, in every process of a run, workers included."""

from __future__ import annotations

import logging

NOISY = ("bitsandbytes", "huggingface_hub", "datasets", "math_verify", "transformers")
"""They warn of kernels that nobody asked for, of retries, and of timeouts that are off. What a user can mend becomes a
message of our own."""


def silence_libraries() -> None:
    """Let these libraries log errors only. A level that somebody has set already stays."""
    for name in NOISY:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.ERROR)
