"""Splits, labels and text, and what is said about files that are not as they should be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.bundle import cached_backbone
from harness.data import _padded, _ragged, encode, load_task, max_new_tokens, permutation, target_ids
from harness.errors import UserError
from harness.tasks import all_tasks
from harness.tasks.superglue import mark_wsc_spans

TASKS = all_tasks()

# first indices of torch.randperm(n) with seed 42, as recorded by an emulation of the generator
PERMUTATIONS = {
    10: [2, 6, 1, 8, 4, 5, 0, 9, 3, 7],
    56: [22, 8, 36, 39, 34, 28],
    277: [207, 84, 253, 243, 190, 28],
    638: [292, 360, 246, 12, 52, 100],
    1043: [911, 408, 813, 657, 710, 526],
    1304: [974, 540, 48, 1148, 1230, 682],
    3270: [282, 3153, 2578, 2833, 2504, 90],
    4848: [3270, 1987, 3664, 967, 3242, 1717],
    67349: [6677, 49712, 38268, 32909],
    104743: [99291, 42864, 63734, 96877],
    363846: [74376, 255378, 229510, 126322],
}


def cb_row(index: int, label: object = "neutral") -> dict[str, object]:
    return {"premise": f"premise {index}", "hypothesis": f"hypothesis {index}", "label": label, "idx": index}


def write_cb(folder: Path, train: list[object], validation: list[object]) -> Path:
    (folder / "CB").mkdir(parents=True)
    for name, rows in (("train", train), ("val", validation)):
        (folder / "CB" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("size", sorted(PERMUTATIONS))
def test_splits_are_cut_in_the_documented_order(size: int) -> None:
    assert permutation(size)[: len(PERMUTATIONS[size])] == PERMUTATIONS[size]


def test_validation_is_halved_in_permuted_order(tmp_path: Path) -> None:
    data = load_task(TASKS["cb"], write_cb(tmp_path, [cb_row(99)], [cb_row(i) for i in range(10)]))
    assert [example.source.split()[2] for example in data.dev] == ["2", "6", "1", "8", "4"]
    assert [example.source.split()[2] for example in data.test] == ["5", "0", "9", "3", "7"]
    assert (data.record.num_train, data.record.num_dev, data.record.num_test) == (1, 5, 5)
    assert "seed 42" in data.record.split_rule


def test_text_and_target_are_as_in_the_papers_code(tmp_path: Path) -> None:
    rows = [cb_row(i, label) for i, label in enumerate(["entailment", 1, "neutral", "2"])]
    data = load_task(TASKS["cb"], write_cb(tmp_path, rows, rows))
    assert data.train[0].source == "premise: premise 0 hypothesis: hypothesis 0"
    assert [example.target for example in data.train] == ["0", "1", "2", "2"]


def test_the_fingerprint_follows_the_rows(tmp_path: Path) -> None:
    rows = [cb_row(i) for i in range(4)]
    one = load_task(TASKS["cb"], write_cb(tmp_path / "a", rows, rows)).record.fingerprint
    same = load_task(TASKS["cb"], write_cb(tmp_path / "b", rows, rows)).record.fingerprint
    other = load_task(TASKS["cb"], write_cb(tmp_path / "c", rows, [*rows[:3], cb_row(3, "entailment")]))
    assert one == same != other.record.fingerprint


def test_the_same_rows_come_from_every_file_format(tmp_path: Path) -> None:
    rows = [cb_row(i, i % 3) for i in range(6)]
    prints = {load_task(TASKS["cb"], write_cb(tmp_path / "jsonl", rows, rows)).record.fingerprint}
    for suffix in ("parquet", "csv"):
        folder = tmp_path / suffix / "cb"
        folder.mkdir(parents=True)
        for split in ("train", "validation"):
            if suffix == "parquet":
                pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
            else:
                lines = ["premise,hypothesis,label,idx", *(",".join(map(str, row.values())) for row in rows)]
                (folder / f"{split}.csv").write_text("\ufeff" + "\n".join(lines))
        task = TASKS["cb"]
        prints.add(load_task(type(task)(**{**vars(task), "folders": ("cb",)}), tmp_path / suffix).record.fingerprint)
    assert len(prints) == 1


def test_wsc_marks_both_spans_and_moves_a_later_one() -> None:
    row = {
        "text": "Mark told Pete many lies about himself.", "label": True,
        "target": {"span1_text": "Mark", "span1_index": 0, "span2_text": "himself", "span2_index": 6},
    }  # fmt: skip
    assert next(iter(mark_wsc_spans(row)))["text"] == "* Mark * told Pete many lies about # himself #."
    flat = {"text": "He saw (Pete).", "label": 0, "span1_text": "(Pete)", "span1_index": 2, "span2_text": "He",
            "span2_index": 0}  # fmt: skip
    assert next(iter(mark_wsc_spans(flat)))["text"] == "# He # saw * (Pete) *."


def test_multirc_is_flattened_and_stripped_of_markup(tmp_path: Path) -> None:
    nested = {
        "passage": {
            "text": "<b>Sent 1: </b>One.<br>Two.",
            "questions": [{"question": "Q?", "answers": [{"text": "A", "label": 1}, {"text": "B", "label": 0}]}],
        }
    }
    (tmp_path / "MultiRC").mkdir()
    for name in ("train", "val"):
        (tmp_path / "MultiRC" / f"{name}.jsonl").write_text(json.dumps(nested) + "\n")
    data = load_task(TASKS["multirc"], tmp_path)
    assert data.train[0].source == "question: Q? answer: A paragraph: Sent 1: One. Two."
    assert [example.target for example in data.train] == ["1", "0"]


def raised(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_task(TASKS["cb"], folder)
    return str(caught.value)


def test_a_folder_without_the_task_names_what_was_looked_for(tmp_path: Path) -> None:
    said = raised(tmp_path)
    assert "no files of task 'cb'" in said
    assert "superglue/CB" in said
    assert "no such data folder" in raised(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda path: path.write_text(path.read_text()[:-20]), "train.jsonl:3: is not a complete JSON object"),
        (lambda path: path.write_text('["a"]\n'), "train.jsonl:1: is not a JSON object"),
        (lambda path: path.write_text(json.dumps(cb_row(0, "maybe")) + "\n"), "train.jsonl:1: label: label 'maybe'"),
        (lambda path: path.write_text(json.dumps(cb_row(0, -1)) + "\n"), "Hidden test labels"),
        (
            lambda path: path.write_text('{"premise": "x", "label": 0}\n'),
            "train.jsonl:1: field 'hypothesis' is missing",
        ),
        (lambda path: path.write_bytes(b'{"premise": "\xff\xfe"}\n'), "is not UTF-8"),
        (lambda path: path.write_text(json.dumps(cb_row(0) | {"premise": None}) + "\n"), "field 'premise' is empty"),
        (lambda path: path.unlink(), "has a validation file but no train{.jsonl|.parquet|.csv}"),
        (lambda path: path.write_text(""), "split 'train' of task 'cb' has no rows"),
    ],
)
def test_a_broken_file_is_named_with_its_row(tmp_path: Path, spoil: Callable[[Path], None], expected: str) -> None:
    folder = write_cb(tmp_path, [cb_row(i) for i in range(3)], [cb_row(i) for i in range(3)])
    spoil(folder / "CB" / "train.jsonl")
    assert expected in raised(folder)


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "CB"
    folder.mkdir()
    for split in ("train", "validation"):
        pq.write_table(pa.Table.from_pylist([cb_row(i, 0) for i in range(50)]), folder / f"{split}.parquet")
    whole = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(whole[: len(whole) // 2])
    assert "train.parquet: is not a readable Parquet file" in raised(tmp_path)


def test_a_csv_row_with_a_missing_column_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "CB"
    folder.mkdir()
    for split in ("train", "validation"):
        (folder / f"{split}.csv").write_text("premise,hypothesis,label\na,b,0\na,b\n")
    assert "train.csv:3: has not the 3 columns" in raised(tmp_path)


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=9), st.randoms())
def test_ragged_rows_come_back_padded(rows: list[list[int]], random: object) -> None:
    flat, offsets = _ragged(rows)
    picked = np.arange(len(rows))
    random.shuffle(picked)
    padded = _padded(flat, offsets, picked, -100)
    assert [[int(i) for i in row if i != -100] for row in padded] == [rows[i] for i in picked]


def test_targets_end_with_the_end_token_and_fit_the_limit() -> None:
    backbone = cached_backbone("micro-t5", "float32")
    assert target_ids("0", backbone, None)[-1] == backbone.eos_id
    long = target_ids("the cat sleeps " * 20, backbone, 20)
    assert len(long) == 20
    assert long[-1] == backbone.eos_id
    assert max_new_tokens(TASKS["micro_entailment"], backbone) == len(target_ids("2", backbone, None))
    assert max_new_tokens(TASKS["micro_qa"], backbone) == 19


def test_sources_are_cut_on_the_right() -> None:
    backbone = cached_backbone("micro-t5", "float32")
    data = load_task(TASKS["micro_qa"], None)
    encoded = encode(data.dev[:20], backbone, data.task, 12)
    assert encoded.source_lengths(np.arange(20)).max() == 12
    whole = encode(data.dev[:20], backbone, data.task, 64)
    assert encoded.sources(np.array([0]), 0)[0, :11].tolist() == whole.sources(np.array([0]), 0)[0, :11].tolist()


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.generate])
def test_generated_tasks_have_the_sizes_they_declare(name: str) -> None:
    record = load_task(TASKS[name], None).record
    assert (record.num_train, record.num_dev, record.num_test) == TASKS[name].sizes


def test_every_task_record_is_complete() -> None:
    for task in TASKS.values():
        assert task.licence, task.name
        assert task.generate or (task.hub and task.folders and task.citation), task.name
        assert task.kind != "classification" or len(task.labels) > 1, task.name
        assert task.selection in task.metrics
