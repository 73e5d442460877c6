"""What the name of a backbone stands for: a network that ships with the program, a known name, a folder or a hub id.

Nothing is loaded here and torch is not imported, so that a misspelt name is told at once.
"""

from __future__ import annotations

import json
from pathlib import Path

from harness.errors import UserError

CONFIGS = Path(__file__).parent / "configs"
"""A JSON for each known name, with its hub id and its configuration, so that shapes are known without a download."""
SHIPPED = {"micro-t5": Path(__file__).parent / "micro_t5"}
"""Networks whose weights come with the program, and their folders."""


def known_backbones() -> list[str]:
    """Return the names that stand for a backbone without a path or hub id."""
    return sorted([*SHIPPED, *(path.stem for path in CONFIGS.glob("*.json"))])


def resolve_backbone(name_or_path: str, where: str | None = None) -> str:
    """Return the folder or hub id behind what the user wrote. Raises UserError, at `where`, if there is none."""
    if name_or_path in SHIPPED:
        return str(SHIPPED[name_or_path])
    if Path(name_or_path).is_dir():
        if not (Path(name_or_path) / "config.json").exists():
            raise UserError("holds no config.json, so it is no checkpoint", where=where, field=name_or_path)
        return name_or_path
    known = CONFIGS / f"{name_or_path}.json"
    if known.exists():
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


def hub_snapshot(hub_id: str) -> Path | None:
    """Return the folder of a hub id in the hub's cache, named after a commit; None where it was never fetched."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json")
    return Path(found).parent if isinstance(found, str) else None
