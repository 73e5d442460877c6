"""MRQA and SQuAD: official files and hub rows give the same examples."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from harness.data.splits import load_task
from harness.data.tasks import all_tasks
from harness.errors import UserError

TASKS = all_tasks()
OFFICIAL = {
    "naturalquestions": "NaturalQuestionsShort", "hotpotqa": "HotpotQA", "searchqa": "SearchQA", "newsqa": "NewsQA",
}  # fmt: skip

QUESTIONS = [
    {"context": "Ann lives in Rome.", "question": "Where does Ann live?", "answers": ["Rome", "in Rome"]},
    {"context": "Ann lives in Rome.", "question": "Who lives in Rome?", "answers": ["Ann"]},
    {"context": "Bob's dog ran.", "question": "Whose dog?", "answers": ["Bob's"]},
]
SOURCES = [
    "question: Where does Ann live ? context: Ann lives in Rome .",
    "question: Who lives in Rome ? context: Ann lives in Rome .",
    "question: Whose dog ? context: Bob ' s dog ran .",
]


def jsonl(rows: Sequence[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def mrqa_lines(detected_only: bool) -> str:
    lines: list[dict[str, object]] = [{"header": {"dataset": "X", "split": "train"}}]
    for context in dict.fromkeys(str(row["context"]) for row in QUESTIONS):
        qas = []
        for row in QUESTIONS:
            if row["context"] == context:
                detected = [{"text": answer, "char_spans": [[0, 1]]} for answer in row["answers"]]
                given = {} if detected_only else {"answers": row["answers"]}
                qas.append({"qid": "q", "question": row["question"], "detected_answers": detected, **given})
        lines.append({"id": "", "context": context, "qas": qas})
    return jsonl(lines)


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("detected_only", [False, True])
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_official_and_hub_rows_of_mrqa_agree(name: str, detected_only: bool, suffix: str, tmp_path: Path) -> None:
    hub = tmp_path / "b" / TASKS[name].hub[0].path
    hub.mkdir(parents=True)
    for split, official in (("train", "train"), ("validation", "dev")):
        path = tmp_path / "a" / "mrqa" / official / f"{OFFICIAL[name]}.{suffix}"
        path.parent.mkdir(parents=True)
        with (gzip.open if suffix.endswith("gz") else open)(path, "wt", encoding="utf-8") as file:
            file.write(mrqa_lines(detected_only))
        (hub / f"{split}.jsonl").write_text(jsonl(QUESTIONS))
    data = load_task(TASKS[name], tmp_path / "a")
    assert data.record.fingerprint == load_task(TASKS[name], tmp_path / "b").record.fingerprint
    assert [example.source for example in data.test] == SOURCES
    assert [example.target for example in data.test] == ["Rome", "Ann", "Bob ' s"]
    assert [example.references for example in data.test] == [("Rome",), ("Ann",), ("Bob ' s",)]


def test_files_of_another_set_beside_it_are_not_taken_for_a_task(tmp_path: Path) -> None:
    for name in ("train/HotpotQA", "dev/HotpotQA", "dev/NewsQA", "train", "dev"):
        path = tmp_path / "mrqa" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(mrqa_lines(False))
    assert load_task(TASKS["hotpotqa"], tmp_path).record.num_test == 3
    with pytest.raises(UserError, match="mrqa has no train"):
        load_task(TASKS["newsqa"], tmp_path)
    with pytest.raises(UserError, match="no files of task 'searchqa'"):
        load_task(TASKS["searchqa"], tmp_path)


def test_official_and_hub_rows_of_squad_agree(tmp_path: Path) -> None:
    def answer_field(row: Mapping[str, Sequence[str]]) -> dict[str, object]:
        return {"text": row["answers"], "answer_start": [0 for _ in row["answers"]]}

    paragraphs = [
        {"context": row["context"], "qas": [{"id": "1", "question": row["question"], "answers": [
            {"text": answer, "answer_start": 0} for answer in row["answers"]]}]}
        for row in QUESTIONS
    ]  # fmt: skip
    document = {"version": "1.1", "data": [{"title": "T", "paragraphs": paragraphs}]}
    (tmp_path / "a" / "squad").mkdir(parents=True)
    (tmp_path / "b" / "rajpurkar" / "squad" / "plain_text").mkdir(parents=True)
    for split, name in (("train", "train"), ("validation", "dev")):
        (tmp_path / "a" / "squad" / f"{name}-v1.1.json").write_text(json.dumps(document))
        rows = [{**row, "answers": answer_field(row)} for row in QUESTIONS]
        (tmp_path / "b" / "rajpurkar" / "squad" / "plain_text" / f"{split}.jsonl").write_text(jsonl(rows))
    official, hub = load_task(TASKS["squad"], tmp_path / "a"), load_task(TASKS["squad"], tmp_path / "b")
    assert official.record.fingerprint == hub.record.fingerprint
    assert [example.source for example in official.test] == SOURCES
    assert [example.target for example in official.test] == ["Rome", "Ann", "Bob ' s"]


def test_question_answering_is_chosen_by_exact_match_and_reported_as_token_f1() -> None:
    for name in (*OFFICIAL, "squad", "record"):
        assert (TASKS[name].reported, TASKS[name].selection) == (("token_f1",), "exact_match")
