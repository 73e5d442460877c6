"""`harness compare`: what both folders have, what one has, which settings and origins keep cells apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stored_runs import answers, store
from typer.testing import CliRunner

from harness.cli.commands import app
from harness.report.statistics.intervals import Sample, compare_samples, holm
from harness.report.two_folders import compare_folders
from harness.report.two_folders_tables import render_comparison
from harness.results.predictions import read_answers
from harness.results.store import ResultStore, checksum, predictions_path


def scanned(folder: Path) -> list[Any]:
    return list(ResultStore(folder).scan())


def change(path: Path, **fields: Any) -> None:
    """Give a stored result other fields, and the checksum that it would have been stored with."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps(content | {"checksum": checksum(content)}))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cells of equal settings and other answers, two with equal ones, and one cell more on either side."""
    for seed in (1, 2):
        store(tmp_path / "a", "one", "cb", seed, *answers(60 + seed))
        store(tmp_path / "b", "one", "cb", seed, *answers(75 + seed))
        store(tmp_path / "a", "two", "cb", seed, *answers(50), lr=0.1)
        store(tmp_path / "b", "two", "cb", seed, *answers(50), lr=0.1)
    store(tmp_path / "a", "two", "rte", 1, *answers(50), lr=0.1)
    store(tmp_path / "b", "two", "rte", 1, *answers(50), lr=0.5)
    return tmp_path / "a", tmp_path / "b"


def test_cells_in_both_are_compared_as_the_statistics_of_reports_compare_methods(folders: tuple[Path, Path]) -> None:
    found = compare_folders(*map(scanned, folders))
    assert (found.num_both, found.differs) == (4, True)
    one, two = found.lines
    assert (one.method, one.seeds, one.a, one.b) == ("one", (1, 2), 61.5, 76.5)
    assert (one.num_answers, one.num_changed, one.is_equal) == (200, 30, False)
    samples = []
    for folder in folders:
        runs = [(result.cell.seeds, path) for path, result in scanned(folder) if result.cell.label == "one"]
        samples.append(Sample.of([(seeds, read_answers(predictions_path(path))["test"]) for seeds, path in runs],
                                 ["accuracy"], ["0", "1"]))  # fmt: skip
    gap, p_value = compare_samples(samples[1], samples[0])
    assert one.gap == gap
    assert gap.value == pytest.approx(15.0)
    assert (one.p_value, one.adjusted) == (p_value, holm([p_value, 1.0])[0])
    assert (two.method, two.point, two.is_equal, two.p_value) == ("two", "lr=0.1", True, 1.0)


def test_folders_without_a_common_cell_are_told_so(tmp_path: Path) -> None:
    """An empty table and "0 of 0 grid points are equal" said nothing."""
    for name, seed in (("a", 1), ("b", 2)):
        store(tmp_path / name, name, "cb", seed, *answers(70))
    found = compare_folders(*(scanned(tmp_path / name) for name in ("a", "b")))
    shown = " ".join(render_comparison(found, "a", "b", "markdown").split())
    assert "No cell is in both folders, so there is nothing to compare of a and b." in shown
    assert "0 cells are in both" not in shown


def test_cells_in_one_are_listed_with_the_setting_that_keeps_them_apart(folders: tuple[Path, Path]) -> None:
    found = compare_folders(*map(scanned, folders))
    assert [(item.folder, item.method, item.task, item.num_cells, item.seeds) for item in found.only] == [
        ("A", "two", "rte", 1, (1,)),
        ("B", "two", "rte", 1, (1,)),
    ]
    assert [(item.where, item.key, item.a, item.b, item.num_cells) for item in found.settings] == [
        ("two on rte, tiny", "recipe.lr", 0.1, 0.5, 1)
    ]
    assert found.origins == []


def test_a_part_that_was_made_again_is_compared_alone(folders: tuple[Path, Path]) -> None:
    asked = ["compare", *map(str, folders), "--shared-only"]
    shown = CliRunner().invoke(app, asked).output
    assert "4 cells are in both folders" in shown
    assert "Cells in one folder" not in shown
    assert "Settings that differ" not in shown
    found = compare_folders(*map(scanned, folders), shared_only=True)
    assert (found.num_both, found.only, found.settings) == (4, [], [])
    equal = [*asked[:2], asked[1], "--shared-only", "--fail-on-difference"]
    assert CliRunner().invoke(app, equal).exit_code == 0
    store(folders[1] / "other", "three", "cb", 1, *answers(50), lr=0.7)
    nothing = ["compare", asked[1], str(folders[1] / "other"), "--shared-only", "--fail-on-difference"]
    assert CliRunner().invoke(app, nothing).exit_code == 1  # no common cell is no equality


def test_origins_that_differ_are_named_and_are_no_difference_of_the_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        store(tmp_path / name, "one", "cb", 1, *answers(60), source=name * 64)
    ((path, _),) = scanned(tmp_path / "b")
    data = json.loads(path.read_text())["data"] | {"fingerprint": "g"}
    made = {"commit": "0123456789abc", "dirty": True, "versions": {"torch": "2.13.0"}, "device": "NVIDIA H100"}
    change(path, data=data, provenance=made)
    found = compare_folders(*map(scanned, (tmp_path / "a", tmp_path / "b")))
    assert {(item.where, item.key): (item.a, item.b) for item in found.origins} == {
        ("", "commit"): (None, "0123456789 with local changes"),
        ("", "torch"): (None, "2.13.0"),
        ("", "device"): (None, "NVIDIA H100"),
        ("method one", "file"): ("a" * 16, "b" * 16),
        ("task cb", "rows"): ("f", "g"),
    }
    assert not found.differs


