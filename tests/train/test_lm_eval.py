"""lm-evaluation-harness, where it is installed, gives the same likelihoods and chooses the same choices."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.backbone.load import load_backbone
from harness.data.examples import Example
from harness.data.splits import load_task
from tools.compare_with_lm_eval import SCORES, compare, ranked_here, ranked_there, tasks
from tools.network_matrix.checkpoints import build

pytest.importorskip("lm_eval")

COPA = [
    {"premise": "The man turned on the faucet.", "choice1": "The toilet filled with water.",
     "choice2": "Water flowed from the spout.", "question": "effect", "label": 1},
    {"premise": "My body cast a shadow over the grass.", "choice1": "The sun was rising.",
     "choice2": "The grass was cut.", "question": "cause", "label": 0},
    {"premise": "The women met for coffee.", "choice1": "The cafe reopened in a new location.",
     "choice2": "They wanted to catch up with each other.", "question": "cause", "label": 1},
]  # fmt: skip
BOOLQ = [
    {"passage": "The film is a drama. It was made in one week.", "question": "was the film made in a week",
     "label": True},
    {"passage": "No ship left the harbour that night, for the ice had closed it; one had tried — “in vain”.",
     "question": "did a ship leave", "label": False},
]  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Example]]:
    """Rows of both tasks, by task."""
    folder: Path = tmp_path_factory.mktemp("data")
    found = {}
    for name, official, written in (("copa", "COPA", COPA), ("boolq", "BoolQ", BOOLQ)):
        (folder / official).mkdir()
        for split in ("train", "val"):
            (folder / official / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
        found[name] = load_task(replace(tasks()[name], split="hold_out_1000"), folder).test
    return found


@pytest.mark.parametrize("network", ["Llama 3", "Qwen2", "Gemma 3", "GPT-2", "micro-t5"])
def test_likelihoods_and_choices_are_those_of_lm_evaluation_harness(
    network: str, rows: dict[str, list[Example]], tmp_path: Path
) -> None:
    if network != "micro-t5":  # whose tokenizer, like T5's, makes nothing of a blank in front
        build(network, tmp_path)
    backbone = load_backbone(network if network == "micro-t5" else str(tmp_path), "float32", "cpu")
    for name, task in tasks().items():
        here, there = ranked_here(task, rows[name], backbone, 100), ranked_there(task, rows[name], backbone, 2)
        assert len(here.likelihoods) == len(rows[name])
        for ours, theirs in zip(here.likelihoods, there.likelihoods, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
            assert abs(ours[0] - ours[1]) > 1e-3  # no tie that rounding decides
        assert here.chosen == there.chosen
        assert set(here.chosen) == set(SCORES)


def test_the_tool_says_how_many_rows_agree(rows: dict[str, list[Example]], tmp_path: Path) -> None:
    build("GPT-2", tmp_path)
    lines = compare(tasks()["copa"], rows["copa"], load_backbone(str(tmp_path), "float32", "cpu"))
    assert lines[0].startswith("COPA (choice), sum: 3 of 3 rows have the same choice; accuracy ")
    assert lines[-1].startswith("COPA (choice): log-likelihoods of 6 choices differ by at most ")
