"""SuperGLUE: nested official rows, marked spans, copies per answer; the hub layout gives the same text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness.data.splits import load_task
from harness.data.tasks import all_tasks
from harness.data.tasks.superglue import mark_wsc_spans
from harness.errors import UserError

TASKS = all_tasks()


def write_both(folder: Path, train: Sequence[object], validation: Sequence[object] | None = None) -> None:
    folder.mkdir(parents=True)
    for name, rows in (("train", train), ("val", validation or train)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


WSC = {"text": "Mark told Pete many lies about himself.", "label": True, "idx": 0}
SPANS = {"span1_text": "Mark", "span1_index": 0, "span2_text": "himself", "span2_index": 6}


@pytest.mark.parametrize("row", [{**WSC, "target": SPANS}, {**WSC, **SPANS, "label": 1}])
def test_wsc_marks_its_spans_in_both_layouts(row: dict[str, object], tmp_path: Path) -> None:
    write_both(tmp_path / "WSC", [row, row])
    example = load_task(TASKS["wsc"], tmp_path).train[0]
    assert (example.source, example.target) == ("text: * Mark * told Pete many lies about # himself #.", "1")


def test_wsc_moves_only_a_later_span_and_takes_special_characters_as_they_are() -> None:
    flat = {"text": "He saw (Pete).", "label": 0, "span1_text": "(Pete)", "span1_index": 2, "span2_text": "He",
            "span2_index": 0}  # fmt: skip
    assert next(iter(mark_wsc_spans(flat)))["text"] == "# He # saw * (Pete) *."


# a raw official row's text and spans, the same row of the hub's wsc.fixed, the marked text, what is told of the repair
RAW_WSC = {
    "another case in the span": (
        ("The donkey saw a wolf, so it ran.", "the donkey", 0, "it", 6), ("The donkey", 0, "it", 6),
        "* The donkey * saw a wolf, so # it # ran.", "case of a span repaired",
    ),
    "a full stop behind the span": (
        ("Ann thanked Joan and she left.", "Joan.", 2, "she", 4), ("Joan", 2, "she", 4),
        "Ann thanked * Joan * and # she # left.", "full stop of a span dropped",
    ),
    "a line break in the span": (
        ("I saw the old man and he waved.", "the old\nman", 2, "he", 6), ("the old man", 2, "he", 6),
        "I saw * the old man * and # he # waved.", "line break of a span made a blank",
    ),
    "a span that occurs twice": (
        ("Bob saw Bob and he waved.", "Bob", 2, "he", 4), ("Bob", 2, "he", 4),
        "Bob saw * Bob * and # he # waved.", None,
    ),
    "a quotation mark before the span": (
        ("He said, \"He won.\"", "He", 0, "He", 2), ("He", 0, "He", 2), "* He * said, \"# He # won.\"", None,
    ),
    "two blanks counted as a word": (
        ("Ann left.  Then she and she met.", "Ann", 0, "she", 4), ("Ann", 0, "she", 4),
        "* Ann * left.  Then # she # and she met.", None,
    ),
    "words that do not stand together": (
        ("Kamenev wept and Zinoviev too, so they went.", "Kamenev and Zinoviev", 0, "they", 6),
        ("Kamenev and Zinoviev", 0, "they", 6),
        "Kamenev wept and Zinoviev too, so # they # went.", "span left unmarked",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", RAW_WSC)
def test_raw_wsc_rows_are_repaired_and_are_those_of_the_hub(kind: str, tmp_path: Path) -> None:
    (text, *raw), fixed, marked, told = RAW_WSC[kind]
    names = ("span1_text", "span1_index", "span2_text", "span2_index")
    row = {"text": text, "label": True, "target": dict(zip(names, raw, strict=True))}
    write_both(tmp_path / "a" / "WSC", [row, row])
    flat = {"text": text, "label": 1, **dict(zip(names, fixed, strict=True))}
    write_both(tmp_path / "b" / "hub" / "wsc", [flat, flat])
    official, hub = load_task(TASKS["wsc"], tmp_path / "a"), load_task(TASKS["wsc"], tmp_path / "b")
    assert official.train[0].source == f"text: {marked}"
    assert official.record.fingerprint == hub.record.fingerprint
    # two rows of each of the two files
    assert official.record.source == "folder WSC" + (f" ({told} in 4 rows)" if told else "")


def test_a_span_that_is_nowhere_in_its_text_is_an_error(tmp_path: Path) -> None:
    write_both(tmp_path / "WSC", [{**WSC, "target": {**SPANS, "span1_text": "Maria"}}])
    with pytest.raises(UserError, match=r"train\.jsonl:1: span1 'Maria' is not in the text 'Mark told"):
        load_task(TASKS["wsc"], tmp_path)


def test_multirc_is_flattened_and_stripped_of_markup(tmp_path: Path) -> None:
    answers = [{"text": "A", "label": 1}, {"text": "B", "label": 0}]
    text = "<b>Sent 1: </b>One.<br>Two."
    nested = {"passage": {"text": text, "questions": [{"question": "Q?", "answers": answers}]}}
    flat = [{"paragraph": text, "question": "Q?", "answer": item["text"], "label": item["label"]} for item in answers]
    write_both(tmp_path / "a" / "MultiRC", [nested])
    write_both(tmp_path / "b" / "hub" / "multirc", flat)
    official, hub = load_task(TASKS["multirc"], tmp_path / "a"), load_task(TASKS["multirc"], tmp_path / "b")
    assert official.train[0].source == "question: Q? answer: A paragraph: Sent 1: One. Two."
    assert [example.target for example in official.train] == ["1", "0"]
    assert official.record.fingerprint == hub.record.fingerprint


@pytest.mark.parametrize(
    ("name", "row", "source", "target"),
    [
        ("boolq", {"question": "is it", "passage": "It is.", "label": True}, "question: is it passage: It is.", "1"),
        ("wic", {"sentence1": "A b.", "sentence2": "C b.", "word": "b", "label": False},
         "sentence1: A b. sentence2: C b. word: b", "0"),
        ("cb", {"premise": "P", "hypothesis": "H", "label": "neutral"}, "premise: P hypothesis: H", "2"),
        ("copa", {"premise": "P", "choice1": "A", "choice2": "B", "question": "cause", "label": 1},
         "premise: P choice1: A choice2: B", "1"),
        ("rte", {"premise": "P", "hypothesis": "H", "label": "entailment"}, "sentence1: P sentence2: H", "0"),
    ],
)  # fmt: skip
def test_flat_tasks_have_the_documented_text(
    name: str, row: dict[str, object], source: str, target: str, tmp_path: Path
) -> None:
    write_both(tmp_path / TASKS[name].folders[1], [row, row])
    example = load_task(TASKS[name], tmp_path).train[0]
    assert (example.source, example.target) == (source, target)


def test_reported_and_selection_metrics_differ_where_the_papers_code_does() -> None:
    assert (TASKS["cb"].reported, TASKS["cb"].selection) == (("accuracy",), "macro_f1")
    assert (TASKS["multirc"].reported, TASKS["multirc"].selection) == (("f1",), "f1")
    of_papers = {name: task for name, task in TASKS.items() if task.form == "suffix"}
    assert {name: task.max_source_length for name, task in of_papers.items() if task.max_source_length != 256} == {
        "multirc": 348,
        **dict.fromkeys(["naturalquestions", "hotpotqa", "searchqa", "newsqa", "squad"], 512),
        **{name: 64 for name in TASKS if name.startswith("micro_")},
    }


PASSAGE = 'Ann met Bob.\n@highlight\nBob waved\n@highlight\nHe said "hi"\n@highlight\nAnn left'
JOINED = 'Ann met Bob. Bob waved. He said "hi" Ann left'
SPANS_OF_ENTITIES = [{"start": 8, "end": 10}, {"start": 0, "end": 2}, {"start": 24, "end": 26}]


def record_query(query: str, *answers: str) -> dict[str, object]:
    return {"query": query, "answers": [{"start": 0, "end": 1, "text": answer} for answer in answers]}


def record_row(*queries: dict[str, object]) -> dict[str, object]:
    return {"passage": {"text": PASSAGE, "entities": SPANS_OF_ENTITIES}, "qas": list(queries)}


def write_record(folder: Path) -> None:
    train = [record_row(*(record_query(f"@placeholder {i}", "Bob", "Ann", "Bob") for i in range(10)))]
    write_both(folder / "superglue" / "ReCoRD", train, [record_row(record_query("Where?"))])


def test_record_is_copied_for_every_answer_after_the_split_is_cut(tmp_path: Path) -> None:
    write_record(tmp_path)
    data = load_task(TASKS["record"], tmp_path)
    first = data.dev[:2]
    assert first[0].source == f"record query: @placeholder 2 entities: Ann, Bob passage: {JOINED}"
    assert first[0].source == first[1].source
    assert [(example.target, example.references) for example in first] == [("Ann", ("Ann",)), ("Bob", ("Bob",))]
    assert (len(data.train), len(data.dev), data.record.num_duplicates) == (10, 10, 0)
    assert [example.target for example in data.test] == ["<unk>"]


def test_a_copy_of_record_may_accept_all_answers_of_its_query(tmp_path: Path) -> None:
    write_record(tmp_path)
    data = load_task(replace(TASKS["record"], references="all"), tmp_path)
    assert [example.references for example in data.dev[:2]] == [("Ann", "Bob"), ("Bob", "Ann")]


def test_the_hub_copy_of_record_gives_the_same_rows(tmp_path: Path) -> None:
    write_record(tmp_path / "a")
    flat = [{"passage": PASSAGE, "query": f"@placeholder {i}", "entities": ["Ann", "Bob"], "answers": ["Ann", "Bob"]}
            for i in range(10)]  # fmt: skip
    last = {"passage": PASSAGE, "query": "Where?", "entities": ["Ann", "Bob"], "answers": []}
    write_both(tmp_path / "b" / "hub" / "record", flat, [last])
    official, hub = load_task(TASKS["record"], tmp_path / "a"), load_task(TASKS["record"], tmp_path / "b")
    assert official.record.fingerprint == hub.record.fingerprint


def test_a_nested_row_without_its_fields_is_named(tmp_path: Path) -> None:
    write_both(tmp_path / "ReCoRD", [{"passage": {"text": "x"}, "qas": []}])
    with pytest.raises(UserError, match=r"train.jsonl:1: has not the fields of task 'record': KeyError\('entities'\)"):
        load_task(TASKS["record"], tmp_path)


def test_real_queries_of_record_find_their_answers_among_the_entities(real_data: Path) -> None:
    files = {split: str(real_data / "fewglue" / "ReCoRD" / f"{name}.jsonl")
             for split, name in (("train", "train"), ("validation", "dev32"))}  # fmt: skip
    data = load_task(replace(TASKS["record"], files=files), None)
    for example in (*data.train, *data.dev, *data.test):
        entities = example.source.split(" entities: ")[1].split(" passage: ")[0].split(", ")
        assert example.target in entities
        assert "@highlight" not in example.source