def test_what_cannot_be_paired_says_why(tmp_path: Path) -> None:
    store(tmp_path / "a", "rows", "cb", 1, *answers(60))
    store(tmp_path / "b", "rows", "cb", 1, ["1"] * 60, [["1"]] * 60)
    for name in ("a", "b"):
        store(tmp_path / name, "gone", "cb", 1, *answers(60))
        store(tmp_path / name, "failed", "cb", 1, *answers(60))
    paths = {result.cell.label: path for path, result in scanned(tmp_path / "b")}
    predictions_path(paths["gone"]).unlink()
    failure = {"type": "ValueError", "message": "x", "traceback": "x"}
    change(paths["failed"], status="failed", dev=None, test=None, failure=failure)
    found = compare_folders(*map(scanned, (tmp_path / "a", tmp_path / "b")))
    assert {line.method: line.problem for line in found.lines} == {
        "rows": "other test rows",
        "gone": "predictions are missing or were changed",
        "failed": "done in A, failed in B (1)",
    }
    assert found.differs


def test_a_suite_that_was_renamed_holds_the_same_cells(tmp_path: Path) -> None:
    for name in ("a", "b"):
        store(tmp_path / name, "one", "cb", 1, *answers(60))
    ((path, _),) = scanned(tmp_path / "b")
    content = json.loads(path.read_text())
    change(path, cell=content["cell"] | {"suite": "other"})
    found = compare_folders(*map(scanned, (tmp_path / "a", tmp_path / "b")))
    assert (found.num_both, found.differs) == (1, False)


def test_the_command_writes_each_format_and_fails_only_when_asked(folders: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = map(str, folders)
    done = CliRunner().invoke(app, ["compare", a, b])
    assert done.exit_code == 0, done.output
    assert "+15.0 [" in done.output
    assert "30 of 200" in done.output
    assert "4 cells are in both folders. Of 2 grid points 1 have equal answers" in done.output
    markdown = CliRunner().invoke(app, ["compare", a, b, "--format", "markdown"]).output
    assert "### Settings that differ" in markdown
    assert "| two on rte, tiny | recipe.lr | 0.1 | 0.5 |" in " ".join(markdown.split())
    told = json.loads(CliRunner().invoke(app, ["compare", a, b, "--format", "json"]).output)
    assert (told["differs"], told["num_both"], told["both"][1]["equal"]) == (True, 4, True)
    assert told["both"][0]["difference"] == pytest.approx(15.0)
    assert CliRunner().invoke(app, ["compare", a, b, "--fail-on-difference"]).exit_code == 1
    same = CliRunner().invoke(app, ["compare", a, a, "--fail-on-difference", "--out", str(tmp_path / "same.txt")])
    assert same.exit_code == 0
    assert "5 cells are in both folders" in (tmp_path / "same.txt").read_text()


def test_grid_points_and_parts_of_real_results_have_a_line_each(small_results: Path) -> None:
    found = compare_folders(scanned(small_results), scanned(small_results))
    assert [line.method for line in found.lines] == ["dept", "majority", "prompt_tuning", "prompt_tuning"]
    assert [line.is_equal for line in found.lines] == [True] * 4
    assert min(line.num_answers for line in found.lines) > 0
    assert [found.only, found.settings, found.origins] == [[], [], []]


def test_repeats_have_a_line_of_their_own_and_are_no_further_runs(tmp_path: Path) -> None:
    for repeat, gap in ((1, 10), (2, 0)):
        for seed in (1, 2):
            store(tmp_path / "a", "one", "cb", seed, *answers(60 + seed), repeat=repeat)
            store(tmp_path / "b", "one", "cb", seed, *answers(60 + gap + seed), repeat=repeat)
    found = compare_folders(*map(scanned, (tmp_path / "a", tmp_path / "b")))
    assert [(line.repeat, line.seeds, line.b, line.num_answers) for line in found.lines] == [
        (1, (1, 2), 71.5, 200),
        (2, (1, 2), 61.5, 200),
    ]
    first = [[item for item in scanned(tmp_path / side) if item[1].cell.repeat == 1] for side in "ab"]
    assert compare_folders(*first).lines[0].gap == found.lines[0].gap


def test_answers_of_an_earlier_version_take_the_groups_of_rows_of_the_other_folder(tmp_path: Path) -> None:
    questions = [f"q{row // 10}" for row in range(100)]
    for seed in (1, 2):
        store(tmp_path / "old", "one", "cb", seed, *answers(60 + seed))
        store(tmp_path / "new", "one", "cb", seed, *answers(70 + seed), belongs_to=questions)
        store(tmp_path / "before", "one", "cb", seed, *answers(60 + seed), belongs_to=questions)
        store(tmp_path / "other", "one", "cb", seed, *answers(60 + seed), belongs_to=["q"] * 99 + ["r"])
    old, new, before, other = (scanned(tmp_path / name) for name in ("old", "new", "before", "other"))
    (line,) = compare_folders(old, new).lines
    assert (line.problem, line.gap) == ("", compare_folders(before, new).lines[0].gap)
    assert compare_folders(other, new).lines[0].problem == "rows that belong together are others"


def test_the_search_that_asked_for_a_point_is_no_setting_of_it(tmp_path: Path) -> None:
    for name, lr in (("a", 0.1), ("b", 0.5)):
        store(tmp_path / name, "one", "cb", 1, *answers(60), lr=lr)
        ((path, _),) = scanned(tmp_path / name)
        change(path, cell=json.loads(path.read_text())["cell"] | {"study": f"random-{name}"})
    found = compare_folders(*map(scanned, (tmp_path / "a", tmp_path / "b")))
    assert [item.key for item in found.settings] == ["recipe.lr"]
