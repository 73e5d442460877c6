"""`harness verify` finds every kind of damage and nothing in a whole folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from paths import ROOT
from stored_runs import answers, store
from typer.testing import CliRunner

from harness.cli.commands import app
from harness.errors import UserError
from harness.results.store import ResultStore, checksum, predictions_path, tensors_path
from harness.results.verify import Kind, verify_folder


@pytest.fixture
def results(small_results: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(small_results, tmp_path / "results"))


def one(results: Path, label: str = "dept") -> Path:
    return next(path for path, result in ResultStore(results).scan() if result.cell.label == label)


def rewrite(path: Path, change: Callable[[dict[str, Any]], object], sealed: bool = True) -> None:
    """Change a result's JSON; `sealed` gives it the checksum of its new content, as a forger would."""
    content = json.loads(path.read_text())
    change(content)
    if sealed:
        content["checksum"] = checksum(content)
    path.write_text(json.dumps(content))


def replace_file(path: Path, file: Path, name: str, content: bytes) -> None:
    """Put another file beside a result, with a JSON that vouches for it."""
    file.write_bytes(content)
    rewrite(path, lambda data: data["files"].update({name: hashlib.sha256(content).hexdigest()}))


def other_predictions(path: Path, change: Callable[[dict[str, list[Any]]], object]) -> None:
    file = predictions_path(path)
    columns = pq.read_table(file).to_pydict()
    change(columns)
    pq.write_table(pa.table(columns), file)
    replace_file(path, file, "predictions", file.read_bytes())


def swap_answers(columns: dict[str, list[Any]]) -> None:
    columns["prediction"] = ["junk"] * len(columns["prediction"])


def move(path: Path) -> None:
    folder = path.parent.parent / "another"
    folder.mkdir()
    for file in (path, predictions_path(path), tensors_path(path)):
        file.rename(folder / file.name)


def duplicate(path: Path) -> None:
    shutil.copytree(path.parent, path.parent.parent / "copy")


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


def drop_last(columns: dict[str, list[Any]]) -> None:
    for values in columns.values():
        values.pop()


def leave(path: Path, folder: str, name: str) -> None:
    place = path.parents[4] / folder
    place.mkdir(exist_ok=True)
    (place / name).write_text("{}")


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "cut short": ("unreadable", lambda p: p.write_bytes(p.read_bytes()[:500])),
    "an unknown field": ("unreadable", lambda p: rewrite(p, lambda d: d.update(more=1))),
    "a newer format": ("unreadable", lambda p: rewrite(p, lambda d: d.update(format=99))),
    "a name that leaves the folder": ("unreadable", lambda p: rewrite(p, lambda d: d["cell"].update(task="../../x"))),
    "a score edited by hand": ("edited", lambda p: rewrite(p, lambda d: d["test"].update(score=99.0), sealed=False)),
    "a checksum taken out": ("edited", lambda p: rewrite(p, lambda d: d.update(checksum=None), sealed=False)),
    "another format": ("unreadable", lambda p: rewrite(p, lambda d: d.update(format=1))),
    "another seed": ("identity", lambda p: rewrite(p, lambda d: d["cell"].update(seed=9))),
    "another learning rate": ("identity", lambda p: rewrite(p, lambda d: d["cell"]["recipe"].update(lr=9.0))),
    "another group": ("identity", lambda p: rewrite(p, lambda d: d.update(group_id="0" * 16))),
    "moved": ("place", move),
    "copied": ("duplicate", duplicate),
    "no test score": ("incomplete", lambda p: rewrite(p, lambda d: d.update(test=None))),
    "a failure with scores": ("incomplete", lambda p: rewrite(p, lambda d: d.update(status="failed"))),
    "fewer rows of data": ("incomplete", lambda p: rewrite(p, lambda d: d["data"].update(num_test=3))),
    "predictions gone": ("missing", lambda p: predictions_path(p).unlink()),
    "tensors gone": ("missing", lambda p: tensors_path(p).unlink()),
    "tensors never stored": ("missing", lambda p: rewrite(p, lambda d: d["files"].update(tensors=None))),
    "a byte of predictions": ("changed", lambda p: grow(predictions_path(p))),
    "a byte of tensors": ("changed", lambda p: grow(tensors_path(p))),
    "no table": ("predictions", lambda p: replace_file(p, predictions_path(p), "predictions", b"x")),
    "a column too few": ("predictions", lambda p: other_predictions(p, lambda c: c.pop("row"))),
    "a row too few": ("predictions", lambda p: other_predictions(p, drop_last)),
    "a row twice": ("predictions", lambda p: other_predictions(p, lambda c: c["row"].__setitem__(1, 0))),
    "a third split": ("predictions", lambda p: other_predictions(p, lambda c: c["split"].__setitem__(0, "train"))),
    "an empty answer": ("predictions", lambda p: other_predictions(p, lambda c: c["prediction"].__setitem__(0, None))),
    "other predictions": ("scores", lambda p: other_predictions(p, swap_answers)),
    "a forged score": ("scores", lambda p: rewrite(p, lambda d: d["test"].update(score=99.0))),
    "an unknown metric": ("scores", lambda p: rewrite(p, lambda d: d["test"]["metrics"].update(best=99.0))),
    "a later step": ("selection", lambda p: rewrite(p, lambda d: d.update(selected_step=3))),
    "a forged dev score": ("selection", lambda p: rewrite(p, lambda d: d["dev_history"][0].update(selection=101.0))),
    "steps in no order": ("selection", lambda p: rewrite(p, lambda d: d["dev_history"].reverse())),
    "tensors that are none": ("tensors", lambda p: replace_file(p, tensors_path(p), "tensors", b"\x80\x04pickle")),
    "fewer tensors": ("tensors", lambda p: rewrite(p, lambda d: d["params"].update(num_trained=10**6))),
    "result gone": ("orphan", lambda p: p.unlink()),
    "unknown tensors": ("orphan", lambda p: tensors_path(p.with_name("0" * 16 + ".json")).write_bytes(b"")),
    "half a file": ("leftover", lambda p: p.with_name(f".{p.name}.ab12.tmp").write_text("{")),
    "a claim of a dead process": ("leftover", lambda p: leave(p, ".claims", "small--dept--x.claim")),
    "a state of a run cut off": ("leftover", lambda p: leave(p, ".checkpoints", "x.safetensors")),
    "a loop": ("link", lambda p: (p.parent / "loop").symlink_to(p.parent.parent)),
}  # fmt: skip


