"""Weights are told apart wherever they differ, and are the same wherever they lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.backbone import fingerprint
from harness.backbone.fingerprint import weights_fingerprint
from harness.backbone.names import SHIPPED

FOLDER = SHIPPED["micro-t5"]
TENSORS = load_file(FOLDER / "model.safetensors")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "copy"))


def of(folder: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> str:
    save_file(tensors, folder / "model.safetensors", {"format": "pt", **metadata})
    return weights_fingerprint(str(folder))


def test_a_change_of_any_one_tensor_is_seen(copy: Path) -> None:
    """A checkpoint of which most layers were frozen has the others' numbers nearly everywhere."""
    found = {of(copy, {**TENSORS, name: tensor + 0.5}) for name, tensor in TENSORS.items()}
    assert len(found | {of(copy, TENSORS)}) == len(TENSORS) + 1


def test_a_fingerprint_does_not_depend_on_the_place_and_follows_names_and_shapes(copy: Path) -> None:
    first = weights_fingerprint(str(FOLDER))
    assert weights_fingerprint(str(copy)) == first
    name = next(name for name, tensor in TENSORS.items() if tensor.dim() == 2)
    assert of(copy, {**TENSORS, name: TENSORS[name].reshape(-1, 1)}) != of(copy, TENSORS)


DAMAGED = {
    "empty": b"",
    "one byte": b"\x05",
    "no header": b"\xff" * 40,
    "a list": b"\x02" + b"\0" * 7 + b"[]",
    "no tensor": b"\x02" + b"\0" * 7 + b"{}",
    "broken off": b'\x0a\0\0\0\0\0\0\0{"a": {"b"',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_has_a_fingerprint_too(copy: Path, content: bytes) -> None:
    (copy / "model.safetensors").write_bytes(content)
    damaged = weights_fingerprint(str(copy))
    (copy / "model.safetensors").write_bytes(content + b"x")
    assert damaged.startswith("files:")
    assert weights_fingerprint(str(copy)) != damaged


def test_large_tensors_are_looked_at_throughout_and_never_read_whole(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "SPACING", 1 << 12)
    large = torch.zeros(1 << 16)
    before = of(copy, {"large": large})
    for start in range(0, len(large), 4 << 10):  # 16 KiB of 256 KiB
        changed = large.clone()
        changed[start : start + (4 << 10)] = 1
        assert of(copy, {"large": changed}) != before
    assert len(fingerprint._places(0, 1 << 18)) == 64
