"""Suite files: layers, sweeps, exceptions, overrides, and one clear message for each mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.tasks import all_tasks
from harness.errors import UserError
from harness.method.registry import discover
from harness.suite.cell import Cell
from harness.suite.make_groups import Group, Overrides, expand_suite, load_suite
from harness.suite.shipped import find_suite
from harness.yaml_lines import parse_value, read_document

METHODS = {name: registered.spec for name, registered in discover().items()}
TASKS = {name: task.spec for name, task in all_tasks().items()}
Write = Callable[[str], Path]

BASE = """\
suite: demo
backbones: [t5-base]
tasks: [cb, multirc]
seeds: [42, 43]
recipe: {steps: 100}
methods:
  dept:
  prompt_tuning: {prompt_length: 50, recipe: {lr: 0.2}}
"""


def groups(path: Path, **overrides: Any) -> list[Group]:
    suite = load_suite(path, Overrides(**overrides))
    return expand_suite(suite, METHODS, TASKS)


def cell(found: list[Group], label: str, task: str = "cb") -> Cell:
    group = next(g for g in found if (g.label, g.task) == (label, task))
    return group.cells[(0, group.seeds[0])]


def message(path: Path, **overrides: Any) -> str:
    with pytest.raises(UserError) as caught:
        groups(path, **overrides)
    return str(caught.value)


def test_a_methods_own_grid_is_used_where_the_suite_is_silent(write_suite: Write) -> None:
    found = groups(write_suite(BASE))
    dept = next(g for g in found if g.label == "dept")
    assert len(dept.points) == 12
    assert dept.points[0] == {"recipe.lr": 0.3, "hp.added_lr": 0.0001}
    assert len(dept.cells) == 24


def test_the_suite_overrides_the_methods_file(write_suite: Write) -> None:
    found = groups(write_suite(BASE))
    prompt = next(g for g in found if g.label == "prompt_tuning")
    assert len(prompt.points) == 1
    assert cell(found, "prompt_tuning").recipe.lr == 0.2
    assert cell(found, "prompt_tuning").hp["prompt_length"] == 50


def test_settings_from_the_command_line_win_over_everything(write_suite: Write) -> None:
    text = BASE + "exceptions:\n  - where: {tasks: [cb]}\n    recipe: {steps: 7}\n"
    assert cell(groups(write_suite(text)), "dept").recipe.steps == 7
    assert cell(groups(write_suite(text)), "dept", "multirc").recipe.steps == 100
    overridden = groups(write_suite(text), settings={"recipe.steps": 3, "methods.dept.recipe.steps": 5})
    assert cell(overridden, "prompt_tuning").recipe.steps == 3
    assert cell(overridden, "dept").recipe.steps == 5


def test_an_exception_touches_only_the_cells_it_names(write_suite: Write) -> None:
    text = BASE + "exceptions:\n  - where: {tasks: [cb], methods: [dept]}\n    hp: {rank: 7}\n"
    found = groups(write_suite(text))
    assert cell(found, "dept").hp["rank"] == 7
    assert cell(found, "dept", "multirc").hp["rank"] is None


def test_tables_follow_the_source_length_of_the_task(write_suite: Write) -> None:
    found = groups(write_suite(BASE))
    assert cell(found, "dept").hp["source_length"] == 256
    assert cell(found, "dept", "multirc").hp["source_length"] == 348
    assert cell(found, "dept", "multirc").recipe.max_source_length == 348


def test_one_method_may_stand_in_two_rows(write_suite: Write) -> None:
    text = BASE + "  short: {method: prompt_tuning, prompt_length: 5}\n"
    found = groups(write_suite(text))
    assert cell(found, "short").method == "prompt_tuning"
    assert cell(found, "short").cell_id != cell(found, "prompt_tuning").cell_id


def test_a_method_the_suite_does_not_list_runs_with_its_own_defaults(write_suite: Write) -> None:
    found = groups(write_suite(BASE), methods=["accept"])
    assert {g.label for g in found} == {"accept"}
    assert len(found[0].points) == 12


def test_a_rule_has_one_point_whatever_the_recipe_sweeps(write_suite: Write) -> None:
    text = BASE.replace("{steps: 100}", "{steps: 100, lr: {sweep: [0.1, 0.2]}}") + "  majority:\n"
    found = groups(write_suite(text))
    assert len(next(g for g in found if g.label == "majority").points) == 1
    assert cell(found, "majority").cell_id == cell(groups(write_suite(BASE + "  majority:\n")), "majority").cell_id


def test_identity_is_what_moves_a_score_and_nothing_else(write_suite: Write) -> None:
    one = cell(groups(write_suite(BASE)), "dept")
    renamed = one.model_copy(update={"suite": "other", "label": "row", "grid_index": 3, "search_seed": 9})
    assert renamed.cell_id == one.cell_id
    for change in ({"seed": 1}, {"task": "wic"}, {"task_version": 2}, {"backbone": "x"}, {"method": "ept"}):
        assert one.model_copy(update=change).cell_id != one.cell_id
    moved = one.model_copy(update={"recipe": one.recipe.model_copy(update={"lr": 0.9})})
    assert moved.cell_id != one.cell_id
    assert moved.group_id == one.group_id, "grid points of one entry belong together"


def test_yaml_is_read_as_version_1_2(write_suite: Write) -> None:
    assert parse_value("3e-1") == 0.3
    assert parse_value("no") == "no"
    assert parse_value("30_000") == 30_000
    assert cell(groups(write_suite(BASE.replace("0.2", "2e-1"))), "prompt_tuning").recipe.lr == 0.2


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("dept:", "depth:", ["suite.yaml:7", "unknown method 'depth'", "did you mean dept?"]),
        ("dept:", "own_file:", ["suite.yaml:7", "unknown method 'own_file'", "needs --methods-dir FOLDER"]),
        ("[cb,", "[bc,", ["suite.yaml:3", "unknown task 'bc'", "cb"]),
        ("recipe: {steps: 100}", "recipes: {steps: 100}", ["suite.yaml:5", "recipes", "did you mean recipe?"]),
        ("steps: 100", "step: 100", ["suite.yaml:5", "recipe.step", "did you mean steps?"]),
        ("  dept:", "  dept: {ranks: 8}", ["suite.yaml:7", "methods.dept.ranks", "did you mean rank?"]),
        ("steps: 100", "steps: many", ["suite.yaml:5", "recipe.steps", "integer", '"many"']),
        ("  dept:", "  dept: {rank: 0}", ["suite.yaml:7", "rank must be at least 1"]),
        ("  dept:", "  dept: {rank: true}", ["methods.dept.rank", "integer"]),
        ("  dept:", "  dept: {init: txt_repeat}", ["methods.dept.init", "did you mean text_repeat?"]),
        ("lr: 0.2", "lr: {sweep: []}", ["suite.yaml:8", "recipe.lr.sweep", "empty"]),
        ("lr: 0.2", "lr: {sweep: [1, 1]}", ["recipe.lr.sweep", "twice"]),
        ("lr: 0.2", "lr: {sweeep: [1]}", ["recipe.lr", "sweep"]),
        ("lr: 0.2", "lr: .nan", ["recipe.lr", "finite"]),
        ("[42, 43]", "[42, 42]", ["suite.yaml:4", "seeds", "42 more than once"]),
        ("[42, 43]", "[]", ["suite.yaml:4", "seeds", "at least 1"]),
        ("[42, 43]", "42", ["suite.yaml:4", "seeds", "expected a list"]),
        ("suite: demo", "suite: ../demo", ["suite.yaml:1", "suite"]),
        ("suite: demo", "suite: demo\nsuite: demo", ["suite.yaml:2", "not valid YAML", "duplicate"]),
        ("suite: demo", "suite: !!python/object:os.system demo", ["tags"]),
        ("suite: demo", "suite: [demo", ["suite.yaml", "not valid YAML"]),
        ("suite: demo", "version: 9\nsuite: demo", ["suite.yaml:1", "version 9"]),
        ("t5-base]", "a/t5, b/t5]", ["both be called 't5'"]),
    ],
)
def test_a_mistake_is_named_with_its_line_and_the_nearest_match(
    write_suite: Write, old: str, new: str, expected: list[str]
) -> None:
    assert old in BASE
    said = message(write_suite(BASE.replace(old, new)))
    for part in expected:
        assert part in said, said


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"methods": ["acept"]}, "did you mean accept?"),
        ({"tasks": ["multirk"]}, "did you mean multirc?"),
        ({"settings": {"recipe.stepz": 1}}, "did you mean steps?"),
        ({"settings": {"recip.steps": 1}}, "did you mean recipe?"),
        ({"settings": {"methods.dapt.rank": 1}}, "did you mean dept?"),
        ({"settings": {"methods.dept.ranks": 1}}, "did you mean rank?"),
        ({"settings": {"methods.dept": 1}}, "expected recipe.KEY"),
        ({"settings": {"recipe.steps": "x"}}, "recipe.steps"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    write_suite: Write, overrides: dict[str, object], expected: str
) -> None:
    assert expected in message(write_suite(BASE), **overrides)


def test_a_missing_suite_names_its_neighbours(write_suite: Write) -> None:
    path = write_suite(BASE)
    with pytest.raises(UserError, match=r"no such file.*did you mean .*suite\.yaml"):
        read_document(path.with_name("suit.yaml"))


@given(st.text(max_size=200))
def test_any_text_gives_a_document_or_one_message(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            document = read_document(path)
        except UserError as error:
            document = None
            said = str(error)
        assert "x.yaml" in said if document is None else isinstance(document.data, dict)


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (BASE.replace("  dept:", "  dept: {source_length: 256}"), {}, "256 is less than the 348 tokens"),
        (BASE.replace("lr: 0.2", "lr: {sweep: [null, 0.3]}"), {}, "lists an empty value"),
        (BASE.replace("steps: 100", "steps: "), {}, "recipe.steps"),
        (BASE.replace("  dept:", "  ../../dept: {method: dept}"), {}, "cannot name a method"),
        (BASE.replace("  dept:", "  dept: {method: [1]}"), {}, "unknown method '[1]'"),
        (BASE.replace("  dept:", "  dept: {added_lr: -0.1}"), {}, "added_lr must be positive"),
        (BASE.replace("  dept:", "  dept: {recipe: 3}"), {}, "expected a mapping"),
        (BASE + "exceptions:\n  - where: {backbones: [t5-bas]}\n", {}, "did you mean t5-base?"),
        (BASE, {"tasks": ["cb", "cb"]}, "lists cb more than once"),
        (BASE, {"seeds": [1, 1]}, "lists 1 more than once"),
        (BASE, {"tasks": []}, "is empty"),
        (BASE, {"settings": {"tasks.foo": 1}}, "expected recipe.KEY"),
        (BASE, {"settings": {"seeds": [1]}}, "use --seeds A,B"),
        (BASE, {"settings": {"steps": 1}}, "did you mean recipe.steps?"),
        (BASE.replace("seeds:", "seed:"), {}, "suite.yaml:4: seed: unknown; did you mean seeds?"),
        (BASE.replace("lr: 0.2", "lr: {sweep: 0.1}"), {}, "expected a list of the values to try, got 0.1"),
        (BASE.replace("lr: 0.2", "lr: {swep: [0.1]}"), {}, "did you mean sweep?"),
        (BASE.replace("lr: 0.2", "lr: -1"), {}, "methods.prompt_tuning.recipe.lr"),
        (BASE.replace("[42, 43]", "[-1]"), {}, "seeds"),
        (BASE, {"seeds": [2**40]}, "must be from 0 to 4294967295"),
        (BASE + "execution: 5\n", {"settings": {"execution.bundle_cells": 3}}, "expected a mapping"),
    ],
)
def test_more_mistakes_are_named(write_suite: Write, text: str, overrides: dict[str, object], expected: str) -> None:
    assert expected in message(write_suite(text), **overrides)


def test_a_grid_of_absurd_size_is_refused_at_once(write_suite: Write) -> None:
    sweep = "{sweep: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}"
    names = ["steps", "batch_size", "warmup_steps", "eval_every", "lr", "eps"]
    text = BASE.replace("recipe: {steps: 100}", f"recipe: {{{', '.join(f'{name}: {sweep}' for name in names)}}}")
    assert "declares 16,400,000 cells (dept on cb alone has" in message(write_suite(text))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("execution.processes", 0, "--set execution.processes: execution.processes: input should be greater"),
        ("execution.sharding", "fdsp", "--set execution.sharding: .* did you mean fsdp"),
        ("execution.sharding", "fsdp", "--set execution.sharding: execution: .* or more, got 1$"),
        ("tuning.strategy", "gird", "--set tuning.strategy: .* did you mean grid"),
    ],
)
def test_a_mistake_on_the_command_line_is_not_blamed_on_the_file(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_suite(find_suite("quickstart"), Overrides(settings={key: value}))


def test_what_is_done_to_the_data_of_a_file_is_not_in_its_next_reading(write_suite: Write) -> None:
    path = write_suite(BASE)
    first, untouched = read_document(path), read_document(path)
    first.data["recipe"]["steps"] = 7
    first.data["seeds"].append(44)
    first.lines.clear()
    again = read_document(path)
    assert (again.data, again.lines) == (untouched.data, untouched.lines)
    assert again.data["recipe"] == {"steps": 100}
    path.write_text(BASE.replace("100", "200"))
    assert read_document(path).data["recipe"] == {"steps": 200}
