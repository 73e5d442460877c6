"""`harness report A B`: one report of several folders, in which no cell counts twice."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from stored_runs import answers, store
from typer.testing import CliRunner

from harness.cli.commands import app
from harness.errors import UserError
from harness.results.several_folders import gather
from harness.results.store import ResultStore


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """A holds dept and lora, B a copy of dept's first seed, another run of its second, and lst."""
    a, b = tmp_path / "a", tmp_path / "b"
    for seed in (1, 2):
        store(a, "dept", "cb", seed, *answers(80 + seed))
        store(a, "lora", "cb", seed, *answers(70))
        store(b, "lst", "cb", seed, *answers(60))
    shutil.copytree(a / "demo" / "cb" / "dept", b / "demo" / "cb" / "dept")
    store(b, "dept", "cb", 2, *answers(86))
    return a, b


LAYOUT = """\
suite: own
backbones: [micro-t5]
tasks: [micro_sentiment]
methods: [dept]
report:
  tables: [mine]
  define_tables:
    mine:
      title: mine
      rows: [{title: dept, where: {label: dept}}, {title: lst, where: {label: lst}}]
      columns: [{title: CB, where: {task: cb}}]
"""


def ask(*arguments: str, command: tuple[str, ...] = ("report",)) -> str:
    done = CliRunner().invoke(app, [*command, *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_rows_of_both_stand_in_one_table_and_the_first_folder_counts(two: tuple[Path, Path]) -> None:
    a, b = map(str, two)
    lines = list(csv.DictReader(io.StringIO(ask(a, b, "--format", "csv"))))
    means = {line["method"]: (line["mean"], line["num_runs"]) for line in lines if line["task"] == "cb"}
    assert means == {"dept": ("81.5", "2"), "lora": ("70.0", "2"), "lst": ("60.0", "2")}
    swapped = list(csv.DictReader(io.StringIO(ask(b, a, "--format", "csv"))))
    assert {line["mean"] for line in swapped if line["method"] == "dept"} == {"83.5"}


def test_what_both_have_is_told_and_the_other_run_is_a_rerun(two: tuple[Path, Path]) -> None:
    a, b = map(str, two)
    told = (
        f"2 cells are in {a} and in {b}: 1 as the same file, 1 as two runs whose test scores lie up to 4.0 points apart"
    )
    for style in ("terminal", "markdown", "html"):
        text = ask(a, b, "--format", style)
        assert told in text
        assert f"the run in {a} counts" in text
        assert "± re-runs" in text
    (board,) = json.loads(ask(a, b, "--format", "json"))
    assert board["folders"] == [f"{told}; the run in {a} counts"]
    entry = next(row for row in board["rows"] if row["method"] == "dept")["tasks"]["cb"]
    assert list(entry["reruns"].values()) == [[82.0, 86.0]]
    assert len(entry["scores"]) == 2


def test_every_command_of_reports_reads_several_folders(two: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = map(str, two)
    told = f"2 cells are in {a} and in {b}"
    suite = tmp_path / "own.yaml"
    suite.write_text(LAYOUT)
    table = ask(a, b, "--layouts", str(suite), "--format", "markdown", command=("table", "all"))
    assert "60.0" in next(line for line in table.splitlines() if line.startswith("| lst"))
    assert told in table
    assert told in ask(a, b, command=("fidelity", "accept-2024"))
    assert told in ask(a, b, command=("tuning",))
    ask(a, b, "--out", str(tmp_path / "site"), command=("site",))
    files = [run["file"] for run in json.loads((tmp_path / "site" / "data" / "runs.json").read_text())]
    assert len(files) == len(set(files)) == 6
    assert all(Path(file).is_relative_to(two[0]) or Path(file).is_relative_to(two[1]) for file in files)


def test_a_folder_given_twice_is_that_folder(two: tuple[Path, Path]) -> None:
    made = gather([two[0], two[0]])
    assert len(made.scanned) == 4
    assert made.reruns == {}
    assert ask(str(two[0]), "--format", "csv") == ask(str(two[0]), str(two[0]), "--format", "csv")


def test_a_run_with_a_score_counts_before_a_failure(two: tuple[Path, Path]) -> None:
    a, b = two
    path, result = next(
        item for item in ResultStore(a).scan() if (item[1].cell.label, item[1].cell.seed) == ("dept", 2)
    )
    failed = result.model_copy(
        update={"status": "failed", "test": None, "dev": None, "metrics": None, "checksum": None}
    )
    path.unlink()
    ResultStore(a).write(failed, [], None)
    made = gather([a, b])
    (kept,) = [r for _, r in made.scanned if r.key == result.key]
    assert kept.test is not None
    assert any(f"the run in {b} counts" in note for note in made.notes)
    assert made.reruns == {}


def test_a_folder_that_is_not_there_is_a_mistake(two: tuple[Path, Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(two[0]), str(tmp_path / "c")])
    assert isinstance(done.exception, UserError)
    assert "no such results folder" in str(done.exception)
