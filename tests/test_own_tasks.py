"""Tasks that a suite declares: what is refused before anything is read, and how paths, splits and metrics are taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.backbone import load_backbone
from harness.data import cut_references, load_task
from harness.errors import UserError
from harness.planning import make_plan
from harness.suite import Overrides
from harness.tasks import all_tasks

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
        ({"labels": "[good, good]"}, "a classification lists at least two different labels"),
        ({"kind": "text"}, "only a classification has labels"),
        ({"metrics": "[acuracy]"}, "unknown metric 'acuracy'; did you mean accuracy?"),
        ({"metrics": "[pearson]"}, "unknown metric of a classification with these labels 'pearson'"),
        ({"labels": "[bad, good, odd]", "extra_metrics": "[f1]"}, "metric of a classification with these labels 'f1'"),
        ({"lable": "x"}, "did you mean label?"),
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


def test_a_shipped_name_is_not_taken_over(tmp_path: Path) -> None:
    rows(tmp_path)
    path = suite(tmp_path)
    path.write_text(path.read_text().replace("reviews", "cb"))
    assert "a shipped task is called 'cb' already" in message(path)


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
    task, backbone = all_tasks()["micro_qa"], load_backbone("micro-t5", device="cpu")
    data = load_task(task, None)
    long = " ".join(["word"] * 60)
    grown = replace(data, dev=[replace(data.dev[0], target=long, references=(long,)), data.dev[1]])
    cut = cut_references(grown, backbone)
    assert long.startswith(cut.dev[0].references[0])
    assert 0 < len(cut.dev[0].references[0]) < len(long)
    assert cut.dev[1] == data.dev[1]
    every = replace(grown, task=replace(task, references="all"))
    assert cut_references(every, backbone) == every
