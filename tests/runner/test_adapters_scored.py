"""Rows of adapters that were trained elsewhere in a suite: scored without a step, gone on from, measured, shown."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

import harness
from harness.backbone.load import load_backbone
from harness.backbone.writing import Writing
from harness.cli.commands import app
from harness.data import all_tasks, encode, load_task, max_new_tokens
from harness.errors import UserError
from harness.results.schema import Result
from harness.results.store import ResultStore, read_predictions
from harness.results.submission import check_submission
from harness.runner.plan import make_plan
from harness.runner.preflight import find_misfits
from harness.runner.submitted_suites import known_suites
from harness.suite.make_groups import Overrides
from harness.train.evaluate import to_text
from tools.network_matrix.checkpoints import build

pytestmark = [pytest.mark.usefixtures("few_rows"), pytest.mark.filterwarnings("ignore")]

SUITE = """\
suite: elsewhere
backbones: [llama]
tasks: [micro_sentiment]
seeds: [1, 2]
measure: {{answering: true, rows: 4, rounds: 1}}
recipe: {{steps: 1, batch_size: 2, eval_every: 1, warmup_steps: 0, backbone_dropout: false, head: {head},
          lr: {{sweep: [0.001, 0.0001]}}}}
methods:
{rows}
"""
ROWS = """\
  ours: {adapter: "adapters/*"}
  further: {method: peft, init_from: {adapter: adapters/lora}, recipe: {lr: 0.001}}
"""
CONFIGS: dict[str, Any] = {
    "lora": LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "loha": LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, and three adapters of PEFT for it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    build("Llama 3", folder / "llama")
    for name, config in CONFIGS.items():
        model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "llama"), config)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.3)
        model.save_pretrained(folder / "adapters" / name)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "work")
    return tmp_path / "work"


def write(folder: Path, rows: str = ROWS, head: str = "label") -> Path:
    path = folder / "elsewhere.yaml"
    # a folder that only looks like a known name
    path.write_text(SUITE.format(rows=rows, head=head).replace("[llama]", f"[{folder / 'llama'}]"))
    return path


def stored(out: Path) -> dict[str, Result]:
    return {result.cell.label: result for _, result in ResultStore(out).scan() if result.cell.grid_index == 0}


def their_answers(folder: Path, name: str) -> list[str]:
    """What PEFT's own model writes for the test rows, each by itself."""
    backbone = load_backbone(str(folder / "llama"))
    base = AutoModelForCausalLM.from_pretrained(folder / "llama")
    model: Any = PeftModel.from_pretrained(base, folder / "adapters" / name).eval()
    task = all_tasks()["micro_sentiment"]
    encoded = encode(load_task(task, None).test, backbone, task, task.max_source_length)
    writing = Writing(max_new_tokens(task, backbone), (backbone.eos_id,))
    found = []
    for row in range(len(encoded)):
        ids = torch.as_tensor(encoded.sources(np.array([row]), backbone.pad_id))
        with torch.no_grad():
            whole = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=writing.max_new_tokens,
                do_sample=False, eos_token_id=backbone.eos_id, pad_token_id=backbone.pad_id,
            )  # fmt: skip
        found += to_text(backbone, whole[:, ids.shape[1] :], writing)
    return found


