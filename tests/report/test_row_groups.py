"""Rows that belong together: which they are, how they are stored, and that statistics draw them together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from stored_runs import answers, store
from typing_help import present

from harness.data.examples import Converter
from harness.data.tasks import all_tasks
from harness.report.boards import collect_boards
from harness.report.statistics.intervals import Sample, swap_test
from harness.report.statistics.significance import Significance, assess_board
from harness.report.tables import render_boards
from harness.results.predictions import Answers, PredictionFiles, read_answers
from harness.results.store import ResultStore, predictions_path
from harness.results.verify import verify_folder
from harness.runner.run_suite import run

SUITE = """\
suite: grouped
backbones: [micro-t5]
tasks: [multirc]
seeds: [1]
methods: [majority]
"""


def multirc_rows(num_questions: int) -> str:
    """The official layout: one passage, questions with three answers each."""
    questions = [
        {"question": f"Who is {i}?", "answers": [{"text": f"{i}{j}", "label": j % 2} for j in range(3)]}
        for i in range(num_questions)
    ]
    return json.dumps({"passage": {"text": "A text.", "questions": questions}}) + "\n"


def test_the_answers_to_one_question_are_stored_as_a_group(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "superglue" / "MultiRC"
    folder.mkdir(parents=True)
    for name in ("train", "val"):
        (folder / f"{name}.jsonl").write_text(multirc_rows(8))
    (tmp_path / "grouped.yaml").write_text(SUITE)
    done = run(tmp_path / "grouped.yaml", results=tmp_path / "results", data=tmp_path / "data", quiet=True)
    assert done.num_failed == 0
    ((path, _),) = ResultStore(tmp_path / "results").scan()
    found = read_answers(predictions_path(path))
    for split in ("dev", "test"):
        sizes = np.bincount(found[split].units)
        assert sizes.sum() == 12, "the 24 answers are halved by answer"
        assert 4 <= len(sizes) <= 8, "and belong to 8 questions"
        assert sizes.max() <= 3
    assert verify_folder(tmp_path / "results").findings == []


def test_copies_of_one_query_belong_together_and_other_tasks_have_no_groups() -> None:
    row = {"passage": "P.", "query": "@placeholder came", "entities": ["A", "B"], "answers": ["A", "B"]}
    read = Converter(all_tasks()["record"]).read([("1", row), ("2", {**row, "query": "@placeholder went"})])
    groups = [[example.group for example in examples] for examples in read]
    assert [len(set(names)) for names in groups] == [1, 1]
    assert groups[0][0] != groups[1][0]
    (plain,) = Converter(all_tasks()["wic"]).read(
        [("1", {"sentence1": "a", "sentence2": "b", "word": "c", "label": 0})]
    )
    assert plain[0].group == ""


def board_of(root: Path) -> tuple[str, Significance]:
    scanned = list(ResultStore(root).scan())
    (board,) = collect_boards(result for _, result in scanned)
    made = assess_board(board, PredictionFiles(scanned).test_answers)
    return render_boards([board], "markdown", significance=[made]), made


def width(made: Significance) -> float:
    low, high = made.intervals["one", "multirc"]
    return high - low


def test_rows_of_a_group_count_as_one_and_files_without_groups_say_so(tmp_path: Path) -> None:
    # 40 questions, of which all five answers are right or all are wrong: 40 draws of a coin, not 200
    names = [f"q{i // 5}" for i in range(200)]
    for folder, groups in (("grouped", names), ("older", [])):
        for seed in (1, 2):
            store(tmp_path / folder, "one", "multirc", seed, *answers(100, 200), belongs_to=groups)
    (text, grouped), (old_text, old) = board_of(tmp_path / "grouped"), board_of(tmp_path / "older")
    assert width(grouped) == pytest.approx(5**0.5 * width(old), rel=0.05)  # 39 degrees of freedom, not 199
    assert "do not say which rows belong together" not in text
    assert "Some predictions on multirc do not say which rows belong together" in old_text
    # an older run beside a newer one that answered the same rows: the groups are known then
    store(tmp_path / "older", "two", "multirc", 1, *answers(100, 200), belongs_to=names)
    both_text, both = board_of(tmp_path / "older")
    assert width(both) == width(grouped)
    assert "do not say" not in both_text


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_groups_are_drawn_and_swapped_as_a_whole(metric: str) -> None:
    generator = np.random.default_rng(0)
    truth = [["1"] if i % 2 else ["0"] for i in range(60)]
    right = np.repeat(generator.random((2, 12)) < [[0.9], [0.3]], 5, axis=1)
    groups = tuple(np.repeat(np.arange(12), 5).tolist())

    def sample(hits: np.ndarray, known: tuple[int, ...] | None) -> Sample:
        texts = [refs[0] if hit else "10"[int(refs[0])] for refs, hit in zip(truth, hits, strict=True)]
        return Sample.of([((1,), Answers(texts, truth, known))], [metric], ["0", "1"])

    grouped, alone = ([sample(hits, known) for hits in right] for known in (groups, None))
    assert grouped[0].estimate().variance == pytest.approx(5 * alone[0].estimate().variance, rel=0.35)
    assert grouped[0].num_units == 12
    differing = int((right[0] != right[1])[::5].sum())
    assert swap_test(*grouped) >= 2 / 2**differing > 10 * swap_test(*alone)
    assert grouped[0].comparable(grouped[1])
    assert not grouped[0].comparable(alone[1])


def test_groups_that_are_no_numbers_are_no_predictions(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    result = store(tmp_path, "one", "multirc", 1, *answers(1, 4), belongs_to=["a", "a", "b", "b"])
    ((path, _),) = ResultStore(tmp_path).scan()
    file = predictions_path(path)
    assert present(read_answers(file, result.files.predictions)["test"].groups) == (0, 0, 1, 1)
    table = pq.read_table(file)
    index = table.column_names.index("group")
    pq.write_table(table.set_column(index, "group", pa.array(["x"] * 8)), file)
    assert PredictionFiles([(path, result)]).test_answers(result) is None
