"""A suite may use a part of a task's rows: the same ones for all, told in every table, another cell than with all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness.cli.commands import app
from harness.data.examples import Example, TaskData
from harness.data.record import DataRecord
from harness.data.splits import cell_rows, limit_rows
from harness.data.tasks import all_tasks
from harness.errors import UserError
from harness.report.boards import collect_boards
from harness.report.tables import render_boards
from harness.results.stale import superseded
from harness.results.store import ResultStore, read_predictions
from harness.results.verify import verify_folder
from harness.runner.plan import make_plan
from harness.runner.run_suite import run
from harness.suite.blocks import RowLimit
from harness.suite.make_groups import Overrides

Write = Callable[[str], Path]

SUITE = """\
suite: part
backbones: [micro-t5]
tasks: [micro_sentiment, micro_paraphrase]
seeds: [1]
rows: {micro_sentiment: {train: 50, dev: 20, test: 30}}
recipe: {steps: 2, batch_size: 2, eval_every: 2, backbone_dropout: false, lr: 0.1}
methods:
  majority:
  prompt_tuning: {prompt_length: 2}
"""


def test_a_part_of_the_rows_is_used_stored_and_told(write_suite: Write, tmp_path: Path) -> None:
    results = tmp_path / "results"
    run(write_suite(SUITE), results=results)
    stored = {(r.cell.label, r.cell.task): r for _, r in ResultStore(results).scan()}
    data = stored["prompt_tuning", "micro_sentiment"].data
    assert data is not None
    assert (data.num_train, data.num_dev, data.num_test) == (50, 20, 30)
    assert data.whole == {"train": 2_000, "dev": 200, "test": 400}
    rule = stored["majority", "micro_sentiment"].data
    assert rule is not None
    assert rule.fingerprint == data.fingerprint
    whole = stored["prompt_tuning", "micro_paraphrase"].data
    assert whole is not None
    assert whole.whole == {}
    store = ResultStore(results)
    path = store.path(stored["prompt_tuning", "micro_sentiment"].cell)
    assert Counter(read_predictions(path)["split"]) == {"dev": 20, "test": 30}
    report = render_boards(collect_boards(stored.values()), "terminal")
    assert "50 of 2,000 train, 20 of 200 dev and 30 of 400 test rows are used" in " ".join(report.split())
    assert verify_folder(results).findings == []


def test_fewer_rows_are_a_part_of_more_in_the_same_order(write_suite: Write, tmp_path: Path) -> None:
    plan = make_plan(write_suite(SUITE), Overrides(), tmp_path / "none", None)
    cell = next(cell for cell in plan.asked() if cell.task == "micro_paraphrase")
    whole = cell_rows(cell, None, plan.suite.folder)
    fewer, more = (limit_rows(whole, RowLimit(test=n)).test for n in (10, 60))
    assert (len(fewer), len(more)) == (10, 60)
    places = [whole.test.index(row) for row in fewer]
    assert places == sorted(places)
    assert {id(row) for row in fewer} <= {id(row) for row in more}
    assert places != list(range(10))  # no prefix of the file, which may be sorted by label
    enough = limit_rows(whole, RowLimit(test=10_000))
    assert enough.record == whole.record


def test_a_part_of_the_rows_is_superseded_by_that_part_alone(write_suite: Write, tmp_path: Path) -> None:
    """A result of an older task version over 30 rows says nothing of a cell over all: that one is missing."""
    results = tmp_path / "results"
    run(write_suite(SUITE), methods=["majority"], tasks=["micro_sentiment"], results=results)
    cells = {
        text: make_plan(write_suite(text), Overrides(methods=["majority"]), tmp_path / "none", None).asked()[0]
        for text in (SUITE, SUITE.replace("rows: {micro_sentiment: {train: 50, dev: 20, test: 30}}\n", ""))
    }
    newer = [cell.model_copy(update={"task_version": cell.task_version + 1}) for cell in cells.values()]
    assert set(superseded(ResultStore(results), newer)) == {newer[0].key}


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 45))
def test_rows_that_belong_together_stay_together(groups: list[int], most: int) -> None:
    """MultiRC's F1 of a question needs all of its answers."""
    rows = [Example(f"text {i}", "0", ("0",), group=str(group)) for i, group in enumerate(groups)]
    record = DataRecord(
        source="",
        revision="",
        split_rule="",
        num_train=len(rows),
        num_dev=len(rows),
        num_test=len(rows),
        fingerprint="",
    )
    data = TaskData(all_tasks()["multirc"], rows, rows, rows, record)
    kept = limit_rows(data, RowLimit(dev=most))
    sizes, left = Counter(row.group for row in rows), Counter(row.group for row in kept.dev)
    assert all(left[group] == sizes[group] for group in left)
    assert 1 <= len(kept.dev) <= max(most, max(sizes.values()))
    assert kept.train == rows
    if most >= len(rows):
        assert kept.dev == rows


def test_rows_decide_the_cell_and_no_limit_leaves_its_id(write_suite: Write, tmp_path: Path) -> None:
    limited, whole = (
        {
            (cell.label, cell.task): cell
            for cell in make_plan(write_suite(text), Overrides(), tmp_path / "none", None).asked()
        }
        for text in (SUITE, SUITE.replace("rows: {micro_sentiment: {train: 50, dev: 20, test: 30}}\n", ""))
    )
    for place, cell in limited.items():
        assert (cell.cell_id == whole[place].cell_id) == (place[1] == "micro_paraphrase")
    said = CliRunner().invoke(app, ["plan", str(write_suite(SUITE)), "--results", str(tmp_path / "none")])
    assert "of these at most 50 train, 20 dev, 30 test rows are used" in " ".join(said.output.split())
    assert "row_limit" not in limited["majority", "micro_paraphrase"]._identity()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("{micro_sentimet: {test: 3}}", "micro_sentiment"),
        ("{micro_sentiment: {tets: 3}}", "test"),
        ("{micro_sentiment: {test: 0}}", "1"),
        ("{micro_sentiment: {}}", "limits nothing"),
        ("{micro_sentiment: 40}", "micro_sentiment"),
    ],
)
def test_a_wrong_limit_is_told_at_its_line(block: str, message: str, write_suite: Write, tmp_path: Path) -> None:
    text = SUITE.replace("{micro_sentiment: {train: 50, dev: 20, test: 30}}", block)
    with pytest.raises(UserError) as told:
        make_plan(write_suite(text), Overrides(), tmp_path / "none", None)
    assert "rows" in str(told.value)
    assert message in str(told.value)


def test_a_mixture_takes_its_tasks_whole(write_suite: Write, tmp_path: Path) -> None:
    text = SUITE + "define_mixtures: {both: {tasks: [micro_sentiment, micro_paraphrase]}}\n"
    with pytest.raises(UserError, match="mixture 'both' takes all rows of 'micro_sentiment'"):
        make_plan(write_suite(text), Overrides(), tmp_path / "none", None)
