"""Cells that train on several tasks at once and are scored on each."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.tokenization import join_encoded
from harness.errors import UserError
from harness.report.boards import collect_boards
from harness.report.declared.find_entries import EntryIndex
from harness.report.site.cells import sample_of
from harness.report.site.runs import SHOWN, list_runs
from harness.report.tables import render_boards
from harness.results.notes import data_notes
from harness.results.rescore import rescore_folder
from harness.results.schema import Result
from harness.results.store import ResultStore, checksum, load_results
from harness.results.verify import verify_folder
from harness.runner.plan import make_plan
from harness.runner.run_suite import run
from harness.suite.cell import Mixture, Part
from harness.suite.file_schema import Sampling
from harness.suite.make_groups import Overrides
from harness.train.row_order import MixedOrder, sampling_shares
from harness.train.tiny_backbones import tiny_backbone, tiny_rows

pytestmark = pytest.mark.usefixtures("few_rows")

Write = Callable[[str], Path]

SUITE = """\
suite: mixed
backbones: [micro-t5]
define_mixtures:
  both: {tasks: [micro_sentiment, micro_paraphrase], sampling: equal}
tasks: [both]
seeds: [1]
recipe: {steps: 2, batch_size: 2, eval_every: 2, backbone_dropout: false, lr: 0.1}
sources:
  teacher: {method: prompt_tuning, prompt_length: 3}
  student:
    method: mpt
    prompt_length: 3
    init_from: [{method: teacher, task: micro_sentiment}, {method: teacher, task: micro_paraphrase}]
methods:
  majority:
  student:
    method: mpt
    prompt_length: 3
    init_from: [{method: teacher, task: micro_sentiment}, {method: teacher, task: micro_paraphrase}]
  hyperformer: {recipe: {lr: 0.0003}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "suite.yaml").write_text(SUITE)
    assert run(folder / "suite.yaml", results=folder / "results", quiet=True).num_failed == 0
    return folder


def found(folder: Path, label: str) -> list[Result]:
    return [result for _, result in ResultStore(folder / "results").scan() if result.cell.label == label]


def test_a_mixture_is_scored_on_each_task_and_selected_by_their_mean(trained: Path) -> None:
    (result,) = found(trained, "student")
    assert result.dev is not None
    assert result.test is not None
    assert result.data is not None
    assert set(result.test.parts) == {"micro_sentiment", "micro_paraphrase"} == set(result.data.parts)
    assert result.test.score == fmean(part.score for part in result.test.parts.values())
    assert result.test.num_rows == sum(part.num_rows for part in result.test.parts.values())
    selected = next(entry for entry in result.dev_history if entry.step == result.selected_step)
    assert selected.selection == fmean(part.metrics["accuracy"] for part in result.dev.parts.values())


def test_stored_predictions_give_the_scores_of_every_task_again(trained: Path) -> None:
    checked = rescore_folder(ResultStore(trained / "results").scan())
    assert checked.moved == []
    assert checked.num_runs == 3 * 2 + 2, "three mixtures with two tasks each, and two teachers"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda split: split.update(score=99.0), "score of the mixture: stored 99.0000, its tasks give"),
        (
            lambda split: split["metrics"].update(dict.fromkeys(split["metrics"], 99.0)),
            "of the mixture: stored 99.0000",
        ),
        (lambda split: split["metrics"].update(more=1.0), "a mixture has the metric"),
        (lambda split: split.update(num_rows=3), "rows of the mixture: stored 3, its tasks give"),
        (lambda split: split.update(num_unreadable=999), "unreadable answers of the mixture: stored 999"),
    ],
)
def test_an_edited_score_of_the_mixture_itself_is_named(
    trained: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    shutil.copytree(trained / "results", tmp_path / "results")
    path, _ = next(item for item in ResultStore(tmp_path / "results").scan() if item[1].cell.label == "student")
    content = json.loads(path.read_text())
    change(content["test"])
    path.write_text(json.dumps(content | {"checksum": checksum(content)}))
    (line,) = rescore_folder(ResultStore(tmp_path / "results").scan()).moved
    assert line.startswith(f"{path}: test")
    assert told in line
    assert [item.kind for item in verify_folder(tmp_path / "results").findings if item.kind == "scores"] == ["scores"]


def test_the_report_has_a_column_per_task_and_parameters_per_task_and_in_full(trained: Path) -> None:
    boards = collect_boards(result for _, result in ResultStore(trained / "results").scan())
    board = next(board for board in boards if board.suite == "mixed")
    assert sorted(board.tasks) == ["micro_paraphrase", "micro_sentiment"]
    row = next(row for row in board.rows if row.label == "student")
    (result,) = found(trained, "student")
    assert result.params is not None
    total = 3 * 96 + 2 * (3 + 96)
    assert (result.params.num_trained, result.params.num_tasks) == (total, 2)
    assert row.params("num_trained") == [total // 2]
    assert row.average(board.tasks) == pytest.approx(result.test.score if result.test else None)
    assert f"{total // 2:,} per task; {total:,} for 2 tasks" in render_boards([board], "markdown", False, [])
    table = load_results(trained / "results")
    assert set(table[table.method == "hyperformer"].task) == {"micro_sentiment", "micro_paraphrase"}


def test_the_papers_tables_and_the_pages_show_every_task_of_a_mixture(trained: Path) -> None:
    scanned = list(ResultStore(trained / "results").scan())
    pool = EntryIndex(result for _, result in scanned)
    (one,) = pool.find({"label": "student", "suite": "mixed", "task": "micro_sentiment"})
    (result,) = found(trained, "student")
    assert result.test is not None
    assert one.entry.mean == result.test.parts["micro_sentiment"].score
    assert len(pool.find({"label": "student", "suite": "mixed"})) == 2
    lines = list_runs(scanned, collect_boards(result for _, result in scanned), [trained / "results"])
    assert {line.status for line in lines} == {SHOWN}
    path = next(path for path, made in scanned if made.cell_id == result.cell_id)
    assert sample_of(path, result).total == result.test.num_rows


def test_what_is_to_be_known_of_the_rows_is_told_for_each_task_of_a_mixture(trained: Path) -> None:
    (result,) = found(trained, "student")
    assert result.data is not None
    parts = {name: part.model_copy(update={"one_class": {"dev": "bad"}}) for name, part in result.data.parts.items()}
    data = result.data.model_copy(update={"parts": parts})
    assert data_notes([result.model_copy(update={"data": data})]) == [
        f"{name}: all {part.num_dev:,} dev rows have the label 'bad'" for name, part in parts.items()
    ]


def test_teachers_come_first_and_in_the_order_of_the_tasks(trained: Path) -> None:
    (result,) = found(trained, "student")
    teachers = {r.cell_id: r.cell.task for r in found(trained, "teacher")}
    assert [teachers[str(record.cell_id)] for record in result.starts] == ["micro_sentiment", "micro_paraphrase"]
    plan = make_plan(trained / "suite.yaml", Overrides(), trained / "results", None)
    assert plan.asked() == []
    assert not any(plan.is_stale(r) for results in plan.results for r in results.values())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("micro_paraphrase], s", "micro_parahprase], s", "unknown task 'micro_parahprase'; did you mean micro_par"),
        ("both: {", "micro_qa: {", "a task is called 'micro_qa' already"),
        ("sampling: equal", "sampling: equally", "did you mean equal?"),
        ("[micro_sentiment, micro_paraphrase], s", "[micro_sentiment, micro_sentiment], s", "lists a task twice"),
        ("prompt_length: 3\n    init_from: [{method: teacher, task: micro_sentiment}, ",
         "num_tasks: 3\n    init_from: [{method: teacher, task: micro_sentiment}, ", "3, but the suite names 2"),
    ],
)  # fmt: skip
def test_mistakes_in_a_mixture_are_named(write_suite: Write, tmp_path: Path, old: str, new: str, message: str) -> None:
    head, tail = SUITE.split("methods:\n")
    text = head.replace(old, new, 1) + "methods:\n" + tail.replace(old, new, 1)
    with pytest.raises(UserError) as caught:
        make_plan(write_suite(text), Overrides(), tmp_path / "none", None)
    assert message in str(caught.value)


