"""The JSON Schema and the program judge suites alike: shipped ones, and these with one mistake put in anywhere.

What the program takes meets the schema, always. What the program refuses the schema marks too, but where only looking
something up tells.
"""

from __future__ import annotations

import copy
import json
import random
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from paths import SUITES

from harness.cli.new import schema_text
from harness.errors import UserError
from harness.runner.plan import make_plan
from harness.runner.resolve_suite import judge_suite
from harness.suite.make_groups import Overrides
from harness.yaml_lines import read_document

OF_WIDE, NUM_SHIPPED = 16, 8
"""Mutants of the wide suite, and shipped suites with a mutant each. All mutants are ten thousand, at 100 ms each; 639
were held on 2026-11-28."""
WIDE = """\
suite: wide
version: 1
backbones: [micro-t5, other=micro-t5]
tasks: [micro_sentiment]
seeds: [1, 2]
repeats: 2
protocol: {base: accept-2024, seeds.default: [1, 2]}
few_shot: {k: [4, 8], draw_seeds: [1, 2]}
tuning: {strategy: random, trials: 3, startup: 8, batch: 4}
recipe: {steps: 4, batch_size: 8, lr: {range: [0.001, 0.1], log: true}, eval_every: 2, backbone_dropout: false}
methods:
  majority:
  lora: {rank: {sweep: [2, 4]}}
  mine: {method: lora, rank: {range: [2, 6]}, recipe: {lr: 0.1, steps: {sweep: [2, 4]}}}
  theirs: {adapter: {folder: trained, base_model: any}}
  spot: {init_from: {method: src, task: micro_entailment, seed: own}, prompt_length: 4}
sources:
  src: {method: prompt_tuning, prompt_length: 4}
exceptions:
  - {where: {methods: [lora], backbones: [other]}, recipe: {steps: 6}, hp: {rank: 3}}
execution: {micro_batch_tokens: 128, bundle_cells: 4, checkpoint_every: 5m}
measure: {answering: true, rows: 4}
"""
LOOKED_UP = {"misspelt", "nothing", "empty"}
"""Changes of which looking up decides: a name, a default, a list that may be empty."""
LOOKED_UP_AT = ("draw_seeds", "range", "hp", "config", "where", "report", "define_tasks", "init_from")
"""Places where it decides too: numbers held against each other, settings of a method or of PEFT that is not known
there."""
Key = tuple[str | int, ...]


@cache
def validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema_text()))