def test_adapters_of_peft_are_scored_as_in_peft_and_shown_as_not_trained_here(folder: Path) -> None:
    suite, out = write(folder), folder / "out"
    assert harness.run(suite, results=out, quiet=True).num_failed == 0
    found = stored(out)
    assert set(found) == {"ours-loha", "ours-lora", "ours-prompt", "further"}
    for name in CONFIGS:
        result = found[f"ours-{name}"]
        (path,) = [p for p, other in ResultStore(out).scan() if other.cell_id == result.cell_id]
        answers = read_predictions(path)
        assert answers[answers.split == "test"].prediction.tolist() == their_answers(folder, name), name
        assert result.usage is not None
        assert result.params is not None
        assert result.usage.num_steps == 0
        assert (result.cell.grid, result.cell.seed) == ({}, 1)
        file = folder / "adapters" / name / "adapter_model.safetensors"
        assert [start.tensors for start in result.starts] == [hashlib.sha256(file.read_bytes()).hexdigest()]
        (start,) = result.cell.init_from
        assert (start.adapter, start.config["peft_type"]) == (f"adapters/{name}", CONFIGS[name].peft_type.value)
    assert found["ours-lora"].params is not None
    assert found["ours-prompt"].params is not None
    assert found["ours-lora"].params.num_trained == 0
    assert found["ours-lora"].params.num_kept == 2 * 2 * (64 + 64 + 64 + 32)
    assert found["ours-prompt"].params.num_kept == 3 * 64
    # LoRA and LoHa answer in one pass of the frozen network
    bundles = {name: result.usage.bundle_cells for name, result in found.items() if result.usage}
    assert bundles["ours-lora"] == bundles["ours-loha"] >= 2

    costs = found["ours-lora"].answering
    assert costs is not None
    assert costs.merged is not None
    assert costs.beside.disk_bytes == 4 * found["ours-lora"].params.num_kept
    assert costs.bare.peak_bytes < costs.beside.peak_bytes
    prompts = found["ours-prompt"].answering
    assert prompts is not None
    assert (prompts.merged, prompts.not_merged) == (None, "it changes the input")
    runner = CliRunner()
    for arguments in (["verify", str(out)], ["report", str(out), "--costs", "--format", "markdown"]):
        shown = runner.invoke(app, arguments)
        assert shown.exit_code == 0, shown.output
    assert "not trained here: adapters/lora (SHA-256 " in shown.output
    assert "ms/answer" in shown.output
    assert "not merged: it changes the input" in shown.output
    assert harness.run(suite, results=out, quiet=True).num_trained == 0

    # a stranger's folder: the method's file is read and not imported, and the adapter may lie elsewhere
    checked = check_submission(out, lambda results: known_suites(results, [suite]))
    assert [remark for remark in checked.findings if remark.kind in ("settings", "seeds", "selection")] == []
    assert not any(remark.kind == "settings" for remark in checked.unknown)
    shutil.move(folder / "adapters" / "lora", folder / "moved")
    checked = check_submission(out, lambda results: known_suites(results, [suite]))
    unjudged = {remark.path.split("/")[2] for remark in checked.unknown if remark.kind == "settings"}
    assert unjudged == {"ours-lora", "further"}
    shutil.move(folder / "moved", folder / "adapters" / "lora")
    forged = suite.with_name("forged.yaml")
    forged.write_text(suite.read_text().replace("lr: 0.001}", "lr: 0.002}"))
    checked = check_submission(out, lambda results: known_suites(results, [forged]))
    (remark,) = [remark for remark in checked.findings if remark.kind == "settings"]
    assert "recipe.lr is 0.001, not 0.002" in remark.problem

    # another adapter under the same name makes its result a stale one
    before = found["ours-prompt"].cell_id
    shutil.rmtree(folder / "adapters" / "prompt")
    shutil.copytree(folder / "adapters" / "loha", folder / "adapters" / "prompt")
    plan = make_plan(suite, Overrides(), out, None)
    assert not plan.pending()
    assert {result.cell_id for result in plan.superseded.values()} == {before}
    suite.write_text(suite.read_text().replace("answering: true", "answering: false"))
    assert set(make_plan(suite, Overrides(), out, None).superseded) == set(plan.superseded)
    assert harness.run(suite, results=out, rerun="stale", quiet=True).num_trained == 1
    again = runner.invoke(app, ["report", str(out), "--format", "markdown"])
    assert again.exit_code == 0, again.output
    assert "ours-prompt (init_from=prompt " in again.output


