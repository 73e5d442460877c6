"""Exports: what a trained cell leaves for inference answers as the cell did, and a user gets it by one command."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from paths import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner
from typing_help import present

from harness import UserError
from harness.backbone.load import load_backbone
from harness.backbone.network import Backbone
from harness.cli.commands import app
from harness.data import cell_rows
from harness.data.record import PromptRecord
from harness.data.tokenization import encode
from harness.method.export import Exported, _answering, export_result, load_export
from harness.results.schema import Result
from harness.results.store import ResultStore, read_predictions
from harness.runner.run_suite import run
from harness.train.batch_input import BatchInput
from harness.train.evaluate import answer_split
from harness.train.tiny_backbones import tiny_backbone

pytestmark = pytest.mark.usefixtures("few_rows")

SUITE = """\
suite: export
backbones: [micro-t5]
tasks: [micro_sentiment]
seeds: [1]
recipe: {steps: 6, batch_size: 4, eval_every: 3, warmup_steps: 1, warmup_max_share: 1.0, lr: 0.05}
methods:
  majority:
  accept: {prompt_length: 3, budget_length: 8, added_lr: 0.05}
  ept: {prompt_length: 3, budget_length: 8, added_lr: 0.05}
  half: {method: ept, prompt_length: 3, budget_length: 8, added_lr: 0.05, discard_at: 0.5, recipe: {eval_every: 6}}
  dpt: {prompt_length: 3, rank: 2}
  residual_prompt_tuning: {prompt_length: 3, bottleneck: 8}
  p_tuning: {prompt_length: 3, encoder_width: 8}
  prefix_tuning: {prefix_length: 3, network: mlp}
  lora: {rank: 2}
  adamix: {rank: 2}
