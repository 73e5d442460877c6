"""`harness score`: stored predictions against stored scores, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from stored_runs import answers, store
from typer.testing import CliRunner

from harness.cli.commands import app
from harness.errors import UserError
from harness.results.store import ResultStore, checksum, predictions_path


def edited(root: Path, change: dict[str, object]) -> Path:
    """One stored run whose test record says something else than its predictions."""
    store(root, "one", "cb", 1, *answers(75))
    ((path, _),) = ResultStore(root).scan()
    data = json.loads(path.read_text())
    data["test"] |= change
    path.write_text(json.dumps(data | {"checksum": checksum(data)}))
    return path


def test_untouched_results_move_nothing(small_results: Path) -> None:
    done = CliRunner().invoke(app, ["score", str(small_results)])
    assert done.exit_code == 0, done.output
    assert "0 differ" in done.output


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"score": 80.0}, "test score: stored 80.0000, recomputed 75.0000 (-5.0000)"),
        ({"metrics": {"accuracy": 70.0}}, "test Acc.: stored 70.0000, recomputed 75.0000 (+5.0000)"),
        ({"num_unreadable": 3}, "test unreadable answers: stored 3, recomputed 0"),
        ({"num_rows": 99}, "test: 99 rows scored, 100 predictions stored"),
        ({"metrics": {}}, "test score: its metrics accuracy are not all stored"),
    ],
)
def test_an_edited_number_is_shown_and_fails(tmp_path: Path, change: dict[str, object], line: str) -> None:
    path = edited(tmp_path, change)
    done = CliRunner().invoke(app, ["score", str(tmp_path)])
    assert done.exit_code == 1
    assert f"{path}: {line}" in done.output
    assert "1 differ" in done.output


@pytest.mark.parametrize("damage", ["missing", "edited", "no table"])
def test_predictions_that_cannot_be_trusted_count_as_moved(tmp_path: Path, damage: str) -> None:
    path = predictions_path(edited(tmp_path, {}))
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "no table" else path.read_bytes() + b" ")
    done = CliRunner().invoke(app, ["score", str(tmp_path)])
    assert done.exit_code == 1
    assert str(path) in done.output


def test_every_kind_of_metric_is_recomputed(tmp_path: Path) -> None:
    refs = [["0"], ["1"], ["1"]]
    store(tmp_path, "one", "cb", 1, ["0", "1", "what"], refs, metric="macro_f1")
    store(tmp_path, "one", "stsb", 1, ["0.5", "none", "3.0"], [["1.0"], ["2.0"], ["3.0"]], "pearson", labels=())
    store(tmp_path, "one", "squad", 1, ["a cat", "", "dog"], [["cat"], ["x"], ["dogs", "dog"]], "token_f1", labels=())
    done = CliRunner().invoke(app, ["score", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "12 scores of 3 runs recomputed, 0 differ" in done.output


def test_it_needs_no_torch(tmp_path: Path) -> None:
    store(tmp_path, "one", "cb", 1, *answers(75))
    code = (
        "import sys; from pathlib import Path; from harness.cli.results import score; score(Path(sys.argv[1]));"
        "sys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
    )


def test_a_folder_without_results_is_a_mistake_and_no_success(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["score", str(tmp_path)])
    assert isinstance(done.exception, UserError)
    assert "holds no results" in str(done.exception)
