"""Protocols: every contradiction is settled by a key, every key acts where it says, and a suite's own settings win."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.data.tasks import Task, all_tasks
from harness.data.tasks.declared import BENCHMARK, under_protocol
from harness.errors import UserError
from harness.method.registry import discover
from harness.runner.plan import Plan, make_plan
from harness.suite.blocks import ProtocolReference
from harness.suite.file_schema import Recipe
from harness.suite.make_groups import Overrides
from harness.suite.protocol import (
    FOLDER,
    ProtocolKey,
    Scope,
    protocol_keys,
    protocol_names,
    protocol_values,
    resolve_protocol,
)
from harness.validation import field_names
from harness.yaml_lines import read_document

Write = Callable[[str], Path]
NUM_CONTRADICTIONS = 38
NAMES = ["accept-2024", "dept-code", "ept-2025", "llm-adapters", "peft-board"]
METHODS = discover()
TASKS = all_tasks()

SUITE = """\
suite: demo
backbones: [t5-base]
tasks: [cb, stsb, mnli, multirc, newsqa]
methods: {dept: {added_lr: 0.001}, accept: {added_lr: 0.001}, prompt_tuning: }
"""


def planned(path: Path, protocol: str | None = None, **settings: Any) -> Plan:
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return make_plan(path, Overrides(settings=named, protocol=protocol), path.parent / "results", None)


def first_cell(plan: Plan, task: str, label: str = "dept") -> Any:
    group = next(g for g in plan.groups if (g.task, g.label) == (task, label))
    return group.cells[(0, group.seeds[0])]


def message(path: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        planned(path, **settings)
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_every_contradiction_can_be_pointed_at_with_value_and_reason(name: str) -> None:
    rows = protocol_values(resolve_protocol(ProtocolReference(name=name)))
    assert {number for row in rows for number in row["rows"]} == set(range(1, NUM_CONTRADICTIONS + 1))
    for row in rows:
        assert row["value"] not in (None, ""), row["key"]
        assert len(str(row["reason"])) > 3, row["key"]


def test_the_shipped_protocols_are_the_five_that_the_docs_describe() -> None:
    assert protocol_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_value_is_one_that_its_key_allows(name: str) -> None:
    protocol = resolve_protocol(ProtocolReference(name=name))
    for key in protocol_keys().values():
        if key.kind != "recorded":
            assert key.checked(protocol.values[key.name], "") == protocol.values[key.name]


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_holds_every_key_once_with_one_value_and_one_reason(name: str) -> None:
    values = read_document(FOLDER / f"{name}.yaml").data["values"]
    assert list(values) == list(protocol_keys())
    assert all(len(entry) == 2 and isinstance(entry[1], str) for entry in values.values())


@pytest.mark.parametrize("key", protocol_keys().values(), ids=lambda key: key.name)
def test_a_key_names_only_what_exists(key: ProtocolKey) -> None:
    assert set(key.methods) <= set(METHODS)
    assert set(key.tasks) <= set(TASKS)
    assert set(key.benchmarks) <= {BENCHMARK, *(task.benchmark for task in TASKS.values())}
    targets = [key.sets] if key.sets else [t for effect in (key.choices or {}).values() for t in effect]
    for target in targets:
        part, _, rest = target.partition(".")
        if part == "recipe":
            assert rest in field_names(Recipe)
        elif part == "hp":
            assert all(rest in field_names(METHODS[name].spec.hp_type) for name in key.methods)
        elif part == "methods":
            method, setting = rest.split(".")
            assert setting in field_names(METHODS[method].spec.hp_type)
        elif part == "task":
            assert rest in field_names(Task)
        else:
            assert part in ("steps", "seeds") or (target == "few_shot.draw" and key.few_shot)


@pytest.mark.parametrize("key", [k for k in protocol_keys().values() if k.choices], ids=lambda key: key.name)
def test_each_choice_makes_a_difference(key: ProtocolKey) -> None:
    effects = [dict(key.effects(choice)) for choice in key.choices or {}]
    assert len(effects) > 1
    assert all(first != second for i, first in enumerate(effects) for second in effects[:i])


def test_steps_follow_the_published_number_of_training_rows(write_suite: Write) -> None:
    plan = planned(write_suite(SUITE))
    steps = {task: first_cell(plan, task).recipe.steps for task in ("cb", "multirc", "newsqa", "mnli")}
    assert steps == {"cb": 30_000, "multirc": 30_000, "newsqa": 30_000, "mnli": 300_000}
    lowered = planned(write_suite(SUITE), protocol__steps__threshold=10_000)
    assert first_cell(lowered, "multirc").recipe.steps == 300_000


def test_a_protocol_sets_recipe_lengths_seeds_and_grids(write_suite: Write) -> None:
    path = write_suite(SUITE.replace("{added_lr: 0.001}", "", 1))
    accept, dept = planned(path), planned(path, protocol="dept-code")
    assert (first_cell(accept, "cb").recipe.batch_size, first_cell(dept, "cb").recipe.batch_size) == (16, 32)
    assert (first_cell(accept, "cb").recipe.warmup_steps, first_cell(dept, "cb").recipe.warmup_steps) == (1800, 500)
    assert first_cell(accept, "newsqa").recipe.max_source_length == 512
    assert first_cell(planned(path, protocol="ept-2025"), "newsqa").recipe.max_source_length == 256
    seeds = {group.task: group.seeds for group in accept.groups}
    assert (seeds["cb"], seeds["newsqa"]) == ((42,), (42, 43, 44))
    points = {plan.suite.protocol.reference.title: len(plan.groups[0].points) for plan in (accept, dept)}
    assert points == {"accept-2024": 12, "dept-code": 8}


def test_a_protocol_says_whose_adamw_moves_the_tensors(write_suite: Write) -> None:
    path = write_suite(SUITE)
    forms = {name: first_cell(planned(path, protocol=name), "cb").recipe.adamw for name in protocol_names()}
    old, new = dict.fromkeys(NAMES[:2], "transformers"), dict.fromkeys(NAMES[2:], "torch")
    assert forms == old | new
    changed = planned(path, protocol__optimizer__adamw="torch")
    assert first_cell(changed, "cb").recipe.adamw == "torch"
    assert "torch, transformers" in message(path, protocol__optimizer__adamw="keras")


def test_weight_decay_is_that_of_the_methods_own_code_where_that_applied_it(write_suite: Write) -> None:
    text = SUITE.replace("prompt_tuning: }", "prompt_tuning: , adamix: , dpt: , residual_prompt_tuning: }")
    plan = planned(write_suite(text))
    decays = {label: first_cell(plan, "cb", label).recipe.weight_decay for label in plan.suite.file.methods}
    own = {"adamix": 0.1, "dpt": 1e-5, "residual_prompt_tuning": 1e-5}
    assert decays == {"dept": 0.0, "accept": 0.0, "prompt_tuning": 0.0, **own}


def test_the_suite_wins_over_the_protocol_and_the_command_line_over_both(write_suite: Write) -> None:
    path = write_suite(SUITE + "recipe: {batch_size: 4}\nprotocol: dept-code\n")
    cell = first_cell(planned(path), "cb")
    assert (cell.recipe.batch_size, cell.recipe.warmup_steps) == (4, 500)
    assert first_cell(planned(path, recipe__batch_size=8), "cb").recipe.batch_size == 8


def test_keys_change_one_by_one_in_the_suite_and_on_the_command_line(write_suite: Write) -> None:
    path = write_suite(SUITE + "protocol: {base: ept-2025, stsb.round: fifth}\n")
    plan = planned(path, protocol__weight_decay__applied=0.01)
    assert plan.suite.protocol.reference.title == "ept-2025 with stsb.round=fifth, weight_decay.applied=0.01"
    assert plan.tasks["stsb"].number_step == 0.2
    cell = first_cell(plan, "stsb")
    assert cell.recipe.weight_decay == 0.01
    assert cell.protocol.overrides == {"stsb.round": "fifth", "weight_decay.applied": 0.01}
    assert planned(path, protocol="ept-2025").tasks["stsb"].number_step == 0.1


def test_a_key_makes_another_cell_only_where_it_acts(write_suite: Write) -> None:
    path = write_suite(SUITE)

    def identity(task: str, **settings: Any) -> str:
        return str(first_cell(planned(path, **settings), task).cell_id)

    assert identity("cb") != identity("cb", protocol="dept-code")
    assert identity("cb") != identity("cb", protocol__select__metric__cb="accuracy")
    assert identity("mnli") == identity("mnli", protocol__select__metric__cb="accuracy")
    assert identity("stsb") != identity("stsb", protocol__stsb__round="fifth")
    assert identity("cb") == identity("cb", protocol__batch_size=16)
    assert identity("cb") == identity("cb", protocol__weight_decay__applied=0)


def test_a_result_names_the_keys_that_act_on_it_and_no_mere_record() -> None:
    acting = resolve_protocol(ProtocolReference()).acting(Scope("stsb", "GLUE", "lora", "t5-base"))
    assert {"stsb.round", "batch_size", "template.labels"} <= acting.keys()
    assert not {"quant", "llama.head", "select.metric.cb", "lr_grid.prompt", "prompt_length.t5_small"} & acting.keys()


def test_a_key_may_be_bound_to_a_backbone(write_suite: Write) -> None:
    path = write_suite(SUITE)
    lengths = {
        name: make_plan(path, Overrides(backbones=[name]), path.parent / "results", None).groups[0].cells.popitem()[1]
        for name in ("t5-base", "t5-small", "t5-3b")
    }
    assert (lengths["t5-base"].hp["prompt_length"], lengths["t5-small"].hp["prompt_length"]) == (60, 40)
    assert (lengths["t5-base"].recipe.batch_size, lengths["t5-3b"].recipe.batch_size) == (16, 2)


@pytest.mark.parametrize(
    ("key", "value", "task", "field", "expected"),
    [
        ("template.labels", "words", "cb", "target_style", "words"),
        ("template.task_prefix", "on", "cb", "prefix", "cb"),
        ("stsb.round", "fifth", "stsb", "number_step", 0.2),
        ("report.cola", "accuracy", "cola", "reported", ("accuracy",)),
        ("select.metric.cb", "accuracy", "cb", "selection", "accuracy"),
        ("select.metric.qa", "token_f1", "newsqa", "selection", "token_f1"),
        ("report.qa", "exact_match", "newsqa", "reported", ("exact_match",)),
        ("qa.references", "all", "newsqa", "references", "all"),
        ("squad.bug_compatible", "yes", "squad", "stringify_answers", True),
        ("scitail.test", "official", "scitail", "split", "official_test"),
        ("max_source_length.multirc", 100, "multirc", "max_source_length", 100),
    ],
)
def test_a_key_changes_the_task_it_concerns_and_no_other(
    key: str, value: Any, task: str, field: str, expected: Any
) -> None:
    changed = resolve_protocol(ProtocolReference(overrides={key: value}))
    plain = resolve_protocol(ProtocolReference())
    assert getattr(under_protocol(TASKS[task], plain), field) != expected
    assert getattr(under_protocol(TASKS[task], changed), field) == expected
    other = TASKS["micro_sentiment"]
    if key != "template.task_prefix":
        assert under_protocol(other, changed) == under_protocol(other, plain)


def test_what_a_table_no_longer_reports_is_still_computed() -> None:
    changed = resolve_protocol(ProtocolReference(overrides={"report.cb": "macro_f1"}))
    assert under_protocol(TASKS["cb"], changed).metrics[0] == "macro_f1"
    assert "accuracy" in under_protocol(TASKS["cb"], changed).metrics


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("protocol: accept-2023", "unknown protocol 'accept-2023'; did you mean accept-2024?"),
        ("protocol: {stsb.rnd: fifth}", "unknown protocol key 'stsb.rnd'; did you mean stsb.round?"),
        ("protocol: {stsb.round: third}", "unknown value of protocol.stsb.round 'third'"),
        ("protocol: {batch_size: many}", "protocol.batch_size: expected an integer of at least 1, got 'many'"),
        ("protocol: {lr_grid.prompt: []}", "protocol.lr_grid.prompt: expected a list of numbers, got []"),
        ("protocol: {seeds.default: [42, 42]}", "protocol.seeds.default: expected a list of different seeds"),
        ("protocol: {model.width: 9}", "protocol.model.width: is recorded only; nothing here varies it"),
    ],
)
def test_a_mistake_in_a_protocol_names_file_line_and_choice(write_suite: Write, line: str, expected: str) -> None:
    found = message(write_suite(SUITE + line + "\n"))
    assert "suite.yaml:5" in found
    assert expected in found


def test_a_mistake_on_the_command_line_names_the_option(write_suite: Write) -> None:
    assert message(write_suite(SUITE), protocol__stsb__round="third").startswith("--set protocol.stsb.round: ")
    assert message(write_suite(SUITE), protocol="accept").startswith("--protocol: unknown protocol")


def test_pefts_board_and_llm_adapters_set_the_whole_recipe(write_suite: Write) -> None:
    text = SUITE.replace("[cb, stsb, mnli, multirc, newsqa]", "[gsm8k]").replace("t5-base", "llama-3.2-3b")
    text = text.replace("dept: {added_lr: 0.001}, accept: {added_lr: 0.001}, prompt_tuning: ", "lora: ")
    board = first_cell(planned(write_suite(text), protocol="peft-board"), "gsm8k", "lora").recipe
    adapters = first_cell(planned(write_suite(text), protocol="llm-adapters"), "gsm8k", "lora").recipe
    names = ("steps", "batch_size", "lr", "warmup_steps", "effective_warmup", "schedule", "weight_decay", "eval_every",
             "eps", "adamw", "precision", "quantization", "clip_norm")  # fmt: skip
    assert [getattr(board, name) for name in names] == [
        5_000, 4, 1e-4, 500, 500, "cosine", 0.1, 250, 1e-8, "torch", "bfloat16", "bf16", 1.0,
    ]  # fmt: skip
    assert [getattr(adapters, name) for name in names] == [
        1_875, 16, 3e-4, 100, 100, "linear", 0.0, 200, 1e-8, "torch", "bfloat16", "bf16", 1.0,
    ]  # fmt: skip


def test_keys_of_the_recipe_leave_the_papers_cells_as_they_were(write_suite: Write) -> None:
    """The older protocols set what the recipe's own defaults are, so that no older cell is another one now."""
    plain = Recipe()
    for name in NAMES[:3]:
        recipe = first_cell(planned(write_suite(SUITE), protocol=name), "cb", "dept").recipe
        for field in ("schedule", "warmup_max_share", "eval_every", "eps"):
            assert getattr(recipe, field) == getattr(plain, field), field


def test_a_learning_rate_for_all_wins_over_a_methods_own_grid_and_a_row_over_both(write_suite: Write) -> None:
    text = SUITE.replace("prompt_tuning: }", "lora: , ia3: {recipe: {lr: 0.005}}}")
    plan = planned(write_suite(text), protocol="peft-board")
    rates = {label: first_cell(plan, "cb", label).recipe.lr for label in ("dept", "lora", "ia3")}
    assert rates == {"dept": 1e-4, "lora": 1e-4, "ia3": 0.005}
    assert len(next(g for g in plan.groups if g.label == "lora").points) == 1
