"""Folders for PEFT: trained here, loaded by PEFT from the files alone, with the logits of the cell on its own rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import micro_rows
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_peft_types import Cell
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

from harness import UserError
from harness.backbone.load import load_backbone
from harness.backbone.names import resolve_backbone
from harness.backbone.network import Backbone
from harness.cli.commands import app
from harness.data import all_tasks, load_task
from harness.data.tokenization import encode
from harness.method.adapter_tensors import read_adapter_tensors
from harness.method.export import rebuild, stored_tensors
from harness.method.method import Method
from harness.method.peft_folder import tried_gap, write_adapter
from harness.method.registry import discover
from harness.report.boards import collect_boards
from harness.report.model_card import Adapter, make_card
from harness.results.schema import Result
from harness.results.store import ResultStore
from harness.runner.run_suite import run
from harness.suite.cell import Start
from harness.suite.trained_adapter import find_adapter
from harness.train.batch_input import BatchInput, Rows
from tools.network_matrix.checkpoints import build

pytestmark = pytest.mark.filterwarnings("ignore")

SUITE = """\
suite: out
backbones: [{backbones}]
tasks: [micro_sentiment]
seeds: [1]
recipe: {{steps: 3, batch_size: 4, eval_every: 3, warmup_steps: 1, warmup_max_share: 1.0, lr: 0.05{recipe}}}
methods:
{methods}
"""
METHODS = """\
  lora: {rank: 2}
  dora: {rank: 2}
  ia3:
  vera: {rank: 8}
  prompt_tuning: {prompt_length: 3}
  residual_prompt_tuning: {prompt_length: 3, bottleneck: 8}
  p_tuning: {prompt_length: 3, encoder_width: 8}
  prefix_tuning: {prefix_length: 3, network: mlp}
  patterned: {method: peft, config: {peft_type: LORA, r: 2, rank_pattern: {".*0.*": 4}, target_modules: all-linear}}
  allocated: {method: peft, config: {peft_type: ADALORA, init_r: 4, target_r: 2, tinit: 0, tfinal: 1, deltaT: 1}}
  moved: {method: peft, config: {peft_type: LORA, r: 2, init_lora_weights: pissa}}
  loha: {method: peft, config: {peft_type: LOHA, r: 2}}
  own_prefix: {method: peft, config: {peft_type: PREFIX_TUNING, num_virtual_tokens: 3}}
"""
ONE_PROMPT = """\
  spot: {prompt_length: 3, init_from: {method: prompt_tuning}}
  dpt: {prompt_length: 3, rank: 2}
  mpt: {prompt_length: 3, init_from: [{method: prompt_tuning}]}
  half: {method: lora, rank: 2, alpha: 2.5}
"""
"""Further methods that leave one prompt and nothing else, and a scale of LoRA that is no whole number."""
T5_ONLY = """\
  accept: {prompt_length: 3, budget_length: 8, added_lr: 0.05}
  bitfit:
  finetune:
  biased: {method: lora, rank: 2, biases: true}
  everywhere: {method: prefix_tuning, prefix_length: 3, places: all}
  majority:
"""
ON_CONV1D = ("lora", "dora", "prompt_tuning", "prefix_tuning", "moved", "own_prefix")
"""GPT-2's projections are `Conv1D`, which fewer types of PEFT take; its queries, keys and values are one module."""
ONE_PROMPT_LABELS = [line.strip().split(":")[0] for line in ONE_PROMPT.splitlines()]
LABELS = [line.strip().split(":")[0] for line in METHODS.splitlines()]
TYPES = {"dora": "LORA", "patterned": "LORA", "moved": "LORA", "half": "LORA", "allocated": "ADALORA",
         "own_prefix": "PREFIX_TUNING"}  # fmt: skip
TYPES |= dict.fromkeys(("residual_prompt_tuning", "p_tuning", "spot", "dpt", "mpt"), "PROMPT_TUNING")
MERGED = ("lora", "dora", "ia3", "vera", "patterned", "allocated", "loha")
SHIPPED = "micro-t5"
Trained = dict[tuple[str, str], Path]


@pytest.fixture(scope="module", autouse=True)
def eight_rows_to_answer() -> Iterator[None]:
    """No score counts here, and three rows are compared."""
    with micro_rows({"train": 40, "validation": 8, "test": 8}):
        yield


