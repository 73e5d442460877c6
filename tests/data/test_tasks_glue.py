"""GLUE and SciTail: hand-written files in the official and in the hub layout give the same rows and text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.data.splits import load_task
from harness.data.tasks import all_tasks
from harness.errors import UserError

TASKS = all_tasks()


def tsv(*lines: str) -> str:
    """Lines whose cells are parted by ` | `."""
    return "".join(line.replace(" | ", "\t") + "\n" for line in lines)


# task -> official training file and its content, hub rows of the same, source text and target of the first row
CASES: dict[str, tuple[str, str, list[dict[str, object]], str, str]] = {
    "cola": (
        "CoLA/train.tsv",
        tsv('x1 | 0 | * | The cat "sleep.', "x1 | 1 |  | It sleeps."),
        [{"sentence": 'The cat "sleep.', "label": 0, "idx": 0}, {"sentence": "It sleeps.", "label": 1, "idx": 1}],
        'sentence: The cat "sleep.',
        "0",
    ),
    "sst2": (
        "SST-2/train.tsv",
        tsv("sentence | label", "warm and kind  | 1", "dull  | 0"),
        [{"sentence": "warm and kind ", "label": 1}, {"sentence": "dull ", "label": 0}],
        "sentence: warm and kind ",
        "1",
    ),
    "mrpc": (
        "glue/MRPC/train.tsv",
        "\ufeff"
        + tsv(
            "Quality | #1 ID | #2 ID | #1 String | #2 String",
            '1 | 7 | 8 | He said "no". | "No", he said.',
            "0 | 9 | 10 | A fell. | B rose.",
        ),
        [
            {"sentence1": 'He said "no".', "sentence2": '"No", he said.', "label": 1},
            {"sentence1": "A fell.", "sentence2": "B rose.", "label": 0},
        ],
        'sentence1: He said "no". sentence2: "No", he said.',
        "1",
    ),
    "stsb": (
        "STS-B/train.tsv",
        tsv(
            "index | genre | filename | year | old_index | source1 | source2 | sentence1 | sentence2 | score",
            "0 | g | f | 2012 | 1 | none | none | A dog runs. | A dog walks. | 3.750",
            "1 | g | f | 2012 | 2 | none | none | One. | Two. | 0.400",
        ),
        [
            {"sentence1": "A dog runs.", "sentence2": "A dog walks.", "label": 3.75},
            {"sentence1": "One.", "sentence2": "Two.", "label": 0.4000000059604645},
        ],
        "sentence1: A dog runs. sentence2: A dog walks.",
        "3.8",
    ),
    "qqp": (
        "QQP/train.tsv",
        tsv(
            "id | qid1 | qid2 | question1 | question2 | is_duplicate",
            '0 | 1 | 2 | Why "this"? | Why that? | 0',
            "1 | 3 | 4 | How? | In which way? | 1",
        ),
        [
            {"question1": 'Why "this"?', "question2": "Why that?", "label": 0},
            {"question1": "How?", "question2": "In which way?", "label": 1},
        ],
        'question1: Why "this"? question2: Why that?',
        "0",
    ),
    "qnli": (
        "QNLI/train.tsv",
        tsv("index | question | sentence | label", "0 | Who? | Ann. | entailment", "1 | When? | A. | not_entailment"),
        [{"question": "Who?", "sentence": "Ann.", "label": 0}, {"question": "When?", "sentence": "A.", "label": 1}],
        "question: Who? sentence: Ann.",
        "0",
    ),
    "rte": (
        "RTE/train.tsv",
        tsv("index | sentence1 | sentence2 | label", "0 | It rains. | Dry. | not_entailment", "1 | A | B | entailment"),
        [{"premise": "It rains.", "hypothesis": "Dry.", "label": 1}, {"premise": "A", "hypothesis": "B", "label": 0}],
        "sentence1: It rains. sentence2: Dry.",
        "1",
    ),
    "mnli": (
        "MNLI/train.tsv",
        tsv(
            "index | genre | sentence1 | sentence2 | label1 | gold_label",
            "0 | g | It rains. | Dry. | neutral | contradiction",
            "1 | g | A | B | neutral | neutral",
        ),
        [{"premise": "It rains.", "hypothesis": "Dry.", "label": 2}, {"premise": "A", "hypothesis": "B", "label": 1}],
        "premise: It rains. hypothesis: Dry.",
        "2",
    ),
    "scitail": (
        "scitail/tsv_format/scitail_1.0_train.tsv",
        tsv("Ice melts. | Ice is solid. | neutral", "A | B | entails"),
        [
            {"sentence1": "Ice melts.", "sentence2": "Ice is solid.", "gold_label": "neutral"},
            {"sentence1": "A", "sentence2": "B", "gold_label": "entailment"},
        ],
        "premise: Ice melts. hypothesis: Ice is solid.",
        "1",
    ),
}
VALIDATION = {"mnli": ("dev_matched", "dev_mismatched")}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_official(name: str, root: Path) -> None:
    """The training file, and the same again as validation under its official names."""
    path, text = CASES[name][:2]
    for split in ("train", *VALIDATION.get(name, ("dev",))):
        write(root / path.replace("train", split), text)


def write_hub(name: str, root: Path) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in CASES[name][2])
    official = {"dev": "validation", "dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"}
    for split in ("train", *(official[other] for other in VALIDATION.get(name, ("dev",)))):
        write(root / "hub" / name / f"{split}.jsonl", rows)


@pytest.mark.parametrize("name", CASES)
def test_official_and_hub_files_give_the_documented_text(name: str, tmp_path: Path) -> None:
    source, target = CASES[name][3:]
    write_official(name, tmp_path / "official")
    write_hub(name, tmp_path / "copy")
    official, hub = load_task(TASKS[name], tmp_path / "official"), load_task(TASKS[name], tmp_path / "copy")
    assert official.record.source != hub.record.source == f"folder hub/{name}"
    assert official.record.fingerprint == hub.record.fingerprint
    everything = {(row.source, row.target) for part in ("train", "dev", "test") for row in official.split(part)}
    assert (source, target) in everything
    assert len(everything) == 2


def test_mnli_takes_mismatched_as_dev_and_matched_as_test(tmp_path: Path) -> None:
    write_hub("mnli", tmp_path)
    row = {"premise": "P", "hypothesis": "H", "label": 0}
    write(tmp_path / "hub" / "mnli" / "validation_matched.jsonl", json.dumps(row) + "\n")
    data = load_task(TASKS["mnli"], tmp_path)
    assert [example.source for example in data.test] == ["premise: P hypothesis: H"]
    assert (len(data.train), len(data.dev)) == (2, 2)
    assert data.record.split_rule == "validation_mismatched is dev, validation_matched is test"


def test_broken_rows_of_qqp_are_left_out_and_counted(tmp_path: Path) -> None:
    write_official("qqp", tmp_path)
    path = tmp_path / "QQP" / "train.tsv"
    whole = path.read_text()
    broken = "2\t5\t6\tWhat\nis this?\tWhat is it?\t1\n3\t7\t8\tHow?\tWhy?\t\n"
    path.write_text(whole + broken + "4\t9\t10\t\tIs an empty question kept?\t0\n")
    data = load_task(TASKS["qqp"], tmp_path)
    assert data.record.source == "folder QQP (3 broken rows left out)"
    assert data.record.num_train + data.record.num_dev == 3
    with pytest.raises(UserError, match=r"train.tsv:4: has 4 columns, expected 6"):
        load_task(replace(TASKS["qqp"], skips_broken_rows=False), tmp_path)


def test_a_header_is_known_where_the_official_file_has_none(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write(tmp_path / "hub" / "cola" / f"{split}.tsv", "sentence\tlabel\tidx\nIt sleeps.\t1\t0\nIt sleep.\t0\t1\n")
    assert [example.target for example in load_task(TASKS["cola"], tmp_path).train] == ["1", "0"]


def test_scitail_comes_as_json_lines_too_and_may_use_its_published_test_rows(tmp_path: Path) -> None:
    rows = "".join(json.dumps({**row, "annotator_labels": []}) + "\n" for row in CASES["scitail"][2])
    folder = tmp_path / "SciTailV1.1" / "snli_format"
    for split in ("train", "dev"):
        write(folder / f"scitail_1.0_{split}.txt", rows)
    data = load_task(TASKS["scitail"], tmp_path)
    assert [example.target for example in data.train] == ["1", "0"]
    official = replace(TASKS["scitail"], split="official_test")
    with pytest.raises(UserError, match=r"SciTailV1\.1 has no test"):
        load_task(official, tmp_path)
    write(folder / "scitail_1.0_test.txt", rows * 3)
    record = load_task(official, tmp_path).record
    assert (record.num_train, record.num_dev, record.num_test) == (2, 2, 6)
    assert record.split_rule == "validation is dev, the published test split is test"


def test_metrics_are_those_of_the_papers_code() -> None:
    assert {name: (TASKS[name].reported, TASKS[name].selection) for name in CASES} == {
        "cola": (("matthews",), "matthews"),
        "stsb": (("pearson",), "pearson"),
        **dict.fromkeys(("sst2", "mrpc", "qqp", "qnli", "rte", "mnli", "scitail"), (("accuracy",), "accuracy")),
    }
    assert TASKS["mrpc"].extra == TASKS["qqp"].extra == ("f1",)
    assert TASKS["stsb"].extra == ("spearman",)
