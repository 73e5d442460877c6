"""What a row becomes: text, target words, rounded numbers, accepted answers, spaced punctuation."""

from __future__ import annotations

import re
import sys
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.examples import Converter, Example, round_number, space_punctuation
from harness.data.metrics import normalize_answer
from harness.data.prompt_form import target_ids
from harness.data.tasks import Task, all_tasks
from harness.data.tokenization import max_new_tokens
from harness.errors import UserError
from harness.train.caches import cached_backbone
from harness.train.evaluate import score_split

TASKS = all_tasks()
CB = TASKS["cb"]


def convert(task: Task, **row: object) -> Example:
    (example,) = Converter(task).examples("file:1", row)
    return example


def test_source_and_target_are_as_in_the_papers_code() -> None:
    example = convert(CB, premise="It  rains. ", hypothesis="It is wet", label="contradiction")
    assert example == Example("premise: It  rains.  hypothesis: It is wet", "1", ("1",))


def test_a_prefix_stands_in_front_of_fields_and_template() -> None:
    mnli = replace(TASKS["mnli"], prefix="mnli")
    assert convert(mnli, premise="A", hypothesis="B", label=2).source == "mnli premise: A hypothesis: B"
    own = replace(CB, prefix="cb", template="{premise}? {hypothesis}")
    assert convert(own, premise="A", hypothesis="B", label=2).source == "cb A? B"


def test_a_template_takes_any_column_by_its_name() -> None:
    task = replace(CB, template="{{review}} of {the item}: {text}!")
    row = {"the item": "x {y}", "text": "good", "label": 0}
    assert convert(task, **row).source == "{review} of x {y}: good!"
    with pytest.raises(UserError, match="file:1: field 'text' is missing"):
        convert(task, **{"the item": "x", "label": 0})


@pytest.mark.parametrize("template", ["{text", "text}", "{}", "{text!r}", "{text:>9}"])
def test_a_template_with_other_braces_is_refused(template: str) -> None:
    with pytest.raises(UserError, match="task 'cb': template: "):
        Converter(replace(CB, template=template))


def test_a_task_without_text_is_refused() -> None:
    with pytest.raises(UserError, match="neither fields nor a template"):
        Converter(replace(CB, fields=()))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mnli", ["entailment", "neutral", "contradiction"]),
        ("qqp", ["not_duplicate", "duplicate"]),
        ("qnli", ["entailment", "not_entailment"]),
        ("rte", ["entailment", "not_entailment"]),
        ("sst2", ["negative", "positive"]),
        ("mrpc", ["not_equivalent", "equivalent"]),
        ("cola", ["unacceptable", "acceptable"]),
        ("boolq", ["False", "True"]),
        ("wic", ["False", "True"]),
        ("wsc", ["False", "True"]),
        ("multirc", ["False", "True"]),
        ("cb", ["entailment", "contradiction", "neutral"]),
        ("copa", ["choice1", "choice2"]),
        ("scitail", ["entailment", "neutral"]),
    ],
)
def test_label_words_are_those_of_t5_and_digits_the_default(name: str, words: list[str]) -> None:
    assert TASKS[name].targets == [str(index) for index in range(len(words))]
    assert replace(TASKS[name], target_style="words").targets == words


@pytest.mark.parametrize("label", [1, "1", True, "true", " True "])
def test_targets_scores_and_decoding_follow_the_words(label: object) -> None:
    boolq = replace(TASKS["boolq"], target_style="words", extra=("f1",))
    example = convert(boolq, question="q", passage="p", label=label)
    assert (example.target, example.references) == ("True", ("True",))
    score = score_split(boolq, [example, replace_target(example, "False")], ["True", "1"])
    assert score.metrics == {"accuracy": 50.0, "f1": pytest.approx(200 / 3)}
    assert score.num_unreadable == 1
    backbone = cached_backbone("micro-t5", "float32")
    assert max_new_tokens(boolq, backbone) == max(len(target_ids(word, backbone, None)) for word in ("True", "False"))


def replace_target(example: Example, target: str) -> Example:
    return Example(example.source, target, (target,))


def test_a_class_name_wins_over_an_id() -> None:
    stars = replace(CB, labels=("1", "2", "3"))
    assert [convert(stars, premise="", hypothesis="", label=star).target for star in (1, 2, "3")] == [*"012"]
    with pytest.raises(UserError, match="label '0' is not one of"):  # not the place of the label 1
        convert(stars, premise="", hypothesis="", label=0)


