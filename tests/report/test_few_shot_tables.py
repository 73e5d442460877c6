"""Few-shot rows in reports: in the order of k, and ranked among rows of one k alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_runs import made
from site_pages import Document, check_cell_page, check_links
from typer.testing import CliRunner

from harness.cli.commands import app
from harness.data.record import DrawRecord
from harness.report.boards import Board, collect_boards, peers
from harness.report.declared.find_entries import EntryIndex
from harness.report.declared.table import fill_layout
from harness.report.figures.colours import method_looks
from harness.report.leaderboard_table import lay_out
from harness.report.marks import mark_board, mark_within_k
from harness.report.site.grids import board_grid
from harness.report.site.names import board_id, cell_page
from harness.report.site.plots import scatter
from harness.report.statistics.significance import AVERAGE, assess_board
from harness.results.predictions import Answers
from harness.results.schema import Failure, Result, StartRecord
from harness.results.store import ResultStore
from harness.suite.blocks import Draw
from harness.suite.report_block import TableLayout

NAMES = ("lora", "ept", "dept")


def drawn(method: str, k: int | None, score: float, task: str = "cb", seed: int = 1, **options: object) -> Result:
    """A finished run that saw k rows, or all."""
    result = made(method, task, score, seed=seed, **options)  # type: ignore[arg-type]
    draw = None if k is None else Draw(k=k, rule="balanced", seed=seed)
    cell = result.cell.model_copy(update={"few_shot": draw})
    return result.model_copy(update={"cell": cell, "cell_id": cell.cell_id, "group_id": cell.group_id})


@pytest.fixture
def board() -> Board:
    """Scores that grow with k by more than methods differ, so that marks over all rows would be those of k=32."""
    runs = [
        drawn(name, k, 50 + k + place, task, trained)
        for task in ("cb", "rte", "boolq")
        for trained in (1, 2)
        for place, name in enumerate(NAMES)
        for k in (16, 32, 4)
    ]
    return collect_boards(runs)[0]


def test_rows_stand_in_the_order_of_k(board: Board) -> None:
    assert [row.k for row in board.rows] == [4, 4, 4, 16, 16, 16, 32, 32, 32]
    assert {title: len(rows) for title, rows in peers(board.rows).items()} == {"k=4": 3, "k=16": 3, "k=32": 3}


def test_settings_in_names_are_ordered_by_value() -> None:
    runs = [made("lora", "cb", 60, hp={"rank": rank}) for rank in (16, 2, 128, 4)]
    assert [row.name for row in collect_boards(runs)[0].rows] == [f"lora (rank={rank})" for rank in (2, 4, 16, 128)]


def test_best_and_second_are_those_of_each_k(board: Board) -> None:
    table = lay_out(board, marks=mark_board(board, None, "best"))
    for index, column in enumerate(table.columns):
        if column.task or column.title == "average":
            for row in table.rows:
                name = row[0].text.split()[0]
                assert row[index].rank == {"dept": "best", "ept": "second", "lora": ""}[name]
    assert "among rows of one k" in table.caption
    places = {"dept": "best", "ept": "second", "lora": ""}
    assert mark_within_k(board, ("cb", "rte")) == [places[row.label] for row in board.rows], "as on pages"


def test_statistics_compare_rows_of_one_k_alone(board: Board) -> None:
    def read(result: Result) -> Answers:
        right = round(result.test.score) if result.test else 0
        return Answers(["1"] * right + ["0"] * (100 - right), [["1"]] * 100)

    verdict = assess_board(board, read)
    k = {row.name: row.k for row in board.rows}
    assert verdict.pairs
    assert all(k[pair.one] == k[pair.other] for pair in verdict.pairs)
    assert {k[name] for name, column in verdict.ties if column == AVERAGE} <= {4, 16, 32}
    assert set(verdict.rankings) == {"k=4", "k=16", "k=32"}
    assert all(sorted(ranking.ranks.values()) == [1, 2, 3] for ranking in verdict.rankings.values())
    stored = verdict.as_json()
    assert stored["ranking"] is None
    assert set(stored["rankings"]) == {"k=4", "k=16", "k=32"}
    remarks = " ".join(lay_out(board, significance=verdict).remarks)
    assert remarks.index("within k=4") < remarks.index("within k=16") < remarks.index("within k=32")


@pytest.mark.parametrize(
    "runs",
    [
        [drawn("lora", 4, 60, "cb"), drawn("lora", 16, 70, "rte")],
        [drawn("lora", 4, 60), drawn("ept", 16, 70)],
        [drawn("lora", 4, 60), drawn("lora", None, 70)],
    ],
    ids=["one label, each k on another task", "each k of another label", "few rows beside all"],
)
def test_scores_of_different_k_are_never_one_row_nor_unmarked(runs: list[Result]) -> None:
    (board,) = collect_boards(runs)
    assert len(board.rows) == 2
    assert board.rows[0].name.endswith("(k=4)")
    assert board.rows[1].name.endswith("(k=16)") or board.rows[1].name == "lora (k=all)"
    marked = lay_out(board, marks=mark_board(board, None, "best"))
    assert all("best" in {cell.rank for cell in row} for row in marked.rows if "–" not in row[-1].text)


def test_a_declared_table_ranks_within_one_k() -> None:
    layout = TableLayout.model_validate(
        {
            "title": "t",
            "heads": ["method"],
            "columns": [{"title": "CB", "where": {"task": "cb"}}],
            "rows": [{"title": f"{n} {k}", "where": {"method": n, "few_shot.k": k}} for n in NAMES for k in (4, 32)],
        }
    )
    runs = [drawn(name, k, 50 + k + place) for place, name in enumerate(NAMES) for k in (4, 32)]
    table, _ = fill_layout("t", layout, EntryIndex(runs, {"few_shot.k", "method", "task"}), bold="best")
    assert [row[1].rank for row in table.rows] == ["", "", "second", "second", "best", "best"]


def test_the_page_has_the_average_first_and_a_group_for_each_k(board: Board) -> None:
    styles = method_looks(NAMES)
    assert [column.title for column in board_grid(board, None, styles).columns][:2] == ["method", "average"]
    assert [row["group"] for row in scatter(board, None, styles)["rows"]] == [f"k={row.k}" for row in board.rows]


def test_ids_of_boards_differ_whatever_their_names_share() -> None:
    names = [("a-on-b", "c"), ("a", "b-on-c"), ("a", "b"), ("a", "b.title"), ("a.b", "title"), ("a", "b-title")]
    boards = [collect_boards([made("lora", "cb", 60, suite=suite, backbone=on)])[0] for suite, on in names]
    ids = [f"{board_id(board)}{end}" for board in boards for end in ("", ".title", ".table", ".note-1", ".row.lora")]
    assert len(set(ids)) == len(ids)


ODD = {
    "rank": None,
    "list": [1, {"a": "<b>"}],
    "text": "</script><b>'\"&",
    "flag": True,
    "small": 1e-30,
    "inf": float("inf"),
}


def odd_results() -> list[Result]:
    """Every way in which a result may lack or hold something."""
    base = made("lora", "cb", 60, hp=ODD, grid={"hp.text": ODD["text"], "recipe.lr": 1e-30})
    failure = Failure(type="E<b>", message="\x00é</pre>\udcff", traceback="a\nb")
    draw = DrawRecord(rows=[1, 2], class_counts={"<0>": 1}, fingerprint="f1", num_selection_labels=2)
    assert base.data is not None
    return [
        base,
        drawn("ept", 4, 50).model_copy(update={"data": base.data.model_copy(update={"few_shot": draw})}),
        made("dept", "cb", 0, failed=True).model_copy(update={"failure": failure}),
        made("spot", "cb", 0, failed=True),
        made("mpt", "cb", 55).model_copy(update={"raced_out_at": 10, "test": None}),
        made("bitfit", "cb", 55).model_copy(update={"test": None}),
        made("majority", "cb", 55).model_copy(update={"dev_history": [], "usage": None, "selected_step": None}),
        made("ia3", "cb", 55, suite="other").model_copy(
            update={"params": None, "data": None, "backbone": None, "metrics": None, "dev": None,
                    "starts": [StartRecord(title="a <b>", cell_id=None, tensors="t1")]}
        ),
        made("no <method>/..", "cb", 55, label="mine", suite="third"),
        made("lora", "cb", 0, suite="fourth", failed=True),
    ]  # fmt: skip


def test_pages_are_built_from_results_that_lack_or_hold_anything(tmp_path: Path) -> None:
    results = [ResultStore(tmp_path / "runs").write(result, [], None) for result in odd_results()]
    done = CliRunner().invoke(app, ["site", str(tmp_path / "runs"), "--out", str(tmp_path / "site")])
    assert done.exception is None, done.output
    documents = {path: Document(path) for path in (tmp_path / "site").rglob("*.html")}
    check_links(tmp_path / "site", documents)
    assert not any("b" in document.tags for path, document in documents.items() if "cells" in path.parts)
    for result in results:
        if result.failure is None:
            check_cell_page(documents[tmp_path / "site" / cell_page(result)], result)
    text = documents[tmp_path / "site" / "tasks" / "cb.html"].text
    assert "seed 1: no test score" in text, "a run that was not tested has not failed"
