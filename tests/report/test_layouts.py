"""Declared layouts: the shapes of the papers' tables filled from results, and what is missing, mixed or ambiguous."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from layout_runs import made
from paths import GOLDEN, ROOT
from typer.testing import CliRunner

from harness.cli.commands import app
from harness.errors import UserError
from harness.report.declared.find_entries import EntryIndex
from harness.report.declared.lines import keys_of, slots
from harness.report.declared.table import TableRows, fill_layout
from harness.report.published import find_published
from harness.report.table_cells import DASH, Table
from harness.report.tables import render_tables
from harness.results.schema import Result
from harness.results.store import ResultStore
from harness.suite.make_groups import Overrides, load_suite
from harness.suite.report_block import TableLayout, Where
from harness.suite.report_layout_files import SETTINGS, figure_names, find_figure, find_table, table_names

SUITES = sorted((ROOT / "suites").glob("*.yaml"))
GLUE = ["mnli", "qqp", "qnli", "sst2", "stsb", "mrpc", "rte", "cola"]
SUPERGLUE = ["multirc", "boolq", "wic", "wsc", "cb"]
ASKED = {f"accept-{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16)} | {f"ept-{n}" for n in (1, 2, 3)}


def both_benchmarks() -> list[Result]:
    """Three methods on GLUE and SuperGLUE; one failed, one has a hole."""
    results = []
    for i, (method, num_trained) in enumerate((("finetune", 222_903_552), ("dept", 76_800), ("accept", 74_880))):
        for suite, tasks in (("glue", GLUE), ("superglue", SUPERGLUE)):
            for j, task in enumerate(tasks):
                failed = (method, task) == ("dept", "wsc")
                if (method, task) != ("finetune", "cb"):
                    score = 60 + 5 * i + j
                    results.append(made(method, task, score, suite=suite, num_trained=num_trained, failed=failed))
    return results


def granularity() -> list[Result]:
    """Two widths of one side as rows of their own, three of the other as a swept setting."""
    rows = [
        made("accept", "rte", 70 + width / 100 + seed, suite="ablation-granularity", label=f"w{width}", seed=seed,
             hp={"prompt_width": width, "prompt_side": "scpp", "added_side": "lowrank"})
        for width in (32, 768) for seed in (1, 2)
    ]  # fmt: skip
    swept = [
        made("accept", "rte", 60 + i, suite="ablation-granularity", label="swept", index=i,
             grid={"hp.added_width": width}, hp={"added_width": width, "prompt_side": "free", "added_side": "scap"})
        for i, width in enumerate((32, 64, 768))
    ]  # fmt: skip
    return [*rows, *swept]


def filled(name: str, results: list[Result], where: Where | None = None) -> tuple[Table, TableRows]:
    layout = find_table(name)
    record = find_published(layout.published) if layout.published else None
    return fill_layout(name, layout, EntryIndex(results, keys_of(layout)), record, where, "best")


def texts(table: Table) -> dict[str, list[str]]:
    """Title of a measured row -> the texts behind its heads."""
    n = table.num_heads
    measured = table.rows[: table.apart]
    return {" ".join(cell.text for cell in row[:n]): [cell.text for cell in row[n:]] for row in measured}


def test_a_column_tells_of_test_rows_that_stand_in_train() -> None:
    runs = [made("dept", "rte", 60, suite="glue"), made("dept", "cola", 70, suite="glue")]
    assert runs[0].data is not None
    runs[0] = runs[0].model_copy(update={"data": runs[0].data.model_copy(update={"num_duplicates": 3})})
    table, _ = filled("accept-1", runs)
    sentence = "rte: 3 of 18 dev and test rows also stand in train, which rewards memory"
    marked = [column.title for column in table.columns if sentence in [table.notes[n - 1] for n in column.notes]]
    assert marked == ["RTE", "Avg."]


def test_every_table_that_was_asked_for_has_a_layout_and_every_layout_can_be_read() -> None:
    assert set(table_names()) == ASKED
    assert table_names().index("accept-2") < table_names().index("accept-10")
    for name in table_names():
        layout = find_table(name)
        table, records = filled(name, [])
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert all(row["value"] is None for row in records if row["origin"] == "measured")
        published = [row for row in records if str(row["origin"]).startswith("published")]
        assert bool(published) == bool(layout.published), f"{name}: nothing of {layout.published} was found"
    for name in figure_names():
        find_figure(name)


def test_every_published_name_of_a_layout_stands_in_its_record() -> None:
    for name in table_names():
        layout = find_table(name)
        known = {number.method for number in find_published(layout.published).numbers} if layout.published else set()
        named = {line.published for line in slots([*layout.rows, *layout.columns]) if line.published}
        missing = named - known if layout.published else set()
        assert not missing, f"{name} names {missing}"


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_layout_that_a_shipped_suite_names_exists(path: Path) -> None:
    block = load_suite(path, Overrides()).file.report
    for name in block.tables:
        assert find_table(name, block).rows


@pytest.mark.parametrize("style", ["markdown", "latex", "html"])
def test_the_shapes_of_two_tables_equal_their_golden_files(style: str) -> None:
    made_tables = [filled("accept-1", both_benchmarks()), filled("accept-5", granularity())]
    text, path = render_tables([table for table, _ in made_tables], [], style), GOLDEN / f"layouts.{style}"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), "if the change is meant, run once with UPDATE_GOLDEN=1 and read the difference"


def test_rows_stand_in_the_order_of_the_paper_and_methods_without_results_are_empty() -> None:
    table, records = filled("accept-1", both_benchmarks())
    rows = texts(table)
    assert list(rows)[:2] == ["Fine-tuning", "Adapter"]
    assert set(rows["Adapter"]) == {""}
    assert rows["ACCEPT"][:2] == ["74,880", "70.0"]
    assert rows["ACCEPT"][9] == "73.5"  # the mean of 70 ... 77
    assert rows["DePT"][13:] == [DASH, "69.0", DASH]
    assert rows["Fine-tuning"][14:] == ["", DASH]
    assert table.remarks[0] == "41 of 225 scores are there; an empty cell has no result."
    value = next(r["value"] for r in records if (r["row"], r["column"], r["origin"]) == ("ACCEPT", "RTE", "measured"))
    assert value == 76


def test_published_rows_stand_below_and_are_never_ranked() -> None:
    table, records = filled("accept-1", both_benchmarks())
    assert table.apart == 15
    below = {row[0].text: row for row in table.rows[table.apart :]}
    assert len(below) == 16
    assert below["PT (re-tuned), published"][9].text == "60.7"
    assert not any(cell.rank for row in below.values() for cell in row)
    origins = {row["origin"] for row in records if row["row"] == "ACCEPT"}
    assert origins == {"measured", "published: Lin et al. 2024, arXiv:2410.12847, Table 1"}


def test_a_setting_that_a_grid_sweeps_has_an_entry_for_each_of_its_values() -> None:
    rows = texts(filled("accept-5", granularity())[0])
    assert rows["32 20"] == ["76,800", "71.8"]
    assert [rows[name][1] for name in ("32 4", "64 8", "768 30")] == ["60.0", "61.0", "62.0"]
    assert rows["128 13"] == ["", ""]


def test_a_swept_setting_that_no_layout_asks_for_is_chosen_by_dev() -> None:
    results = [made("dept", "rte", score, suite="glue", index=i, grid={"recipe.lr": 0.1 + i})
               for i, score in enumerate((50, 70, 60))]  # fmt: skip
    assert texts(filled("accept-1", results)[0])["DePT"][7] == "70.0"


def test_transposed_tables_mark_the_best_of_a_row() -> None:
    layout = TableLayout.model_validate({
        "title": "t", "heads": ["task"], "best": "row", "rows": [{"over": "task", "values": ["cb", "rte"]}],
        "columns": [{"title": m, "where": {"method": m}} for m in ("dept", "accept")],
    })  # fmt: skip
    results = [made(m, t, s) for m, t, s in (("dept", "cb", 80), ("accept", "cb", 70), ("accept", "rte", 60))]
    table, _ = fill_layout("t", layout, EntryIndex(results), bold="best")
    assert [[cell.rank for cell in row[1:]] for row in table.rows] == [["best", "second"], ["", "best"]]


def test_results_that_cannot_be_told_apart_are_not_shown_but_named() -> None:
    results = [made("dept", "rte", 70, suite="glue"), made("dept", "rte", 60, suite="glue", hp={"rank": 9})]
    table, _ = filled("accept-1", results)
    assert texts(table)["DePT"][7] == DASH
    assert any("2 results fit" in note and "hp.rank" in note for note in table.notes)
    chosen, _ = filled("accept-1", results, {"hp.rank": 9})
    assert texts(chosen)["DePT"][7] == "60.0"


def test_the_same_cells_in_two_suites_count_once() -> None:
    results = [made("dept", "rte", 70, suite=suite) for suite in ("glue", "superglue")]
    assert texts(filled("accept-1", results)[0])["DePT"][7] == "70.0"


def test_columns_made_under_different_protocols_say_so() -> None:
    results = [made("dept", "rte", 70, suite="glue"), made("accept", "rte", 71, suite="glue", protocol="ept-2025")]
    table, _ = filled("accept-1", results)
    (rte,) = [column for column in table.columns if column.title == "RTE"]
    assert [table.notes[i - 1] for i in rte.notes] == ["compared here although made with different protocols"]


def test_conditions_may_name_several_values_or_none() -> None:
    results = [made("accept", "rte", 70, hp={"added_width": width}) for width in (None, 384, 768)]
    pool = EntryIndex(results)
    assert len(pool.find({"hp.added_width": [None, 384]})) == 2
    assert len(pool.find({"hp.added_width": None})) == 1
    assert len(pool.find({"few_shot.k": None, "backbone": "T5-Base", "benchmark": "GLUE"})) == 3
    assert pool.find({"task": "cb"}) == []


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    store = ResultStore(tmp_path / "results")
    for result in both_benchmarks():
        store.write(result, [], None)
    return store.root


def ask(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["table", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_makes_named_tables_in_each_format(stored: Path) -> None:
    assert "ACCEPT Table 16" in ask("list")
    assert ask("accept-1", str(stored), "--format", "markdown").startswith("### ACCEPT Table 1\n")
    rows = json.loads(ask("accept-1", str(stored), "--format", "json"))
    assert {row["table"] for row in rows} == {"accept-1"}
    assert ask("accept-1", str(stored), "--format", "csv").splitlines()[0].startswith("table,section,row")
    only = json.loads(ask("accept-1", str(stored), "--format", "json", "--suite", "superglue"))
    shown = {row["group"] for row in only if row["origin"] == "measured" and row["value"] is not None}
    assert shown == {"SuperGLUE"}


def test_a_suite_declares_layouts_of_its_own(stored: Path, write_suite: Callable[[str], Path]) -> None:
    suite = write_suite(OWN)
    text = ask("all", str(stored), "--layouts", str(suite), "--format", "markdown")
    assert "### mine" in text
    assert "### ACCEPT Table 1" in text
    assert "| dept     |" in text


OWN = """\
suite: own
backbones: [micro-t5]
tasks: [micro_sentiment]
methods: [dept]
report:
  tables: [mine, accept-1]
  define_tables:
    mine:
      title: mine
      rows: [{title: dept, where: {method: dept}}]
      columns: [{over: task, values: [cb, rte]}]
  define_figures:
    bars:
      title: bars
      categories: {setting: task, title: task, panels: [{title: all, where: {}}]}
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[mine, accept-1]", "[mine, accept-11]", ["suite.yaml:6", "accept-11", "did you mean accept-1"]),
        ("[mine, accept-1]", "[mine, mine]", ["suite.yaml:6", "more than once"]),
        ("rows:", "row:", ["suite.yaml:10", "did you mean rows"]),
        ("values: [cb, rte]", "value: [cb, rte]", ["suite.yaml:11", "did you mean values"]),
        (
            "panels: [{",
            "panel: [{",
            ["suite.yaml:15", "categories.panel:", "did you mean panels"],
        ),
        ("where: {}}", "were: {}}", ["suite.yaml:15", "panels.0.were", "did you mean where"]),
        ("{method: dept}", "{metod: dept}", ["suite.yaml:10", "metod", "did you mean method"]),
        ("over: task, values: [cb, rte]", "over: task", ["suite.yaml:11", "need each other"]),
        ("over: task, values: [cb, rte]", "over: seed, values: [1]", ["suite.yaml:11", "no setting"]),
    ],
)
def test_a_mistake_in_a_layout_names_its_line(
    write_suite: Callable[[str], Path], old: str, new: str, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        load_suite(write_suite(OWN.replace(old, new)), Overrides())
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["accept-11"], ["accept-11", "did you mean accept-1"]),
        (["all"], ["--layouts"]),
        (["accept-1", "--where", "bakbone=x"], ["did you mean backbone"]),
        (["accept-1", "--where", "backbone"], ["KEY=VALUE"]),
    ],
)
def test_a_mistake_on_the_command_line_is_named(stored: Path, arguments: list[str], words: list[str]) -> None:
    done = CliRunner().invoke(app, ["table", arguments[0], str(stored), *arguments[1:]])
    assert isinstance(done.exception, UserError)
    assert all(word in str(done.exception) for word in words), str(done.exception)


