"""Rows with choices: where the texts stand, which one a label means, and what is refused with file and row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest

import harness
from harness.backbone.load import load_backbone
from harness.backbone.network import Backbone
from harness.cli.list_tasks import describe_rows
from harness.data.class_names import ClassName
from harness.data.encoded_choices import check_labels, encode_choices
from harness.data.examples import Converter, Example, TaskData
from harness.data.few_shot import draw_few
from harness.data.prompt_form import make_form
from harness.data.splits import load_task
from harness.data.tasks import all_tasks
from harness.data.tasks.declared import suite_tasks
from harness.data.tasks.task import Task
from harness.errors import UserError
from harness.results.predictions import read_answers
from harness.results.rescore import rescore_folder
from harness.results.store import ResultStore, predictions_path, read_result
from harness.suite.blocks import ChoiceScore, Draw, Form
from harness.suite.make_groups import Overrides, load_suite
from harness.train.evaluate import chance_level, score_split

PAIR = ("left", "right")


def task(*choices: str, **changes: Any) -> Task:
    settings: dict[str, Any] = {"fields": (("question", "q"),), "label": "answer", "ids_are_documented": False}
    return Task(name="quiz", title="", benchmark="", kind="choice", choices=choices, **{**settings, **changes})


def right(label: object, texts: Sequence[object] = ("cat", "dog", "cow"), **changes: Any) -> int:
    (example,) = Converter(task("options", **changes)).examples("f:1", {"q": "?", "options": [*texts], "answer": label})
    assert example.target == example.choices[int(example.references[0])]
    return int(example.references[0])


def refused(label: object, texts: object = ("cat", "dog", "cow"), made: Task | None = None) -> str:
    row = {"q": "?", "options": list(texts) if isinstance(texts, tuple) else texts, "answer": label}
    with pytest.raises(UserError) as caught:
        Converter(made or task("options")).examples("f.jsonl:7", row)
    assert str(caught.value).startswith("f.jsonl:7")
    return str(caught.value)


@pytest.mark.parametrize(
    ("label", "expected"),
    [(0, 0), (2, 2), (2.0, 2), ("0", 0), (" 1 ", 1), ("01", 1), ("2.0", 2), ("A", 0), ("b", 1), ("C", 2), ("cat", 0),
     (" Dog", 1), ("COW", 2)],
)  # fmt: skip
def test_a_label_is_a_number_from_0_a_letter_or_the_text(label: object, expected: int) -> None:
    assert right(label) == expected


@pytest.mark.parametrize(
    ("label", "texts", "expected"),
    [
        (1, ("1", "2", "3"), 1),  # a number of JSON or Parquet is no text
        ("3", ("1", "2", "3"), 2),  # no number of a choice, so the text
        ("us", ("US", "us"), 1),
        ("no", ("yes", "no"), 1),
        ("true", ("True", "False"), 0),
        (True, ("True", "False"), 0),
        ("0", ("0", "1"), 0),  # as text and as number the same
        ("a", ("x", "y", "a", "b"), None),
        ("1", ("1", "2", "3"), None),
        ("same", ("same", "same"), None),
        ("B", ("C", "B", "A"), 1),
        ("A", ("C", "B", "A"), None),
        ("1", ("0", "2", "1"), None),
    ],
)
def test_a_label_that_may_stand_for_two_choices_is_not_guessed(
    label: object, texts: tuple[str, ...], expected: int | None
) -> None:
    if expected is None:
        assert "may stand for the " in refused(label, texts)
    else:
        assert right(label, texts) == expected


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (3, "label '3' is out of range: 3 choices go from 0 to 2, or from A to C. If the data counts from 1"),
        ("7", "out of range: 3 choices go from 0 to 2"),
        (-2, "out of range"),
        ("D", "out of range"),
        (-1, "Hidden test labels (-1) cannot be scored"),
        ("", "the label of task 'quiz' is empty"),
        (None, "field 'answer' is empty"),
        ("dogg", "is the text, the letter or the number of no choice; did you mean dog?"),
        (True, "of no choice"),
        (1.5, "of no choice"),
    ],
)
def test_a_label_that_stands_for_no_choice_is_refused_with_file_and_row(label: object, expected: str) -> None:
    assert expected in refused(label)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("cat",), "options: has 1 choice, and needs two"),
        ((), "has 0 choices, and needs two"),
        (("cat", " "), "choice 1 is empty"),
        (("cat", None), "choice 1 is empty"),
        (("cat", ["dog"]), "choice 1 is no text but list ['dog']"),
        ("cat;dog", "field 'options' holds no list of choices but str 'cat;dog'"),
        ({"text": ["cat", "dog"], "label": ["A"]}, "has 2 choices and 1 names of them"),
        ({"texts": ["cat"]}, "holds no list of choices"),
    ],
)
def test_rows_without_two_texts_to_choose_from_are_refused(texts: object, expected: str) -> None:
    assert expected in refused(0, texts)


@pytest.mark.parametrize(
    ("label", "texts"), [(0, ("cat", "cat")), ("C", ("cat", "dog", " cat ")), (1, ("a", "b", "b"))]
)
def test_a_right_choice_that_stands_there_twice_is_refused_with_its_row(label: object, texts: tuple[str, ...]) -> None:
    assert "have the same text" in refused(label, texts)
    names = {"text": list(texts), "label": ["x", "y", "z"][: len(texts)]}
    assert "choices " in refused("x" if texts[0] != "a" else "y", names)


def test_equal_texts_that_are_wrong_and_those_of_a_shipped_task_are_taken() -> None:
    assert right(0, ("cat", "dog", "dog")) == 0
    assert right("b", ("Cat", "cat")) == 1  # other texts to a network
    assert right(1, ("cat", "cat"), ids_are_documented=True) == 1
    row = {"goal": "Sit.", "sol1": "On a chair.", "sol2": "On a chair.", "label": 1}
    ((example,),) = Converter(all_tasks()["piqa"]).read([("f:1", row)])
    assert example.references == ("1",)


def test_rows_may_differ_in_their_number_of_choices_where_a_column_holds_lists() -> None:
    made = Converter(task("options"))
    rows: list[tuple[str, dict[str, Any]]] = [("f:1", {"q": "?", "options": ["a1", "a2"], "answer": 0}),
            ("f:2", {"q": "?", "options": ["b1", "b2", "b3"], "answer": "C"})]  # fmt: skip
    (first,), (second,) = made.read(rows)
    assert first == Example("question: ?", "a1", ("0",), choices=("a1", "a2"))
    assert second == Example("question: ?", "b3", ("2",), choices=("b1", "b2", "b3"))


def test_a_row_that_lacks_one_of_the_columns_is_refused() -> None:
    made = Converter(task("one", "two", "three"))
    with pytest.raises(UserError, match="f:2: field 'three' is missing"):
        list(made.read([("f:1", {"q": "?", "one": "a", "two": "b", "three": "c", "answer": 0}),
                        ("f:2", {"q": "?", "one": "a", "two": "b", "answer": 0})]))  # fmt: skip
    with pytest.raises(UserError, match=r"f:3: three: choice 2 is empty\. Rows with different numbers of choices hold"):
        made.examples("f:3", {"q": "?", "one": "a", "two": "b", "three": "", "answer": 0})


def test_a_label_may_name_the_column_of_its_choice() -> None:
    row = {"q": "?", "left": "a cat", "right": "a dog", "answer": "right"}
    (example,) = Converter(task(*PAIR)).examples("f:1", row)
    assert example.references == ("1",)
    named = {**row, "answer": ClassName(0, PAIR)}  # as the hub stores COPA's labels
    (example,) = Converter(task(*PAIR)).examples("f:1", named)
    assert example.references == ("0",)


def test_names_that_a_row_gives_its_choices_are_what_its_label_means() -> None:
    """ARC writes {"text": [...], "label": ["1", "2", ...]}, where 1 is the first."""
    made = Converter(task("options"))
    row = {"q": "?", "options": {"text": ["cat", "dog"], "label": ["1", "2"]}, "answer": "1"}
    assert made.examples("f:1", row)[0].references == ("0",)
    made.check()
    with pytest.raises(UserError, match="label 'B' is no name of a choice in this row"):
        made.examples("f:2", {**row, "answer": "B"})


@pytest.mark.parametrize(("numbers", "refused_"), [((1, 2, 3), True), ((1, 2, 0), False), (("B", 1), True)])
def test_numbers_that_never_are_0_are_refused(numbers: tuple[object, ...], refused_: bool) -> None:
    made = Converter(task("options"))
    texts = ["cat", "dog", "cow", "owl"]
    made.read([(f"f:{i}", {"q": "?", "options": texts, "answer": label}) for i, label in enumerate(numbers)])
    if refused_:
        with pytest.raises(UserError, match=r"holds the numbers .* and never 0; the number of a choice counts from 0"):
            made.check()
    else:
        made.check()


COPA = {"premise": "The man turned on the faucet.", "choice1": "The toilet filled with water.",
        "choice2": "Water flowed from the spout.", "question": "effect", "label": 1, "idx": 0}  # fmt: skip


def test_copa_in_its_official_form_goes_on_behind_the_premise(tmp_path: Path) -> None:
    (tmp_path / "COPA").mkdir()
    other = {**COPA, "question": "cause", "premise": "My body cast a shadow over the grass. ", "label": 0}
    for name in ("train", "val"):
        (tmp_path / "COPA" / f"{name}.jsonl").write_text(json.dumps(COPA) + "\n" + json.dumps(other) + "\n")
    first, second = load_task(all_tasks()["copa_choice"], tmp_path).train
    assert first.source == "The man turned on the faucet therefore"
    assert first.choices == ("the toilet filled with water.", "water flowed from the spout.")
    assert (first.target, first.references) == (first.choices[1], ("1",))
    assert (second.source, second.references) == ("My body cast a shadow over the grass because", ("0",))
    (tmp_path / "COPA" / "train.jsonl").write_text(json.dumps({**COPA, "question": "why"}) + "\n")
    with pytest.raises(UserError, match="question 'why' is neither cause nor effect"):
        load_task(all_tasks()["copa_choice"], tmp_path)


@pytest.fixture(scope="module")
def micro() -> Backbone:
    return load_backbone("micro-t5")


def test_choices_as_tokens_without_an_end_and_what_they_are_divided_by(micro: Backbone) -> None:
    rows = [
        Example("x", "good", ("0",), choices=("good", "bad film")),
        Example("y", "é", ("2",), choices=("bad", "good", "é")),
    ]
    for score, lengths in (("sum", [1] * 5), ("per_character", [4, 8, 3, 4, 1]), ("per_byte", [4, 8, 3, 4, 2])):
        made = encode_choices(rows, micro, task("options", choice_score=score))
        assert made is not None
        assert made.lengths.tolist() == lengths
    per_token = encode_choices(rows, micro, task("options", choice_score="per_token"))
    assert per_token is not None
    own = per_token.of(np.array([1, 0]))[0]
    assert own.tolist() == [2, 3, 4, 0, 1]
    assert per_token.lengths[own].tolist() == per_token.num_tokens(own).tolist()
    ids = per_token.tokens(own[:1])[0].tolist()
    assert ids == micro.tokenizer("bad", add_special_tokens=False)["input_ids"]
    assert micro.eos_id not in per_token.ids
    assert per_token.answers == ("0", "1", "0", "1", "2")


def test_labels_by_likelihood_are_the_choices_of_every_row(micro: Backbone) -> None:
    boolq = all_tasks()["boolq"]
    ranked = Task(
        **{**vars(boolq), "answered_by": "likelihood", "target_style": "words", "target_words": ("no", "yes")}
    )
    rows = [Example("x", "yes", ("yes",)), Example("y", "no", ("no",))]
    made = encode_choices(rows, micro, ranked)
    assert made is not None
    assert made.answers == ("no", "yes") * 2
    assert encode_choices(rows, micro, boolq) is None


@pytest.mark.parametrize(
    ("words", "score", "expected"),
    [
        (("in", "on", "inert"), "sum", "label 'in' begins label 'inert', so by likelihood 'inert' could never win"),
        (("in", "on", "inert"), "per_token", ""),
        (("10", "2", "1"), "sum", "label '1' begins label '10', so by likelihood '10' could never win"),
        (("ten", "two", "one"), "sum", ""),
        # special tokens are taken out of a text
        (("No", "No</s>"), "per_byte", "labels 'No' and 'No</s>' are the same tokens"),
    ],
)
@pytest.mark.parametrize("form", ["plain", "chat"])
def test_a_label_that_could_never_be_the_likeliest_is_refused(
    form: Form, words: tuple[str, ...], score: ChoiceScore, expected: str
) -> None:
    quiz = replace(task(), kind="classification", answered_by="likelihood", target_style="words", labels=words,
                   choice_score=score, form=form)  # fmt: skip
    read = families.backbone("llama")
    rows = [Example(text, words[0], (words[0],)) for text in ("a", "a:")]
    if not expected:
        check_labels(quiz, make_form(quiz, read))
        assert encode_choices(rows, read, quiz) is not None
        return
    refusal = rf"^task 'quiz': {expected}.*Give words, or answered_by: writing\.$"
    with pytest.raises(UserError, match=refusal):
        check_labels(quiz, make_form(quiz, read))
    with pytest.raises(UserError, match=refusal):
        encode_choices(rows, read, quiz)
    written = replace(quiz, answered_by="writing")
    check_labels(written, make_form(written, read))


def test_a_choice_may_begin_another(micro: Backbone) -> None:
    """As in lm-evaluation-harness, whose figures these are compared with."""
    rows = [Example("x", "good", ("0",), choices=("good", "good film"))]
    assert encode_choices(rows, micro, task("options")) is not None


def test_a_score_counts_numbers_and_an_empty_answer_is_unreadable() -> None:
    rows = [
        Example("x", "good", ("0",), choices=("good", "bad")),
        Example("y", "good", ("1",), choices=("bad", "good")),
    ]
    score = score_split(task("options"), rows, ["0", ""])
    assert (score.score, score.num_unreadable) == (50.0, 1)


QUIZ = """\
suite: quiz
backbones: [micro-t5]
tasks: [quiz]
seeds: [1]
recipe: {steps: 2, batch_size: 4, eval_every: 1, warmup_steps: 0, lr: 0.1}
define_tasks:
  quiz:
    kind: choice
    files: rows.jsonl
    fields: {question: q}
    choices: options
    label: answer
