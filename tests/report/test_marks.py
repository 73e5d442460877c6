"""What is bold: the same in every format, never against the tests, and said where nothing could be tested."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from stored_runs import answers, store
from test_report import result
from typer.testing import CliRunner

from harness.cli.commands import app
from harness.errors import UserError
from harness.report.boards import Board, collect_boards, make_entry
from harness.report.declared.find_entries import EntryIndex
from harness.report.declared.line_marks import LineScore, mark_line
from harness.report.declared.table import fill_layout
from harness.report.leaderboard_table import lay_out
from harness.report.marks import NO_TESTS, UNTESTED, mark_board
from harness.report.statistics.significance import ONE_RUN
from harness.results.predictions import Answers
from harness.results.schema import Result
from harness.suite.blocks import Draw
from harness.suite.report_block import Bold, TableLayout

SCORES = {"far": 50, "near": 93, "best": 95, "once": 90}
"""Right answers of 100 (task cb) and of 400 (task rte); `once` was run with one seed."""
STYLES = ("markdown", "terminal", "latex", "html", "csv", "json", "site", "table")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods with five seeds, of which two cannot be told apart, and one with a single run."""
    root = tmp_path_factory.mktemp("marks") / "results"
    for label, share in SCORES.items():
        for seed in range(1, 2 if label == "once" else 6):
            store(root, label, "cb", seed, *answers(share + seed % 2))
            store(root, label, "rte", seed, *answers(4 * (share + seed % 2), 400))
    return root