"""
COLLAPSED = {"accept": {"prompt", "added"}, "ept": {"prompt", "added"}, "half": {"prompt", "added"}, "dpt": {"prompt"},
             "residual_prompt_tuning": {"prompt"}, "p_tuning": {"prompt"}, "prefix_tuning": {"prefix"}}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Result]]:
    folder = tmp_path_factory.mktemp("export")
    (folder / "suite.yaml").write_text(SUITE)
    assert run(folder / "suite.yaml", results=folder / "results", quiet=True).num_failed == 0
    return {result.cell.label: (path, result) for path, result in ResultStore(folder / "results").scan()}


@pytest.fixture(scope="module")
def micro() -> Backbone:
    return load_backbone("micro-t5", device="cpu")


@pytest.mark.parametrize("label", [*COLLAPSED, "lora", "adamix"])
def test_an_export_gives_the_answers_of_the_trained_cell(
    label: str, trained: dict[str, tuple[Path, Result]], micro: Backbone, tmp_path: Path
) -> None:
    path, result = trained[label]
    done = export_result(path, tmp_path / "out.safetensors", None)
    assert result.params is not None
    assert done.num_kept == result.params.num_kept
    assert set(done.shapes) == COLLAPSED.get(label, set(done.shapes))
    method = load_export(done.path, micro)
    assert isinstance(method, Exported) == (label not in ("prefix_tuning", "lora", "adamix"))
    data = cell_rows(result.cell, None, "")
    length = result.cell.recipe.max_source_length or data.task.max_source_length
    encoded = encode(data.split("test"), micro, data.task, length)
    method.attach(micro)
    answers = answer_split(BatchInput([method], micro, length), [0], encoded, data.task, 4_096)[0]
    method.detach(micro)
    stored = read_predictions(path)
    assert answers == stored[stored["split"] == "test"].sort_values("row")["prediction"].tolist()


def test_an_export_says_how_its_answers_are_asked_for(trained: dict[str, tuple[Path, Result]], tmp_path: Path) -> None:
    path, result = trained["accept"]
    assert result.data is not None
    assert result.data.writing is not None
    export_result(path, tmp_path / "out.safetensors", None)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        said = json.loads(file.metadata()["answering"])
    writing = {"max_new_tokens": result.data.writing.max_new_tokens, "end_ids": [1], "num_beams": 1, "stop": []}
    assert said == {"prompt": {"form": "suffix", "template": None, "system": ""}, "writing": writing}
    prompt = PromptRecord(form="chat", template="abc", system="Be brief.")
    chat = result.data.model_copy(update={"prompt": prompt})
    mixed = _answering(result.data.model_copy(update={"parts": {"a": result.data, "b": chat}}))
    assert mixed["parts"]["a"] == said
    assert mixed["parts"]["b"]["prompt"] == {"form": "chat", "template": "abc", "system": "Be brief."}


def test_the_page_on_methods_answers_from_an_export(
    trained: dict[str, tuple[Path, Result]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    export_result(trained["accept"][0], tmp_path / "prompt.safetensors", None)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "writing-a-method.md").read_text()
    (code,) = (block for block in page.split("```")[1::2] if "load_export(" in block)
    exec(code, {})
    (answer,) = ast.literal_eval(capsys.readouterr().out)
    assert isinstance(answer, str)


def test_the_command_writes_an_export_and_says_what_is_in_it(
    trained: dict[str, tuple[Path, Result]], tmp_path: Path
) -> None:
    out = tmp_path / "ept.safetensors"
    done = CliRunner().invoke(app, ["export", str(trained["ept"][0]), str(out)])
    assert done.exit_code == 0, done.output
    tensors = load_file(out)
    assert tensors["prompt"].shape == (3, 96)
    assert "prompt [3, 96]" in done.output
    assert f"as few as {present(trained['ept'][1].params).num_kept:,} numbers" in done.output


def test_an_export_of_factors_is_their_product(trained: dict[str, tuple[Path, Result]], tmp_path: Path) -> None:
    path, _ = trained["dpt"]
    export_result(path, tmp_path / "out.safetensors", None)
    stored = load_file(path.with_suffix(".safetensors"))
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors")["prompt"], stored["a"] @ stored["b"])


def test_a_method_that_changes_half_way_is_told_of_the_steps(trained: dict[str, tuple[Path, Result]]) -> None:
    stored = load_file(trained["half"][0].with_suffix(".safetensors"))
    assert bool(stored["is_discarded"])
    assert stored["collapsed"].any()


def test_what_cannot_be_exported_is_refused(
    trained: dict[str, tuple[Path, Result]], micro: Backbone, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(UserError, match="has no trained tensors"):
        export_result(trained["majority"][0], out, None)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="is not a result file"):
        export_result(tmp_path / "other.json", out, None)
    with pytest.raises(UserError, match="no such file"):
        export_result(tmp_path / "nothing.json", tmp_path / "x.safetensors", None)
    for own in (trained["dpt"][0], trained["dpt"][0].with_suffix(".safetensors")):
        before = own.read_bytes()
        with pytest.raises(UserError, match="would overwrite the result itself"):
            export_result(trained["dpt"][0], own, None)
        assert own.read_bytes() == before
    with pytest.raises(UserError, match="cannot be written"):
        export_result(trained["dpt"][0], tmp_path / "no" / "folder.safetensors", None)
    copied = tmp_path / trained["dpt"][0].name
    copied.write_bytes(trained["dpt"][0].read_bytes())
    with pytest.raises(UserError, match="is missing"):
        export_result(copied, out, None)
    save_file({"a": torch.zeros(2)}, copied.with_suffix(".safetensors"))
    with pytest.raises(UserError, match="is not the file that was stored"):
        export_result(copied, out, None)
    with pytest.raises(UserError, match="is not an export"):
        load_export(copied.with_suffix(".safetensors"), micro)
    assert not out.exists()


def test_an_export_does_not_pass_for_another_backbones(trained: dict[str, tuple[Path, Result]], tmp_path: Path) -> None:
    for label, words in (("ept", "holds vectors of width 96"), ("lora", "does not fit")):
        export_result(trained[label][0], tmp_path / "out.safetensors", None)
        with pytest.raises(UserError, match=words):
            load_export(tmp_path / "out.safetensors", tiny_backbone())
    with pytest.raises(UserError, match="does not fit its method"):
        export_result(trained["accept"][0], tmp_path / "other.safetensors", "t5-small")
