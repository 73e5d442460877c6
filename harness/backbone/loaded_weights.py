"""Checks that the files of a checkpoint gave every weight of the network that its configuration describes.

transformers fills what is missing with random numbers and logs a warning. A run would train on such a network and its
scores would look like any others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import UserError


def require_whole(name_or_path: str, model: Any, found: Mapping[str, Any]) -> None:
    """Raise UserError where weights are missing or have another shape.

    `found` is the loading info of `from_pretrained`: names that were missing, unexpected, or mismatched in shape.
    """
    weights = [name for name, _ in model.named_parameters()]
    for name, given, wanted in sorted(found.get("mismatched_keys", ())):
        problem = f"{name} is {list(given)} in its files, its config.json describes {list(wanted)}"
        raise UserError(problem, field=name_or_path, hint="The two belong to different networks.")
    # buffers may be missing: a network computes them
    missing = sorted(set(found.get("missing_keys", ())) & set(weights))
    if missing:
        unexpected = sorted(found.get("unexpected_keys", ()))
        problem = f"its files lack {len(missing)} of the network's {len(weights)} weights, such as {missing[0]}"
        hint = "Without them the network would be filled with random numbers."
        if unexpected:
            hint += f" The files hold {len(unexpected)} others, such as {unexpected[0]}."
        raise UserError(problem, field=name_or_path, hint=hint)