def ask(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


SUITE = """\
suite: own
backbones: [micro-t5]
tasks: [micro_sentiment]
methods: [dept]
report:
  tables: [mine]
  define_tables:
    mine:
      title: mine
      rows:
        - {title: far, where: {label: far}}
        - {title: near, where: {label: near}}
        - {title: best, where: {label: best}}
        - {title: once, where: {label: once}}
      columns: [{over: task, values: {cb: CB, rte: RTE}, average: Avg.}]
"""

MARKED = {
    "markdown": (r"\*\*([\d.]+)\*\*", r"<u>([\d.]+)</u>"),
    "terminal": (r"\*([\d.]+)\*", r"_([\d.]+)_"),
    "latex": (r"\\textbf\{([\d.]+)\}", r"\\underline\{([\d.]+)\}"),
    "html": (r"<b>([\d.]+)</b>", r"<u>([\d.]+)</u>"),
    "site": (r"<b>([\d.]+)</b>", r"<u>([\d.]+)</u>"),
    "table": (r"\*\*([\d.]+)\*\*", r"<u>([\d.]+)</u>"),
}


def marks_in(style: str, root: Path, folder: Path, *options: str) -> tuple[list[float], list[float]]:
    """Scores of a report that are bold, and that are underlined, in ascending order."""
    if style in ("csv", "json"):
        return _marks_of_numbers(style, ask("report", str(root), "--format", style, *options))
    if style == "site":
        ask("site", str(root), "--out", str(folder / "site"), *options)
        text = (folder / "site" / "index.html").read_text()
    elif style == "table":
        suite = folder / "suite.yaml"
        suite.write_text(SUITE)
        text = ask("table", "all", str(root), "--layouts", str(suite), "--format", "markdown", *options)
    else:
        text = ask("report", str(root), "--format", style, *options)
    bold, second = (sorted(map(float, re.findall(pattern, text))) for pattern in MARKED[style])
    return bold, second


def _marks_of_numbers(style: str, text: str) -> tuple[list[float], list[float]]:
    def found() -> Iterator[tuple[float, str]]:
        if style == "csv":
            for line in csv.DictReader(io.StringIO(text)):
                yield float(line["mean"]), line["mark"]
            return
        for row in json.loads(text)[0]["rows"]:
            yield row["average"], row["average_mark"]
            yield from ((entry["mean"], entry["mark"]) for entry in row["tasks"].values())

    marked = list(found())
    bold, second = (
        sorted(round(score, 1) for score, mark in marked if mark == name) for name in ("bold", "underlined")
    )
    return bold, second


@pytest.mark.parametrize("style", STYLES)
def test_bold_is_what_no_test_tells_from_the_best_in_every_format(stored: Path, tmp_path: Path, style: str) -> None:
    """On 100 rows 93.6 is tied with 95.6; `far` and the entry with one run are never bold, nothing is underlined."""
    bold, second = marks_in(style, stored, tmp_path)
    assert 93.6 in bold
    assert bold.count(95.6) == 3, "the best of two tasks and of the average"
    assert set(bold) == {93.6, 95.6}
    assert second == []
    assert (bold, second) == marks_in("csv", stored, tmp_path)


@pytest.mark.parametrize("style", STYLES)
def test_the_habit_of_papers_is_there_on_request(stored: Path, tmp_path: Path, style: str) -> None:
    bold, second = marks_in(style, stored, tmp_path, "--bold", "best")
    assert bold == [95.6] * 3
    assert second == [93.6] * 3


def test_a_table_says_what_its_marks_mean(stored: Path) -> None:
    assert "In bold the best of a column and all that cannot be told from it" in ask("report", str(stored))
    assert "no test stands behind (--bold best)" in ask("report", str(stored), "--bold", "best")
    once = "neither bold nor worse, not tested against the best of the column: one run cannot speak of a method"
    assert once in ask("report", str(stored), "--format", "markdown")


def test_a_suite_asks_for_its_marks(stored: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE.replace("report:\n", "report:\n  bold: best\n"))
    assert "<u>93.6</u>" in ask("report", str(stored), "--format", "markdown", "--layouts", str(suite))
    assert "<u>93.6</u>" in ask("table", "all", str(stored), "--format", "markdown", "--layouts", str(suite))
    said = ask("report", str(stored), "--format", "markdown", "--layouts", str(suite), "--bold", "ties")
    assert "<u>" not in said
    suite.write_text(SUITE.replace("report:\n", "report:\n  bold: bset\n"))
    done = CliRunner().invoke(app, ["report", str(stored), "--layouts", str(suite)])
    assert isinstance(done.exception, UserError)
    assert "bold" in str(done.exception)


@pytest.mark.parametrize("style", ["markdown", "table"])
def test_where_nothing_could_be_tested_nothing_is_bold_and_the_column_says_why(tmp_path: Path, style: str) -> None:
    root = tmp_path / "results"
    for label, share in (("far", 50), ("near", 93), ("best", 95)):
        store(root, label, "cb", 1, *answers(share))
    assert marks_in(style, root, tmp_path) == ([], [])
    text = ask("report", str(root), "--format", "markdown")
    assert "nothing is bold, since nothing could be told: one run cannot speak of a method" in text
    assert "cb (Acc.) [1]" in text


def test_what_too_few_seeds_leave_open_is_neither_bold_nor_worse(tmp_path: Path) -> None:
    """57 and 78 beside 99 and 100: two runs do not tell how far the next one would lie, and that is no tie."""
    root = tmp_path / "results"
    shares = {"best": (99, 100), "near": (98, 100), "apart": (57, 78)}
    for label, pair in shares.items():
        for seed, share in enumerate(pair, 1):
            store(root, label, "cb", seed, *answers(6 * share, 600))
    bold, second = marks_in("markdown", root, tmp_path)
    assert (set(bold), second) == ({99.0, 99.5}, [])
    assert "neither bold nor worse, left open: too few seeds" in ask("report", str(root), "--format", "markdown")


def test_what_prints_equal_to_the_best_is_bold_and_a_single_score_has_nothing_to_compare(tmp_path: Path) -> None:
    """`once` has the best score and one run, which is not tested: a reader could not see why it is not bold."""
    for label, share, num_runs in (("far", 50, 3), ("near", 94, 3), ("best", 95, 3), ("once", 95, 1)):
        for seed in range(1, num_runs + 1):
            store(tmp_path / "several", label, "cb", seed, *answers(share))
    lines = ask("report", str(tmp_path / "several"), "--format", "markdown").splitlines()
    bold = {
        name: any(f"| {name} " in line and "**" in line for line in lines) for name in ("far", "near", "best", "once")
    }
    assert bold == {"far": False, "near": True, "best": True, "once": True}
    store(tmp_path / "alone", "one", "cb", 1, *answers(95))
    store(tmp_path / "alone", "one", "cb", 2, *answers(96))
    text = ask("report", str(tmp_path / "alone"), "--format", "markdown")
    assert "**" not in text
    assert "nothing is bold" not in text


@pytest.mark.parametrize("style", ["markdown", "json", "site", "table"])
def test_without_tests_too_an_entry_with_other_references_is_not_ranked(tmp_path: Path, style: str) -> None:
    """Its rows have the fingerprint of the others: a tokenizer has cut the answers to them elsewhere."""
    root = tmp_path / "results"
    for label, share in (("far", 50), ("near", 60)):
        store(root, label, "cb", 1, *answers(share))
    store(root, "best", "cb", 1, ["1"] * 100, [["1"]] * 99 + [["0"]])
    bold, second = marks_in(style, root, tmp_path, "--bold", "best")
    assert set(bold) == {60.0}
    assert set(second) == {50.0}
    text = ask("report", str(root), "--format", "markdown", "--bold", "best")
    assert "scored with other references than the rest: not ranked" in text


def test_without_predictions_nothing_is_bold(tmp_path: Path) -> None:
    root = tmp_path / "results"
    for label, share in (("far", 50), ("best", 95)):
        for seed in (1, 2, 3):
            store(root, label, "cb", seed, *answers(share + seed))
    for path in root.rglob("*.parquet"):
        path.unlink()
    text = ask("report", str(root), "--format", "markdown")
    assert "**" not in text
    assert "nothing could be told: predictions are missing, were changed, or differ in rows between runs" in text


def test_one_seed_that_chose_is_told_and_left_out_on_request(tmp_path: Path) -> None:
    """Three seeds ran the point that the first chose: 90, 80 and 82 right of 100. Without the first it is 81."""
    root = tmp_path / "results"
    for lr, index, dev, share in ((0.1, 0, 60.0, 70), (0.3, 1, 90.0, 90)):
        store(root, "grid", "cb", 1, *answers(share), lr=lr, index=index, dev=dev)
    for seed, share in ((2, 80), (3, 82)):
        store(root, "grid", "cb", seed, *answers(share), lr=0.3, index=1)
    for seed in (1, 2, 3):
        store(root, "plain", "cb", seed, *answers(81))
        store(root, "alone", "cb", 1, *answers(60 + seed), lr=0.1 * seed, index=seed, dev=seed)
    whole = ask("report", str(root), "--format", "markdown")
    assert "84.0** ±5.3 (3)" in whole
    assert "the seed whose dev score chose the grid point is among the runs" in whole
    others = ask("report", str(root), "--format", "markdown", "--report-seeds", "others", "--statistics")
    assert "81.0** ±1.4 (2)" in others
    assert "The seed that chose a grid point is left out" in others
    assert "only the seed that chose the grid point was run, and it is left out" in others
    assert "81.0** ±0.0 (3)" in others, "a method without a grid keeps all its seeds"
    lines = csv.DictReader(io.StringIO(ask("report", str(root), "--format", "csv", "--report-seeds", "others")))
    rows = {line["method"].split(" ")[0]: line for line in lines if line["task"] == "cb"}
    assert [rows["grid"][key] for key in ("mean", "num_runs", "num_choosing_runs", "num_left_out")] == [
        "81.0", "2", "1", "1",
    ]  # fmt: skip
    assert [rows["plain"][key] for key in ("num_runs", "num_choosing_runs", "num_left_out")] == ["3", "0", "0"]
    assert rows["alone"]["mean"] == ""
    (board,) = json.loads(ask("report", str(root), "--format", "json", "--report-seeds", "others"))
    tests = {frozenset(pair["methods"]): pair["difference"] for pair in board["statistics"]["pairs"]}
    assert tests[frozenset(("grid", "plain"))] == 0
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        SUITE.replace("report:\n", "report:\n  report_seeds: others\n").replace("label: far", "label: grid")
    )
    table = ask("table", "all", str(root), "--layouts", str(suite), "--format", "markdown")
    assert "81.0" in table
    assert "left out" in table
    ask("site", str(root), "--out", str(tmp_path / "site"), "--report-seeds", "others")
    runs = json.loads((tmp_path / "site" / "data" / "runs.json").read_text())
    assert [run["status"] for run in runs if (run["row"], run["seed"], run["test"]) == ("grid", 1, 90.0)] == [
        "left out: its dev score chose the grid point"
    ]


