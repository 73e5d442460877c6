"""The JSON Schema of suites: shipped, true for every suite that the program takes, and of use against mistakes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL_SUITE
from jsonschema import Draft202012Validator
from paths import SUITES
from suite_reference import EXAMPLES
from typer.testing import CliRunner

from harness.cli.commands import app
from harness.cli.new import schema_text
from harness.errors import UserError
from harness.runner.resolve_suite import judge_suite
from harness.suite.file_schema import SuiteFile
from harness.suite.make_groups import Overrides
from harness.yaml_lines import read_document

SCHEMA = SUITES / "suite.schema.json"
MODELINE = "# yaml-language-server: $schema="


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_the_shipped_schema_is_the_one_that_is_made_today(tmp_path: Path) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        SCHEMA.write_text(schema_text())
    assert SCHEMA.read_text() == schema_text(), "harness schema --out suites/suite.schema.json"
    done = CliRunner().invoke(app, ["schema", "--out", str(tmp_path / "x.json")])
    assert done.exit_code == 0
    assert (tmp_path / "x.json").read_text() == SCHEMA.read_text()


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_suite_names_the_schema_and_meets_it(path: Path, validator: Draft202012Validator) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith(MODELINE)
    assert (path.parent / first.removeprefix(MODELINE)).resolve() == SCHEMA
    assert [error.message for error in validator.iter_errors(read_document(path).data)] == []


def test_the_examples_of_every_block_meet_it(validator: Draft202012Validator) -> None:
    """They hold each key of a suite file at least once."""
    for example in EXAMPLES[SuiteFile]:
        assert [error.message for error in validator.iter_errors(example)] == []
    definitions = validator.schema["$defs"]
    for model, examples in EXAMPLES.items():
        name = model.__name__
        if model is SuiteFile or name not in definitions:
            continue
        own = Draft202012Validator({**validator.schema, "if": False, "required": [], **definitions[name]})
        for example in examples:
            assert [error.message for error in own.iter_errors(example)] == [], name


def test_every_key_is_described() -> None:
    schema = json.loads(SCHEMA.read_text())
    blocks = {"": schema} | {name: block for name, block in schema["$defs"].items() if not name.startswith("row")}
    silent = [f"{name}.{key}" for name, block in blocks.items()
              for key, item in block.get("properties", {}).items() if not item.get("description")]  # fmt: skip
    assert silent == []


TAKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "rows as a list": lambda s: s.update(methods=["majority", "dept"]),
    "a sweep of the recipe": lambda s: s["recipe"].update(lr={"sweep": [0.1, 0.3]}),
    "a sweep of an hp": lambda s: s["methods"]["dept"].update(rank={"sweep": [2, 4]}),
    "a range": lambda s: (
        s.update(tuning={"strategy": "random", "trials": 3}),
        s["recipe"].update(lr={"range": [0.01, 1], "log": True}),
        s["methods"]["dept"].update(rank={"range": [2, 6]}, recipe={}),
    ),
    "an adapter from elsewhere": lambda s: s["methods"].update(mine={"adapter": "trained"}),
    "adapters under the method's name": lambda s: s["methods"].update(imported={"adapter": {"folder": ["trained"]}}),
    "a row under its own label": lambda s: s["methods"].update(mine={"method": "dept", "rank": 2}),
    "a label of another method": lambda s: s["methods"].update(lora={"method": "dept", "rank": 2}),
    "a protocol with a key": lambda s: s.update(protocol={"base": "accept-2024", "stsb.round": "fifth"}),
    "a number that is a choice": lambda s: s.update(protocol={"decoding.label_tokens": 20}),
    "an own task": lambda s: s.update(
        define_tasks={"mine": {"files": "x.csv", "fields": {"a": "b"}, "labels": [0, 1]}}, tasks=["mine"]
    ),
    "a start": lambda s: s["methods"].update(spot={"init_from": {"method": "prompt_tuning", "task": "cb"}}),
    "a folder as a backbone": lambda s: s.update(backbones=["micro-t5", "mine=./somewhere"]),
}
WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a misspelt key": lambda s: s.update(taks=["cb"]),
    "no methods": lambda s: s.pop("methods"),
    "empty methods": lambda s: s.update(methods={}),
    "a misspelt task": lambda s: s.update(tasks=["micro_sentimen"]),
    "a task twice": lambda s: s.update(tasks=["cb", "cb"]),
    "a misspelt setting of the recipe": lambda s: s["recipe"].update(step=3),
    "a text for a number": lambda s: s["recipe"].update(steps="many"),
    "no steps": lambda s: s["recipe"].update(steps=0),
    "an unknown schedule": lambda s: s["recipe"].update(schedule="linaer"),
    "an empty sweep": lambda s: s["recipe"].update(steps={"sweep": []}),
    "a sweep with a key beside it": lambda s: s["recipe"].update(steps={"sweep": [4], "from": 1}),
    "a value twice in a sweep": lambda s: s["recipe"].update(steps={"sweep": [4, 4]}),
    "a range of one number": lambda s: s["recipe"].update(steps={"range": [4]}),
    "a range of a choice": lambda s: s["recipe"].update(schedule={"range": [0, 1]}),
    "a number for an adapter": lambda s: s["methods"].update(mine={"adapter": 3}),
    "a misspelt hp": lambda s: s["methods"]["dept"].update(rnk=2),
    "a misspelt hp under a label": lambda s: s["methods"].update(mine={"method": "dept", "rnk": 2}),
    "a choice of an hp": lambda s: s["methods"]["dept"].update(scale="cod"),
    "an hp of a rule": lambda s: s["methods"].update(majority={"rank": 2}),
    "a misspelt recipe of a row": lambda s: s["methods"]["dept"].update(recipe={"lrr": 2}),
    "a start of a method that takes none": lambda s: s["methods"]["prompt_tuning"].update(init_from={"method": "dept"}),
    "a label with a slash": lambda s: s["methods"].update({"a/b": {"method": "dept"}}),
    "a name that leaves the folder": lambda s: s.update(suite="../x"),
    "a protocol that is none": lambda s: s.update(protocol="acept-2024"),
    "a key of a protocol": lambda s: s.update(protocol={"stsb.rund": "fifth"}),
    "a value of a protocol": lambda s: s.update(protocol={"stsb.round": "third"}),
    "a key that is only recorded": lambda s: s.update(protocol={"select.step": "last"}),
    "a seed below zero": lambda s: s.update(seeds=[-1]),
    "another version": lambda s: s.update(version=2),
    "an unknown tuning": lambda s: s.update(tuning={"strategy": "annealing"}),
    "an interval": lambda s: s.update(execution={"checkpoint_every": "10 minutes"}),
    "an unknown kind of task": lambda s: s.update(define_tasks={"mine": {"kind": "sorting", "files": "x.csv"}}),
}


def small(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_SUITE)
    data = json.loads(json.dumps(read_document(path).data))
    change(data)
    path.write_text(json.dumps(data))  # JSON is YAML
    return dict(data)


@pytest.mark.parametrize("name", TAKEN)
def test_what_the_program_takes_meets_it(name: str, validator: Draft202012Validator, tmp_path: Path) -> None:
    data = small(tmp_path, TAKEN[name])
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "somewhere" / "config.json").write_text("{}")
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    (tmp_path / "trained" / "adapter_model.safetensors").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        judge_suite(Path("small.yaml"), Overrides())
    assert [error.message for error in validator.iter_errors(data)] == []


@pytest.mark.parametrize("name", WRONG)
def test_what_the_program_refuses_does_not(name: str, validator: Draft202012Validator, tmp_path: Path) -> None:
    data = small(tmp_path, WRONG[name])
    with pytest.raises(UserError):
        judge_suite(tmp_path / "small.yaml", Overrides())
    assert not validator.is_valid(data)
