"""The Hugging Face hub: whether it answers, and sending a folder there.

It is asked once, within seconds, before libraries retry for minutes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UserError

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


def check_repository(name: str) -> None:
    """Raise UserError for what can be no name of a repository on the hub; asks nobody."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"is no name of a repository: {reason}", field="--push", value=name) from None


def push_folder(folder: Path, repository: str) -> str:
    """Upload a folder as a model repository, which is made if there is none; return its address.

    Raises UserError, in one sentence, without network, without a token, and for whatever the hub answers.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    stays = f"The folder {folder} is whole; hf upload {repository} {folder} sends it later."
    reason = why_unreachable()
    if reason is None and get_token() is None:
        reason = "there is no token (hf auth login, or HF_TOKEN)"
    if reason is not None:
        raise UserError(f"nothing was sent to {repository}: {reason}", field="--push", hint=stays)
    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Adapter and model card"))
    except (HfHubHTTPError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines()
        problem = f"nothing was sent to {repository}: {lines[0] if lines else type(error).__name__}"
        raise UserError(problem, field="--push", hint=stays) from None