def test_the_head_of_a_classifier_answers_on_a_decoder(folder: Path) -> None:
    """Its adapter alone is refused beside heads, and the head beside answers that are written."""
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(folder / "llama", num_labels=2)
    theirs: Any = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    theirs.save_pretrained(folder / "classifier")
    theirs.eval()
    suite = write(folder, "  x: {adapter: classifier}\n", "linear")
    assert harness.run(suite, results=folder / "out", quiet=True).num_failed == 0
    ((path, result),) = ResultStore(folder / "out").scan()
    backbone, task = load_backbone(str(folder / "llama")), all_tasks()["micro_sentiment"]
    encoded = encode(load_task(task, None).test, backbone, task, task.max_source_length)
    expected = []
    for row in range(len(encoded)):
        ids = torch.as_tensor(encoded.sources(np.array([row]), backbone.pad_id))
        with torch.no_grad():
            expected.append(task.targets[int(theirs(input_ids=ids).logits.argmax())])
    answers = read_predictions(path)
    assert answers[answers.split == "test"].prediction.tolist() == expected
    assert len(set(expected)) == 2, "a head that says one class proves nothing"
    assert result.params is not None
    assert (result.params.num_trained, result.params.num_head) == (0, 2 * 64)
    assert "was trained with a head for classes (weight); recipe.head must be linear" in problem_of(
        folder, "{adapter: classifier}"
    )


REFUSED = {
    "a folder without weights": ("{adapter: adapters}", "adapters holds no weights: neither adapter_model.safetensors"),
    "no folder": ("{adapter: nowhere}", "no such folder or file: nowhere"),
    "a pattern that finds nothing": ('{adapter: "no/*"}', r"'no/\*' finds no folder with an adapter"),
    "a method that trains": ("{method: peft, adapter: adapters/lora}", "is scored without training, and 'peft' trains"),
    "a setting beside it": ("{adapter: adapters/lora, config: {r: 3}}", "cannot be set beside adapter"),
    "another shape": ("{adapter: {path: adapters/lora}}", "expected the path of a folder, or"),
    "a link": ("{adapter: linked}", "adapter_model.safetensors is a link that leaves its folder"),
    "too large": ("{adapter: large}", "has 9,000,000,000 bytes, and at most"),
    "twice": ("{adapter: [adapters/lora, other/lora]}", "two rows would be called 'x-lora'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_an_adapter_is_refused_before_anything_is_read(name: str, folder: Path) -> None:
    row, message = REFUSED[name]
    linked, large = folder / "linked", folder / "large"
    for place in (linked, large):
        place.mkdir()
        shutil.copy(folder / "adapters" / "lora" / "adapter_config.json", place)
    (linked / "adapter_model.safetensors").symlink_to(folder / "adapters" / "lora" / "adapter_model.safetensors")
    with open(large / "adapter_model.safetensors", "wb") as file:
        file.truncate(9_000_000_000)  # a hole: no byte of it is written
    with pytest.raises(UserError, match=message):
        make_plan(write(folder, f"  x: {row}\n"), Overrides(), folder / "out", None)


def problem_of(folder: Path, row: str, head: str = "label") -> str:
    plan = make_plan(write(folder, f"  x: {row}\n", head), Overrides(), folder / "out", None)
    with pytest.raises(UserError) as refused:
        find_misfits(plan, plan.pending())
    return str(refused.value)


def test_an_adapter_of_another_network_or_with_other_keys_does_not_fit(folder: Path) -> None:
    config = folder / "adapters" / "lora" / "adapter_config.json"
    plain = json.loads(config.read_text())
    config.write_text(json.dumps({**plain, "base_model_name_or_path": "owner/another-7b"}))
    said = problem_of(folder, "{adapter: adapters/lora}")
    assert "adapters/lora was trained on 'owner/another-7b' (base_model_name_or_path), not on 'llama'" in said
    plan = make_plan(
        write(folder, "  x: {adapter: {folder: adapters/lora, base_model: any}}\n"), Overrides(), folder / "out", None
    )
    assert not find_misfits(plan, plan.pending())
    config.write_text(json.dumps({**plain, "r": 3}))
    assert "lora_A.weight is [2, 64], wanted is [3, 64]" in problem_of(folder, "{adapter: adapters/lora}")
    assert "and not one prompt [P, H]" in problem_of(folder, "{adapter: llama}")
    assert "takes no step, so nothing would train its head" in problem_of(folder, "{adapter: adapters/loha}", "linear")