def test_settings_are_those_of_a_cell() -> None:
    assert {"hp", "recipe", "task", "method", "label", "backbone", "suite"} <= set(SETTINGS)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_tables_of_layouts_compile(tmp_path: Path) -> None:
    tables = [filled(name, [*both_benchmarks(), *granularity()])[0] for name in table_names()]
    (tmp_path / "all.tex").write_text(render_tables(tables, [], "latex"))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]


def test_published_few_shot_numbers_stand_only_where_a_layout_asks_for_their_k() -> None:
    def layout(**where: object) -> TableLayout:
        return TableLayout.model_validate(
            {
                "title": "few",
                "heads": ["method"],
                "where": {"backbone": ["t5-base", "t5-small"], **where},
                "rows": [{"title": "(IA)3", "published": "(IA)3"}, {"title": "DePT", "published": "DePT"}],
                "columns": [{"over": "task", "values": ["boolq", "scitail"]}],
            }
        )

    def shown(**where: object) -> dict[tuple[object, object], object]:
        _, records = fill_layout("few", layout(**where), EntryIndex([]), find_published("accept-2024"))
        return {(r["row"], r["column"]): r["value"] for r in records if r["origin"] != "measured"}

    # of (IA)3, and on SciTail of any method, there are few-shot numbers alone
    numbers = {(n.method, n.task, n.k_shot): n.value for n in find_published("accept-2024").numbers}
    assert shown() == {("DePT", "boolq"): numbers["DePT", "boolq", None]}
    assert shown(**{"few_shot.k": 16})["(IA)3", "boolq"] == numbers["(IA)3", "boolq", 16]
    assert shown(backbone=["t5-small"]) == {}
