"""`repeats`: the reported cells are trained again with the same seed, and only their own spread knows of it."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from conftest import SMALL_SUITE
from typer.testing import CliRunner

import harness
from harness.cli.commands import app
from harness.report.boards import collect_boards
from harness.results.schema import Result
from harness.results.selection import next_repeats
from harness.results.store import ResultStore
from harness.runner.plan import make_plan
from harness.suite.make_groups import Overrides

pytestmark = pytest.mark.usefixtures("few_rows")
REPEATED = SMALL_SUITE.replace("seeds: [1, 2]", "seeds: [1, 2]\nrepeats: 3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, few_rows: None) -> Path:
    """The small suite run as it is, then with `repeats: 3`."""
    root = tmp_path_factory.mktemp("repeats")
    for text in (SMALL_SUITE, REPEATED):
        (root / "suite.yaml").write_text(text)
        harness.run(root / "suite.yaml", results=root / "results", quiet=True)
    return root


def results_of(folder: Path) -> list[Result]:
    return [result for _, result in ResultStore(folder / "results").scan()]


def ask(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_each_reported_cell_is_trained_three_times_and_a_rule_once(folder: Path) -> None:
    found = [(r.cell.label, r.cell.seed, r.cell.repeat, str(r.cell.grid)) for r in results_of(folder)]
    assert sorted(item for item in found if item[0] == "majority") == [("majority", n, 1, "{}") for n in (1, 2)]
    again = sorted(item[:3] for item in found if item[2] > 1)
    assert again == [(label, seed, n) for label in ("dept", "prompt_tuning") for seed in (1, 2) for n in (2, 3)]
    winner = {grid for label, seed, n, grid in found if (label, seed, n) == ("prompt_tuning", 2, 1)}
    assert {grid for label, _, n, grid in found if label == "prompt_tuning" and n > 1} == winner


def test_the_first_training_keeps_its_id_and_the_others_have_ids_of_their_own(folder: Path) -> None:
    plain = [r.cell for r in results_of(folder) if r.cell.repeat == 1]
    assert len(plain) == 7, "those of the suite without repeats, of which none was trained again"
    for cell in plain:
        others = [cell.model_copy(update={"repeat": n}) for n in (2, 3)]
        assert len({cell.cell_id, *(other.cell_id for other in others)}) == 3
        assert {other.group_id for other in others} == {cell.group_id}


def test_a_plan_counts_them_and_nothing_is_left_to_train(folder: Path) -> None:
    plan = make_plan(folder / "suite.yaml", Overrides(), folder / "results", None)
    assert plan.pending() == []
    assert sum(plan.num_cells(group) for group in plan.groups) == 7 + 8
    text = ask("plan", str(folder / "suite.yaml"), "--results", str(folder / "results"))
    assert "repeat" in text
    assert not any(plan.num_missing(i) for i in range(len(plan.groups)))


def test_repeats_wait_for_the_first_training(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(REPEATED)
    plan = make_plan(tmp_path / "suite.yaml", Overrides(), tmp_path / "results", None)
    assert {cell.repeat for cell in plan.pending()} == {1}


def test_repeats_are_asked_for_in_one_order_whatever_was_stored_first(small_results: Path, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(REPEATED)
    plan = make_plan(tmp_path / "suite.yaml", Overrides(), small_results, None)
    index = next(i for i, group in enumerate(plan.groups) if (group.label, group.repeat) == ("dept", 2))
    first = plan.results[index - 1]
    for stored in (first, dict(reversed(first.items()))):
        assert next_repeats(plan.groups[index], {}, stored) == [(0, 1), (0, 2)]


def test_no_mean_interval_test_or_count_holds_a_repeat(folder: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    shutil.copytree(folder / "results", first)
    for path, result in list(ResultStore(first).scan()):
        if result.cell.repeat > 1:
            path.unlink()
    whole, alone = (json.loads(ask("report", str(root), "--format", "json"))[0] for root in (folder / "results", first))
    assert whole["statistics"] == alone["statistics"]
    for row, bare in zip(whole["rows"], alone["rows"], strict=True):
        entry, other = row["tasks"]["micro_sentiment"], bare["tasks"]["micro_sentiment"]
        assert {key: entry[key] for key in other} == other
        assert ("reruns" in entry) == (row["label"] != "majority")
        assert all(len(scores) == 3 for scores in entry.get("reruns", {}).values())


def test_their_spread_stands_beside_that_of_seeds(folder: Path) -> None:
    text = ask("report", str(folder / "results"), "--format", "markdown")
    assert "± seeds" in text
    assert "± re-runs" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| dept")]
    assert "(2)" in row, "two seeds count"
    assert "(4)" in row, "two further trainings of each"
    lines = list(csv.DictReader(io.StringIO(ask("report", str(folder / "results"), "--format", "csv"))))
    counts = {line["method"]: line["num_reruns"] for line in lines if line["task"] != "average"}
    assert counts == {"majority": "0", "dept": "4", "prompt_tuning": "4"}


def test_pages_tell_repeats_apart(folder: Path, tmp_path: Path) -> None:
    ask("site", str(folder / "results"), "--out", str(tmp_path / "site"))
    runs = json.loads((tmp_path / "site" / "data" / "runs.json").read_text())
    told = {run["status"] for run in runs if run["repeat"] > 1}
    assert told == {"trained again: in the spread of re-runs alone"}
    assert {run["status"] for run in runs if run["repeat"] == 1 and run["row"] == "dept"} == {"in the table"}


def test_repeats_pass_the_verification_of_the_folder(folder: Path) -> None:
    assert "15" in ask("verify", str(folder / "results"))


def test_where_the_first_training_is_lost_the_next_stands_for_it(folder: Path) -> None:
    left = [r for r in results_of(folder) if (r.cell.label, r.cell.seed, r.cell.repeat) != ("dept", 1, 1)]
    (row,) = [row for row in collect_boards(left)[0].rows if row.label == "dept"]
    entry = row.entries["micro_sentiment"]
    assert sorted((run.cell.seed, run.cell.repeat) for run in entry.runs) == [(1, 2), (2, 1)]
    assert entry.num_reruns == 3
