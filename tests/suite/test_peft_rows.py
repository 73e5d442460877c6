"""Rows of PEFT methods in a suite: what a user may write, what is refused before anything is written, and one run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.errors import UserError
from harness.method.export import export_result, load_export
from harness.results.store import ResultStore
from harness.runner.plan import Plan, make_plan
from harness.suite.make_groups import Overrides

pytestmark = pytest.mark.usefixtures("few_rows")

HEAD = """\
suite: rows
backbones: [micro-t5]
tasks: [micro_sentiment]
seeds: [1]
recipe: {steps: 3, batch_size: 4, eval_every: 3, backbone_dropout: false, lr: 0.003}
methods:
"""
FOLDERS: dict[str, Any] = {
    "good": {"peft_type": "LOHA", "r": 4, "inference_mode": True, "task_type": "SEQ_CLS", "peft_version": "0.1",
             "base_model_name_or_path": "owner/name", "revision": None, "auto_mapping": None},
    "code": {"peft_type": "LORA", "auto_mapping": {"base_model_class": "X", "parent_library": "mine.code"}},
    "revised": {"peft_type": "LORA", "revision": "abc"},
    "outside": {"peft_type": "LORA", "base_model_name_or_path": "../elsewhere"},
    "tokens": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "tokenizer_kwargs": {"trust_remote_code": True}},
    "wide": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "token_dim": 768},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, config in FOLDERS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "misspelt").mkdir()
    (tmp_path / "misspelt" / "adapter_config.json").write_text('\ufeff{"peft_type": "LORA", "rr": 3}')
    (tmp_path / "doubled").mkdir()
    (tmp_path / "doubled" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "r": 4}')
    for name in ("empty", "broken", "trained"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text("{nope")
    (tmp_path / "trained" / "adapter_config.json").write_text(json.dumps(FOLDERS["good"]))
    (tmp_path / "trained" / "adapter_model.safetensors").touch()
    return tmp_path


def plan_of(folder: Path, rows: str, **settings: object) -> Plan:
    (folder / "rows.yaml").write_text(HEAD + rows)
    return make_plan(folder / "rows.yaml", Overrides(settings=settings), folder / "none", None)


BAD = {
    "config: {peft_type: LOHA, rr: 8}": "methods.bad.config.rr: unknown; LOHA has no such setting; did you mean r?",
    "config: {peft_type: LOHAA}": "did you mean LOHA?",
    "config: {r: 8}": "methods.bad.config.peft_type: is missing",
    "config: {peft_type: LORA, r: many}": "methods.bad.config.r: is not what PEFT takes",
    "config: {peft_type: LORA, r: {sweep: [4, x]}}": "methods.bad.config.r: is not what PEFT takes",
    "config: {peft_type: XLORA}": "XLORA cannot train here: it mixes LoRA adapters",
    "config: {peft_type: LORA, init_lora_weights: eva}": "'eva' cannot be set: it needs activations",
    "config: {peft_type: ADALORA, total_step: 9}": "methods.bad.config.total_step: is the recipe's steps",
    "config: {peft_type: ADALORA, tinit: 2, tfinal: 2}": "don't allow for a budgeting phase",
    "config: {peft_type: LORA, target_modules: [qq, v]}": "is called qq; did you mean q? (linear modules: q, k, v",
    "config: {peft_type: LORA, target_modules: '.*zz'}": "'.*zz' matches the whole name of no module",
    "config: {peft_type: LORA, target_modules: all-liner}": "did you mean all-linear? For names write a list",
    "config: {peft_type: LORA, layers_to_transform: [0, 40]}": "has layers 0 to 3, and not 40",
    "config: {peft_type: LOHA, layers_to_transform: 40}": "layers_to_transform: T5ForConditionalGeneration has layers",
    "config: {peft_type: LORA, layers_to_transform: [1], layers_pattern: h}": "layers_pattern: no numbered modules of",
    "config: {peft_type: LORA, modules_to_save: [classifier]}": "modules_to_save: no module of",
    "config: {peft_type: LORA, rank_pattern: {zz: 3}}": "a setting has no effect",
    "config: {peft_type: TRAINABLE_TOKENS, token_indices: [9999]}": "names token 9999, the backbone has 958",
    "config: {peft_type: ADAPTION_PROMPT, adapter_len: 2, adapter_layers: 1}": "Unsupported model type",
    "config: {peft_type: LORA, lora_alpha: 0}": "methods.bad.config.lora_alpha: must be above 0, got 0",
    "config: {peft_type: FOURIERFT, scaling: 0.0}": "methods.bad.config.scaling: must be above 0, got 0.0",
    "config: {}": "methods.bad.config: is missing: it names the adapter that is trained",
    "recipe: {lr: 0.1}": "methods.bad.config: is missing: it names the adapter that is trained",
    "config: 5": "methods.bad.config: expected a mapping, got 5",
    "adapter_config: empty": "methods.bad.adapter_config: holds no adapter_config.json",
    "adapter_config: broken": "adapter_config.json is no JSON",
    "adapter_config: trained": "holds trained weights (adapter_model.safetensors), and a cell starts untrained",
    "adapter_config: nowhere": "no such folder or file: nowhere",
    "adapter_config: {sweep: [good, code]}": "cannot be swept",
    "adapter_config: code": "methods.bad.config.auto_mapping: names code to import",
    "adapter_config: revised": "methods.bad.config.revision: names a version",
    "adapter_config: outside": "methods.bad.config.base_model_name_or_path: points outside of the folder",
    "adapter_config: tokens": "methods.bad.config.tokenizer_kwargs: cannot be set",
    "config: {peft_type: PROMPT_TUNING, num_virtual_tokens: 0}": "num_virtual_tokens: must be at least 1, got 0",
    "config: {peft_type: PREFIX_TUNING, num_virtual_tokens: 2, num_attention_heads: 7}": "num_attention_heads is 7, ",
    "config: {peft_type: LORA, target_modules: []}": "no `target_parameters` found\n",
    "config: {peft_type: LORA, target_modules: [q], exclude_modules: [q]}": "No modules were targeted for adaptation\n",
    "config: {peft_type: ADALORA, deltaT: 0}": "methods.bad.config.deltaT: must be at least 1 step",
    "config: {peft_type: ADALORA, tinit: -2}": "methods.bad.config.tinit: must be 0 steps or more, got -2",
    "config: {peft_type: LORA, rank_pattern: {q: abc}}": "methods.bad.config.rank_pattern",
    "config: {peft_type: PROMPT_TUNING, num_virtual_tokens: 2, prompt_tuning_init: TEXT}": "starts from a text or",
    "adapter_config: ''": "expected the path of a folder with adapter_config.json, got ''",
    "adapter_config: misspelt": "rows.yaml:7 (misspelt): methods.bad.config.rr: unknown; LORA has no such setting",
    "adapter_config: doubled": "methods.bad.adapter_config: adapter_config.json sets 'r' twice",
    "adapter_config: wide": "config.token_dim is 768, the width of the backbone is 96",
}


@pytest.mark.parametrize("row", BAD)
def test_a_mistake_is_one_sentence_with_its_line_and_nothing_is_written(folder: Path, row: str) -> None:
    (folder / "rows.yaml").write_text(f"{HEAD}  bad: {{method: peft, {row}}}\n")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError) as error:  # which the command prints, with exit code 2
        harness.run(folder / "rows.yaml", results=folder / "out", quiet=True)
    assert BAD[row] in str(error.value)
    assert re.search(r"rows\.yaml:7( \(\w+\))?: methods\.bad", str(error.value))
    assert sorted(folder.rglob("*")) == before


def test_a_folder_is_its_configuration_without_notes(folder: Path) -> None:
    rows = """\
  a: {method: peft, adapter_config: good, config: {r: 2}}
  b: {method: peft, config: {peft_type: LOHA, r: 2}}