# (label, tenths, fifths): the hub's labels are 32-bit floats, so 0.45 lies below its tie and 2.25 on it
ROUNDED = [(3.8, "3.8", "3.8"), (0.45, "0.4", "0.4"), (2.25, "2.2", "2.2"), (2.5, "2.5", "2.4"), (1.5, "1.5", "1.6"),
           (4.9, "4.9", "4.8"), (3.333, "3.3", "3.4"), (0.0, "0.0", "0.0"), (5.0, "5.0", "5.0")]  # fmt: skip


@pytest.mark.parametrize(("label", "tenths", "fifths"), ROUNDED)
def test_numbers_are_rounded_to_tenths_or_fifths(label: float, tenths: str, fifths: str) -> None:
    stsb = TASKS["stsb"]
    assert convert(stsb, sentence1="a", sentence2="b", label=label).target == tenths
    assert convert(replace(stsb, number_step=0.2), sentence1="a", sentence2="b", score=str(label)).target == fifths


@given(st.integers(0, 5_000))
def test_rounding_agrees_with_the_published_formulas(thousandths: int) -> None:
    label = np.float32(thousandths / 1_000)
    assert round_number(thousandths / 1_000, 0.1) == f"{np.round((float(label) * 5) / 5, decimals=1):.1f}"
    assert round_number(thousandths / 1_000, 0.2) == f"{np.round(label * np.float32(5)) / np.float32(5):.1f}"


@pytest.mark.parametrize("label", ["much", "nan", float("inf"), [1.0]])
def test_a_label_that_is_no_number_is_named(label: object) -> None:
    with pytest.raises(UserError, match=r"file:1: label .* is not a number"):
        convert(TASKS["stsb"], sentence1="a", sentence2="b", label=label)


QUESTION = {"question": "Who's there?", "context": "Ann (Bob's aunt), at 5.30.\n\nYes!"}
SPACED = "question: Who ' s there ? context: Ann ( Bob ' s aunt ) , at 5 . 30 . Yes !"


def test_question_answering_is_spaced_alike_in_text_target_and_reference() -> None:
    example = convert(TASKS["newsqa"], **QUESTION, answers=["Bob's aunt", "Ann"])
    assert example == Example(SPACED, "Bob ' s aunt", ("Bob ' s aunt",))


def test_all_answers_count_where_asked_for() -> None:
    task = replace(TASKS["squad"], references="all")
    answers = {"text": ["Ann", "aunt.", "Ann"], "answer_start": [0, 11, 0]}
    assert convert(task, **QUESTION, answers=answers) == Example(SPACED, "Ann", ("Ann", "aunt ."))


def test_the_answers_field_can_be_written_as_the_papers_code_did() -> None:
    task = replace(TASKS["squad"], stringify_answers=True)
    example = convert(task, **QUESTION, answers={"text": ["Ann"], "answer_start": [0]})
    assert example.target == "{ ' text ' : [ ' Ann ' ] , ' answer _ start ' : [ 0 ] }".replace(" _ ", "_")
    assert example.references == (example.target,)


@pytest.mark.parametrize("answers", [[], [1], {"text": []}, 5])
def test_a_row_without_an_answer_is_named(answers: object) -> None:
    with pytest.raises(UserError, match="file:1: 'answers' holds no answer text") as told:
        convert(TASKS["newsqa"], **QUESTION, answers=answers)
    is_number = answers in ([1], 5)
    assert (" but int " in str(told.value)) == ('Write it as text: "' in str(told.value)) == is_number


@given(st.text())
def test_spacing_is_idempotent_and_changes_nothing_but_blanks(text: str) -> None:
    spaced = space_punctuation(text)
    assert space_punctuation(spaced) == spaced
    assert "".join(spaced.split()) == "".join(text.split())
    assert spaced == " ".join(spaced.split())


@given(st.text(alphabet="ab _9.'\n-éन्ि、"))
def test_spacing_leaves_no_mark_of_punctuation_beside_a_letter(text: str) -> None:
    assert not re.search(r"[\w\u093f\u094d][.'\-、]|[.'\-、][\w\u093f\u094d]", space_punctuation(text))


def test_spacing_parts_exactly_the_categories_of_the_published_pattern() -> None:
    chars = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    kept = {char for char in chars if char == "_" or unicodedata.category(char)[0] in "LMN"}
    expected = "".join(f"é{char}é" if char in kept else f"é {char} é" for char in chars)
    assert space_punctuation("".join(f"é{char}é" for char in chars)) == " ".join(expected.split())


@given(st.text(alphabet="Ab .,'the"))
def test_spacing_twice_does_not_change_a_normalised_answer(text: str) -> None:
    assert normalize_answer(space_punctuation(space_punctuation(text))) == normalize_answer(space_punctuation(text))