"""


def write_quiz(folder: Path, count: int = 40, **changes: Any) -> Path:
    """Row i has 2 or 3 choices; the right one is the first in 3 of 4 rows."""
    made = []
    for i in range(count):
        texts = [f"good film {i}", "a bad film", "dull"][: 2 + i % 2]
        made.append(
            {"q": f"which one is number {i}", "options": texts, "answer": "B" if i % 4 == 3 else "A", **changes}
        )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    path = folder / "quiz.yaml"
    path.write_text(
        QUIZ + "methods: {majority: , random_guess: , prompt_tuning: {prompt_length: 4, recipe: {lr: 0.1}}}\n"
    )
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quiz")
    summary = harness.run(write_quiz(folder, 60), results=folder / "out", quiet=True)
    assert (summary.num_trained, summary.num_failed) == (3, 0)
    return folder


def stored(folder: Path, label: str) -> Path:
    (path,) = (folder / "out").rglob(f"{label}/**/*.json")
    return path


def rows_of(folder: Path) -> TaskData:
    return load_task(suite_tasks(load_suite(folder / "quiz.yaml", Overrides()))["quiz"], None)


def test_a_run_answers_with_numbers_that_its_rows_have(trained: Path) -> None:
    data = rows_of(trained)
    for label in ("majority", "random_guess", "prompt_tuning"):
        path = stored(trained, label)
        result = read_result(path)
        assert result.test is not None
        assert result.test.num_unreadable == 0
        answers = read_answers(predictions_path(path))["test"]
        assert list(answers.references) == [list(example.references) for example in data.test]
        if label != "majority":  # which gives one number to all rows
            ranges = [len(example.choices) for example in data.test]
            assert all(int(answer) < count for answer, count in zip(answers.predictions, ranges, strict=True))
            assert len(set(answers.predictions)) > 1


def test_the_majority_is_the_most_frequent_number(trained: Path) -> None:
    result, data = read_result(stored(trained, "majority")), rows_of(trained)
    assert result.test is not None
    share = sum(example.references == ("0",) for example in data.test) / len(data.test)
    assert result.test.score == pytest.approx(100 * share)
    assert chance_level(data).score == pytest.approx(
        100 * sum(example.references == ("0",) for example in data.dev) / len(data.dev)
    )


def test_stored_answers_give_their_scores_again(trained: Path) -> None:
    checked = rescore_folder(ResultStore(trained / "out").scan())
    assert (checked.moved, checked.num_runs) == ([], 3)


def test_few_rows_are_drawn_without_regard_to_which_choice_is_right(trained: Path) -> None:
    drawn = draw_few(rows_of(trained), Draw(k=6, rule="balanced", seed=1))
    assert len(drawn.train) == 6
    assert drawn.record.few_shot is not None
    assert drawn.record.few_shot.class_counts == {"": 6}


def test_tokens_of_choices_are_on_record_and_a_preview_shows_them(trained: Path) -> None:
    result = read_result(stored(trained, "prompt_tuning"))
    assert result.data is not None
    assert set(result.data.choice_tokens) == {"dev", "test"}
    assert min(result.data.choice_tokens.values()) > 0
    preview = describe_rows("quiz", "micro-t5", "train", 2, None, trained / "quiz.yaml")
    assert "choice 0: good film" in preview["text"]
    assert "* choice" in preview["text"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kind": "choice", "choices": None}, "define_tasks.quiz.choices: names no column of choices"),
        (
            {"choices": "[options]"},
            "lists one column, and a choice needs two. A column that holds a list: choices: options",
        ),
        ({"choices": "[a, b, a]"}, "lists a column twice"),
        ({"kind": "text"}, "only a task of kind choice has them"),
        ({"kind": "text", "choices": None, "answered_by": "likelihood"}, "a text has no labels to choose from"),
        ({"kind": "text", "choices": None, "choice_score": "per_byte"}, "answers are written, so nothing is ranked"),
        ({"words": "[no, yes]"}, "lists one word for each label, all different"),
        ({"metrics": "[f1]"}, "metric of a choice with these labels 'f1'"),
    ],
)
def test_what_a_choice_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    path = write_quiz(tmp_path)
    text = path.read_text()
    for key, value in changes.items():
        lines = [line for line in text.splitlines() if not line.startswith(f"    {key}:")]
        at = lines.index("    files: rows.jsonl")
        text = "\n".join([*lines[:at], *([f"    {key}: {value}"] if value else []), *lines[at:]]) + "\n"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        harness.run(path, results=tmp_path / "out", quiet=True)
    assert expected in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_bad_row_stops_a_run_with_file_and_line(tmp_path: Path) -> None:
    path = write_quiz(tmp_path, answer="E")
    with pytest.raises(UserError, match=r"rows\.jsonl:1.*answer: label 'E' is out of range: 2 choices go from 0 to 1"):
        harness.run(path, results=tmp_path / "out", quiet=True)