def test_a_folder_as_a_run_leaves_it_is_clean(small_results: Path) -> None:
    checked = verify_folder(small_results)
    assert checked.findings == []
    assert checked.num_results == len(list(ResultStore(small_results).scan()))
    assert checked.num_files >= 2 * checked.num_results


def test_the_results_of_this_repository_are_clean() -> None:
    assert verify_folder(ROOT / "results").findings == []


@pytest.mark.parametrize("name", DAMAGE)
def test_each_kind_of_damage_is_found(results: Path, name: str) -> None:
    kind, damage = DAMAGE[name]
    damage(one(results))
    found = verify_folder(results).findings
    assert kind in {item.kind for item in found}, found
    assert {item.kind for item in found} <= set(get_args(Kind))
    assert all((results / item.path).parent.is_dir() for item in found)


def test_what_a_run_that_goes_on_is_writing_is_not_left_over(results: Path) -> None:
    for folder, name in ((".claims", "a.claim"), (".claims", "b.alive"), (".checkpoints", "x.safetensors")):
        (results / folder).mkdir(exist_ok=True)
        (results / folder / name).write_text("{}")
    assert verify_folder(results).findings == []
    os.utime(results / ".claims" / "b.alive", (1, 1))
    assert len(verify_folder(results).findings) == 3


def test_every_kind_is_shown_by_some_damage() -> None:
    assert {kind for kind, _ in DAMAGE.values()} == set(get_args(Kind))


def test_the_command_names_file_and_kind_and_fails(results: Path) -> None:
    path = one(results)
    assert CliRunner().invoke(app, ["verify", str(results)]).exit_code == 0
    rewrite(path, lambda data: data["test"].update(score=99.0), sealed=False)
    done = CliRunner().invoke(app, ["verify", str(results)])
    assert done.exit_code == 1
    assert f"{path.relative_to(results)}: edited: was changed since it was stored" in done.output
    listed = json.loads(CliRunner().invoke(app, ["verify", str(results), "--format", "json"]).output)
    assert [item["kind"] for item in listed["findings"]] == ["edited"]


def test_a_missing_folder_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such results folder"):
        verify_folder(tmp_path / "nothing")


def test_a_result_that_failed_or_left_its_search_is_whole(results: Path) -> None:
    path = one(results, "majority")
    failure = {"type": "ValueError", "message": "x", "traceback": "x"}
    empty: dict[str, Any] = {"dev": None, "test": None, "files": {}, "failure": failure, "status": "failed"}
    predictions_path(path).unlink()
    rewrite(path, lambda data: data.update(empty))
    assert verify_folder(results).findings == []


def test_a_metric_that_is_code_is_not_run_and_said_to_be_unchecked(tmp_path: Path) -> None:
    script = tmp_path / "evil.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    store(tmp_path / "results", "one", "cb", 1, *answers(75))
    ((path, _),) = ResultStore(tmp_path / "results").scan()
    rewrite(path, lambda data: data["test"]["metrics"].update({f"evaluate:{script}": 1.0}))
    for command in ("verify", "score"):
        done = CliRunner().invoke(app, [command, str(tmp_path / "results")])
        assert "is code; HARNESS_TRUST names what may run" in done.output
    assert not (tmp_path / "ran").exists()


def test_it_needs_no_torch(small_results: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from harness.cli.results import verify; verify(Path(sys.argv[1]));"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(small_results)], cwd=ROOT, stdout=subprocess.DEVNULL)
    assert done.returncode == 0