def stored(folder: Path, backbones: list[str], methods: str, recipe: str = "") -> Trained:
    folder.mkdir(exist_ok=True)
    text = SUITE.format(backbones=", ".join(backbones), methods=methods, recipe=recipe)
    (folder / "suite.yaml").write_text(text)
    done = run(folder / "suite.yaml", results=folder / "results", quiet=True)
    assert done.num_failed == 0
    return {(r.cell.backbone, r.cell.label): path for path, r in ResultStore(folder / "results").scan()}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    for name, short in (("Llama 3", "llama"), ("GPT-2", "gpt2")):
        build(name, folder / short)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return stored(tmp_path_factory.mktemp("out"), [SHIPPED], METHODS + ONE_PROMPT + T5_ONLY)


def own_logits(path: Path, network: Backbone) -> tuple[list[list[int]], Tensor, Tensor]:
    """Ids of three test rows as the harness feeds them, ids of targets [3, T], and its logits [3, T, V]."""
    result = read(path)
    method = rebuild(path, result, discover(), network, stored_tensors(path, result))
    return logits_of(method, network, result.cell.task)


def logits_of(method: Method, network: Backbone, name: str) -> tuple[list[list[int]], Tensor, Tensor]:
    task = all_tasks()[name]
    encoded = encode(load_task(task, None).test, network, task, task.max_source_length)
    rows, fused = np.arange(3), BatchInput([method], network, task.max_source_length)
    labels = torch.as_tensor(encoded.targets(rows))
    fused.refresh(grad=False, cells=[0])
    with fused.attached(), torch.no_grad():
        embeds, mask, _ = fused.build(encoded, Rows(np.zeros(3, np.int64), rows))
        logits = network.target_logits(embeds, mask, labels)
    sources = [encoded.sources(rows[i : i + 1], 0)[0].tolist() for i in range(3)]
    return sources, labels, logits


def imported_logits(folder: Path, network: Backbone) -> Tensor:
    """The logits [3, T, V] of the same rows by a row that answers with the folder: `adapter: FOLDER`."""
    found = find_adapter(folder.name, folder.parent, "", "")
    cls: Any = discover()["imported"].cls
    method = cls(cls.HP(config=found.to_answer()), network)
    method.start_from([read_adapter_tensors(found.weights, found.config)])
    return logits_of(method.eval(), network, "micro_sentiment")[2]


def read(path: Path) -> Result:
    return Result.model_validate_json(path.read_text())


@torch.no_grad()
def peft_logits(model: Any, sources: list[list[int]], labels: Tensor) -> Tensor:
    """Logits [3, T, V] from a row at a time: PEFT counts positions of padding where vectors stand in front."""
    found = []
    for ids, target in zip(sources, labels, strict=True):
        source = torch.tensor([ids])
        if model.config.is_encoder_decoder:
            start = torch.cat([torch.tensor([model.config.decoder_start_token_id]), target[:-1]])[None]
            mask = torch.ones_like(source)
            found.append(model(input_ids=source, attention_mask=mask, decoder_input_ids=start).logits)
        else:
            whole = torch.cat([source, target[None, :-1]], 1)
            logits = model(input_ids=whole, attention_mask=torch.ones_like(whole)).logits
            found.append(logits[:, -len(target) :])
    return torch.cat(found)


def fresh(name: str) -> Any:
    auto = AutoModelForSeq2SeqLM if name == SHIPPED else AutoModelForCausalLM
    return auto.from_pretrained(resolve_backbone(name), dtype=torch.float32).eval()


def test_what_peft_loads_gives_the_logits_of_the_cell(trained: Trained, tmp_path: Path) -> None:
    check_round_trips(SHIPPED, trained, [*LABELS, *ONE_PROMPT_LABELS], tmp_path)
    rights = {path.name: path.stat().st_mode for path in tmp_path.glob("*/*") if path.is_file()}
    assert "adapter_model.safetensors" in rights
    assert len(set(rights.values())) == 1, "what is to be given away can be read by all whom the umask lets read"


@pytest.mark.parametrize(("short", "labels"), [("llama", LABELS), ("gpt2", ON_CONV1D)])
def test_decoders_leave_and_are_loaded_too(short: str, labels: Sequence[str], networks: Path, tmp_path: Path) -> None:
    name = str(networks / short)
    lines = [line for line in METHODS.splitlines() if line.strip().split(":")[0] in labels]
    check_round_trips(name, stored(tmp_path / "runs", [name], "\n".join(lines)), labels, tmp_path)


