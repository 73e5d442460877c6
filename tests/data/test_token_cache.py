"""Token ids on disk: the same as tokenising anew, whatever has happened to the files."""

from __future__ import annotations

import dataclasses
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from typing_help import present

import harness.data.tokenization as token_cache
from harness.backbone.load import load_backbone
from harness.backbone.network import Backbone
from harness.data.examples import Example
from harness.data.tasks import all_tasks
from harness.data.tokenization import Encoded, cache_folder, cached_encode, encode, tokenizer_fingerprint
from harness.train.tiny_backbones import tiny_backbone

ROWS = [Example(f"the film number {i} was good", str(i % 2), (str(i % 2),)) for i in range(30)]
TASK = all_tasks()["micro_sentiment"]


@pytest.fixture(scope="module")
def micro() -> Backbone:
    return load_backbone("micro-t5", device="cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    return tmp_path


def files(folder: Path) -> list[Path]:
    return sorted((folder / "tokens").iterdir())


def assert_equal(got: Encoded, expected: Encoded) -> None:
    for part in dataclasses.fields(Encoded):
        ours, theirs = getattr(got, part.name), getattr(expected, part.name)
        if part.name in ("tasks", "choices"):  # which only mixtures have, or only what is scored, and no file
            assert ours is theirs is None
            continue
        if isinstance(theirs, int):
            assert ours == theirs, part.name
            continue
        assert ours.dtype == theirs.dtype == np.int64
        assert np.array_equal(ours, theirs), part.name


def test_stored_tokens_are_those_of_the_tokenizer_and_are_read_back(
    folder: Path, micro: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = encode(ROWS, micro, TASK, 64)
    assert_equal(cached_encode(ROWS, micro, TASK, 64), expected)
    assert len(files(folder)) == 1
    monkeypatch.setattr(token_cache, "encode", None)  # a second tokenisation would be an error
    assert_equal(cached_encode(ROWS, micro, TASK, 64), expected)


def test_other_rows_lengths_targets_and_tokenizers_have_files_of_their_own(folder: Path, micro: Backbone) -> None:
    other = load_backbone("micro-t5", device="cpu")
    other.tokenizer.add_tokens(["film"])
    moved = [*ROWS[:-1], dataclasses.replace(ROWS[-1], target="0")]
    for rows, backbone, length in (
        (ROWS, micro, 64), (ROWS, micro, 5), (ROWS[:-1], micro, 64), (moved, micro, 64), (ROWS, other, 64),
    ):  # fmt: skip
        before = len(files(folder)) if (folder / "tokens").exists() else 0
        assert_equal(cached_encode(rows, backbone, TASK, length), encode(rows, backbone, TASK, length))
        assert len(files(folder)) == before + 1


def test_a_tokenizer_is_known_again_after_use(micro: Backbone) -> None:
    fresh = load_backbone("micro-t5", device="cpu").tokenizer
    used = load_backbone("micro-t5", device="cpu").tokenizer
    used(["a text"], truncation=True, max_length=2)
    assert tokenizer_fingerprint(fresh) == tokenizer_fingerprint(used)
    assert tokenizer_fingerprint(tiny_backbone().tokenizer) is None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "other rows"])
def test_a_broken_file_is_ignored_and_written_again(folder: Path, micro: Backbone, damage: str) -> None:
    expected = cached_encode(ROWS, micro, TASK, 64)
    (path,) = files(folder)
    whole = path.read_bytes()
    middle = len(whole) // 3
    if damage == "other rows":
        cached_encode(ROWS[:3], micro, TASK, 64)
        (other,) = set(files(folder)) - {path}
        path.write_bytes(other.read_bytes())
    else:
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        path.write_bytes({"cut": whole[:middle], "flip": flipped, "empty": b"", "text": b"no zip file"}[damage])
    assert_equal(cached_encode(ROWS, micro, TASK, 64), expected)
    with np.load(path) as stored:
        assert np.array_equal(stored["source_ids"], expected.source_ids)


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, micro: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "below"))
    assert_equal(cached_encode(ROWS, micro, TASK, 64), encode(ROWS, micro, TASK, 64))


def test_the_environment_moves_the_cache_or_turns_it_off(monkeypatch: pytest.MonkeyPatch, micro: Backbone) -> None:
    monkeypatch.setenv("HARNESS_CACHE", "off")
    assert cache_folder() is None
    assert_equal(cached_encode(ROWS, micro, TASK, 64), encode(ROWS, micro, TASK, 64))
    monkeypatch.setenv("HARNESS_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv("HARNESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert cache_folder() == Path("/var/cache/me/peft-harness")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the XDG specification
    assert cache_folder() == Path.home() / ".cache" / "peft-harness"


def test_processes_that_write_at_once_leave_one_whole_file(folder: Path, micro: Backbone) -> None:
    expected = encode(ROWS, micro, TASK, 64)
    path = folder / "tokens" / "shared.npz"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(path, expected)) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = token_cache._read(path, len(ROWS))
        assert found is None or len(found.source_ids) == len(expected.source_ids)
        if path.exists():
            assert_equal(present(token_cache._read(path, len(ROWS))), expected)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert files(folder) == [path]


def _write_often(path: Path, encoded: Encoded) -> None:
    for _ in range(20):
        token_cache._write(path, encoded)
