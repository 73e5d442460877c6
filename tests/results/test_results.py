"""The results folder: whole files or none, refused formats, the tidy table, selection by dev alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
from pathlib import Path

import pandas as pd
import pytest
from safetensors.numpy import load_file

import harness
from harness.data.metrics import compute_metrics
from harness.errors import UserError
from harness.results.schema import RESULT_FORMAT, Result
from harness.results.selection import best_point, best_step
from harness.results.store import ResultStore, checksum, predictions_path, read_predictions, read_result, tensors_path


def stored(folder: Path) -> list[tuple[Path, Result]]:
    return list(ResultStore(folder).scan())


def test_a_result_says_everything_about_its_cell(small_results: Path) -> None:
    for path, result in stored(small_results):
        assert path == ResultStore(small_results).path(result.cell)
        assert result.cell_id == result.cell.cell_id == path.stem
        assert result.status == "done"
        assert result.data is not None
        assert result.data.fingerprint
        assert result.provenance["versions"]["torch"]
        assert result.usage is not None
        trained = result.cell.label != "majority"
        assert result.usage.num_steps == (4 if trained else 0)
        assert result.usage.num_samples == (16 if trained else 0)
        assert [item.step for item in result.dev_history] == ([2, 4] if trained else [0])
        assert tensors_path(path).exists() == trained


def test_every_score_can_be_recomputed_from_the_stored_predictions(small_results: Path) -> None:
    for path, result in stored(small_results):
        table = read_predictions(path)
        assert result.metrics is not None
        names = [*result.metrics.reported, *result.metrics.extra]
        for split, score in (("dev", result.dev), ("test", result.test)):
            assert score is not None
            rows = table[table["split"] == split].sort_values("row")
            assert rows["row"].tolist() == list(range(score.num_rows))
            references = [list(item) for item in rows["references"]]
            again = compute_metrics(names, rows["prediction"].tolist(), references, result.metrics.labels)
            assert again == score.metrics
            assert score.score == pytest.approx(statistics.fmean(again[n] for n in result.metrics.reported))


def test_the_selected_checkpoint_is_the_earliest_best_on_dev(small_results: Path) -> None:
    for _, result in stored(small_results):
        best = max(item.selection for item in result.dev_history)
        first = next(item for item in result.dev_history if item.selection == best)
        assert result.selected_step == first.step
        assert result.dev is not None
        assert result.dev.metrics == first.metrics


def test_checksums_and_tensor_counts_match_the_files(small_results: Path) -> None:
    for path, result in stored(small_results):
        assert hashlib.sha256(predictions_path(path).read_bytes()).hexdigest() == result.files.predictions
        if result.files.tensors:
            assert hashlib.sha256(tensors_path(path).read_bytes()).hexdigest() == result.files.tensors
            assert result.params is not None
            assert sum(t.size for t in load_file(tensors_path(path)).values()) == result.params.num_trained


def test_the_tidy_table_has_a_row_per_cell_and_metric(small_results: Path) -> None:
    table = harness.load_results(small_results)
    assert isinstance(table, pd.DataFrame)
    assert set(table["split"]) == {"dev", "test"}
    assert set(table["metric"]) == {"score", "accuracy"}
    assert len(table) == len(stored(small_results)) * 4
    assert table["value"].between(0, 100).all()
    assert set(table.loc[table["method"] == "prompt_tuning", "recipe.lr"]) == {0.1, 0.3}


@pytest.mark.parametrize("victim", ["fsync", "replace"])
def test_a_failed_write_leaves_no_result_and_no_rubbish(
    small_results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    _, result = next(item for item in stored(small_results) if item[1].cell.label == "dept")
    store = ResultStore(tmp_path)
    original = getattr(os, victim)
    calls = 0

    def failing(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:  # the JSON is the third file
            raise OSError(28, "No space left on device")
        original(*args)

    monkeypatch.setattr(os, victim, failing)
    with pytest.raises(OSError, match="No space"):
        store.write(result, [("dev", 0, ["0"], "1")], b"tensors")
    monkeypatch.undo()
    assert store.load(result.cell) is None
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    store.write(result, [("dev", 0, ["0"], "1")], b"tensors")
    assert store.load(result.cell) is not None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": 99}, "was written in format 99"),
        ({"status": "perhaps"}, "status"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_result_of_another_format_is_refused(
    small_results: Path, tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(json.loads(stored(small_results)[0][0].read_text()) | change))
    with pytest.raises(UserError, match=expected) as caught:
        read_result(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', "\x00\x01"])
def test_a_damaged_result_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match="not a result file"):
        read_result(path)


def test_the_best_step_is_the_earliest_of_equals() -> None:
    assert best_step([(1, 5.0), (2, 7.0), (3, 7.0)]) == 2
    assert best_step([]) is None


def test_failed_and_missing_grid_points_never_win(small_results: Path) -> None:
    good = next(r for _, r in stored(small_results) if r.cell.label == "dept")
    failed = good.model_copy(update={"status": "failed"})
    assert best_point([failed, None, good]) == 2
    assert best_point([failed, None]) is None
    assert best_point([good, good]) == 0


def test_a_copied_folder_does_not_pass_for_more_runs(small_results: Path, tmp_path: Path) -> None:
    shutil.copytree(small_results, tmp_path / "results")
    shutil.copytree(small_results / "small", tmp_path / "results" / "backup" / "small")
    with pytest.raises(UserError, match="is a copy of a result"):
        stored(tmp_path / "results")


def test_hidden_folders_are_not_read(small_results: Path, tmp_path: Path) -> None:
    shutil.copytree(small_results, tmp_path / "results")
    shutil.copytree(small_results / "small", tmp_path / "results" / ".ipynb_checkpoints")
    assert len(stored(tmp_path / "results")) == len(stored(small_results))


def test_a_result_that_was_edited_is_refused(small_results: Path, tmp_path: Path) -> None:
    path, result = stored(small_results)[0]
    content = json.loads(path.read_text())
    assert content["checksum"] == checksum(content) == result.checksum
    edited = tmp_path / "x.json"
    edited.write_text(json.dumps(content, sort_keys=True))  # another layout is no edit
    assert read_result(edited) == result
    content["test"]["score"] += 0.1
    edited.write_text(json.dumps(content))
    with pytest.raises(UserError, match="was changed since it was stored"):
        read_result(edited)
    del content["checksum"]
    edited.write_text(json.dumps(content))
    with pytest.raises(UserError, match="was changed since it was stored"):
        read_result(edited)
    edited.write_text(json.dumps(content | {"format": 1}))
    with pytest.raises(UserError, match=f"was written in format 1; this program reads format {RESULT_FORMAT}"):
        read_result(edited)


def test_what_a_killed_process_left_of_a_cell_is_cleared_when_it_is_stored(small_results: Path, tmp_path: Path) -> None:
    _, result = stored(small_results)[0]
    store = ResultStore(tmp_path)
    path = store.path(result.cell)
    path.parent.mkdir(parents=True)
    (path.parent / f".{path.name}.abcd.tmp").write_text("half")
    store.write(result, [], None)
    assert [item.name for item in path.parent.iterdir()] == [path.name]