def check_round_trips(name: str, made: Trained, labels_of_rows: Sequence[str], tmp_path: Path) -> None:
    """Hold PEFT's logits from each row's folder to those of its cell, merged into the network too."""
    network, short = load_backbone(name, device="cpu"), Path(name).name
    for label in labels_of_rows:
        path, out = made[short, label], tmp_path / label
        done = CliRunner().invoke(app, ["export", str(path), str(out), "--format", "peft", "--backbone", name])
        assert done.exit_code == 0, (label, done.output, done.exception)
        config = json.loads((out / "adapter_config.json").read_text())
        assert config["peft_type"] == TYPES.get(label, label.upper())
        assert config["base_model_name_or_path"] == short
        assert config["inference_mode"]
        sources, labels, ours = own_logits(path, network)
        model: Any = PeftModel.from_pretrained(fresh(name), str(out)).eval()
        theirs = peft_logits(model, sources, labels)
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4, msg=partial("{}: {}".format, label))
        torch.testing.assert_close(imported_logits(out, network), ours, rtol=1e-4, atol=1e-4,
                                   msg=partial("back in, {}: {}".format, label))  # fmt: skip
        if label in MERGED:
            merged = peft_logits(model.merge_and_unload(), sources, labels)
            torch.testing.assert_close(merged, ours, rtol=1e-3, atol=1e-3)


REFUSED = {
    "accept": "it adds a table of vectors to the tokens",
    "bitfit": "it changes layers as no type of PEFT does",
    "finetune": "every weight of the network was trained",
    "biased": "it trains 61 tensors beside PEFT's layers",
    "everywhere": "it has keys and values outside of the decoder too",
}


@pytest.mark.parametrize("label", REFUSED)
def test_what_peft_cannot_hold_is_refused_in_one_sentence(label: str, trained: Trained, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(trained[SHIPPED, label]), str(tmp_path / "out"), "--format", "peft"])
    assert isinstance(done.exception, UserError)
    assert f"PEFT cannot hold '{label}': {REFUSED[label]}" in str(done.exception)
    assert str(done.exception).endswith("--format tensors writes its tensors")
    assert list(tmp_path.iterdir()) == []


def test_a_linear_head_of_a_decoder_is_transformers_classifier(networks: Path, tmp_path: Path) -> None:
    name, methods = str(networks / "llama"), "  lora: {rank: 2}\n  prompt_tuning: {prompt_length: 3}\n  head_only:\n"
    made = stored(tmp_path / "runs", [name], methods, ", head: linear")
    for label in ("lora", "prompt_tuning"):
        out = tmp_path / label
        done = CliRunner().invoke(
            app, ["export", str(made["llama", label]), str(out), "--format", "peft", "--backbone", name]
        )
        assert done.exit_code == 0, (done.output, done.exception)
        network = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2, dtype=torch.float32)
        model = PeftModel.from_pretrained(network, str(out)).eval()
        head = load_file(made["llama", label].with_suffix(".safetensors"))["linear_head.weight"]
        torch.testing.assert_close(model.base_model.get_parameter(
            "score.modules_to_save.default.weight" if label == "prompt_tuning"
            else "model.score.modules_to_save.default.weight"), head)  # fmt: skip
    done = CliRunner().invoke(app, ["export", str(made["llama", "head_only"]), str(tmp_path / "x"), "--format", "peft",
                                    "--backbone", name])  # fmt: skip
    assert "it changes nothing of the network" in str(done.exception)
    behind = stored(tmp_path / "hidden", [name], "  lora: {rank: 2}\n", ", head: hidden")
    done = CliRunner().invoke(app, ["export", str(behind["llama", "lora"]), str(tmp_path / "y"), "--format", "peft",
                                    "--backbone", name])  # fmt: skip
    assert "its head has a hidden layer, which is none of PEFT's" in str(done.exception)


