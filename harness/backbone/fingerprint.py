"""Fingerprints the weights of a checkpoint: a text that another network does not have, made without reading it all.

All 44 GB of an 11B network would take a minute or more in each process. Training moves nearly every number of a tensor
that it touches, so a few pieces of each tensor tell two checkpoints apart, also where most layers were frozen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from harness.backbone.names import hub_snapshot, resolve_backbone
from harness.backbone.quantization import Scheme
from harness.backbone.tokenizer_files import vocabulary_files
from harness.provenance import sha256_file

PIECE = 512
"""Bytes that are read at one place: 128 numbers of 32 bits, and less than a page of a disk."""
FEWEST, SPACING = 4, 1 << 24
"""Pieces of each tensor, its first and last bytes among them: 4, or one for each 16 MiB. For T5-base's 300 tensors that
is 0.6 MB, for an 11B network under 3 MB."""
MOST_HEADER = 100 << 20
"""Bytes of a header; the library safetensors takes no longer one."""


def weights_fingerprint(name_or_path: str, quantization: Scheme = "none") -> str:
    """Return a text that identifies weights and how they are quantised.

    For a folder it is a hash of the configuration, the tokenizer, the headers of all weights files and pieces of every
    tensor. For a hub id it is the commit in the cache, or "unresolved" where the cache has none.
    """
    found = _location_fingerprint(resolve_backbone(name_or_path))
    return found if quantization == "none" or found == "unresolved" else f"{found}+{quantization}"


def _location_fingerprint(location: str) -> str:
    """Return the fingerprint without regard to quantisation."""
    if not Path(location).is_dir():
        snapshot = hub_snapshot(location)
        return f"hub:{snapshot.name}" if snapshot else "unresolved"
    digest = hashlib.sha256((Path(location) / "config.json").read_bytes())
    for path in sorted(Path(location).glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with open(path, "rb") as file:
            for piece in _pieces(file, size):
                digest.update(piece)
    # another tokenizer over the same weights reads other rows, so its results must not pass for the same
    for tokenizer in vocabulary_files(Path(location)):
        digest.update(sha256_file(tokenizer).encode())
    return f"files:{digest.hexdigest()[:16]}"


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the header of a safetensors file of `size` bytes, and pieces of each of its tensors."""
    header, spans = _header(file, size)
    yield header
    for start, end in spans:
        for place in _places(start, end):
            file.seek(place)
            yield file.read(min(PIECE, end - place))


def _header(file: BinaryIO, size: int) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the header of a safetensors file, and where each tensor begins and ends.

    A file whose header cannot be read counts as one tensor; loading it will say what is wrong.
    """
    length = int.from_bytes(file.read(8), "little")
    start = 8 + length
    if not 0 < length <= MOST_HEADER or start > size:
        return b"", [(0, size)]
    header = file.read(length)
    try:
        offsets = [item["data_offsets"] for name, item in json.loads(header).items() if name != "__metadata__"]
        spans = [(start + int(first), start + int(last)) for first, last in offsets]
    except (ValueError, TypeError, KeyError, AttributeError):
        return b"", [(0, size)]
    return header, [(first, last) for first, last in spans if start <= first < last <= size]


def _places(start: int, end: int) -> list[int]:
    """Return the places between `start` and `end` at which PIECE bytes are read, evenly spaced, both ends included."""
    last = max(start, end - PIECE)
    count = max(FEWEST, (end - start) // SPACING)
    return sorted({start + (last - start) * index // (count - 1) for index in range(count)})
