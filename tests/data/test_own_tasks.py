"""Tasks that a suite declares: what is refused before anything is read, and how paths, splits and metrics are taken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import harness
from harness.backbone.load import load_backbone
from harness.cli.commands import app
from harness.cli.list_tasks import describe_rows
from harness.data.examples import Example
from harness.data.metrics import compute_metrics
from harness.data.splits import load_task
from harness.data.tasks import all_tasks
from harness.data.tasks.task import Task
from harness.data.text_metrics import signature_of
from harness.data.tokenization import cut_references
from harness.errors import UserError
from harness.report.boards import collect_boards
from harness.report.leaderboard_table import lay_out
from harness.results.notes import data_notes
from harness.results.predictions import read_answers
from harness.results.store import ResultStore, predictions_path
from harness.runner.plan import make_plan
from harness.suite.make_groups import Overrides
from tools.network_matrix.checkpoints import build

BASE: dict[str, str] = {
    "files": "rows.csv",
    "fields": "{review: text}",
    "label": "verdict",
    "labels": "[bad, good]",
}


def suite(folder: Path, **changes: str | None) -> Path:
    """A suite with one task of its own; a change of None leaves the key out."""
    lines = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
    task = "\n".join(f"    {key}: {value}" for key, value in lines.items())
    path = folder / "mine.yaml"
    path.write_text(
        f"suite: mine\nbackbones: [micro-t5]\ntasks: [reviews]\nseeds: [1]\nrecipe: {{steps: 2, eval_every: 1}}\n"
        f"define_tasks:\n  reviews:\n{task}\nmethods:\n  majority:\n"
    )
    return path


def rows(folder: Path, count: int = 40) -> None:
    lines = [f"number {i} was {'fine' if i % 2 else 'no use'},{'good' if i % 2 else 'bad'}" for i in range(count)]
    (folder / "rows.csv").write_text("\n".join(["text,verdict", *lines]) + "\n")


def message(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        harness.run(path, results=path.parent / "out", quiet=True)
    assert not (path.parent / "out").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"files": None}, "define_tasks.reviews: give either files or hub"),
        ({"hub": "a/b"}, "define_tasks.reviews: give either files or hub"),
        ({"fields": None}, "give either fields or template"),
        ({"labels": None}, "a classification lists at least two different labels"),
        ({"labels": "[good]"}, "a classification lists at least two different labels"),
        ({"kind": "text"}, "only a classification has labels"),
        ({"metrics": "[acuracy]"}, "unknown metric 'acuracy'; did you mean accuracy?"),
        ({"metrics": "[rougel]"}, "unknown metric 'rougel'; did you mean rougeL?"),
        ({"metrics": "[rougeL]"}, "unknown metric of a classification with these labels 'rougeL'"),
        (
            {"labels": None, "kind": "text", "metrics": "[f1]"},
            "unknown metric of a text with these labels 'f1' (allowed: accuracy, bleu",
        ),
        ({"metrics": "[pearson]"}, "unknown metric of a classification with these labels 'pearson'"),
        ({"labels": "[bad, good, odd]", "extra_metrics": "[f1]"}, "metric of a classification with these labels 'f1'"),
        ({"lable": "x"}, "did you mean label?"),
        ({"labels": "[bad, good, good]"}, "define_tasks.reviews.labels: lists a label twice"),
        ({"fields": None, "template": "nothing"}, "names no column"),
        ({"files": "{train: rows.csv, tset: rows.csv}"}, "unknown split 'tset'; did you mean test?"),
        (
            {"files": "{train: rows.csv, test: rows.csv}"},
            "cuts dev and test from train, but test",
        ),
        (
            {"answered_by": "likelihood", "num_beams": "2"},
            "define_tasks.reviews.num_beams: its answers are ranked, so 'num_beams' has nothing to act on",
        ),
        ({"answered_by": "likelihood", "stop": "[x]"}, "reviews.stop: its answers are ranked"),
        (
            {"kind": "choice", "labels": None, "choices": "options", "max_new_tokens": "5"},
            "reviews.max_new_tokens: its answers are ranked",
        ),
        (
            {"fields": None, "messages": "talk", "form": "chat"},
            "define_tasks.reviews.label: 'verdict' is not read; the last message of a conversation is its answer",
        ),
        ({"dev_share": ".nan"}, "dev_share"),
        ({"dev_share": "1.5"}, "dev_share"),
        ({"files": None, "hub": "noslash"}, "define_tasks.reviews.hub"),
        ({"files": "nowhere.csv"}, "nowhere.csv"),
        ({"fields": "{review: txt}"}, "field 'txt' is missing; did you mean text?"),
        ({"labels": "[bad, fine]"}, "label 'good' is not one of task 'reviews'"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    rows(tmp_path)
    assert expected in message(suite(tmp_path, **changes))


@pytest.mark.parametrize("setting", ["num_beams: 2", "stop: [x]", "max_new_tokens: 5"])
def test_a_linear_head_takes_no_settings_of_writing(tmp_path: Path, setting: str) -> None:
    key, _, value = setting.partition(": ")
    build("Qwen2", tmp_path / "qwen")
    rows(tmp_path)
    path = suite(tmp_path, **{key: value})
    text = path.read_text().replace("steps: 2,", "steps: 2, head: linear,").replace("majority:", "head_only:")
    path.write_text(text.replace("[micro-t5]", f"[{tmp_path / 'qwen'}]"))
    expected = f"define_tasks.reviews.{key}: a trained head writes no answers, so '{key}' has nothing to act on"
    assert expected in message(path)


def test_a_protocol_says_how_own_tasks_are_answered_where_they_have_labels(tmp_path: Path) -> None:
    """A text has none, so the key leaves it alone; what writing alone reads is refused beside it."""
    rows(tmp_path)
    settings = {"protocol.answers.by": "likelihood", "protocol.answers.score": "per_byte"}

    def made(**changes: str | None) -> Task:
        return make_plan(suite(tmp_path, **changes), Overrides(settings=settings), tmp_path / "out", None).tasks[
            "reviews"
        ]

    task = made()
    assert (task.answered_by, task.choice_score, task.is_ranked) == ("likelihood", "per_byte", True)
    assert not made(labels=None, kind="text", stop="[x]").is_ranked
    with pytest.raises(UserError, match="its answers are ranked"):
        made(stop="[x]")


@pytest.mark.parametrize(
    ("name", "mark", "said"), [("rows.csv", ";", "semicolons"), ("rows.csv", "\t", "tabs"), ("rows.tsv", ",", "commas")]
)
def test_a_table_with_another_separator_is_told(tmp_path: Path, name: str, mark: str, said: str) -> None:
    """A spreadsheet writes semicolons where the comma is for decimals."""
    rows(tmp_path)
    text = (tmp_path / "rows.csv").read_text().replace(",", mark)
    (tmp_path / name).write_text(text)
    assert f"seem to be separated by {said}; a .csv has commas" in message(suite(tmp_path, files=name))


def test_labels_that_differ_in_case_are_two(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(
        "text,verdict\n" + "\n".join(f"row {i},{('us', 'US')[i % 2]}" for i in range(20))
    )
    plan = make_plan(suite(tmp_path, labels="[us, US]"), Overrides(), tmp_path / "out", None)
    found = {(int(row.source.split()[-1]) % 2, row.target) for row in load_task(plan.tasks["reviews"], None).train}
    assert found == {(0, "0"), (1, "1")}


def test_a_shipped_name_is_not_taken_over(tmp_path: Path) -> None:
    rows(tmp_path)
    path = suite(tmp_path)
    path.write_text(path.read_text().replace("reviews", "cb"))
    assert "a shipped task is called 'cb' already" in message(path)


@pytest.mark.parametrize(
    ("rule", "names", "sizes"),
    [
        ("given", ("train", "validation", "test"), (40, 10, 8)),
        ("halve_validation", ("train", "dev"), (40, 5, 5)),
        ("hold_out_1000", ("train", "validation"), (20, 20, 10)),
    ],
)
def test_a_folder_stands_for_the_splits_in_it(
    tmp_path: Path, rule: str, names: tuple[str, ...], sizes: tuple[int, int, int]
) -> None:
    counts = dict(zip(names, (40, 10, 8), strict=False))
    (tmp_path / "mine").mkdir()
    for name, count in counts.items():
        rows(tmp_path, count)
        (tmp_path / "rows.csv").rename(tmp_path / "mine" / f"{name}.csv")
    plan = make_plan(suite(tmp_path, files="mine", split=rule), Overrides(), tmp_path / "out", None)
    record = load_task(plan.tasks["reviews"], None).record
    assert (record.num_train, record.num_dev, record.num_test) == sizes


def test_a_nested_column_is_no_text(tmp_path: Path) -> None:
    lines = [f'{{"text": {{"x": "number {i}"}}, "verdict": "{"good" if i % 2 else "bad"}"}}' for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    assert "rows.jsonl:1: field 'text' holds no text but dict" in message(suite(tmp_path, files="rows.jsonl"))


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,verdict,verdict\na,bad,good\n")
    assert "rows.csv:1: names a column twice: text, verdict, verdict" in message(suite(tmp_path))


def test_stored_results_of_another_protocol_that_fit_are_kept_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(tmp_path)
    harness.run(suite(tmp_path), results=tmp_path / "out", protocol="ept-2025", quiet=True)
    capsys.readouterr()
    assert harness.run(tmp_path / "mine.yaml", results=tmp_path / "out").num_trained == 0
    shown = capsys.readouterr()
    assert "stored results of protocol ept-2025 fit as they are and are kept" in shown.out + shown.err


def test_paths_are_relative_to_the_suite_and_part_of_identity_is_the_declaration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    first = make_plan(suite(tmp_path), Overrides(), tmp_path / "out", None).groups[0].cells[(0, 1)]
    assert harness.run(tmp_path / "mine.yaml", results=tmp_path / "out", quiet=True).num_failed == 0
    second = make_plan(suite(tmp_path, dev_share="0.3"), Overrides(), tmp_path / "out", None).groups[0].cells[(0, 1)]
    assert first.cell_id != second.cell_id
    assert harness.run(tmp_path / "mine.yaml", results=tmp_path / "out", quiet=True).num_trained == 1


def test_references_are_cut_where_the_target_is(tmp_path: Path) -> None:
    task, backbone = replace(all_tasks()["micro_qa"], references="first"), load_backbone("micro-t5", device="cpu")
    data = load_task(task, None)
    long = " ".join(["word"] * 60)
    grown = replace(data, dev=[replace(data.dev[0], target=long, references=(long,)), data.dev[1]])
    cut = cut_references(grown, backbone.tokenizer)
    assert long.startswith(cut.dev[0].references[0])
    assert 0 < len(cut.dev[0].references[0]) < len(long)
    assert cut.dev[1] == data.dev[1]
    every = replace(grown, task=replace(task, references="all"))
    assert cut_references(every, backbone.tokenizer) == every


def test_every_reference_counts_whole_for_rules_and_trained_methods_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = " ".join(["film"] * 40)
    lines = [{"q": f"who saw number {i}", "a": [f"{long} {i}", *[f"film {i}"] * (i % 2)]} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    keys = {"labels": None, "kind": "text", "files": "rows.jsonl", "fields": "{question: q}", "label": "a"}
    path = suite(tmp_path, **keys, max_source_length="4")
    path.write_text(path.read_text() + "  prompt_tuning: {prompt_length: 4}\n")
    assert harness.run(path, results=tmp_path / "out").num_failed == 0
    results = {result.cell.method: (where, result) for where, result in ResultStore(tmp_path / "out").scan()}
    stored = {name: read_answers(predictions_path(where)) for name, (where, _) in results.items()}
    for split in ("dev", "test"):
        rule, trained = stored["majority"][split], stored["prompt_tuning"][split]
        assert list(map(list, rule.references)) == list(map(list, trained.references))
        assert all(refs[0].startswith(long) for refs in rule.references)
    assert {tuple(row.references) for row in load_rows(path)} == {tuple(dict.fromkeys(line["a"])) for line in lines}
    # what was cut is said while training and beneath the table
    shown = capsys.readouterr()
    said = data_notes([results["prompt_tuning"][1]])
    assert said == [
        "reviews: 10 of 10 train, 1 of 1 dev and 1 of 1 test source texts are longer than 4 tokens and were cut there",
        "reviews: 10 of 10 train, 1 of 1 dev and 1 of 1 test answers are longer than 20 tokens and were cut there; "
        "references are whole, no longer answer is written",
    ]
    assert all(note in shown.out + shown.err for note in said)
    (board,) = collect_boards([result for _, result in results.values()])
    assert set(said) <= set(lay_out(board).notes)


def test_metrics_of_libraries_are_stored_recomputed_and_shown(tmp_path: Path) -> None:
    names = ["numeric_match", "rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf"]
    lines = [{"q": f"how many {i}", "a": ["so it is 5", f"it is {i}"][: 1 + i % 2]} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    keys = {"labels": None, "kind": "text", "files": "rows.jsonl", "fields": "{question: q}", "label": "a"}
    path = suite(tmp_path, **keys, metrics=f"[{', '.join(names)}]")
    assert harness.run(path, results=tmp_path / "out", quiet=True).num_failed == 0
    ((where, result),) = ResultStore(tmp_path / "out").scan()
    stored = read_answers(predictions_path(where))["test"]
    assert result.test is not None
    assert result.metrics is not None
    assert result.test.metrics == compute_metrics(names, stored.predictions, stored.references, [])
    assert result.test.metrics["numeric_match"] == 100
    made = {name: signature_of(name, stored.references) for name in names}
    assert result.metrics.signatures == made
    assert {"sacrebleu", "rouge-score", "math-verify"} <= set(result.provenance["versions"])
    for command in ("score", "verify"):
        assert CliRunner().invoke(app, [command, str(tmp_path / "out")]).exit_code == 0
    shown = CliRunner().invoke(app, ["report", str(tmp_path / "out"), "--statistics", "--format", "json"])
    assert json.loads(shown.stdout)[0]["statistics"]["intervals"]


def load_rows(path: Path) -> list[Example]:
    data = load_task(make_plan(path, Overrides(), path.parent / "out", None).tasks["reviews"], None)
    return [*data.train, *data.dev, *data.test]


def test_the_papers_cut_holds_for_rules_and_trained_methods_alike(tmp_path: Path) -> None:
    answer = " ".join(["film"] * 40)
    rows = [{"context": "a film", "question": f"q {i}", "answers": [f"{answer} {i}", "a"]} for i in range(8)]
    for split in ("train", "validation"):
        (tmp_path / "hub" / "squad").mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / "squad" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "papers.yaml"
    path.write_text(
        "suite: papers\nbackbones: [micro-t5]\ntasks: [squad]\nseeds: [1]\nrecipe: {steps: 1, eval_every: 1, lr: 0.1}\n"
        "methods:\n  majority:\n  prompt_tuning: {prompt_length: 4}\n"
    )
    assert harness.run(path, results=tmp_path / "out", data=tmp_path, quiet=True).num_failed == 0
    found = [read_answers(predictions_path(where)) for where, _ in ResultStore(tmp_path / "out").scan()]
    rule, trained = ([list(refs) for refs in answers["test"].references] for answers in found)
    assert rule == trained
    assert {len(refs) for refs in rule} == {1}
    assert all(answer.startswith(refs[0]) for refs in rule)


def test_a_preview_says_what_is_cut(tmp_path: Path) -> None:
    lines = [{"text": f"film {i}", "verdict": " ".join(["film"] * 30)} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = suite(tmp_path, labels=None, kind="text", files="rows.jsonl", max_source_length="4")
    shown = describe_rows("reviews", "micro-t5", "train", 1, None, path)
    assert "reviews: 10 of 10 train source texts are longer than 4 tokens and are cut there" in shown["text"]
    assert "reviews: 10 of 10 train answers are longer than 20 tokens and are cut there" in shown["text"]
    assert "4 source tokens (cut), 20 target tokens (cut)" in shown["text"]
