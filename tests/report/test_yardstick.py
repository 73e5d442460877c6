"""Entries of one column that were scored on other rows, references, metrics or versions are never ranked together."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

import pytest
from layout_runs import made
from test_report import beside, result

from harness.data.record import Cuts
from harness.report.boards import Board, collect_boards
from harness.report.declared.find_entries import EntryIndex, keep_comparable
from harness.report.declared.table import fill_layout
from harness.report.fidelity import fidelity_of
from harness.report.figures.colours import method_looks
from harness.report.marks import mark_board
from harness.report.site.plots import scatter
from harness.report.statistics.significance import AVERAGE, assess_board
from harness.report.tables import render_boards
from harness.report.tuning import lay_out_tuning, tuning_records
from harness.report.yardstick import find_apart
from harness.results.predictions import Answers
from harness.results.schema import Result
from harness.suite.report_block import TableLayout


def with_data(run: Result, **changes: object) -> Result:
    assert run.data is not None
    return run.model_copy(update={"data": run.data.model_copy(update=changes)})


def cut(run: Result, limit: int) -> Result:
    cuts = Cuts(source_limit=99, target_limit=limit, sources={}, targets={"test": 3}, cuts_references=True)
    return with_data(run, cuts=cuts)


def in_metric(run: Result, **changes: object) -> Result:
    assert run.metrics is not None
    return run.model_copy(update={"metrics": run.metrics.model_copy(update=changes)})


OTHERS: dict[str, Callable[[Result], Result]] = {
    "rows": lambda run: with_data(run, fingerprint="other"),
    "references": lambda run: cut(run, 8),
    "metrics": lambda run: in_metric(run, signatures={"accuracy": "another version"}),
    "task versions": lambda run: run.model_copy(update={"cell": run.cell.model_copy(update={"task_version": 2})}),
}


def runs(change: Callable[[Result], Result]) -> list[Result]:
    """Two tasks; `odd` is best on both, and was measured otherwise on one of them."""
    scores = {"low": 50.0, "high": 60.0, "odd": 90.0}
    found = [
        cut(result(label, task, seed, 1, score), 20)
        for label, score in scores.items()
        for task in ("cb", "rte")
        for seed in (1, 2, 3)
    ]
    return [change(run) if (run.cell.label, run.cell.task) == ("odd", "cb") else run for run in found]


def read(run: Result) -> Answers:
    right = round(run.test.score) if run.test else 0
    return Answers(["1"] * right + ["0"] * (100 - right), [["1"]] * 100)


@pytest.fixture(params=list(OTHERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def board(kind: str) -> Board:
    return collect_boards(runs(OTHERS[kind]))[0]


def name_of(board: Board, label: str) -> str:
    return next(row.name for row in board.rows if row.label == label and "cb" in row.entries)


def test_an_entry_that_was_measured_otherwise_is_neither_bold_nor_tied_nor_second(board: Board, kind: str) -> None:
    odd, high, low = (name_of(board, label) for label in ("odd", "high", "low"))
    verdict = assess_board(board, read)
    assert not any(odd in (pair.one, pair.other) for pair in verdict.pairs if pair.column in ("cb", AVERAGE))
    assert (odd, "cb") not in verdict.ties
    for rule in ("ties", "best"):
        marks = mark_board(board, verdict, rule)
        assert marks.of(odd, "cb") == marks.of(odd, AVERAGE) == ""
        assert marks.of(high, "cb") == "best"
    assert marks.of(low, "cb") == "second"
    if kind != "task versions":  # which are rows of their own
        assert mark_board(board, verdict).of(odd, "rte") == "best", "where nothing differs, all are ranked"
    assert odd not in verdict.rankings.get("", verdict).ranks if verdict.rankings else True  # type: ignore[union-attr]


def test_the_table_says_which_and_why_in_every_format(board: Board, kind: str) -> None:
    sentence = f"scored with other {kind} than the rest: not ranked"
    for style in ("markdown", "terminal", "latex", "html"):
        assert sentence in render_boards([board], style)
        if kind != "task versions":  # whose rows lack a task, and so have no average
            assert "an average with a score that is not ranked is not ranked" in render_boards([board], style)
    lines = list(csv.DictReader(io.StringIO(render_boards([board], "csv"))))
    told = {(line["method"], line["task"]) for line in lines if line["not_ranked"] == sentence}
    assert told == {(name_of(board, "odd"), "cb")}
    (data,) = json.loads(render_boards([board], "json"))
    assert [row["tasks"]["cb"]["not_ranked"] for row in data["rows"] if "not_ranked" in row["tasks"].get("cb", {})] == [
        sentence
    ]


def test_a_page_draws_its_front_through_comparable_scores(board: Board) -> None:
    plot = scatter(board, None, method_looks(["low", "high", "odd"]))
    place = [row["name"] for row in plot["rows"]].index(name_of(board, "odd"))
    by_label = {axis["label"].split()[0]: axis["values"][place] for axis in plot["y"]}
    assert by_label["cb"] is None


def test_where_half_of_a_column_differs_nothing_is_ranked() -> None:
    whole = [result(label, "cb", seed, 1, 50) for label in ("a", "b") for seed in (1, 2, 3)]
    changed = [with_data(run, fingerprint="g") if run.cell.label == "b" else run for run in whole]
    (board,) = collect_boards(changed)
    assert {row.entries["cb"].apart for row in board.rows} == {
        "entries of this column were scored with different rows: not ranked"
    }
    assert not mark_board(board, assess_board(board, read), "best").ranks


def test_runs_of_one_entry_that_differ_are_not_ranked() -> None:
    whole = [result(label, "cb", seed, 1, 50) for label in ("a", "b", "c") for seed in (1, 2)]
    whole[0] = with_data(whole[0], fingerprint="g")
    (board,) = collect_boards(whole)
    assert [row.entries["cb"].apart for row in board.rows] == [
        "its runs were scored with different rows: not ranked", "", "",
    ]  # fmt: skip


def test_what_an_older_result_does_not_say_fits_any() -> None:
    new, old = cut(result("a", "cb", 1, 1, 50), 20), result("b", "cb", 1, 1, 50)
    assert find_apart({"new": [new], "old": [old], "bare": [old.model_copy(update={"data": None})]}) == {}


def test_limits_that_cut_nothing_and_metrics_that_are_not_reported_do_not_matter() -> None:
    base = [result(label, "cb", 1, 1, 50) for label in "abc"]
    limits = [cut(base[0], 20), cut(base[1], 30), base[2]]
    uncut = [
        with_data(run, cuts=run.data.cuts.model_copy(update={"targets": {}})) if run.data and run.data.cuts else run
        for run in limits
    ]
    assert find_apart({run.cell.label: [run] for run in uncut}) == {}
    assert list(find_apart({run.cell.label: [run] for run in limits[:2]})) == ["a", "b"], "where they were cut they do"
    extra = [in_metric(run, signatures={"bleu": version}) for run, version in zip(base, "123", strict=True)]
    assert find_apart({run.cell.label: [run] for run in extra}) == {}
    reported = [in_metric(run, reported=[name]) for run, name in zip(base, ("accuracy", "accuracy", "f1"), strict=True)]
    assert find_apart({run.cell.label: [run] for run in reported}) == {
        "c": "scored with other metrics than the rest: not ranked"
    }


def test_declared_tables_and_figures_leave_it_out_too() -> None:
    found = [made(method, "cb", score) for method, score in (("low", 50), ("high", 60), ("odd", 90))]
    found[2] = with_data(found[2], fingerprint="other")
    layout = TableLayout.model_validate({
        "title": "t", "rows": [{"title": m, "where": {"method": m}} for m in ("low", "high", "odd")],
        "columns": [{"title": "CB", "where": {"task": "cb"}}],
    })  # fmt: skip
    pool = EntryIndex(found)
    table, _ = fill_layout("t", layout, pool, bold="best")
    assert [row[1].rank for row in table.rows] == ["second", "best", ""]
    assert "scored with other rows than the rest: not ranked" in table.notes
    lines = {m: pool.find({"method": m}) for m in ("low", "high", "odd")}
    kept, reasons = keep_comparable(lines)
    assert list(kept) == ["low", "high"]
    assert reasons == ["odd on cb: scored with other rows than the rest: not ranked"]


def test_a_search_over_different_rows_chooses_nothing() -> None:
    grid = [result("grid", "cb", 1, dev, 50, lr=lr, index=i) for i, (dev, lr) in enumerate(((70, 0.1), (80, 0.2)))]
    assert len(tuning_records(collect_boards(grid)[0])) == 1
    grid[1] = with_data(grid[1], fingerprint="other")
    (board,) = collect_boards(grid)
    assert tuning_records(board) == []
    assert (
        "Left out: searches whose points were scored with different rows or metrics (1)."
        in lay_out_tuning(board).remarks
    )


def test_a_mixed_entry_is_not_held_beside_a_published_number() -> None:
    one, other = (result("dept", "cb", seed, 1, 50, backbone="t5-base", num_train=250) for seed in (1, 2))
    params = one.params and one.params.model_copy(update={"num_trained": 76_800, "num_kept": 76_800})
    both = [run.model_copy(update={"params": params}) for run in (one, other)]
    assert fidelity_of(beside("accept-2024", *both)).comparisons
    both[1] = with_data(both[1], fingerprint="other")
    told = fidelity_of(beside("accept-2024", *both))
    assert told.comparisons == []
    assert any("scored with different rows" in line for line in told.left_out)
