"""A sweep that was edited: what it tried before counts for the runner as it does for a table."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import SMALL_SUITE

import harness
from harness.cli.listings import describe_plan
from harness.report.boards import Entry, collect_boards
from harness.report.budgets import entry_budget
from harness.results.schema import Files, Result
from harness.results.store import ResultStore
from harness.runner.plan import Plan, make_plan
from harness.suite.make_groups import Overrides

pytestmark = pytest.mark.usefixtures("few_rows")
EDITED = SMALL_SUITE.replace("{sweep: [0.1, 0.3]}", "{sweep: [0.1, 0.5]}")


@pytest.fixture
def folder(small_results: Path, tmp_path: Path) -> Path:
    """The small suite's results, in which 0.3, a point that the edited sweep lacks, has the best dev score by far."""
    shutil.copytree(small_results, tmp_path / "results")
    store = ResultStore(tmp_path / "results")
    for _, result in list(store.scan()):
        if result.cell.label == "prompt_tuning" and result.cell.grid == {"recipe.lr": 0.3}:
            history = [item.model_copy(update={"selection": 101.0}) for item in result.dev_history]
            store.write(result.model_copy(update={"dev_history": history, "files": Files()}), [], None)
    (tmp_path / "suite.yaml").write_text(EDITED)
    return tmp_path


def plan_of(folder: Path) -> Plan:
    return make_plan(folder / "suite.yaml", Overrides(), folder / "results", None)


def results_of(folder: Path) -> list[Result]:
    found = [result for _, result in ResultStore(folder / "results").scan()]
    return [result for result in found if result.cell.label == "prompt_tuning"]


def entry_of(folder: Path) -> Entry:
    (board,) = collect_boards(results_of(folder))
    return board.rows[0].entries["micro_sentiment"]


def test_the_runner_chooses_among_the_points_that_the_table_counts(folder: Path) -> None:
    plan = plan_of(folder)
    (group,) = [group for group in plan.groups if group.label == "prompt_tuning"]
    assert [point["recipe.lr"] for point in group.points] == [0.3, 0.1, 0.5]
    assert (group.num_earlier, group.num_points, group.num_to_come) == (1, 3, 0)
    assert [cell.grid for cell in plan.pending()] == [{"recipe.lr": 0.5}]
    told = describe_plan(plan, probe=False)
    assert "Tried before: points of an earlier grid or of other ranges, which count too" in told["text"]
    assert [item["earlier_points"] for item in told["groups"]] == [0, 1, 0]
    harness.run(folder / "suite.yaml", results=folder / "results", quiet=True)
    entry, budget = entry_of(folder), entry_budget(entry_of(folder))
    assert (entry.num_grid_runs, budget and budget.trials) == (3, 3)
    assert [run.cell.seed for run in entry.runs] == [1, 2], "no seed is missing from the table"
    assert [run.cell.grid for run in entry.runs] == [{"recipe.lr": 0.3}] * 2
    assert plan_of(folder).pending() == []


def test_a_sweep_of_one_value_stands_behind_what_was_tried_before(folder: Path) -> None:
    (folder / "suite.yaml").write_text(SMALL_SUITE.replace("{sweep: [0.1, 0.3]}", "{sweep: [0.1]}"))
    plan = plan_of(folder)
    (group,) = [group for group in plan.groups if group.label == "prompt_tuning"]
    assert [point["recipe.lr"] for point in group.points] == [0.3, 0.1]
    stored = {(run.cell.grid["recipe.lr"], run.cell.seed) for run in results_of(folder)}
    missing = [0.3] if (0.3, 2) not in stored else []  # it has run the second seed if it won before the edit
    assert [cell.grid["recipe.lr"] for cell in plan.pending()] == missing


def test_an_unedited_sweep_reads_no_result_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "suite.yaml").write_text(SMALL_SUITE)
    read: list[Path] = []
    first = ResultStore.beside

    def counted(store: ResultStore, *args: object) -> list[Result]:
        found = first(store, *args)  # type: ignore[arg-type]
        read.extend(Path(result.cell_id) for result in found)
        return found

    monkeypatch.setattr(ResultStore, "beside", counted)
    assert not any(group.num_earlier for group in plan_of(folder).groups)
    assert read == []