def test_figures_leave_out_the_seed_that_chose_as_tables_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, suite, seen = tmp_path / "results", tmp_path / "suite.yaml", list[list[int]]()
    for lr, index, dev in ((0.1, 0, 60.0), (0.3, 1, 90.0)):
        store(root, "grid", "cb", 1, *answers(70), lr=lr, index=index, dev=dev)
    store(root, "grid", "cb", 2, *answers(80), lr=0.3, index=1)
    suite.write_text(SUITE.replace("report:\n", "report:\n  report_seeds: others\n"))

    def seeds(boards: list[Board], *_: object) -> list[Path]:
        seen.append([run.cell.seed for run in boards[0].rows[0].entries["cb"].runs])
        return []

    monkeypatch.setattr("harness.report.draw_all", seeds)
    for further in ([], ["--report-seeds", "others"], ["--layouts", str(suite)]):
        ask("figures", str(root), "--out", str(tmp_path / "out"), *further)
    assert seen == [[1, 2], [2], [2]]


def in_line(
    score: float, task: str = "cb", num_runs: int = 3, k: int | None = None, *, reported: bool = True
) -> LineScore:
    runs = []
    for seed in range(1, num_runs + 1):
        made = result("some", task, seed, 1, score)
        draw = None if k is None else Draw(k=k, rule="balanced", seed=seed)
        runs.append(made.model_copy(update={"cell": made.cell.model_copy(update={"few_shot": draw})}))
    return LineScore(score, ((task, make_entry(runs)),), reported)


