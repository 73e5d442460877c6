"""What libraries say while they are imported and asked: only errors, in every process of a run, workers included."""

from __future__ import annotations

import logging

TALKATIVE = ("bitsandbytes", "huggingface_hub", "datasets", "transformers")
"""They warn of kernels that nobody asked for and of retries; what matters ends in a message of our own."""


def silence() -> None:
    """Let these libraries log errors only. A level that the program around us has chosen stays."""
    for name in TALKATIVE:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.ERROR)
