"""Tables from results: golden files, marks, dashes, and the selection repeated from dev scores alone."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
from pathlib import Path

import pytest

from harness.report.aggregate import Board, collect
from harness.report.tables import render
from harness.schema import (
    BackboneRecord,
    Cell,
    DataRecord,
    DevScore,
    Failure,
    MetricRecord,
    ParamCounts,
    Recipe,
    Result,
    SplitScore,
)  # fmt: skip

GOLDEN = Path(__file__).parent / "golden"


def result(
    label: str, task: str, seed: int, dev: float, test: float | None, lr: float | None = None, index: int = 0,
    steps: int = 100, kept: int = 800, source: str = "a",
) -> Result:  # fmt: skip
    """A stored result; `test` None makes it a failure."""
    cell = Cell(
        suite="demo", label=label, method=label, hp={"rank": 4}, task=task, task_version=1, backbone="tiny", seed=seed,
        recipe=Recipe(steps=steps, lr=lr or 0.3), grid={} if lr is None else {"recipe.lr": lr}, grid_index=index,
        search_seed=1,
    )  # fmt: skip
    base = {"cell_id": cell.cell_id, "group_id": cell.group_id, "cell": cell, "method_sha256": source,
            "provenance": {}, "started_at": "", "finished_at": ""}  # fmt: skip
    if test is None:
        trace = Failure(type="RuntimeError", message="the training loss became nan", traceback="...")
        return Result(status="failed", failure=trace, **base)

    def split(value: float) -> SplitScore:
        return SplitScore(score=value, metrics={"accuracy": value}, num_rows=100, num_unreadable=0)

    return Result(
        status="done", dev_history=[DevScore(step=10, selection=dev, metrics={"accuracy": dev})], selected_step=10,
        dev=split(dev), test=split(test), params=ParamCounts(num_trained=1_000, num_kept=kept),
        metrics=MetricRecord(reported=["accuracy"], extra=[], selection="accuracy", labels=["0", "1"]),
        data=DataRecord(source="x", revision="", split_rule="", num_train=9, num_dev=9, num_test=9, fingerprint="f"),
        backbone=BackboneRecord(source="x", revision="", fingerprint="w", num_params=5), **base,
    )  # fmt: skip


def demo() -> list[Result]:
    return [
        # the point that is better on test loses on dev and must not be shown
        result("grid", "cb", 1, dev=70, test=90, lr=0.1, index=0),
        result("grid", "cb", 1, dev=80, test=60, lr=0.2, index=1),
        result("grid", "cb", 2, dev=75, test=64, lr=0.2, index=1),
        result("grid", "rte", 1, dev=50, test=55.04, lr=0.1),
        result("grid", "rte", 1, dev=50, test=99, lr=0.2, index=1),
        result("grid", "rte", 1, dev=0, test=None, lr=0.3, index=2),
        result("plain", "cb", 1, dev=60, test=61),
        result("plain", "cb", 2, dev=60, test=None),
        result("plain", "rte", 1, dev=60, test=55.0),
        result("plain", "rte", 2, dev=60, test=55.0),
        result("hopeless", "cb", 1, dev=0, test=None, kept=1_000),
        result("half", "rte", 1, dev=1, test=40.0, kept=1_000),
    ]


def board() -> Board:
    (made,) = collect(demo())
    return made


@pytest.mark.parametrize("style", ["markdown", "terminal", "csv", "json"])
def test_each_format_equals_its_golden_file(style: str) -> None:
    text, path = render([board()], style), GOLDEN / f"demo.{style}"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), "if the change is meant, run once with UPDATE_GOLDEN=1 and read the difference"


def test_the_winner_on_dev_is_shown_and_never_the_winner_on_test() -> None:
    entry = next(row for row in board().rows if row.label == "grid").entries["cb"]
    assert entry.scores == [60, 64]
    assert entry.grid == [{"recipe.lr": 0.2}]
    assert entry.num_grid_runs == 2


def test_equal_dev_scores_go_to_the_earliest_grid_point() -> None:
    assert next(row for row in board().rows if row.label == "grid").entries["rte"].scores == [55.04]


def test_what_prints_equal_is_marked_equal() -> None:
    table = render([board()], "markdown")
    row = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    assert "**55.0**" in row["grid"]
    assert "**55.0**" in row["plain"]


def test_a_failed_cell_is_a_dash_with_a_footnote() -> None:
    table = render([board()], "markdown")
    assert "– [3]" in table
    assert "1 of 1 runs failed: RuntimeError: the training loss became nan" in table


def test_an_average_needs_every_task() -> None:
    rows = {row.label: row for row in board().rows}
    assert rows["half"].average(["cb", "rte"]) is None
    assert rows["grid"].average(["cb", "rte"]) == pytest.approx((62 + 55.04) / 2)


def test_settings_that_differ_make_rows_of_their_own() -> None:
    (made,) = collect([result("plain", "cb", 1, 1, 50, steps=100), result("plain", "cb", 1, 1, 60, steps=200)])
    assert sorted(row.name for row in made.rows) == ["plain (steps=100)", "plain (steps=200)"]


def test_runs_of_different_sources_in_one_entry_are_flagged() -> None:
    (made,) = collect([result("plain", "cb", 1, 1, 50, source="a"), result("plain", "cb", 2, 1, 60, source="b")])
    assert made.rows[0].entries["cb"].mixed == ["method source"]
    assert "runs differ in method source" in render([made], "markdown")


def test_the_order_of_results_changes_nothing() -> None:
    shuffled = copy.copy(demo())
    shuffled.reverse()
    assert render(collect(shuffled), "json") == render(collect(demo()), "json")


def test_csv_and_json_hold_the_same_numbers() -> None:
    rows = [row for row in csv.DictReader(io.StringIO(render([board()], "csv"))) if row["task"] != "average"]
    as_json = {row["method"]: row["tasks"] for row in json.loads(render([board()], "json"))[0]["rows"]}
    for row in rows:
        mean = as_json[row["method"]][row["task"]]["mean"]
        assert (row["mean"] == "") == (mean is None)
        assert mean is None or float(row["mean"]) == pytest.approx(mean, abs=1e-4)


def moved(item: Result, **placement: object) -> Result:
    """The same result as another run of the harness would have placed it."""
    return item.model_copy(update={"cell": item.cell.model_copy(update=placement)})


def test_a_seed_that_was_searched_later_counts_once() -> None:
    first = [
        result("grid", "cb", 1, dev=70, test=50, lr=0.1),
        result("grid", "cb", 1, dev=80, test=60, lr=0.2, index=1),
    ]
    follower = result("grid", "cb", 2, dev=75, test=64, lr=0.2, index=1)  # placed as the winner of seed 1
    own = moved(result("grid", "cb", 2, dev=90, test=70, lr=0.1), search_seed=2)
    (made,) = collect([*first, follower, own])
    entry = made.rows[0].entries["cb"]
    assert entry.scores == [60, 70]
    assert entry.num_grid_runs == 4


def test_a_failed_first_seed_does_not_hide_the_others() -> None:
    runs = [result("plain", "cb", 1, 0, None), result("plain", "cb", 2, 1, 80), result("plain", "cb", 3, 1, 80)]
    (made,) = collect(runs)
    assert made.rows[0].entries["cb"].scores == [80, 80]
    assert "1 of 3 runs failed" in render([made], "markdown")


def test_results_that_differ_in_length_or_task_version_are_rows_of_their_own() -> None:
    one = result("plain", "cb", 1, 1, 50)
    for change in ({"recipe": one.cell.recipe.model_copy(update={"max_source_length": 64})}, {"task_version": 2}):
        other = one.model_copy(update={"cell": one.cell.model_copy(update=change)})
        other = other.model_copy(update={"cell_id": other.cell.cell_id, "group_id": other.cell.group_id})
        (made,) = collect([one, other])
        assert len(made.rows) == 2


def test_a_column_made_with_different_rows_says_so() -> None:
    one, other = result("plain", "cb", 1, 1, 50), result("grid", "cb", 1, 1, 60)
    assert other.data is not None
    other = other.model_copy(update={"data": other.data.model_copy(update={"fingerprint": "other"})})
    text = render(collect([one, other]), "markdown")
    assert "rows of this column were made with different rows: not comparable" in text


def test_a_source_length_swept_with_the_text_length_stays_one_group() -> None:
    cells = [
        result("plain", "cb", 1, 1, 50).cell.model_copy(
            update={"hp": {"source_length": n}, "grid": {"recipe.max_source_length": n},
                    "recipe": Recipe(max_source_length=n)}
        )
        for n in (32, 64)
    ]  # fmt: skip
    assert cells[0].group_id == cells[1].group_id
