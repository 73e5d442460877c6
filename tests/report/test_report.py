"""Tables from results: golden files, marks, dashes, and the selection repeated from dev scores alone."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from paths import GOLDEN
from typer.testing import CliRunner

from harness.backbone.record import BackboneRecord
from harness.cli.commands import app
from harness.data.record import DataRecord, PromptRecord
from harness.errors import UserError
from harness.report.boards import Board, collect_boards
from harness.report.declared.find_entries import EntryIndex
from harness.report.declared.table import fill_layout
from harness.report.fidelity import lay_out_fidelity
from harness.report.published import find_published
from harness.report.tables import render_boards
from harness.report.tuning import lay_out_tuning
from harness.results.notes import COMMON_TO_AN_ENTRY, find_differences
from harness.results.schema import DevScore, Failure, MetricRecord, ParamCounts, Result, SplitScore
from harness.suite.blocks import Draw, ProtocolReference
from harness.suite.cell import Cell
from harness.suite.file_schema import Recipe
from harness.suite.report_block import TableLayout

ACCEPT, EPT = ProtocolReference(version=1), ProtocolReference(name="ept-2025", version=1)


def result(
    label: str, task: str, seed: int, dev: float, test: float | None, lr: float | None = None, index: int = 0,
    steps: int = 100, kept: int = 800, source: str = "a", backbone: str = "tiny", num_train: int = 9,
    num_unreadable: int = 0, protocol: ProtocolReference = ACCEPT, reported: str = "accuracy",
) -> Result:  # fmt: skip
    """A stored result; `test` None makes it a failure."""
    cell = Cell(
        suite="demo", label=label, method=label, hp={"rank": 4}, task=task, task_version=1, backbone=backbone,
        seed=seed, recipe=Recipe(steps=steps, lr=lr or 0.3), grid={} if lr is None else {"recipe.lr": lr},
        grid_index=index, search_seed=1, protocol=protocol,
    )  # fmt: skip
    base: dict[str, Any] = {"cell_id": cell.cell_id, "group_id": cell.group_id, "cell": cell, "method_sha256": source,
            "provenance": {}, "started_at": "", "finished_at": ""}  # fmt: skip
    if test is None:
        trace = Failure(type="RuntimeError", message="the training loss became nan", traceback="...")
        return Result(status="failed", failure=trace, **base)

    def split(value: float) -> SplitScore:
        return SplitScore(score=value, metrics={"accuracy": value}, num_rows=100, num_unreadable=num_unreadable)

    return Result(
        status="done", dev_history=[DevScore(step=10, selection=dev, metrics={"accuracy": dev})], selected_step=10,
        dev=split(dev), test=split(test), params=ParamCounts(num_trained=1_000, num_kept=kept),
        metrics=MetricRecord(reported=[reported], extra=[], selection="accuracy", labels=["0", "1"]),
        data=DataRecord(source="x", revision="", split_rule="", num_train=num_train, num_dev=9, num_test=9,
                        fingerprint="f"),
        backbone=BackboneRecord(source="x", revision="", fingerprint="w", num_params=5), **base,
    )  # fmt: skip


def searching(run: Result) -> Result:
    """The run as one of a search by its own seed, as with `tuning: {seeds: each}`."""
    return run.model_copy(update={"cell": run.cell.model_copy(update={"search_seed": run.cell.seed})})


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
    (made,) = collect_boards(demo())
    return made


def beside(spelling: str, *results: Result) -> Board:
    """The board of runs on T5-base, with a record beside it."""
    (made,) = collect_boards(results or on_t5(), find_published(spelling))
    return made


def on_t5() -> list[Result]:
    """A method far better and one far worse than everything published."""
    return [
        result(label, task, 1, dev=50, test=test, backbone="t5-base", num_train=250, num_unreadable=unreadable)
        for label, test, unreadable in (("best", 99.0, 0), ("worst", 10.0, 7))
        for task in ("cb", "rte")
    ]


@pytest.mark.parametrize("style", ["markdown", "terminal", "latex", "html", "csv", "json"])
@pytest.mark.parametrize("name", ["demo", "published"])
def test_each_format_equals_its_golden_file(name: str, style: str) -> None:
    made = board() if name == "demo" else beside("accept-2024")
    text, path = render_boards([made], style, bold="best"), GOLDEN / f"{name}.{style}"
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
    table = render_boards([board()], "markdown", bold="best")
    row = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    assert "**55.0**" in row["grid"]
    assert "**55.0**" in row["plain"]


def test_a_failed_cell_is_a_dash_with_a_footnote() -> None:
    table = render_boards([board()], "markdown")
    assert "– [4]" in table
    assert "1 of 1 runs failed: RuntimeError: the training loss became nan" in table


def test_an_average_needs_every_task() -> None:
    rows = {row.label: row for row in board().rows}
    assert rows["half"].average(["cb", "rte"]) is None
    assert rows["grid"].average(["cb", "rte"]) == pytest.approx((62 + 55.04) / 2)


def test_settings_that_differ_make_rows_of_their_own() -> None:
    (made,) = collect_boards([result("plain", "cb", 1, 1, 50, steps=100), result("plain", "cb", 1, 1, 60, steps=200)])
    assert sorted(row.name for row in made.rows) == ["plain (steps=100)", "plain (steps=200)"]


def test_runs_of_different_sources_in_one_entry_are_flagged() -> None:
    (made,) = collect_boards([result("plain", "cb", 1, 1, 50, source="a"), result("plain", "cb", 2, 1, 60, source="b")])
    assert made.rows[0].entries["cb"].mixed == ["method source"]
    assert "runs differ in method source" in render_boards([made], "markdown")


def test_the_order_of_results_changes_nothing() -> None:
    shuffled = copy.copy(demo())
    shuffled.reverse()
    assert render_boards(collect_boards(shuffled), "json") == render_boards(collect_boards(demo()), "json")


def test_csv_and_json_hold_the_same_numbers() -> None:
    rows = [row for row in csv.DictReader(io.StringIO(render_boards([board()], "csv"))) if row["task"] != "average"]
    as_json = {row["method"]: row["tasks"] for row in json.loads(render_boards([board()], "json"))[0]["rows"]}
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
    (made,) = collect_boards([*first, follower, own])
    entry = made.rows[0].entries["cb"]
    assert entry.scores == [60, 70]
    assert entry.num_grid_runs == 4


def test_a_failed_first_seed_does_not_hide_the_others() -> None:
    runs = [result("plain", "cb", 1, 0, None), result("plain", "cb", 2, 1, 80), result("plain", "cb", 3, 1, 80)]
    (made,) = collect_boards(runs)
    assert made.rows[0].entries["cb"].scores == [80, 80]
    assert "1 of 3 runs failed" in render_boards([made], "markdown")


def test_results_that_differ_in_length_or_task_version_are_rows_of_their_own() -> None:
    one = result("plain", "cb", 1, 1, 50)
    for change in ({"recipe": one.cell.recipe.model_copy(update={"max_source_length": 64})}, {"task_version": 2}):
        other = one.model_copy(update={"cell": one.cell.model_copy(update=change)})
        other = other.model_copy(update={"cell_id": other.cell.cell_id, "group_id": other.cell.group_id})
        (made,) = collect_boards([one, other])
        assert len(made.rows) == 2


def test_a_column_made_with_different_rows_says_so() -> None:
    one, other = result("plain", "cb", 1, 1, 50), result("grid", "cb", 1, 1, 60)
    assert other.data is not None
    other = other.model_copy(update={"data": other.data.model_copy(update={"fingerprint": "other"})})
    text = render_boards(collect_boards([one, other]), "markdown")
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


def test_unreadable_answers_of_all_runs_are_told_in_a_footnote() -> None:
    runs = [result("plain", "cb", seed, 1, 50, num_unreadable=seed) for seed in (1, 2)]
    (made,) = collect_boards(runs)
    assert "| 50.0 ±0.0 (2) [1] |" in render_boards([made], "markdown")
    assert "[1] 3 of 200 answers unreadable, so wrong" in render_boards([made], "markdown")
    row = next(csv.DictReader(io.StringIO(render_boards([made], "csv"))))
    assert (row["num_unreadable"], row["num_answers"]) == ("3", "200")
    assert "unreadable" not in render_boards([board()], "markdown")


def test_published_rows_stand_below_and_change_nothing_above() -> None:
    (alone,) = collect_boards(on_t5())
    plain = render_boards([alone], "json")
    with_record = json.loads(render_boards([beside("accept-2024")], "json"))
    assert with_record[0]["rows"] == json.loads(plain)[0]["rows"]
    lines = [line for line in render_boards([beside("accept-2024")], "markdown").splitlines() if line.startswith("| ")][
        1:
    ]
    measured = [line for line in lines if ", published [" not in line]
    assert lines[:2] == measured
    assert len(lines) > 10


def test_published_numbers_are_never_marked_and_never_ranked() -> None:
    for results in (on_t5(), [item for item in on_t5() if item.cell.label == "worst"]):
        for style, marks in (("markdown", ("**", "<u>")), ("terminal", ("*", "_"))):
            rows = [
                line
                for line in render_boards([beside("accept-2024", *results)], style, bold="best").splitlines()
                if ", published" in line
            ]
            assert rows
            assert not any(mark in line for line in rows for mark in marks)
    only_worst = beside("accept-2024", *[item for item in on_t5() if item.cell.label == "worst"])
    assert "**10.0**" in render_boards([only_worst], "markdown", bold="best")


def test_a_published_row_names_its_source_and_what_it_was_cited_from() -> None:
    text = render_boards([beside("accept-2024")], "markdown")
    row = next(line for line in text.splitlines() if line.startswith("| LoRA, published"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["3.8M", "", "75.5", "92.9", "84.2"]
    number = row.partition("[")[2].partition("]")[0]
    note = next(line for line in text.splitlines() if line.startswith(f"[{number}]"))
    assert "published: Lin et al. 2024, arXiv:2410.12847, Table 1; cited there from Shi & Lipani 2024" in note


def test_a_row_from_two_tables_names_both() -> None:
    runs = [result("best", "rte", 1, 1, 50, backbone="t5-base", num_train=2_490)]
    other = result("best", "newsqa", 1, 1, 50, backbone="t5-base", num_train=73_160)
    other = other.model_copy(
        update={"metrics": MetricRecord(reported=["token_f1"], extra=[], selection="token_f1", labels=[])}
    )
    row = next(row for row in beside("accept-2024", *runs, other).published if row.method == "ACCEPT")
    assert row.origin == "Lin et al. 2024, arXiv:2410.12847, Table 1 and Table 2"
    assert row.params == ["74.9K", "74.2K"]
    assert row.average(["newsqa", "rte"]) == pytest.approx((64.6 + 86.3) / 2)


def test_published_tables_of_parts_are_shown_by_name_only() -> None:
    names = {row.method for row in beside("accept-2024").published}
    assert {"ACCEPT", "DePT", "PT", "LoRA"} <= names
    assert not any(name.startswith(("SCPP", "SCAP")) for name in names)
    table = beside("accept-2024:Table 12").published
    assert {name.split()[0] for name in (row.method for row in table)} == {"SCPP", "SCAP"}
    assert {task for row in table for task in row.numbers} == {"rte"}


def test_few_shot_numbers_stand_beside_few_shot_runs_only() -> None:
    assert {row.k_shot for row in beside("accept-2024").published} == {None}
    few = [result("best", "cb", 1, 1, 50, backbone="t5-base", num_train=n, steps=n) for n in (16, 30)]
    rows = {row.name: row for row in beside("accept-2024", *few).published}
    assert {row.k_shot for row in rows.values()} == {16, 32}
    assert rows["ACCEPT (k=32)"].numbers["cb"].value == 83.3


def test_numbers_in_another_metric_are_left_out() -> None:
    runs = [item.model_copy(update={"metrics": MetricRecord(reported=["macro_f1"], extra=[], selection="macro_f1",
            labels=["0", "1"])}) for item in on_t5() if item.cell.task == "cb"]  # fmt: skip
    assert beside("accept-2024", *runs).published == []
    assert {row.numbers["cb"].value for row in beside("dept-code", *runs).published} == {89.5031}


@pytest.mark.parametrize("style", ["markdown", "terminal", "json"])
@pytest.mark.parametrize("spelling", ["accept-2024", "ept-2025"])
def test_a_board_without_published_numbers_says_so_once(style: str, spelling: str) -> None:
    runs = demo() if spelling == "accept-2024" else on_t5()
    text = render_boards([beside(spelling, *runs)], style)
    assert text.count(f"{spelling} has no score on {runs[0].cell.backbone} for these tasks") == 1


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("acept-2024", "did you mean accept-2024"),
        ("accept-2024:Table 99", "allowed: Table 1, Table 2"),
        ("accept-2024:table 13", "did you mean Table 13"),
    ],
)
def test_an_unknown_record_or_table_is_a_mistake_with_choices(spelling: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        find_published(spelling)


def test_the_command_says_that_a_backbone_has_no_published_numbers(small_results: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(small_results), "--published", "accept-2024"])
    assert done.exit_code == 0
    assert "accept-2024 has no score on micro-t5 for these tasks." in done.output


def test_a_row_whose_tasks_were_run_under_different_protocols_says_so() -> None:
    boards = collect_boards(
        [result("a", "cb", 1, 1, 50), result("a", "rte", 1, 1, 60, protocol=EPT), result("b", "cb", 1, 1, 40)]
    )
    text = render_boards(boards, "markdown")
    assert "a [1]" in text
    assert "[1] tasks of this row were run under different protocols: accept-2024; ept-2025" in text
    assert "b [" not in text
    assert "Protocol accept-2024 and ept-2025" in text


def test_a_column_whose_rows_were_run_under_different_protocols_says_so() -> None:
    changed = ProtocolReference(version=1, overrides={"report.cb": "macro_f1"})
    boards = collect_boards(
        [result("a", "cb", 1, 1, 50), result("b", "cb", 1, 1, 60, protocol=changed, reported="macro_f1")]
    )
    text = render_boards(boards, "markdown")
    assert "cb (Acc. or Macro-F1) [1]" in text
    assert "[1] rows of this column were made with different protocols" in text


def test_a_label_whose_settings_two_protocols_set_is_two_rows() -> None:
    board = collect_boards([result("a", "cb", 1, 1, 50), result("a", "cb", 1, 1, 60, steps=200, protocol=EPT)])[0]
    assert [row.name for row in board.rows] == [
        "a (steps=100, protocol=accept-2024)",
        "a (steps=200, protocol=ept-2025)",
    ]


def with_data(item: Result, **data: object) -> Result:
    assert item.data is not None
    return item.model_copy(update={"data": item.data.model_copy(update=data)})


@pytest.mark.parametrize("style", ["markdown", "terminal", "latex", "html", "json"])
def test_test_rows_that_stand_in_train_are_told_in_every_format(style: str) -> None:
    runs = [with_data(result("plain", "cb", seed, 1, 50), num_duplicates=3, num_dev=40, num_test=58) for seed in (1, 2)]
    made = collect_boards([*runs, result("plain", "rte", 1, 1, 50)])
    assert "cb: 3 of 98 dev and test rows also stand in train" in render_boards(made, style)
    assert "also stand in train" not in render_boards(collect_boards(demo()), style)


def test_rows_that_stand_in_train_are_counted_per_entry_and_by_draw() -> None:
    runs = [
        with_data(result(label, "cb", seed, 1, 50), num_duplicates=count, num_dev=dev, num_test=58)
        for label, seed, count, dev in (("one", 1, 0, 40), ("one", 2, 5, 40), ("two", 1, 3, 4))
    ]
    (made,) = collect_boards(runs)
    assert made.overlaps["cb"].startswith("cb: 3 of 62 or 0 to 5 of 98 dev and test rows")
    rows = [row for row in csv.DictReader(io.StringIO(render_boards([made], "csv"))) if row["task"] == "cb"]
    assert {row["method"]: row["num_duplicates"] for row in rows} == {"one": "5", "two": "3"}


def test_other_tables_mark_tasks_whose_rows_stand_in_train() -> None:
    sentence = "cb: 3 of 98 dev and test rows also stand in train, which rewards memory"
    shared = {"num_duplicates": 3, "num_dev": 40, "num_test": 58, "num_train": 250}
    grid = [with_data(result("grid", "cb", 1, dev, 50, lr=lr), **shared) for dev, lr in ((70, 0.1), (80, 0.2))]
    (made,) = collect_boards(grid)
    assert sentence in lay_out_tuning(made).notes
    params = ParamCounts(num_trained=76_800, num_kept=76_800)
    run = with_data(result("dept", "cb", 1, 1, 50, backbone="t5-base"), **shared).model_copy(update={"params": params})
    assert sentence in lay_out_fidelity(collect_boards([run], find_published("accept-2024"))[0]).notes


def test_failed_grid_runs_are_told_beside_a_failed_seed() -> None:
    runs = [
        result("grid", "cb", 1, dev=70, test=50, lr=0.1),
        result("grid", "cb", 1, dev=80, test=60, lr=0.2, index=1),
        result("grid", "cb", 1, dev=0, test=None, lr=0.3, index=2),
        result("grid", "cb", 2, dev=0, test=None, lr=0.2, index=1),
    ]
    text = render_boards(collect_boards(runs), "markdown")
    assert "1 of 3 grid runs failed" in text
    assert "1 of 2 runs failed" in text
    hopeless = [result("grid", "cb", 1, dev=0, test=None, lr=lr, index=i) for i, lr in enumerate((0.1, 0.2))]
    assert "grid runs failed" not in render_boards(
        collect_boards(hopeless), "markdown"
    )  # the dash says "2 of 2 runs failed"


def test_runs_of_two_commits_in_one_entry_are_marked() -> None:
    def at(commit: str, seed: int, dirty: bool = False) -> Result:
        return result("plain", "cb", seed, 1, 50).model_copy(update={"provenance": {"commit": commit, "dirty": dirty}})

    text = render_boards(collect_boards([at("a" * 40, 1), at("b" * 40, 2)]), "markdown")
    assert "| 50.0 ±0.0 (2) [1] |" in text
    assert f"[1] runs were made at 2 commits of the harness: {'a' * 10}, {'b' * 10}" in text
    assert "2 commits of the harness" in render_boards(
        collect_boards([at("a" * 40, 1), at("a" * 40, 2, dirty=True)]), "markdown"
    )
    assert "commits of the harness" not in render_boards(collect_boards([at("a" * 40, 1), at("a" * 40, 2)]), "markdown")


def test_each_draw_of_a_searched_seed_is_a_search_of_its_own() -> None:
    def drawn(draw: int, *place: object, **settings: object) -> Result:
        made = moved(result("grid", "cb", *place, **settings), few_shot=Draw(k=4, rule="balanced", seed=draw))  # type: ignore[arg-type]
        return made.model_copy(update={"cell_id": made.cell.cell_id, "group_id": made.cell.group_id})

    runs = [
        drawn(7, 1, dev=70, test=50, lr=0.1),
        drawn(7, 1, dev=80, test=60, lr=0.2, index=1),
        drawn(9, 1, dev=95, test=70, lr=0.1),
        drawn(9, 1, dev=90, test=40, lr=0.2, index=1),
        drawn(8, 2, dev=10, test=62, lr=0.2, index=1),  # ran the winner of draw 7
        drawn(10, 2, dev=10, test=72, lr=0.1),  # ran the winner of draw 9
    ]
    entry = collect_boards(runs)[0].rows[0].entries["cb"]
    assert entry.scores == [60, 70, 62, 72]
    assert (len(entry.searches), entry.num_grid_runs) == (2, 4)


def test_a_column_made_with_different_prompts_says_so() -> None:
    """Another template is another task; a result from before there were forms has the papers' own."""
    one, other, rule = (result(label, "cb", 1, 1, 50) for label in ("plain", "grid", "majority"))
    weights = BackboneRecord(source="x", revision="", fingerprint="w", num_params=9)
    assert other.data is not None
    text = "rows of this column were made with different prompt forms: not comparable"
    for prompt, is_told in (
        (PromptRecord(), False),
        (PromptRecord(form="plain"), True),
        (PromptRecord(form="chat", template="a"), True),
        (PromptRecord(system="Be brief."), True),
    ):
        changed = other.data.model_copy(update={"prompt": prompt})
        runs = [
            one.model_copy(update={"backbone": weights}),
            other.model_copy(update={"data": changed, "backbone": weights}),
        ]
        assert (text in render_boards(collect_boards([*runs, rule]), "markdown")) == is_told
    joined = changed.model_copy(update={"prompt": PromptRecord(), "parts": {"a": changed}})
    runs[1] = runs[1].model_copy(update={"data": joined})
    assert find_differences(runs, COMMON_TO_AN_ENTRY) == ["prompt forms"]


