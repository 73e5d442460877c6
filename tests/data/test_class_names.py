"""Ids of classes and the names stored with them: one meaning for all files of a task, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.examples import Converter
from harness.data.file_formats import read_file
from harness.data.label_matching import LabelMatcher
from harness.data.splits import load_task
from harness.data.tasks import Task, all_tasks
from harness.data.tasks.task import Hub
from harness.errors import UserError

OWN = replace(
    all_tasks()["sst2"],
    name="own", label="label", labels=("bad", "good"), split="given", hub=(), sizes=None, ids_are_documented=False,
)  # fmt: skip
TRUTH = ["good", "bad", "bad", "good", "bad"]


def table(names: Sequence[str], labels: Sequence[str] = TRUTH) -> datasets.Dataset:
    """Rows whose ids are numbered in the order of `names`."""
    features = datasets.Features(sentence=datasets.Value("string"), label=datasets.ClassLabel(names=list(names)))
    rows = [{"sentence": f"text {i}", "label": label} for i, label in enumerate(labels)]
    return datasets.Dataset.from_list([{**row, "label": list(names).index(row["label"])} for row in rows], features)


def parquet(folder: Path, data: datasets.Dataset) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(data.data.table, folder / "x.parquet")
    return folder / "x.parquet"


def saved(folder: Path, data: datasets.Dataset) -> Path:
    data.save_to_disk(str(folder / "x"))
    return folder / "x"


def lines(folder: Path, rows: Sequence[object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "x.jsonl"
    made = [{"sentence": f"text {i}", "label": label} for i, label in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def targets(task: Task, **files: Path) -> dict[str, list[str]]:
    data = load_task(replace(task, files={split: str(path) for split, path in files.items()}), None)
    return {split: [row.target for row in data.split(split)] for split in ("train", "dev", "test")}


@pytest.mark.parametrize("write", [parquet, saved])
def test_every_split_is_read_by_its_own_names(tmp_path: Path, write: Callable[..., Path]) -> None:
    files = {
        "train": write(tmp_path / "a", table(["good", "bad"])),
        "dev": lines(tmp_path / "b", TRUTH),
        "test": write(tmp_path / "c", table(["Bad", "Good"], [text.title() for text in TRUTH])),
    }
    assert set(map(tuple, targets(OWN, **files).values())) == {tuple("10010")}


def test_a_folder_of_splits_and_the_hub_are_read_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    splits = {"train": ["good", "bad"], "validation": ["bad", "good"], "test": ["good", "bad"]}
    datasets.DatasetDict({name: table(names) for name, names in splits.items()}).save_to_disk(str(tmp_path / "saved"))
    assert set(map(tuple, targets(OWN, train=tmp_path / "saved").values())) == {tuple("10010")}
    (tmp_path / "hub").mkdir()
    for name in splits:
        pq.write_table(table(["good", "bad"]).data.table, tmp_path / "hub" / f"{name}-00000-of-00001.parquet")
    found = load_task(replace(OWN, hub=(Hub(str(tmp_path / "hub")),)), None)
    assert [row.target for row in found.test] == [*"10010"]


def test_a_shipped_task_takes_a_copy_in_another_order(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        made = table(["positive", "negative"], ["positive", "negative", "positive", "negative"])
        parquet(tmp_path / "SST-2" / split, made)
    data = load_task(all_tasks()["sst2"], tmp_path)
    assert {(row.source, row.target) for row in data.test} == {
        ("sentence: text 0", "1"), ("sentence: text 1", "0"), ("sentence: text 2", "1"), ("sentence: text 3", "0"),
    }  # fmt: skip


def test_a_dictionary_column_is_read_by_its_values(tmp_path: Path) -> None:
    """Categoricals of pandas are stored so."""
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1]), pa.array(["good", "bad"]))
    pq.write_table(pa.table({"sentence": ["a", "b", "c"], "label": column}), tmp_path / "x.parquet")
    path = tmp_path / "x.parquet"
    assert targets(OWN, train=path, dev=path, test=path)["train"] == [*"100"]


def test_ids_in_lists_and_structs_are_named(tmp_path: Path) -> None:
    kind = datasets.ClassLabel(names=["red", "blue"])
    features = datasets.Features(many=[kind], one={"tag": kind}, spans=datasets.Sequence({"tag": kind}))
    row = {"many": [1, 0, -1], "one": {"tag": 1}, "spans": {"tag": [0, 1]}}
    made = datasets.Dataset.from_list([row], features)
    ((_, found),) = read_file(parquet(tmp_path, made))
    assert found == {"many": ["blue", "red", -1], "one": {"tag": "blue"}, "spans": {"tag": ["red", "blue"]}}


def refusal(task: Task, **files: Path) -> str:
    with pytest.raises(UserError) as caught:
        targets(task, **files)
    return str(caught.value)


def test_names_that_match_no_label_are_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path, table(["pos", "neg"], ["pos", "neg", "neg"]))
    said = refusal(OWN, train=path, dev=path, test=path)
    assert "x.parquet: row 0: label: class 0 is called 'pos' in the data" in said
    assert "labels: [pos, neg]" in said


def test_numbers_beside_names_in_another_order_are_refused(tmp_path: Path) -> None:
    named, bare = parquet(tmp_path / "a", table(["good", "bad"])), lines(tmp_path / "b", [1, 0, 1])
    said = refusal(OWN, train=named, dev=bare, test=bare)
    assert "b/x.jsonl:1: label: holds numbers without names, but" in said
    assert refusal(OWN, train=bare, dev=named, test=named).startswith(str(bare))
    same = parquet(tmp_path / "c", table(["bad", "good"]))
    assert targets(OWN, train=same, dev=bare, test=bare)["dev"] == [*"101"]


def test_labels_may_list_the_ids_as_long_as_every_file_names_them_alike(tmp_path: Path) -> None:
    ids = replace(OWN, labels=("0", "1"))
    path = parquet(tmp_path / "a", table(["good", "bad"]))
    assert targets(ids, train=path, dev=path, test=path)["train"] == [*"01101"]
    other = parquet(tmp_path / "b", table(["bad", "good"]))
    assert "in another file" in refusal(ids, train=path, dev=other, test=path)


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": {"features": 3}}'])
def test_metadata_that_cannot_be_read_is_named(tmp_path: Path, metadata: bytes) -> None:
    rows = pa.table({"sentence": ["a"], "label": [0]}).replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(rows, tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet: holds metadata of the library datasets"):
        list(read_file(tmp_path / "x.parquet"))


def test_an_id_without_a_name_is_named_and_a_hidden_one_is_told(tmp_path: Path) -> None:
    for label, said in ((7, "class id 7 has no name"), (-1, "Hidden test labels")):
        rows = pa.table({"sentence": ["a"], "label": [label]}, table(["bad", "good"]).data.table.schema)
        pq.write_table(rows, tmp_path / "x.parquet")
        path = tmp_path / "x.parquet"
        assert said in refusal(OWN, train=path, dev=path, test=path)


def match(labels: Sequence[str], *values: object) -> list[int]:
    matcher = LabelMatcher("t", "label", labels, {})
    return [matcher.match(value, "file:1") for value in values]


@pytest.mark.parametrize(
    ("labels", "values", "expected"),
    [
        (["bad", "good"], [0, "1", 1.0, "0.0", " GOOD ", "1."], [0, 1, 1, 0, 1, 1]),
        (["us", "US"], ["us", "US", " us"], [0, 1, 0]),
        (["1", "2", "3"], [1, "2.0", 3.0, "01"], [0, 1, 2, 0]),
        (["01", "1"], ["01", "1", 1], [0, 1, 1]),
        (["1.0", "0.5"], [1, "1.0", 0.5], [0, 0, 1]),
        (["-1", "1"], [-1, "1", -1.0], [0, 1, 0]),
        (["true", "false"], [True, False, "TRUE", 1, 0, "0.0"], [0, 1, 0, 0, 1, 1]),
        (["0", "1"], [False, True, "True"], [0, 1, 1]),
        ([" not good ", "good"], ["not good", "Good"], [0, 1]),
        (["caf\u00e9", "bar"], ["cafe\u0301", "CAF\u00c9"], [0, 0]),
    ],
)
def test_labels_are_matched_as_written_then_without_case_then_as_numbers(
    labels: list[str], values: list[object], expected: list[int]
) -> None:
    assert match(labels, *values) == expected


@pytest.mark.parametrize(
    ("labels", "value", "said"),
    [
        (["bad", "good"], 2, "If the data counts from 1, list the numbers as they stand: labels: [1, 2]"),
        (["bad", "good"], 0.5, "label '0.5' is not one of"),
        (["bad", "good"], True, "list them as they stand: labels: [false, true]"),
        (["bad", "good"], "", "The cell is empty."),
        (["1", "2"], 0, "label '0' is not one of"),
        (["us", "US"], "Us", "label 'Us' is not one of"),
        (["yes", "no"], "ye", "did you mean yes?"),
    ],
)
def test_a_label_that_fits_none_alone_is_refused(labels: list[str], value: object, said: str) -> None:
    with pytest.raises(UserError) as caught:
        match(labels, value)
    assert said in str(caught.value)


@given(st.lists(st.text(max_size=6), min_size=2, max_size=6, unique_by=str.strip))
def test_every_label_is_its_own_class_as_written(labels: list[str]) -> None:
    matched = match(labels, *labels)
    assert matched == list(range(len(labels))) or len({text.strip() for text in labels}) < len(labels)


def test_numbers_from_one_are_no_places_even_where_the_last_class_is_missing(tmp_path: Path) -> None:
    path = lines(tmp_path, [1, 2, 1, 2])
    three = replace(OWN, labels=("bad", "fair", "good"))
    said = refusal(three, train=path, dev=path, test=path)
    assert "x.jsonl:1: label: holds the numbers 1, 2 and never 0" in said
    assert "labels: [1, 2, 3]" in said
    assert targets(replace(three, labels=("1", "2", "3")), train=path, dev=path, test=path)["dev"] == [*"0101"]


def test_a_split_of_one_class_is_recorded(tmp_path: Path) -> None:
    both, one = lines(tmp_path / "a", TRUTH), lines(tmp_path / "b", ["bad", "bad"])
    files = {"train": str(both), "dev": str(one), "test": str(both)}
    assert load_task(replace(OWN, files=files), None).record.one_class == {"dev": "bad"}


def test_nan_is_an_empty_field() -> None:
    """pandas writes it where a value is missing; as text it would be the word nan."""
    for row in ({"sentence": float("nan"), "label": 1}, {"sentence": "a", "label": float("nan")}):
        with pytest.raises(UserError, match="is empty"):
            Converter(OWN).examples("file:1", row)
