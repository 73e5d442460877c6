"""Conversations in a user's own rows: all before the last answer is read, and a mistake is told with its row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import harness
from harness.cli.listings import describe_plan
from harness.data.examples import Converter
from harness.data.messages import read_messages
from harness.data.splits import load_task
from harness.data.tasks.declared import declared_task
from harness.data.tasks.task import Task
from harness.errors import UserError
from harness.runner.plan import make_plan
from harness.suite.blocks import TaskFile
from harness.suite.make_groups import Overrides


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


USER, ANSWER = message("user", "How many legs has a cat?"), message("assistant", "Four.")
SYSTEM = message("system", "Be brief.")
TEXT = {"type": "text", "text": "Is it late?"}


def task(path: Path, **settings: Any) -> Task:
    given_ = {"files": str(path), "messages": "talk", "kind": "text", "form": "auto", "dev_share": 1, "test_share": 1}
    return declared_task("cats", TaskFile.model_validate(given_ | settings), str(path.parent))


def write(folder: Path, name: str, talks: list[Any]) -> Path:
    path = folder / name
    if name.endswith(".csv"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([["talk"], *([json.dumps(talk)] for talk in talks)])
    elif name.endswith(".parquet"):
        import pandas as pd

        pd.DataFrame({"talk": talks}).to_parquet(path)
    else:
        path.write_text("".join(json.dumps({"talk": talk}) + "\n" for talk in talks))
    return path


def test_a_content_of_one_part_is_its_text() -> None:
    """As many exports write it. Whether several parts are one line or two, nobody says."""
    plain = read_messages([message("user", TEXT["text"]), ANSWER], "row 1", "talk")
    assert read_messages([message("user", [TEXT]), ANSWER], "row 1", "talk") == plain


@pytest.mark.parametrize("name", ["talks.jsonl", "talks.csv", "talks.parquet"])
def test_the_last_answer_is_the_target_and_what_stands_before_it_is_read(tmp_path: Path, name: str) -> None:
    talks = [
        [USER, ANSWER],
        [SYSTEM, USER, ANSWER],
        [USER, ANSWER, message("user", "And a bird?"), message("assistant", "Two.")],
    ]
    made = task(write(tmp_path, name, talks))
    data = load_task(made, None)
    rows = {row.messages: row for row in [*data.train, *data.dev, *data.test]}
    assert set(rows) == {tuple((turn["role"], turn["content"]) for turn in talk[:-1]) for talk in talks}
    for messages, row in rows.items():
        assert row.source == messages[-1][1]
        assert row.references == (row.target,) == ("Two." if "bird" in row.source else "Four.",)


def test_rows_with_other_turns_before_the_same_question_are_other_rows(tmp_path: Path) -> None:
    same, other = [USER, ANSWER], [SYSTEM, USER, ANSWER]
    talks = {"same.jsonl": [same] * 3, "system.jsonl": [same, other, same]}
    records = [load_task(task(write(tmp_path, name, rows)), None).record for name, rows in talks.items()]
    assert records[0].num_duplicates == 2
    assert records[1].num_duplicates < 2
    assert records[0].fingerprint != records[1].fingerprint


def test_the_task_may_be_a_classification_of_conversations(tmp_path: Path) -> None:
    path = write(tmp_path, "talks.jsonl", [[USER, message("assistant", "few")], [USER, message("assistant", "many")]])
    made = task(path, kind="classification", labels=["few", "many"])
    convert = Converter(made)
    row = {"talk": [USER, message("assistant", "many")]}
    assert [example.target for example in convert.examples("here", row)] == ["1"]


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        ([ANSWER, USER], "message 1 of 'talk' is of assistant; at the beginning comes one of user"),
        ([USER, USER, ANSWER], "message 2 of 'talk' is of user; behind that of user comes one of assistant"),
        ([USER, SYSTEM, ANSWER], "message 2 of 'talk' is of system; behind that of user comes one of assistant"),
        ([SYSTEM, ANSWER], "message 2 of 'talk' is of assistant; behind that of system comes one of user"),
        ([USER], "'talk' does not end with a message of assistant"),
        ([SYSTEM], "'talk' does not end with a message of assistant"),
        ([], "'talk' does not end with a message of assistant"),
        ([USER, message("asistant", "Four.")], "unknown role of message 2 in 'talk' 'asistant'; did you mean assist"),
        ([USER, message("assistant", "")], "message 2 of 'talk', of assistant, is empty"),
        ([message("user", " \n"), ANSWER], "message 1 of 'talk', of user, is empty"),
        ([message("user", None), ANSWER], "message 1 of 'talk', of user, is empty"),
        ([message("user", ["a"]), ANSWER], "the content of message 1 in 'talk' is no text but list"),
        ([message("user", [TEXT, TEXT]), ANSWER], "message 1 of 'talk', of user, has 2 parts of text"),
        ([message("user", [TEXT, {"type": "image"}]), ANSWER], "message 1 of 'talk', of user, has a part of type"),
        ([message("user", [{"type": "text"}]), ANSWER], "message 1 of 'talk', of user, is empty"),
        ([{"from": "human", "value": "x"}, ANSWER], "message 1 of 'talk' has no role and content"),
        (["How?", "So."], "message 1 of 'talk' has no role and content"),
        ({"role": "user", "content": "x"}, "'talk' holds no conversation but {'role'"),
        ("How many?", "'talk' holds no conversation but a text that is not JSON"),
        (None, "field 'talk' is empty"),
        ([USER, {**ANSWER, "tool_calls": [{"id": 1}]}], "message 2 of 'talk', of assistant, has 'tool_calls' (a call"),
        ([USER, {**ANSWER, "content": "", "tool_calls": [{}]}], "message 2 of 'talk', of assistant, has 'tool_calls'"),
        ([{**USER, "name": "Ann"}, ANSWER], "message 1 of 'talk', of user, has 'name' (the name of who speaks), which"),
        ([USER, {**ANSWER, "reasoning_content": "2+2"}], "message 2 of 'talk', of assistant, has 'reasoning_content'"),
        ([USER, {**ANSWER, "weight": 0}], "message 2 of 'talk', of assistant, has 'weight' (whether the message is"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_conversation_is_one_sentence_with_file_and_row(tmp_path: Path, talk: Any, words: str) -> None:
    path = write(tmp_path, "talks.jsonl", [[USER, ANSWER], talk, [USER, ANSWER]])
    with pytest.raises(UserError) as caught:
        load_task(task(path), None)
    assert str(caught.value).startswith(f"{path}:2: {words}")


@pytest.mark.parametrize("name", ["talks.jsonl", "talks.parquet"])
def test_keys_without_a_value_are_none_and_others_are_left_out_and_counted(tmp_path: Path, name: str) -> None:
    empty: dict[str, Any] = {"name": None, "tool_calls": [], "reasoning_content": ""}
    talks = [[{**USER, **empty}, ANSWER], [{**USER, "date": "May"}, {**ANSWER, "date": "June"}], [USER, ANSWER]]
    record = load_task(task(write(tmp_path, name, talks)), None).record
    assert record.source.endswith("('date' of messages left out in 1 row)")


def test_a_run_stops_at_such_a_row_before_anything_is_written(tmp_path: Path) -> None:
    write(tmp_path, "talks.jsonl", [[USER, ANSWER], [USER], [USER, ANSWER], [USER, ANSWER]])
    (tmp_path / "suite.yaml").write_text(
        "suite: s\nbackbones: [micro-t5]\ntasks: [cats]\nseeds: [1]\nmethods: {majority: }\ndefine_tasks:\n"
        "  cats: {files: talks.jsonl, messages: talk, kind: text, form: auto}\n"
    )
    with pytest.raises(UserError, match=r"talks.jsonl:2: 'talk' does not end with a message of assistant"):
        harness.run(tmp_path / "suite.yaml", results=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
    # rows that nobody can read are not rows that are elsewhere, which a plan does without
    with pytest.raises(UserError, match=r"talks.jsonl:2: 'talk' does not end with a message of assistant"):
        describe_plan(make_plan(tmp_path / "suite.yaml", Overrides(), tmp_path / "out", None))


leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from(["user", "assistant", "[]"])
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(values)
def test_whatever_stands_there_is_a_conversation_or_a_user_error(value: Any) -> None:
    try:
        before, answer, _ = read_messages(value, "rows.jsonl:1", "talk")
    except UserError as error:
        told = str(error)
    else:
        assert answer.strip()
        assert before[-1][0] == "user"
        return
    assert told.startswith("rows.jsonl:1: ")
