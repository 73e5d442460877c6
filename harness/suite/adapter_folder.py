"""Reads the configuration of an adapter of PEFT: `adapter_config: FOLDER`, or the file adapter_config.json in it.

Only the configuration is read. It becomes the row's `config`, so that a result needs no folder, and two folders with
the same configuration make the same cell.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import read_bounded

ADAPTER_CONFIG = "adapter_config"
"""Key of a row that names the folder."""
CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
MAX_BYTES = 1_000_000
"""Bytes of a configuration; those of the hub have some thousand, with `rank_pattern` some ten thousand."""


def is_plain_note(key: str, value: Any) -> bool:
    """Whether a key says where an adapter comes from, and nothing of what it does nor of code or files elsewhere."""
    if key == "auto_mapping":
        library = value.get("parent_library") if isinstance(value, dict) else None
        return not value or (isinstance(library, str) and library.startswith("transformers."))
    if key == "revision":
        return not value or value == "main"
    if key == "base_model_name_or_path":
        name = str(value or "")
        leaves = name.startswith(("/", "~", ".", "\\")) or ".." in name or "--" in name
        return not leaves and not name.endswith(".py")
    return key in ("peft_version", "task_type", "inference_mode")


def without_notes(config: Any) -> Any:
    """Return a configuration of PEFT as a cell holds it: without plain notes and settings that are null.

    Anything that names no type of PEFT is returned as it is.
    """
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        return config
    kept = {key: value for key, value in config.items() if value is not None and not is_plain_note(key, value)}
    return {**kept, "peft_type": config["peft_type"].upper()}


def read_adapter(named: Any, folder: Path, where: str, field: str) -> dict[str, Any]:
    """Return the configuration that `named`, a path relative to `folder`, holds, without settings that are null.

    Raises UserError for a folder with weights: a cell starts untrained, and they would be left out without a word.
    Naming the file itself says that its configuration alone is meant.
    """
    if isinstance(named, dict) and "sweep" in named:
        raise UserError("cannot be swept; give each folder a row of its own", where=where, field=field)
    if not isinstance(named, str) or not named:
        raise UserError(f"expected the path of a folder with {CONFIG_FILE}, got {named!r}", where=where, field=field)
    path = folder / named
    file = path / CONFIG_FILE if path.is_dir() else path
    if not file.is_file():
        problem = f"holds no {CONFIG_FILE}: {named}" if path.is_dir() else f"no such folder or file: {named}"
        raise UserError(problem, where=where, field=field)
    if path.is_dir():
        weights = next((name for name in WEIGHT_FILES if (path / name).exists()), None)
        if weights is not None:
            hint = (
                f"Go on from them with init_from: {{adapter: {named}}}, or score them with adapter: {named}. For the "
                f"configuration alone name the file: {ADAPTER_CONFIG}: {named.rstrip('/')}/{CONFIG_FILE}."
            )
            raise UserError(f"holds trained weights ({weights}), and a cell starts untrained", where=where, field=field,
                            hint=hint)  # fmt: skip
    return read_json(file, where, field)


class _Doubled(Exception):
    """A key that stands twice in one object: JSON readers take the last one without a word."""


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Doubled(key)
        found[key] = value
    return found


def read_json(file: Path, where: str, field: str) -> dict[str, Any]:
    """Return what a configuration holds, without settings that are null. Raises UserError for a damaged one."""
    try:
        # some editors write a BOM
        text = read_bounded(file, MAX_BYTES, "an adapter's configuration").decode("utf-8-sig")
        data = json.loads(text, object_pairs_hook=_without_doubles)
    except _Doubled as error:
        raise UserError(f"{file.name} sets '{error}' twice", where=where, field=field) from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file.name} is no JSON: {error}", where=where, field=field) from None
    except OSError as error:
        raise UserError(f"{file.name} cannot be read: {error.strerror}", where=where, field=field) from None
    if not isinstance(data, dict):
        raise UserError(f"{file.name} holds no settings by name", where=where, field=field)
    return {str(key): value for key, value in data.items() if value is not None}