def test_the_card_has_scores_settings_rows_and_code_that_runs(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import ModelCard

    path = trained[SHIPPED, "lora"]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["export", str(path), "mine", "--format", "peft", "--license", "mit"])
    assert done.exit_code == 0, done.output
    card, result = ModelCard.load(tmp_path / "mine" / "README.md"), read(path)
    assert result.test is not None
    assert result.data is not None
    assert (card.data.base_model, card.data.library_name, card.data.license) == (SHIPPED, "peft", "mit")
    (score,) = card.data.eval_results
    assert (score.metric_type, score.dataset_name, score.dataset_split) == ("accuracy", "micro_sentiment", "test")
    assert score.metric_value == pytest.approx(result.test.metrics["accuracy"], abs=1e-3)
    for said in (f"| {result.test.score:.1f} [", result.data.fingerprint, result.cell_id, '"rank": 2', "95% interval",
                 "the run of seed 1, the checkpoint of step 3 of 3"):  # fmt: skip
        assert said in card.text, said
    assert str(tmp_path) not in card.content
    again = result.model_copy(update={"cell": result.cell.model_copy(update={"repeat": 2}), "cell_id": "other"})
    (board,), plain = collect_boards([result]), Adapter("mine", "LORA", SHIPPED, "", (), None)
    told = make_card(plain, again, board, None).text
    assert "It is training 2 of that seed; the scores above are of the first." in told
    assert "not at the grid point" not in told
    assert result.usage is not None
    start = Start(title="theirs", adapter="theirs", identity="i", family="i")
    cell, usage = (result.cell.model_copy(update={"init_from": [start]}),
                   result.usage.model_copy(update={"num_steps": 0}))  # fmt: skip
    taken = result.model_copy(update={"cell": cell, "usage": usage})
    (board,) = collect_boards([taken])
    told = make_card(plain, taken, board, None).text
    assert "trained elsewhere, and scored by the harness" in told
    assert "This folder holds what `theirs` held; no step was taken here." in told
    found: dict[str, Any] = {}
    exec(card.text.split("```python\n")[1].split("```")[0], found)
    assert found["model"].active_peft_config.r == 2


def test_mistakes_are_told_and_leave_nothing(trained: Trained, networks: Path, tmp_path: Path) -> None:
    path, out = trained[SHIPPED, "lora"], tmp_path / "out"

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["export", *arguments])
        assert isinstance(done.exception, UserError), done.output
        return str(done.exception)

    peft = ("--format", "peft")
    assert "is a folder; name the JSON of one cell in it" in said(str(path.parent), str(out), *peft)
    assert "has no trained tensors" in said(str(trained[SHIPPED, "majority"]), str(out), *peft)
    assert "is for a folder of PEFT. Say --format peft" in said(str(path), str(out), "--license", "mit")
    assert "is no name of a repository" in said(str(path), str(out), *peft, "--push", "a/b/c")
    assert "has other weights" in said(str(path), str(out), *peft, "--backbone", str(networks / "llama"))
    assert "no such folder" in said(str(path), str(out), *peft, "--backbone", str(tmp_path / "nowhere"))
    copied = tmp_path / "copy" / path.name
    copied.parent.mkdir()
    shutil.copy(path, copied)
    assert "is missing; it belongs to the result" in said(str(copied), str(out), *peft)
    save_file({"a": torch.zeros(2)}, copied.with_suffix(".safetensors"))
    assert "is not the file that was stored" in said(str(copied), str(out), *peft)
    assert [item.name for item in tmp_path.iterdir()] == ["copy"]
    assert "exists and is not empty" in said(str(path), str(copied.parent), *peft)


def test_without_a_network_nothing_is_sent_and_the_folder_stays(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from harness.hub import why_unreachable

    why_unreachable.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = CliRunner().invoke(app, ["export", str(trained[SHIPPED, "prompt_tuning"]), str(tmp_path / "out"), "--format",
                                    "peft", "--push", "me/prompt"])  # fmt: skip
    why_unreachable.cache_clear()
    assert "nothing was sent to me/prompt: HF_HUB_OFFLINE forbids" in str(done.exception)
    assert {item.name for item in (tmp_path / "out").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors"
    }  # fmt: skip


@pytest.mark.parametrize("config", [{"peft_type": "LORA"}, {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}])
def test_an_adapter_that_peft_loads_otherwise_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    cell = Cell(config)
    cell.train(3)
    write_adapter(cell.method, cell.backbone, tmp_path, "x")
    assert tried_gap(cell.method, cell.backbone, tmp_path) < 1e-5
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 0.1}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="loaded by it, the adapter gives other logits"):
        tried_gap(cell.method, cell.backbone, tmp_path)


def test_a_quantised_network_is_loaded_in_the_same_bits(networks: Path, tmp_path: Path) -> None:
    name = str(networks / "llama")
    made = stored(tmp_path / "runs", [name], "  lora: {rank: 2}\n", ", quantization: nf4, precision: bfloat16")
    out = tmp_path / "lora"
    done = CliRunner().invoke(
        app, ["export", str(made["llama", "lora"]), str(out), "--format", "peft", "--backbone", name]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(code.replace('"llama"', repr(name)).replace('"lora"', repr(str(out))), found)
    assert type(found["model"].base_model.model.model.layers[0].self_attn.q_proj.base_layer).__name__ == "Linear4bit"
