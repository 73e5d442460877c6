"""Layouts of files, which of several copies is taken, and what is said about files that are not as they should be."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.cli.list_tasks import describe_tasks
from harness.data.splits import load_task
from harness.data.tasks import Task, all_tasks
from harness.data.tasks.task import Hub
from harness.errors import UserError

TASKS = all_tasks()
CB = TASKS["cb"]
SPLITS = ("train", "validation")


def cb_row(index: int, label: object = "neutral") -> dict[str, object]:
    return {"premise": f"premise {index}", "hypothesis": f"hypothesis {index}", "label": label, "idx": index}


ROWS = [cb_row(i, i % 3) for i in range(6)]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def jsonl(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def separated(rows: list[dict[str, object]], mark: str) -> str:
    return "\ufeff" + "\n".join(mark.join(map(str, row)) for row in [list(rows[0]), *(r.values() for r in rows)])


def parquet(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_everywhere(name: str, folder: Path) -> None:
    """Write ROWS as train and validation in one of the layouts."""
    for split in SPLITS:
        if name == "saved":
            datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / split))
        elif name == "shards":
            for part, rows in enumerate([ROWS[:4], ROWS[4:]]):
                parquet(folder / "data" / f"{split}-0000{part}-of-00002.parquet", rows)
        elif name == "folders of shards":
            parquet(folder / split / "0000.parquet", ROWS)
        elif name == "parquet":
            parquet(folder / f"{split}.parquet", ROWS)
        elif name == "jsonl.gz":
            folder.mkdir(parents=True, exist_ok=True)
            with gzip.open(folder / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
                file.write(jsonl(ROWS))
        else:
            texts = {"jsonl": jsonl(ROWS), "json": json.dumps(ROWS), "csv": separated(ROWS, ","),
                     "tsv": separated(ROWS, "\t")}  # fmt: skip
            write(folder / f"{split}.{name}", texts[name])


LAYOUTS = ["jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet", "shards", "folders of shards", "saved"]


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("declared", [False, True])
def test_the_same_rows_come_from_every_layout(layout: str, declared: bool, tmp_path: Path) -> None:
    write_everywhere("jsonl", tmp_path / "a" / "CB")
    write_everywhere(layout, tmp_path / "b" / "CB")
    expected = load_task(CB, tmp_path / "a")
    task = replace(CB, files={split: str(tmp_path / "b" / "CB") for split in SPLITS}) if declared else CB
    found = load_task(task, tmp_path / "b")
    assert found.record.fingerprint == expected.record.fingerprint
    assert found.train == expected.train


def test_a_saved_dataset_dict_with_class_labels_is_read(tmp_path: Path) -> None:
    features = datasets.Features(
        premise=datasets.Value("string"), hypothesis=datasets.Value("string"),
        label=datasets.ClassLabel(names=["entailment", "contradiction", "neutral"]), idx=datasets.Value("int32"),
    )  # fmt: skip
    rows = datasets.Dataset.from_list(ROWS, features=features)
    datasets.DatasetDict(train=rows.select([5, 4, 3, 0, 1]), validation=rows).save_to_disk(str(tmp_path / "CB"))
    assert [example.target for example in load_task(CB, tmp_path).train] == ["2", "1", "0", "0", "1"]


@pytest.mark.parametrize("folder", ["superglue/CB", "CB", "hub/cb", "aps/super_glue/cb", "hgissbkh/super_glue/cb"])
def test_official_and_hub_folders_are_found(folder: str, tmp_path: Path) -> None:
    write_everywhere("jsonl", tmp_path / folder)
    assert load_task(CB, tmp_path).record.source == f"folder {folder}"


def test_an_incomplete_copy_hides_no_complete_one(tmp_path: Path) -> None:
    write(tmp_path / "superglue" / "CB" / "train.jsonl", jsonl(ROWS))
    parquet(tmp_path / "CB" / "train-00001-of-00002.parquet", ROWS)
    write(tmp_path / "CB" / "val.jsonl", jsonl(ROWS))
    said = raised(CB, tmp_path)
    assert "superglue/CB has no validation; " in said
    assert "CB has no complete train (1 of 2 shards)" in said
    write_everywhere("jsonl", tmp_path / "hub" / "cb")
    assert load_task(CB, tmp_path).record.source == "folder hub/cb"


def test_the_listing_says_what_is_there_and_what_is_missing(tmp_path: Path) -> None:
    write_everywhere("jsonl", tmp_path / "CB")
    write(tmp_path / "hub" / "mnli" / "train.jsonl", jsonl(ROWS))
    write(tmp_path / "hub" / "mnli" / "validation_matched.jsonl", jsonl(ROWS))
    write(tmp_path / "QNLI" / "dev.tsv", "index\tquestion\tsentence\tlabel\n")
    write(tmp_path / "RTE" / "train.jsonl", "[]\n")
    write(tmp_path / "RTE" / "val.jsonl", "{}\n")
    rows = {row["name"]: row for row in describe_tasks(str(tmp_path))["tasks"]}
    assert (rows["cb"]["sizes"], rows["cb"]["as published"], rows["cb"]["duplicates"]) == ("6 / 3 / 3", "NO", 6)
    assert rows["mnli"]["found"] == "incomplete: hub/mnli has no validation_mismatched"
    assert rows["qnli"]["found"] == "incomplete: QNLI has no train"
    assert rows["rte"]["found"].endswith("RTE/train.jsonl:1: is not a JSON object")
    assert rows["boolq"]["found"] == ""


def test_hub_copies_are_tried_in_order_and_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "partial" / "train.jsonl", jsonl([cb_row(99)]))
    write_everywhere("jsonl", tmp_path / "whole")
    copies = tuple(Hub(str(tmp_path / name)) for name in ("absent", "partial", "whole"))
    data = load_task(replace(CB, hub=copies), None)
    assert data.record.source == f"hub {tmp_path / 'whole'}"
    assert [example.source[:18] for example in data.train] == [f"premise: premise {i}" for i in range(6)]
    with pytest.raises(UserError, match=r"could not be loaded from the hub.*absent.*partial"):
        load_task(replace(CB, hub=copies[:2]), None)


def declared(tmp_path: Path, **files: str) -> Task:
    return replace(CB, files={split: str(tmp_path / name) for split, name in files.items()})


def test_a_users_files_go_before_the_data_folder_and_may_hold_only_train(tmp_path: Path) -> None:
    write_everywhere("tsv", tmp_path / "CB")
    write(tmp_path / "mine.csv", "text,label\n" + "".join(f'"row, {i}",neutral\n' for i in range(10)))
    task = replace(declared(tmp_path, train="mine.csv"), split="cut_train", dev_share=2, template="review: {text}")
    data = load_task(task, tmp_path)
    assert [example.source for example in data.dev] == ["review: row, 2", "review: row, 6"]
    assert [example.source for example in data.test] == ["review: row, 1"]
    assert len(data.train) == 7
    assert data.record.source == f"files {tmp_path / 'mine.csv'}"


def test_dev_is_not_cut_from_train_while_dev_rows_lie_unused(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", jsonl(ROWS))
    task = replace(declared(tmp_path, train="a.jsonl", test="a.jsonl"), split="cut_dev", dev_share=2)
    assert load_task(task, None).record.num_dev == 2
    task = replace(declared(tmp_path, train="a.jsonl", dev="a.jsonl", test="a.jsonl"), split="cut_dev")
    with pytest.raises(UserError, match="'cut_dev' cuts dev from train, but validation rows are there too"):
        load_task(task, None)


@pytest.mark.parametrize("key", ["dev", "val", "validation"])
def test_a_declared_split_may_have_any_usual_name(key: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", jsonl(ROWS))
    assert load_task(declared(tmp_path, train="a.jsonl", **{key: "a.jsonl"}), None).record.num_dev == 3


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"train": "a.jsonl"}, "there is no validation"),
        ({"train": "a.jsonl", "valid": "a.jsonl"}, "did you mean val?"),
        ({"train": "a.jsonl", "dev": "a.jsonl", "val": "a.jsonl"}, "split 'validation' is given twice"),
        ({"train": "none.csv", "dev": "a.jsonl"}, "none.csv: no such file or folder"),
        ({"train": "a.pickle", "dev": "a.jsonl"}, "a.pickle: is in no known format"),
        ({"train": "empty", "dev": "a.jsonl"}, "empty: holds no data files"),
        ({"train": "parts", "dev": "a.jsonl"}, "parts: holds 1 of 3 shards"),
    ],
)
def test_wrong_declared_files_are_named(files: dict[str, str], expected: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", jsonl(ROWS))
    write(tmp_path / "a.pickle", "")
    (tmp_path / "empty").mkdir()
    parquet(tmp_path / "parts" / "train-00000-of-00003.parquet", ROWS)
    assert expected in raised(declared(tmp_path, **files), None)


def raised(task: Task, folder: Path | None) -> str:
    with pytest.raises(UserError) as caught:
        load_task(task, folder)
    return str(caught.value)


def test_a_folder_without_the_task_names_what_was_looked_for(tmp_path: Path) -> None:
    said = raised(CB, tmp_path)
    assert "no files of task 'cb'" in said
    assert "superglue/CB" in said
    assert "no such data folder" in raised(CB, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda path: path.write_text(path.read_text()[:-20]), "train.jsonl:6: is not a complete JSON object"),
        (lambda path: path.write_text('["a"]\n'), "train.jsonl:1: is not a JSON object"),
        (lambda path: path.write_text(jsonl([cb_row(0, "maybe")])), "train.jsonl:1: label: label 'maybe'"),
        (lambda path: path.write_text(jsonl([cb_row(0, -1)])), "Hidden test labels"),
        (lambda path: path.write_text(jsonl([cb_row(0, "3")])), "label '3' is not one of"),
        (lambda path: path.write_text('{"premise": "x", "label": 0}\n'), "train.jsonl:1: field 'hypothesis' is miss"),
        (lambda path: path.write_bytes(b'{}\n{"premise": "\xff\xfe"}\n'), "train.jsonl:2: is not UTF-8"),
        (lambda path: path.write_text(jsonl([cb_row(0) | {"premise": None}])), "field 'premise' is empty"),
        (lambda path: path.write_text(""), "split 'train' of task 'cb' has no rows"),
    ],
)
def test_a_broken_file_is_named_with_its_row(tmp_path: Path, spoil: Callable[[Path], None], expected: str) -> None:
    write_everywhere("jsonl", tmp_path / "CB")
    spoil(tmp_path / "CB" / "train.jsonl")
    assert expected in raised(CB, tmp_path)


@pytest.mark.parametrize(
    ("layout", "name", "expected"),
    [
        ("parquet", "train.parquet", "train.parquet: is not a readable Parquet file"),
        ("jsonl.gz", "train.jsonl.gz", "train.jsonl.gz: is not a complete gzip file"),
        ("json", "train.json", "train.json:1: is not a"),
        ("saved", "train/state.json", "train: is not a readable folder of save_to_disk"),
        ("saved", "train/data-00000-of-00001.arrow", "train: is not a readable folder of save_to_disk"),
    ],
)
def test_a_file_cut_in_half_is_named(layout: str, name: str, expected: str, tmp_path: Path) -> None:
    write_everywhere(layout, tmp_path / "CB")
    path = tmp_path / "CB" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert expected in raised(CB, tmp_path)


@pytest.mark.parametrize("line", ["a{0}b", "a{0}b{0}0{0}more"])
@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t")])
def test_a_row_without_the_columns_of_the_header_is_named(line: str, suffix: str, mark: str, tmp_path: Path) -> None:
    rows = ["premise{0}hypothesis{0}label", "a{0}b{0}0", line]
    for split in SPLITS:
        write(tmp_path / "CB" / f"{split}.{suffix}", "\n".join(rows).format(mark))
    assert f"train.{suffix}:3: has " in raised(CB, tmp_path)


def test_csv_cells_may_hold_line_ends_and_tsv_cells_quotes(tmp_path: Path) -> None:
    write(tmp_path / "CB" / "train.csv", 'premise,hypothesis,label\n"a\nb","say ""c""",0\n')
    write(tmp_path / "CB" / "validation.tsv", 'premise\thypothesis\tlabel\n"a\tb"" c\t0\n"d\te\t1\n')
    data = load_task(CB, tmp_path)
    assert data.train[0].source == 'premise: a\nb hypothesis: say "c"'
    assert {row.source for row in (*data.dev, *data.test)} == {
        'premise: "a hypothesis: b"" c', 'premise: "d hypothesis: e',
    }  # fmt: skip