"""
    cells = [next(iter(group.cells.values())) for group in plan_of(folder, rows).groups]
    assert cells[0].hp == cells[1].hp == {"config": {"peft_type": "LOHA", "r": 2}, "num_tasks": 1, "num_steps": 3}
    assert cells[0].cell_id == cells[1].cell_id


def test_values_of_a_configuration_are_swept_set_and_excepted_one_by_one(folder: Path) -> None:
    row = "  a: {method: peft, config: {peft_type: LORA, r: {sweep: [2, 4]}, lora_alpha: 3}}\n"
    rules = "exceptions: [{where: {methods: [a]}, hp: {config: {lora_dropout: 0.1}}}]\n"
    (group,) = plan_of(folder, row + rules, **{"methods.a.config.lora_alpha": 9}).groups
    configs = [cell.hp["config"] for cell in group.cells.values()]
    rest = {"peft_type": "LORA", "lora_alpha": 9, "lora_dropout": 0.1}
    assert configs == [{**rest, "r": 2}, {**rest, "r": 4}]
    assert [cell.grid for cell in group.cells.values()] == [{"hp.config.r": 2}, {"hp.config.r": 4}]
    assert len({cell.group_id for cell in group.cells.values()}) == 1
    assert len({cell.cell_id for cell in group.cells.values()}) == 2


def test_rows_of_several_kinds_train_store_and_answer_from_their_export(folder: Path) -> None:
    rows = """\
  ranks: {method: peft, config: {peft_type: ADALORA, init_r: 4, target_r: 2}}
  saved: {method: peft, config: {peft_type: LORA, modules_to_save: [lm_head]}}
  prompt: {method: peft, config: {peft_type: PROMPT_TUNING, num_virtual_tokens: 3}}
  prefix: {method: peft, config: {peft_type: PREFIX_TUNING, num_virtual_tokens: 3}}
"""
    (folder / "rows.yaml").write_text(HEAD + rows)
    summary = harness.run(folder / "rows.yaml", results=folder / "out", quiet=True)
    assert summary.num_failed == 0
    from harness.backbone import load_backbone

    backbone = load_backbone("micro-t5", device="cpu")
    for path, result in ResultStore(folder / "out").scan():
        assert result.test is not None
        export = export_result(path, folder / f"{result.cell.label}.safetensors", None)
        method = load_export(export.path, backbone)
        method.attach(backbone)
        method.detach(backbone)


def test_an_adapter_from_elsewhere_has_no_repeats(folder: Path) -> None:
    plan = plan_of(folder, "  mine: {adapter: trained}\n  lora:\nrepeats: 2\n")
    assert [(group.label, group.repeat) for group in plan.groups] == [("mine", 1), ("lora", 1), ("lora", 2)]