def places(data: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    yield key, data
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for name, value in inside:
        yield from places(value, (*key, name))


def changed(value: Any) -> dict[str, Any]:
    """Name of a change -> the new value."""
    match value:
        case bool():
            return {"a number for true or false": 1}
        case int():
            return {"4.0 for 4": float(value), "half of one": value + 0.5, "a text": "many", "below zero": -1,
                    "true": True, "nothing": None}  # fmt: skip
        case float():
            return {"a text": "many", "below zero": -1.0, "true": True}
        case str():
            return {"a number for a text": 7, "misspelt": f"{value}x", "nothing": None}
        case list():
            return {"an item twice": [*value, *value[:1]], "empty": [], "a mapping for a list": {"a": 1}}
        case dict():
            return {"a list for a mapping": [1], "a further key": {**value, "further": 1}}
    return {"a number for nothing": 7}


def put(data: Any, key: Key, value: Any) -> Any:
    made = copy.deepcopy(data)
    around = made
    for part in key[:-1]:
        around = around[part]
    around[key[-1]] = value
    return made


def mutants(data: Any) -> Iterator[tuple[str, Key, Any]]:
    """(name of the change, its place, the changed suite): one change each."""
    for key, value in places(data):
        for what, new in changed(value).items() if key else ():
            yield what, key, put(data, key, new)


def judged(folder: Path, data: Any) -> str | None:
    """What the program says against a suite; None if it takes it."""
    path = folder / "suite.yaml"
    path.write_text(json.dumps(data))  # JSON is YAML
    try:
        judge_suite(path, Overrides())
    except UserError as error:
        return str(error)
    return None


def hold(folder: Path, data: Any, what: str, key: Key) -> None:
    told, findings = judged(folder, data), [error.message for error in validator().iter_errors(data)]
    if told is None:
        # a value that a stronger layer replaces in every cell is not read, whatever it is; the schema reads it
        is_read = judged(folder, put(data, key, {"no": {"such": "value"}})) is not None
        assert findings == [] or not is_read, f"{what} at {key}, which the program takes"
    elif what not in LOOKED_UP and not set(LOOKED_UP_AT) & set(key):
        assert findings, f"{what} at {key}, of which the program says: {told}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    (tmp_path / "trained" / "adapter_model.safetensors").touch()
    (tmp_path / "wide.yaml").write_text(WIDE)
    return tmp_path


def test_one_mistake_anywhere_is_judged_alike(folder: Path) -> None:
    for path in (folder / "wide.yaml", *random.Random(0).sample(sorted(SUITES.glob("*.yaml")), NUM_SHIPPED)):
        data = read_document(path).data
        drawn = random.Random(zlib.crc32(path.read_bytes()))
        for what, key, made in drawn.sample(list(mutants(data)), OF_WIDE if path.stem == "wide" else 1):
            hold(folder, made, what, key)


def row(label: str, **settings: Any) -> Any:
    return lambda suite: suite["methods"].update({label: settings})


CASES: dict[str, tuple[Any, bool]] = {
    "a misspelt key of an adapter": (row("theirs", adapter={"folder": "trained", "base_modl": "any"}), False),
    "a misspelt key beside an adapter": (row("theirs", adapter="trained", recipee={"precision": "float64"}), False),
    "a setting beside an adapter": (row("theirs", method="imported", adapter="trained", source_length=9), False),
    "a recipe beside an adapter": (row("theirs", adapter="trained", recipe={"precision": "float64"}), True),
    "4.0 steps": (lambda suite: suite["recipe"].update(steps=4.0), True),
    "4.5 steps": (lambda suite: suite["recipe"].update(steps=4.5), False),
    "4.0 as a rank": (row("lora", rank=4.0), True),
    "ranks up to 4.0": (row("lora", rank={"range": [2.0, 4.0]}), True),
    "a rank twice": (row("lora", rank={"sweep": [4, 4.0]}), False),
    "1.0 as a seed": (lambda suite: suite.update(seeds=[1.0, 2]), True),
    "a seed twice": (lambda suite: suite.update(seeds=[1, 1]), False),
    "a seed twice, once as 1.0": (lambda suite: suite.update(seeds=[1, 1.0]), False),
    "a seed of the protocol twice": (lambda suite: suite["protocol"].update({"seeds.default": [1, 1]}), False),
    "1.0 as a seed of the protocol": (lambda suite: suite["protocol"].update({"seeds.default": [1.0, 2]}), True),
    "a k twice": (lambda suite: suite["few_shot"].update(k=[4, 4]), False),
    "64.0 cells of a bundle": (lambda suite: suite["execution"].update(bundle_cells=64.0), True),
    "a misspelt setting of an exception for no cell": (
        lambda suite: suite["exceptions"].append({"where": {"tasks": ["cb"]}, "recipe": {"stepz": 3}}),
        False,
    ),
    "no name": (lambda suite: suite["backbones"].append(""), False),
}


@pytest.mark.parametrize("name", CASES)
def test_what_once_was_judged_otherwise_is_judged_alike(name: str, folder: Path) -> None:
    change, is_taken = CASES[name]
    data = copy.deepcopy(read_document(folder / "wide.yaml").data)
    change(data)
    assert (judged(folder, data) is None, validator().is_valid(data)) == (is_taken, is_taken)


def test_a_whole_number_makes_the_same_cells_however_it_is_written(folder: Path) -> None:
    data = copy.deepcopy(read_document(folder / "wide.yaml").data)
    found = []
    for write in (int, float):
        data["recipe"]["steps"] = write(4)
        data["methods"]["lora"]["rank"]["sweep"] = [write(2), write(4)]
        data["methods"]["mine"]["rank"]["range"] = [write(2), write(6)]
        (folder / "suite.yaml").write_text(json.dumps(data))
        plan = make_plan(folder / "suite.yaml", Overrides(), folder / "results", None)
        found.append([cell.model_dump_json() for group in plan.groups for cell in group.cells.values()])
    assert found[0] == found[1]
