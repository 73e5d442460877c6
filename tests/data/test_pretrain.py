"""The shipped micro T5 is what its command makes, and a stopped pretraining ends where an untouched one does."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import T5ForConditionalGeneration

from harness.backbone.names import SHIPPED as SHIPPED_BACKBONES
from tools.micro_t5 import pretrain
from tools.micro_t5.stages import STAGES

SHIPPED = SHIPPED_BACKBONES["micro-t5"]
TARGETS = {
    "sentiment": 0.95, "entailment": 0.85, "paraphrase": 0.90, "similarity": 0.85, "acceptability": 0.90, "qa": 0.80,
}  # fmt: skip


def test_the_shipped_record_is_of_the_stages_in_the_source() -> None:
    record = json.loads((SHIPPED / "pretraining.json").read_text())
    assert record["stages"] == [asdict(stage) for stage in STAGES]
    assert record["steps"] == sum(stage.steps for stage in STAGES)


def test_the_shipped_model_knows_its_tasks_behind_their_prefixes() -> None:
    model = T5ForConditionalGeneration.from_pretrained(SHIPPED)
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    record = json.loads((SHIPPED / "pretraining.json").read_text())
    for task, target in TARGETS.items():
        assert record["validation"][task] >= target
        assert pretrain.score(model, tokenizer, task, size=60) >= target - 0.1


def test_a_stopped_pretraining_ends_with_the_weights_of_an_untouched_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "CHUNK_BATCHES", 3)
    monkeypatch.setattr(pretrain, "TASKS", ("sentiment",))
    torch.set_num_threads(1)
    stages = [replace(stage, steps=2) for stage in (STAGES[0], STAGES[-1])]
    whole = pretrain.pretrain(tmp_path / "whole", stages, seed=3)
    pretrain.pretrain(tmp_path / "parts", stages[:1], seed=3)
    resumed = pretrain.pretrain(tmp_path / "parts", stages, seed=3)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert resumed["stages"] == whole["stages"]


def test_a_record_of_another_seed_is_not_continued(tmp_path: Path) -> None:
    stages = [replace(STAGES[0], steps=1)]
    record = {**pretrain.finished_stages(tmp_path, stages, seed=1), "stages": [asdict(stages[0])]}
    (tmp_path / "pretraining.json").write_text(json.dumps(record))
    assert pretrain.finished_stages(tmp_path, stages, seed=1)["stages"]
    assert not pretrain.finished_stages(tmp_path, stages, seed=2)["stages"]
    assert not pretrain.finished_stages(tmp_path, [replace(stages[0], rate=1.0)], seed=1)["stages"]
