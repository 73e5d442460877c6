"""Statistics of whole tables, from prediction files to marks: ties, warnings, what cannot be tested."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from stored_runs import answers, store
from typer.testing import CliRunner
from typing_help import present

from harness.cli.commands import app
from harness.errors import UserError
from harness.report.boards import Board, collect_boards
from harness.report.statistics.comparison import AVERAGE, FEW_SEEDS
from harness.report.statistics.intervals import Sample
from harness.report.statistics.significance import ONE_RUN, Significance, assess_board
from harness.report.tables import render_boards
from harness.results.predictions import Answers, PredictionFiles
from harness.results.schema import Result
from harness.results.store import ResultStore, predictions_path


def assessed(root: Path) -> tuple[Board, Significance]:
    scanned = list(ResultStore(root).scan())
    (board,) = collect_boards(result for _, result in scanned)
    return board, assess_board(board, PredictionFiles(scanned).test_answers)


def two_tasks(root: Path) -> None:
    """Of 100 rows `far` answers 50 right, `near` 93 and `best` 95, of 400 rows the same shares."""
    for label, share in (("far", 50), ("near", 93), ("best", 95)):
        for seed in (1, 2):
            store(root, label, "cb", seed, *answers(share))
            store(root, label, "rte", seed, *answers(4 * share, 400))


def test_what_is_not_separable_from_the_best_is_tied_with_it(tmp_path: Path) -> None:
    two_tasks(tmp_path)
    board, made = assessed(tmp_path)
    assert {name for name, column in made.ties if column == "cb"} == {"best", "near"}
    assert ("far", AVERAGE) not in made.ties
    text = render_boards([board], "markdown", significance=[made])
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "≈" in rows["near"]
    assert "≈" not in rows["far"]
    assert "**95.0** ±0.0 (2) [8" in rows["best"]
    assert "cannot be told from the best of the column" in text


def test_every_pair_of_every_column_is_corrected_together(tmp_path: Path) -> None:
    two_tasks(tmp_path)
    _, made = assessed(tmp_path)
    assert len(made.pairs) == 3 * 3  # pairs, times two tasks and the average
    smallest = min(made.pairs, key=lambda pair: pair.p_value)
    assert smallest.adjusted == pytest.approx(min(1, 9 * smallest.p_value))
    assert all(pair.adjusted >= pair.p_value for pair in made.pairs)


def test_a_split_too_small_for_its_gaps_is_told(tmp_path: Path) -> None:
    two_tasks(tmp_path)
    store(tmp_path, "far", "wsc", 1, *answers(10))
    store(tmp_path, "best", "wsc", 1, *answers(90))
    board, made = assessed(tmp_path)
    assert "100 test rows: the best score is known to ±" in made.warnings["cb"]
    assert "the second is 2.0 below it" in made.warnings["cb"]
    assert "wsc" not in made.warnings
    assert made.warnings["cb"] in render_boards([board], "terminal", significance=[made])


def test_an_average_is_tested_only_where_every_task_is_there(tmp_path: Path) -> None:
    two_tasks(tmp_path)
    store(tmp_path, "half", "cb", 1, *answers(90))
    _, made = assessed(tmp_path)
    assert ("half", "cb") in made.intervals
    assert ("half", AVERAGE) not in made.intervals
    assert not any("half" in (pair.one, pair.other) for pair in made.pairs if pair.column == AVERAGE)


@pytest.mark.parametrize("damage", ["missing", "edited", "other rows"])
def test_what_cannot_be_tested_says_so_and_is_no_tie(tmp_path: Path, damage: str) -> None:
    two_tasks(tmp_path)
    paths = [path for path, r in ResultStore(tmp_path).scan() if (r.cell.label, r.cell.task) == ("near", "cb")]
    first = predictions_path(paths[0])
    if damage == "missing":
        first.unlink()
    elif damage == "edited":
        first.write_bytes(first.read_bytes() + b" ")
    else:
        store(tmp_path, "near", "cb", 3, ["0"] * 100, [["0"]] * 100)
    board, made = assessed(tmp_path)
    assert made.untested == [("near", "cb")]
    assert ("near", "cb") not in made.ties
    assert ("near", AVERAGE) not in made.intervals
    text = render_boards([board], "markdown", significance=[made])
    assert "not tested against the best of the column: predictions are missing" in text
    assert made.verdicts["near", "cb"].kind == "cannot tell"


def test_a_metric_that_is_not_known_here_is_not_tested(tmp_path: Path) -> None:
    two_tasks(tmp_path)
    scanned = list(ResultStore(tmp_path).scan())

    def renamed(run: Result) -> Result:
        if run.cell.task != "cb" or run.metrics is None:
            return run
        return run.model_copy(update={"metrics": run.metrics.model_copy(update={"reported": ["nobody_knows"]})})

    (board,) = collect_boards(renamed(run) for _, run in scanned)
    made = assess_board(board, PredictionFiles(scanned).test_answers)
    assert sorted(made.untested) == [("best", "cb"), ("far", "cb"), ("near", "cb")]
    assert set(kinds(made, "cb").values()) == set(kinds(made, AVERAGE).values()) == {"cannot tell"}
    assert kinds(made, "rte")["far"] == "differs", "as if that task were not there"


@pytest.mark.parametrize("task", ["cb", "rte"])
def test_an_average_with_a_task_that_could_not_be_tested_cannot_be_told(tmp_path: Path, task: str) -> None:
    two_tasks(tmp_path)
    path = next(path for path, r in ResultStore(tmp_path).scan() if (r.cell.label, r.cell.task) == ("far", task))
    predictions_path(path).unlink()
    _, made = assessed(tmp_path)
    assert {column: made.verdicts["far", column].kind for column in ("cb", "rte", AVERAGE)} == {
        "cb": "differs", "rte": "differs", task: "cannot tell", AVERAGE: "cannot tell",
    }  # fmt: skip
    assert not any("far" in (pair.one, pair.other) for pair in made.pairs if pair.column == AVERAGE)


def test_methods_that_answered_other_rows_are_not_compared(tmp_path: Path) -> None:
    for seed in (1, 2):
        store(tmp_path, "one", "cb", seed, ["1"] * 50, [["1"]] * 50)
        store(tmp_path, "other", "cb", seed, ["1"] * 50, [["0"]] * 50)
    _, made = assessed(tmp_path)
    assert made.pairs == []
    assert kinds(made, "cb") == {"one": "cannot tell", "other": "cannot tell"}


def kinds(made: Significance, column: str) -> dict[str, str]:
    """Row name -> verdict."""
    return {name: verdict.kind for (name, where), verdict in made.verdicts.items() if where == column}


def test_one_run_cannot_speak_of_a_method(tmp_path: Path) -> None:
    for task in ("cb", "rte"):
        store(tmp_path, "one", task, 1, *answers(20))
        store(tmp_path, "other", task, 1, *answers(95))
    board, made = assessed(tmp_path)
    for column in ("cb", "rte", AVERAGE):
        assert kinds(made, column) == {"one": "cannot tell", "other": "cannot tell"}
    assert {verdict.reason for verdict in made.verdicts.values()} == {ONE_RUN}
    assert {item["reason"] for item in made.as_json()["verdicts"]} == {ONE_RUN}
    assert (made.pairs, made.ties) == ([], set())
    text = render_boards([board], "markdown", significance=[made])
    assert "one run cannot speak of a method" in text
    assert "hold for that run alone" in text
    low, high = made.intervals["one", "cb"]
    assert low < 20 < high, "an interval over test rows is there nevertheless"


def test_a_run_beside_several_is_not_compared_and_they_are(tmp_path: Path) -> None:
    two_tasks(tmp_path)
    store(tmp_path, "once", "cb", 1, *answers(10))
    _, made = assessed(tmp_path)
    assert kinds(made, "cb") == {"far": "differs", "near": "tied", "best": "best", "once": "cannot tell"}
    assert not any("once" in (pair.one, pair.other) for pair in made.pairs)


@pytest.mark.parametrize("damage", ["one run", "missing"])
def test_where_the_best_was_not_tested_nothing_reads_as_worse_than_it_unless_it_is(tmp_path: Path, damage: str) -> None:
    two_tasks(tmp_path)
    store(tmp_path, "top", "cb", 1, *answers(99))
    if damage == "missing":
        store(tmp_path, "top", "cb", 2, *answers(99))
        path = next(path for path, result in ResultStore(tmp_path).scan() if result.cell.label == "top")
        predictions_path(path).unlink()
    board, made = assessed(tmp_path)
    # of `far` it is known that it is not the best, whoever is: two entries are better
    expected = {"top": "cannot tell", "best": "cannot tell", "near": "cannot tell", "far": "differs"}
    assert kinds(made, "cb") == expected
    assert not any(column == "cb" for _, column in made.ties)
    assert "the best, top, could not be tested: " in made.verdicts["best", "cb"].reason
    text = render_boards([board], "markdown", significance=[made])
    (note,) = [line for line in text.splitlines() if "nothing is bold" in line]
    assert "nothing is bold, since nothing could be told: the best, top, could not be tested" in note
    assert note.count(ONE_RUN if damage == "one run" else "predictions are missing") == 1, "each reason once"


def test_two_runs_far_apart_are_too_few_and_no_tie(tmp_path: Path) -> None:
    # the quickstart's table once called 55.6 [0.0, 100.0] tied with 100.0
    for seed, (far, close) in enumerate([(75, 99), (36, 100)]):
        store(tmp_path, "far", "cb", seed, *answers(6 * far, 600))
        store(tmp_path, "best", "cb", seed, *answers(6 * close, 600))
    board, made = assessed(tmp_path)
    assert kinds(made, "cb") == {"far": "cannot tell", "best": "best"}
    assert made.verdicts["far", "cb"].reason == FEW_SEEDS
    text = render_boards([board], "markdown", significance=[made])
    assert "nothing is bold, since nothing could be told: too few seeds" in text
    assert "≈" not in text.split("|--")[-1]


def test_the_chance_of_a_false_claim_is_divided_over_columns(tmp_path: Path) -> None:
    for folder, tasks in (("alone", ["cb"]), ("both", ["cb", "rte"])):
        for task in tasks:
            for label, share in (("near", 88), ("best", 95)):
                for seed in (1, 2):
                    store(tmp_path / folder, label, task, seed, *answers(share))
    alone, both = (assessed(tmp_path / folder)[1].verdicts["near", "cb"] for folder in ("alone", "both"))
    # seven rows differ, all in favour of one: 2 of 128 swaps, then two tasks and their average
    assert alone.p_value == pytest.approx(2 / 128, rel=0.05)
    assert both.p_value == pytest.approx(3 * present(alone.p_value))


def test_the_command_adds_statistics_on_request_and_to_json_always(tmp_path: Path) -> None:
    two_tasks(tmp_path)
    plain = CliRunner().invoke(app, ["report", str(tmp_path)])
    with_statistics = CliRunner().invoke(app, ["report", str(tmp_path), "--statistics"])
    assert "≈" not in plain.output
    assert "≈" in with_statistics.output
    (data,) = json.loads(CliRunner().invoke(app, ["report", str(tmp_path), "--format", "json"]).output)
    statistics = data["statistics"]
    verdicts = {(item["method"], item["column"]): item["verdict"] for item in statistics["verdicts"]}
    assert verdicts["far", "cb"] == "differs"
    assert verdicts["near", "cb"] == "tied"
    assert {(item["method"], item["column"]) for item in statistics["tied_with_best"]} >= {("near", "cb")}
    (interval,) = [i["interval"] for i in statistics["intervals"] if (i["method"], i["column"]) == ("far", "rte")]
    assert interval[0] < 50 < interval[1]
    assert statistics["ranking"]["ranks"] == {"best": 1, "near": 2, "far": 3}


def test_a_csv_file_has_no_room_for_statistics(tmp_path: Path) -> None:
    two_tasks(tmp_path)
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--statistics", "--format", "csv"])
    assert isinstance(done.exception, UserError)


def test_the_interval_of_an_average_holds_no_score_that_cannot_be(tmp_path: Path) -> None:
    for task in ("cb", "rte"):
        store(tmp_path, "never", task, 1, *answers(0))
        store(tmp_path, "always", task, 1, *answers(100))
    _, made = assessed(tmp_path)
    assert made.intervals["never", AVERAGE][0] == 0
    assert made.intervals["always", AVERAGE][1] == 100


def test_every_draw_of_a_seed_counts(tmp_path: Path) -> None:
    for draw, right in ((7, 45), (8, 66), (9, 87)):
        store(tmp_path, "several", "cb", 1, *answers(right), draw=draw)
    board, made = assessed(tmp_path)
    entry = board.rows[0].entries["cb"]
    assert (len(entry.runs), entry.mean) == (3, 66)
    low, high = made.intervals["several", "cb"]
    assert low < 45 < 87 < high  # a t interval of three runs this far apart


def test_runs_are_paired_by_seed_and_draw_and_never_by_a_seed_that_several_have(tmp_path: Path) -> None:
    right = {(1, 7): 50, (1, 8): 60, (2, 7): 70}
    for (seed, draw), number in right.items():
        store(tmp_path, "one", "cb", seed, *answers(number), draw=draw)
        store(tmp_path, "two", "cb", seed, *answers(number - 10), draw=draw)
        store(tmp_path, "three", "cb", seed, *answers(number - 10), draw=draw + 100)
    _, made = assessed(tmp_path)
    widths = {frozenset((pair.one, pair.other)): pair.gap.variance for pair in made.pairs if pair.column == "cb"}
    # runs of `one` and `two` lie 10 apart each, so that their seeds have no part in the variance
    assert widths[frozenset(("one", "two"))] < widths[frozenset(("one", "three"))]
    twice = Sample.of([((1,), Answers(["1"] * n, [["1"]] * n)) for n in (5, 5)], ["accuracy"], ["0", "1"], 10)
    assert not twice.pairs_with(twice)


def test_the_average_of_one_task_is_that_task_in_every_word(tmp_path: Path) -> None:
    for label, number in (("far", 20), ("near", 27), ("best", 28)):
        for seed in (1, 2):
            store(tmp_path, label, "cb", seed, *answers(number, 28))
    board, made = assessed(tmp_path)
    for label in ("far", "near", "best"):
        assert made.intervals[label, AVERAGE] == made.intervals[label, "cb"]
    assert {name for name, column in made.ties if column == AVERAGE} == {"best", "near"}
    assert {name for name, column in made.ties if column == "cb"} == {"best", "near"}
    by_column = [
        {(p.one, p.other): (p.p_value, p.adjusted) for p in made.pairs if p.column == c} for c in ("cb", AVERAGE)
    ]
    assert by_column[0] == by_column[1]
    smallest = min(made.pairs, key=lambda pair: pair.p_value)
    assert smallest.adjusted == pytest.approx(min(1, 3 * smallest.p_value))  # three tests, not six
    for line in render_boards([board], "markdown", significance=[made]).splitlines():
        spans = re.findall(r"\[[\d.]+, [\d.]+\]", line)
        assert len(set(spans)) <= 1


def test_so_few_rows_that_no_swap_could_tell_tell_nothing_in_the_average_either(tmp_path: Path) -> None:
    """All right beside all wrong on two rows of each task: among 16 swaps of all four rows two are as far apart."""
    for label, right in (("worst", 0), ("best", 2)):
        for task, seed in ((task, seed) for task in ("cb", "rte") for seed in (1, 2, 3)):
            store(tmp_path, label, task, seed, *answers(right, 2))
    _, made = assessed(tmp_path)
    assert {made.verdicts["worst", column].kind for column in ("cb", "rte", AVERAGE)} == {"tied"}
    assert next(pair for pair in made.pairs if pair.column == AVERAGE).p_value == 2 / 16
