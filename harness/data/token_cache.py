"""Token ids kept on disk, so that a task is tokenised once per tokenizer and length limit, not once per process.

The files are in $XDG_CACHE_HOME/peft-harness/tokens (~/.cache if that is unset). HARNESS_CACHE names another folder
than `peft-harness`; `HARNESS_CACHE=off` keeps nothing. Any file may be deleted at any time.
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
from harness.data.examples import Example
from harness.data.tasks.task import Task
from harness.data.tokenization import Encoded, encode

FORMAT = 3
"""Part of every file's name. Raise it when `encode` gives other ids for the same rows, so that old files are left."""
ARRAYS = ("source_ids", "source_offsets", "target_ids", "target_offsets")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)
"""What NumPy raises on a damaged file, depending on where the damage is."""


def cached_encode(examples: Sequence[Example], backbone: Backbone, task: Task, max_source_length: int) -> Encoded:
    """Return what `encode` returns: read from disk if the same rows were tokenised before, else made and stored."""
    folder = cache_folder()
    tokenizer = tokenizer_fingerprint(backbone.tokenizer)
    if folder is None or tokenizer is None:
        return encode(examples, backbone, task, max_source_length)
    limit = task.max_target_length if task.kind != "classification" else None
    # everything beside the texts that decides the ids
    layout = "encoder" if backbone.kind.text_marks == "both" else backbone.kind.text_suffix
    settings = [FORMAT, tokenizer, backbone.eos_id, layout, max_source_length, limit]
    path = folder / "tokens" / f"{_digest(examples, settings)}.npz"
    found = _read(path, len(examples))
    if found is None:
        found = encode(examples, backbone, task, max_source_length)
        _write(path, found)
    return found


def cache_folder() -> Path | None:
    """Return the folder of the cache; None if the user wants no files kept."""
    chosen = os.environ.get("HARNESS_CACHE")
    if chosen == "off":
        return None
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")  # the standard says to ignore a path that is relative
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "peft-harness"


@functools.lru_cache(maxsize=8)  # to write T5's 32,000 pieces out anew for every split would be wasted work
def tokenizer_fingerprint(tokenizer: Any) -> str | None:
    """Return a hash of all that decides a tokenizer's ids; None for a tokenizer in Python, which has no text form."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    rules = json.loads(backend.to_str())
    for state in ("truncation", "padding"):  # set by whoever called the tokenizer last, and set anew at each call
        rules.pop(state, None)
    # the same rules may give other ids in another release of these libraries
    rules["code"] = [metadata.version("tokenizers"), metadata.version("transformers")]
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _digest(examples: Sequence[Example], settings: Sequence[Any]) -> str:
    """Return the name of a file: a hash of the settings and of every text. References are not tokenised."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for example in examples:
        digest.update(json.dumps([example.source, example.target]).encode())
    return digest.hexdigest()[:32]


def _read(path: Path, num_rows: int) -> Encoded | None:
    """Return what a file holds; None if it is missing or damaged. NumPy's zip format has a checksum for each array."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = [stored[name].astype(np.int64) for name in ARRAYS]
            num_cut_sources, num_cut_targets = map(int, stored["num_cut"])
    except UNREADABLE:
        return None
    # a checksum does not tell that a file belongs to these rows: offsets that do not fit would read out of bounds
    for values, offsets in (arrays[:2], arrays[2:]):
        if values.ndim != 1 or offsets.shape != (num_rows + 1,) or offsets[0] != 0 or offsets[-1] != len(values):
            return None
    return replace(Encoded(*arrays), num_cut_sources=num_cut_sources, num_cut_targets=num_cut_targets)


def _write(path: Path, encoded: Encoded) -> None:
    """Write to a hidden file and rename it, so that no process reads half a file. A folder that refuses is no error.

    Unlike results the file is not flushed to the disk: after a power cut it is damaged, found so, and made again.
    """
    # half the size of the int64 in memory; offsets of more than 2^31 tokens would not fit, and _read would refuse them
    arrays = {name: getattr(encoded, name).astype(np.int32) for name in ARRAYS}
    arrays["num_cut"] = np.array([encoded.num_cut_sources, encoded.num_cut_targets], np.int32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError:
        return