def test_a_task_of_a_mixture_that_changes_makes_another_cell(write_suite: Write, tmp_path: Path) -> None:
    def identity(text: str) -> str:
        plan = make_plan(write_suite(text), Overrides(methods=["hyperformer"]), tmp_path / "none", None)
        return plan.groups[0].cells[(0, 1)].cell_id

    first = identity(SUITE)
    assert identity(SUITE.replace("sampling: equal", "sampling: proportional")) != first
    assert identity(SUITE.replace("micro_paraphrase], s", "micro_entailment], s")) != first


@given(sizes=st.lists(st.integers(1, 100_000), min_size=2, max_size=6), temperature=st.floats(1, 100))
def test_temperature_lies_between_proportional_and_equal(sizes: list[int], temperature: float) -> None:
    proportional = sampling_shares(sizes, "proportional", temperature)
    equal = sampling_shares(sizes, "equal", temperature)
    between = sampling_shares(sizes, "temperature", temperature)
    assert sum(between) == pytest.approx(1)
    assert proportional == pytest.approx([size / sum(sizes) for size in sizes])
    assert equal == pytest.approx([1 / len(sizes)] * len(sizes))
    largest = sizes.index(max(sizes))
    assert equal[largest] - 1e-9 <= between[largest] <= proportional[largest] + 1e-9
    assert sampling_shares(sizes, "temperature", 1.0) == pytest.approx(proportional)


@pytest.mark.parametrize("sampling", ["proportional", "equal"])
def test_rows_come_as_often_as_their_task_and_each_once_per_epoch(sampling: Sampling) -> None:
    parts = [Part(task=name, task_version=1) for name in ("a", "b")]
    order = MixedOrder([30, 10], Mixture(parts=parts, sampling=sampling, temperature=1.0), seed=3)
    rows = np.concatenate([order.draw(40) for _ in range(100)])
    share = float((rows < 30).mean())
    assert share == pytest.approx({"proportional": 0.75, "equal": 0.5}[sampling], abs=0.03)
    for first, stop in ((0, 30), (30, 40)):
        counts = Counter(rows[(rows >= first) & (rows < stop)].tolist())
        assert len(counts) == stop - first
        assert max(counts.values()) - min(counts.values()) <= 1
    again = MixedOrder([30, 10], Mixture(parts=parts, sampling=sampling, temperature=1.0), seed=3)
    assert np.array_equal(again.draw(40), rows[:40])
    later = MixedOrder([30, 10], Mixture(parts=parts, sampling=sampling, temperature=1.0), seed=4)
    later.restore(again.state())
    assert np.array_equal(later.draw(40), rows[40:80]), "an order goes on where another was"


def test_joined_rows_are_those_of_the_tasks(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    one, two = tiny_rows([3, 5], backbone), tiny_rows([4, 2, 7], backbone)
    joined = join_encoded([one, two])
    assert joined.tasks is not None
    assert joined.tasks.tolist() == [0, 0, 1, 1, 1]
    for row, (part, index) in enumerate([(one, 0), (one, 1), (two, 0), (two, 1), (two, 2)]):
        assert np.array_equal(joined.sources(np.array([row]), 0), part.sources(np.array([index]), 0))
        assert np.array_equal(joined.targets(np.array([row])), part.targets(np.array([index])))