def test_a_row_whose_answers_are_read_off_by_a_head_says_so() -> None:
    """In every format of a leaderboard, on which tasks if not on all; in a declared table below it."""

    def headed(run: Result) -> Result:
        cell = run.cell.model_copy(update={"recipe": run.cell.recipe.model_copy(update={"head": "linear"})})
        return run.model_copy(update={"cell": cell, "cell_id": cell.cell_id, "group_id": cell.group_id})

    whole = [headed(result("read", task, 1, 50, 60)) for task in ("cb", "rte")]
    some = [headed(result("some", "cb", 1, 50, 60)), result("some", "rte", 1, 50, 60)]
    plain = [result("written", task, 1, 50, 60) for task in ("cb", "rte")]
    note = "answers are read off by a trained head (recipe.head: linear)"
    for style in ("markdown", "terminal", "latex", "html"):
        assert note in render_boards(collect_boards(whole), style)
        assert note not in render_boards(collect_boards(plain), style)
    assert f"{note}, whose weights params leave out, on cb" in render_boards(collect_boards(some), "markdown")
    lines = list(csv.DictReader(io.StringIO(render_boards(collect_boards(some), "csv"))))
    assert {line["task"]: line["heads"] for line in lines} == {"cb": "linear", "rte": "", "average": ""}
    (board,) = json.loads(render_boards(collect_boards(some), "json"))
    tasks = board["rows"][0]["tasks"]
    assert (tasks["cb"]["heads"], "heads" in tasks["rte"]) == (["linear"], False)
    layout = TableLayout.model_validate({
        "title": "t", "rows": [{"title": m, "where": {"method": m}} for m in ("read", "written")],
        "columns": [{"title": "CB", "where": {"task": "cb"}}],
    })  # fmt: skip
    table, _ = fill_layout("t", layout, EntryIndex([*whole, *plain]), bold="best")
    assert [text for text in table.remarks if note in text] == [f"read: {note}, whose weights params leave out."]


def test_a_seed_that_follows_a_search_does_not_choose_for_itself_after_a_rerun() -> None:
    """The second seed ran the former winner of two points, then the one of today; its own dev scores choose nothing."""
    runs = [
        result("grid", "cb", 1, dev=50, test=60, lr=0.1, index=0),
        result("grid", "cb", 1, dev=55, test=62, lr=0.2, index=1),
        result("grid", "cb", 2, dev=90, test=99, lr=0.1, index=0),
        result("grid", "cb", 2, dev=50, test=64, lr=0.2, index=1),
    ]
    entry = collect_boards(runs)[0].rows[0].entries["cb"]
    assert entry.scores == [62, 64]
    assert (entry.num_grid_runs, len(entry.searches)) == (2, 1)