def read(run: Result) -> Answers:
    right = round(run.test.score) if run.test else 0
    return Answers(*answers(right))


def test_a_line_of_a_declared_table_is_marked_as_a_column_is() -> None:
    line = [in_line(95), in_line(94), in_line(50), None, in_line(90, num_runs=1)]
    made = mark_line(line, "ties", read)
    assert made.ranks == ["best", "best", "", "", ""]
    assert made.notes[4] == (f"{UNTESTED}{ONE_RUN}",)
    assert mark_line(line, "ties", None).ranks == [""] * 5, "without predictions nothing is tested"
    assert mark_line(line, "best", None).ranks == ["best", "second", "", "", ""]
    other = mark_line([in_line(95), in_line(50, reported=False)], "ties", read)
    assert other.ranks == ["", ""]
    assert other.empty == ["nothing is bold, since nothing was tested: tests are about the reported metric"]


@pytest.mark.parametrize("bold", ["ties", "best"])
def test_a_line_compares_scores_of_one_task_one_k_and_one_reference(bold: Bold) -> None:
    tasks = mark_line([in_line(95), in_line(50), in_line(80, "rte"), in_line(30, "rte")], bold, read)
    drawn = mark_line([in_line(95, k=4), in_line(50, k=4), in_line(80, k=16), in_line(30, k=16)], bold, read)
    second = "second" if bold == "best" else ""
    assert tasks.ranks == drawn.ranks == ["best", second, "best", second]

    def elsewhere(run: Result) -> Answers:
        references = [["1"]] * 99 + [["0"]] if run.test and run.test.score == 95 else [["1"]] * 100
        return Answers(read(run).predictions, references)

    apart = mark_line([in_line(95), in_line(60), in_line(20)], bold, elsewhere)
    assert apart.ranks[0] == ""
    if bold == "best":
        assert apart.ranks == ["", "best", "second"]
        assert apart.notes[0] == ("scored with other references than the rest: not ranked",)


def test_a_table_that_was_not_tested_says_so() -> None:
    runs = [result(label, "cb", seed, 1, 50) for label in ("one", "two") for seed in (1, 2)]
    (board,), (alone,) = collect_boards(runs), collect_boards(runs[:2])
    assert f"{NO_TESTS}." in lay_out(board).remarks
    assert f"{NO_TESTS}." not in lay_out(board, marks=mark_board(board, None, "best")).remarks
    assert f"{NO_TESTS}." not in lay_out(alone).remarks, "there is nothing to compare"
    layout = TableLayout.model_validate({
        "title": "t", "rows": [{"title": name, "where": {"label": name}} for name in ("one", "two")],
        "columns": [{"title": "CB", "where": {"task": "cb"}}],
    })  # fmt: skip
    for read_runs, told in ((None, True), (read, False)):
        table, _ = fill_layout("t", layout, EntryIndex(runs), read=read_runs)
        assert (f"{NO_TESTS}." in table.remarks) == told
