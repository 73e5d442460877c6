"""Stop texts, beams and limits of answers, from a suite file and a protocol to the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.backbone.load import load_backbone, meta_backbone
from harness.data.tasks import all_tasks
from harness.data.tokenization import writings
from harness.errors import UserError
from harness.method.registry import discover, get_class
from harness.results.notes import data_notes
from harness.results.predictions import read_answers
from harness.results.store import ResultStore, predictions_path
from harness.runner import time_estimate
from harness.runner.plan import Plan, make_plan
from harness.runner.preflight import find_misfits
from harness.runner.run_suite import run
from harness.runner.time_estimate import WRITTEN_TOKEN, TextLengths, rows_of, written_positions
from harness.suite.cell import Cell
from harness.suite.make_groups import Overrides
from tools.network_matrix.checkpoints import build

pytestmark = pytest.mark.usefixtures("few_rows")
Write = Callable[[str], Path]

SUITE = """\
suite: written
backbones: [micro-t5]
tasks: [reviews]
seeds: [1]
recipe: {steps: 1, batch_size: 2, eval_every: 1, lr: 0.3}
methods: {prompt_tuning: {prompt_length: 2}}
define_tasks:
  reviews: {files: reviews.csv, fields: {review: text}, label: verdict, kind: text, SETTINGS}
