"""Token ids kept on disk, so that a task is tokenised once per tokenizer and length, not once per process.

Files lie in $XDG_CACHE_HOME/peft-harness/tokens (~/.cache where that is unset). HARNESS_CACHE names another folder
instead of `peft-harness`; `HARNESS_CACHE=off` keeps nothing. Any file may be deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from harness.backbone import Backbone
from harness.data import DECODER_SUFFIX, Encoded, encode
from harness.examples import Example
from harness.tasks.record import Task

FORMAT = 3
PARTS = ("source_ids", "source_offsets", "target_ids", "target_offsets")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


def cached_encode(examples: Sequence[Example], backbone: Backbone, task: Task, max_source_length: int) -> Encoded:
    """`data.encode`, from disk where the same rows were tokenised before; else tokenised and stored."""
    folder = cache_folder()
    tokenizer = tokenizer_fingerprint(backbone.tokenizer)
    if folder is None or tokenizer is None:
        return encode(examples, backbone, task, max_source_length)
    limit = task.max_target_length if task.kind != "classification" else None
    suffix = "" if backbone.is_encoder_decoder else DECODER_SUFFIX
    settings = [FORMAT, tokenizer, backbone.eos_id, suffix, max_source_length, limit]
    path = folder / "tokens" / f"{_digest(examples, settings)}.npz"
    found = _read(path, len(examples))
    if found is None:
        found = encode(examples, backbone, task, max_source_length)
        _write(path, found)
    return found


def cache_folder() -> Path | None:
    """Where files are kept; None where the user wants none."""
    chosen = os.environ.get("HARNESS_CACHE")
    if chosen == "off":
        return None
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "peft-harness"


@functools.lru_cache(maxsize=8)
def tokenizer_fingerprint(tokenizer: Any) -> str | None:
    """Hash of all that decides a tokenizer's ids; None for one that does not say."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    rules = json.loads(backend.to_str())
    for state in ("truncation", "padding"):  # left behind by whoever called it last
        rules.pop(state, None)
    rules["code"] = [metadata.version("tokenizers"), metadata.version("transformers")]
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _digest(examples: Sequence[Example], settings: Sequence[Any]) -> str:
    digest = hashlib.sha256(json.dumps(settings).encode())
    for example in examples:
        digest.update(json.dumps([example.source, example.target]).encode())
    return digest.hexdigest()[:32]


def _read(path: Path, num_rows: int) -> Encoded | None:
    """What a file holds; None if it is missing or damaged (a zip file carries a checksum of each part)."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            parts = [stored[name].astype(np.int64) for name in PARTS]
            num_cut_sources, num_cut_targets = map(int, stored["num_cut"])
    except UNREADABLE:
        return None
    for values, offsets in (parts[:2], parts[2:]):
        if values.ndim != 1 or offsets.shape != (num_rows + 1,) or offsets[0] != 0 or offsets[-1] != len(values):
            return None
    return replace(Encoded(*parts), num_cut_sources=num_cut_sources, num_cut_targets=num_cut_targets)


def _write(path: Path, encoded: Encoded) -> None:
    """Write aside and rename, so that no process ever reads half a file; a folder that refuses is no error."""
    parts = {name: getattr(encoded, name).astype(np.int32) for name in PARTS}
    parts["num_cut"] = np.array([encoded.num_cut_sources, encoded.num_cut_targets], np.int32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **parts)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError:
        return
