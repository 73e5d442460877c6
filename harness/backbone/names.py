"""What the name of a backbone stands for: a network that ships with the program, a known name, a folder or a hub id.

Nothing is loaded here and torch is not imported, so that a misspelt name is told at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.hub import why_unreachable

CONFIGS = Path(__file__).parent / "configs"
"""A JSON for each known name, with its hub id and its configuration, so that shapes are known without a download."""
SHIPPED = {"micro-t5": Path(__file__).parent / "micro_t5"}
"""Networks whose weights come with the program, and their folders."""

ENCODER_TYPES = frozenset(
    {
        "albert",
        "bert",
        "camembert",
        "data2vec-text",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "eurobert",
        "megatron-bert",
        "modernbert",
        "mpnet",
        "nomic_bert",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
    }
)
"""`model_type` of networks that only read a text. DeBERTa-v3 is of type deberta-v2."""


def known_backbones() -> list[str]:
    """Return the names that stand for a backbone without a path or hub id."""
    return sorted([*SHIPPED, *(path.stem for path in CONFIGS.glob("*.json"))])


def known_config(name_or_path: str) -> Path | None:
    """Return the file of a known name, with its hub id and configuration; None for a folder and for anything else.

    A folder of the user's that bears a known name is that folder. A path is never looked up: a file of the user's named
    like the folder beside it would be found.
    """
    if name_or_path not in known_backbones() or name_or_path in SHIPPED or Path(name_or_path).is_dir():
        return None
    return CONFIGS / f"{name_or_path}.json"


def resolve_backbone(name_or_path: str, where: str | None = None) -> str:
    """Return the folder or hub id behind what the user wrote. Raises UserError, at `where`, if there is none."""
    if name_or_path in SHIPPED:
        return str(SHIPPED[name_or_path])
    if Path(name_or_path).is_dir():
        if not (Path(name_or_path) / "config.json").exists():
            raise UserError("holds no config.json, so it is no checkpoint", where=where, field=name_or_path)
        return name_or_path
    if known := known_config(name_or_path):
        return str(json.loads(known.read_text())["hub"])
    if name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
        parent = Path(name_or_path).parent
        folders = sorted(str(p) for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
        raise UserError(f"no such folder '{name_or_path}'", where=where, value=name_or_path, choices=folders[:20])
    if "/" not in name_or_path:
        hint = "A folder or a hub id such as google-t5/t5-base is accepted too."
        problem = f"unknown backbone '{name_or_path}'"
        raise UserError(problem, where=where, value=name_or_path, choices=known_backbones(), hint=hint)
    return name_or_path


def is_encoder_config(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of an encoder. BERT and a few others can also be built as decoders."""
    return config.get("model_type") in ENCODER_TYPES and not config.get("is_decoder", False)


def is_encoder(name_or_path: str) -> bool:
    """Whether a backbone is an encoder by its configuration; False where that cannot be had.

    Of a hub id that was never fetched the configuration is fetched. What is wrong with a name is told where the
    backbone is loaded.
    """
    try:
        path = _config_path(name_or_path)
        config = json.loads(path.read_text()) if path else {}
    except (OSError, ValueError, UserError):
        return False
    config = config.get("config", config) if isinstance(config, dict) else {}
    return is_encoder_config(config)


def _config_path(name_or_path: str) -> Path | None:
    """Return the file with a backbone's configuration, or None."""
    if known := known_config(name_or_path):
        return known
    location = resolve_backbone(name_or_path)
    if Path(location).is_dir():
        return Path(location) / "config.json"
    if (folder := hub_snapshot(location)) is not None:
        return folder / "config.json"
    from huggingface_hub import hf_hub_download

    return None if why_unreachable() else Path(hf_hub_download(location, "config.json"))


def hub_snapshot(hub_id: str) -> Path | None:
    """Return the folder of a hub id in the hub's cache, named after a commit; None where it was never fetched."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json")
    return Path(found).parent if isinstance(found, str) else None
