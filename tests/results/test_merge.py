"""`harness merge`: every file checked, equal cells joined, differing ones refused, whole or not at all, resumable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from stored_runs import answers, store
from typer.testing import CliRunner

from harness.cli.commands import app
from harness.errors import UserError
from harness.files import write_aside
from harness.results.merge import merge_folders
from harness.results.store import ResultStore, checksum, predictions_path
from harness.results.verify import verify_folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one(folder: Path, label: str) -> Path:
    return next(path for path, result in ResultStore(folder).scan() if result.cell.label == label)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Both hold the cell `same`; each has one of its own."""
    a, b = tmp_path / "a", tmp_path / "b"
    store(a, "same", "cb", 1, *answers(75))
    shutil.copytree(a, b)
    store(a, "first", "cb", 1, *answers(60))
    store(b, "second", "cb", 1, *answers(70))
    return a, b


def differ(folder: Path, label: str = "same") -> Path:
    """Give a cell another date, with the checksum of its new content."""
    path = one(folder, label)
    changed = json.loads(path.read_text()) | {"finished_at": "2026-01-01"}
    path.write_text(json.dumps(changed | {"checksum": checksum(changed)}))
    return path


def test_what_is_merged_is_all_of_both_and_equal_cells_once(folders: tuple[Path, Path], tmp_path: Path) -> None:
    done = merge_folders(folders, tmp_path / "out")
    assert (done.num_cells, done.num_equal, done.num_replaced, done.num_files) == (3, 1, 0, 6)
    assert content(tmp_path / "out") == content(folders[0]) | content(folders[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


def test_tensors_of_real_results_come_along(small_results: Path, tmp_path: Path) -> None:
    for label, folder in (("dept", "a"), ("majority", "b")):
        shutil.copytree(small_results, tmp_path / folder)
        shutil.rmtree(one(tmp_path / folder, label).parents[1])
    done = merge_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert done.num_equal == 3  # those of the third method
    assert content(tmp_path / "out") == content(small_results)
    assert verify_folder(tmp_path / "out").findings == []


def test_a_folder_to_publish_leaves_its_tensors_behind(small_results: Path, tmp_path: Path) -> None:
    """JSON and predictions are those of before, byte for byte, and `verify` asks for no tensors when told so."""
    out = tmp_path / "out"
    merge_folders([small_results], out, without_tensors=True)
    whole = content(small_results)
    assert content(out) == {
        name: data for name, data in whole.items() if name.endswith((".json", ".parquet")) and "/." not in f"/{name}"
    }
    assert any(name.endswith(".safetensors") for name in whole)
    assert {finding.kind for finding in verify_folder(out).findings} == {"missing"}
    assert verify_folder(out, without_tensors=True).findings == []
    predictions_path(one(out, "dept")).unlink()
    assert [finding.kind for finding in verify_folder(out, without_tensors=True).findings] == ["missing"]
    with pytest.raises(UserError, match="two folders"):
        merge_folders([small_results], tmp_path / "other")


def test_cells_that_differ_are_refused_unless_one_folder_is_preferred(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = folders
    changed, out = differ(b), tmp_path / "out"
    with pytest.raises(UserError, match=r"a result of the same cell.*--prefer .*/a or --prefer .*/b"):
        merge_folders(folders, out)
    assert not out.exists()
    for prefer, expected in ((b, changed), (a, one(a, "same"))):
        done = merge_folders(folders, out, [prefer])
        assert (done.num_equal, done.num_replaced) == (0, 1)
        assert one(out, "same").read_bytes() == expected.read_bytes()
        shutil.rmtree(out)
    with pytest.raises(UserError, match=r"--prefer.*none of the folders to merge"):
        merge_folders(folders, out, [tmp_path / "c"])


def test_damage_is_found_before_anything_is_written(folders: tuple[Path, Path], tmp_path: Path) -> None:
    before = content(tmp_path)
    damaged = predictions_path(one(folders[1], "second"))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole + b"x")
    with pytest.raises(UserError, match="its SHA-256 is another"):
        merge_folders(folders, tmp_path / "out")
    damaged.unlink()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        merge_folders(folders, tmp_path / "out")
    damaged.write_bytes(whole)
    edited = one(folders[0], "first")
    text = edited.read_text()
    edited.write_text(text.replace('"score": 60.0', '"score": 99.0'))
    with pytest.raises(UserError, match="was changed since it was stored"):
        merge_folders(folders, tmp_path / "out")
    edited.write_text(text)
    assert content(tmp_path) == before


def test_a_merge_that_was_cut_off_goes_on_and_leaves_nothing_of_another_choice(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    written: list[Path] = []

    def full_disk(path: Path, write: Any) -> Any:
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        return write_aside(path, write)

    monkeypatch.setattr("harness.results.merge.write_aside", full_disk)
    with pytest.raises(UserError, match=r"No space left on device.*the same command goes on"):
        merge_folders(folders, out)
    assert not out.exists()
    monkeypatch.undo()
    (tmp_path / ".out.merge" / "old").mkdir()
    (tmp_path / ".out.merge" / "old" / "x.json").write_text("{}")
    kept = {path: path.stat().st_ino for path in written}
    done = merge_folders(folders, out)
    assert (done.num_kept, done.num_files) == (3, 6)
    assert [(out / path.relative_to(tmp_path / ".out.merge")).stat().st_ino for path in kept] == list(kept.values())
    assert content(out) == content(folders[0]) | content(folders[1])
    assert {path.name for path in out.iterdir()} == {"demo"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a", "out"], "needs two folders of results"),
        (["a", "a", "out"], "is named twice"),
        (["a", "b", "a"], "is there already"),
        (["a", "b", "a/out"], "where its results would count twice"),
        (["a", "b", "no/out"], "no such folder"),
        (["a", "b", "file/out"], "file: is a file, no folder"),
        (["a", "c", "out"], "no such results folder"),
        (["d", "e", "out"], "hold no results"),
    ],
)
def test_a_mistake_is_one_message_and_writes_nothing(
    folders: tuple[Path, Path], tmp_path: Path, arguments: list[str], expected: str
) -> None:
    for empty in ("d", "e"):
        (tmp_path / empty).mkdir()
    (tmp_path / "file").touch()
    before = content(tmp_path)
    done = CliRunner().invoke(app, ["merge", *(str(tmp_path / name) for name in arguments)])
    assert isinstance(done.exception, UserError)
    assert expected in str(done.exception)
    assert content(tmp_path) == before


def test_the_command_says_what_it_did(folders: tuple[Path, Path], tmp_path: Path) -> None:
    differ(folders[1])
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["merge", *map(str, folders), str(out), "--prefer", str(folders[0])])
    assert done.exit_code == 0, done.output
    assert done.output == (
        f"3 cells in 6 files, every checksum checked; 1 differing copies left out for preferred ones. Results: {out}\n"
    )