"""


@pytest.fixture
def suite(write_suite: Write, tmp_path: Path) -> Callable[[str], Path]:
    lines = [f"a review of number {number},so it is {number}" for number in range(20)]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,verdict", *lines]) + "\n")
    return lambda settings: write_suite(SUITE.replace(", SETTINGS", f", {settings}" if settings else ""))


def identities(path: Path, **settings: Any) -> list[str]:
    keys = {f"protocol.decoding.{key}": value for key, value in settings.items()}
    plan = make_plan(path, Overrides(settings=keys), path.parent / "none", None)
    return [cell.cell_id for group in plan.groups for cell in group.cells.values()]


def cells_of(plan: Plan) -> list[Cell]:
    return [cell for group in plan.groups for cell in group.cells.values()]


def test_a_result_says_how_its_answers_were_written(suite: Callable[[str], Path], tmp_path: Path) -> None:
    path = suite("stop: ['e', 'zz'], num_beams: 2, max_new_tokens: 7")
    assert run(path, results=tmp_path / "out", quiet=True).num_failed == 0
    ((file, result),) = ResultStore(tmp_path / "out").scan()
    assert result.data is not None
    assert result.data.writing is not None
    assert result.data.writing.model_dump() == {
        "max_new_tokens": 7, "end_ids": [1], "num_beams": 2, "stop": ["e", "zz"],
    }  # fmt: skip
    assert {key: result.protocol[f"decoding.{key}"] for key in ("beams", "stop", "max_new_tokens")} == {
        "beams": "task", "stop": "task", "max_new_tokens": "task",
    }  # fmt: skip
    answers = [text for split in read_answers(predictions_path(file)).values() for text in split.predictions]
    assert answers
    assert not any("e" in answer or "zz" in answer for answer in answers)


def test_answers_that_cannot_be_written_are_told(suite: Callable[[str], Path], tmp_path: Path) -> None:
    """A stop text inside an answer is a mistake at its row; answers above the limit are counted in a note."""
    path = suite("stop: ['it is']")
    with pytest.raises(UserError) as caught:
        run(path, results=tmp_path / "out", quiet=True)
    assert "reviews.csv" in str(caught.value)
    assert "the answer 'so it is 0' holds the stop text 'it is', at which writing would end" in str(caught.value)
    assert not (tmp_path / "out").exists()
    path = suite("max_new_tokens: 3")
    assert run(path, results=tmp_path / "out", quiet=True).num_failed == 0
    ((_, result),) = ResultStore(tmp_path / "out").scan()
    assert result.data is not None
    sizes = {"train": result.data.num_train, "dev": result.data.num_dev, "test": result.data.num_test}
    assert result.data.cuts is not None
    assert result.data.cuts.unwritten == sizes
    *first, last = [f"{count} of {count} {split}" for split, count in sizes.items()]
    counts = f"{', '.join(first)} and {last}"
    assert data_notes([result]) == [
        f"reviews: {counts} answers are longer than the 3 tokens that are written at most",
    ]


def test_beams_that_a_method_cannot_follow_are_refused_before_training(
    suite: Callable[[str], Path], tmp_path: Path
) -> None:
    """HyperDecoder picks its rows, LST keeps what beams would exchange with every token."""
    path = suite("num_beams: 2")
    path.write_text(
        path.read_text().replace("prompt_tuning: {prompt_length: 2}", "lst: {skip_every: 2}, hyperdecoder: {}")
    )
    plan = make_plan(path, Overrides(), tmp_path / "none", None)
    misfits = find_misfits(plan, cells_of(plan))
    told = [(label, error.problem) for (_, label, _), error in misfits.items()]
    assert told == [("lst", "remembers what it has seen of each row, which the 2 beams of task 'reviews' do not keep")]
    hyperdecoder: Any = get_class(discover(), "hyperdecoder")
    unread = hyperdecoder(hyperdecoder.HP(), meta_backbone("micro-t5"))
    assert unread.keep_rows(torch.arange(2).repeat_interleave(2)), "it is asked before it has read a row"
    path = suite("num_beams: 1")
    path.write_text(path.read_text().replace("prompt_tuning: {prompt_length: 2}", "lst: {skip_every: 2}"))
    plan = make_plan(path, Overrides(), tmp_path / "none", None)
    assert not find_misfits(plan, cells_of(plan))


def test_a_protocol_sets_it_for_all_tasks_and_nothing_moves_at_its_own_values(suite: Callable[[str], Path]) -> None:
    path = suite("")
    plain = identities(path)
    assert identities(path, beams="task", stop="task", max_new_tokens="task") == plain
    others = [
        identities(path, **{key: value}) for key, value in (("beams", 3), ("stop", ["\n"]), ("max_new_tokens", 9))
    ]
    assert len({tuple(found) for found in [plain, *others]}) == 4
    settings = {"protocol.decoding.beams": 3, "protocol.decoding.stop": ["\n"], "protocol.decoding.max_new_tokens": 9}
    task = make_plan(path, Overrides(settings=settings), path.parent / "none", None).tasks["reviews"]
    assert (task.num_beams, task.stop, task.max_new_tokens) == (3, ("\n",), 9)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("stop: ['\\n', '']", "define_tasks.reviews.stop: lists an empty text"),
        ("num_beams: 0", "num_beams"),
        ("num_beams: 65", "num_beams"),
        ("max_new_tokens: 0", "max_new_tokens"),
        ("stop: [1]", "stop"),
    ],
)
def test_an_impossible_task_is_one_sentence(suite: Callable[[str], Path], settings: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        identities(suite(settings.replace("'\\n'", '"\\n"')))
    assert told in str(caught.value)
    assert "suite.yaml:" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("beams", 0, "expected an integer from 1 to 64, or 'task', got 0"),
        ("beams", 65, "expected an integer from 1 to 64"),
        ("beams", "many", "expected an integer from 1 to 64"),
        ("stop", ["a", ""], "lists an empty text"),
        ("stop", "a", "expected a list of texts, or 'task', got 'a'"),
        ("stop", [1], "expected a list of texts"),
        ("max_new_tokens", 0, "expected an integer from 1 to 10000"),
        ("max_new_tokens", 1.5, "expected an integer from 1 to 10000"),
    ],
)
def test_an_impossible_key_is_one_sentence(suite: Callable[[str], Path], key: str, value: object, told: str) -> None:
    with pytest.raises(UserError) as caught:
        identities(suite(""), **{key: value})
    assert told in str(caught.value)
    assert f"protocol.decoding.{key}" in str(caught.value)


def test_long_answers_and_beams_take_time_in_an_estimate(suite: Callable[[str], Path]) -> None:
    path = suite("max_new_tokens: 200")
    plan = make_plan(path, Overrides(), path.parent / "none", None)
    (group,) = plan.groups
    lengths = TextLengths(source=10.0, target=90.0, num_dev=7, num_test=11)
    cell = group.cells[(0, 1)]
    plain = rows_of(cell, lengths, 3).evaluation
    task = plan.tasks["reviews"]
    written = time_estimate._planned_writing(task, lengths.target)
    assert written == WRITTEN_TOKEN * 90
    assert rows_of(cell, lengths, 3, written=written).evaluation == plain + (7 + 11) * written
    assert written_positions(90.0, 60, 1) == WRITTEN_TOKEN * 60, "no answer is longer than its limit"
    assert written_positions(10.0, 19, 1) == 0, "short ones are in the measured speed"
    assert written_positions(10.0, 19, 4) == WRITTEN_TOKEN * 40


def test_a_special_token_named_as_a_stop_text_ends_an_answer_as_a_token(tmp_path: Path) -> None:
    build("Qwen2", tmp_path / "qwen")
    backbone = load_backbone(str(tmp_path / "qwen"), "float32")
    task = replace(all_tasks()["micro_qa"], stop=("<|endoftext|>", "Q:"))
    (writing,) = writings(task, backbone)
    assert writing.end_ids == (backbone.eos_id, backbone.tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    assert writing.stop == ("Q:",)
