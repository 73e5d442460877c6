"""Ranges in a suite: what they span, which mistakes are told, and that grids stay the cells they were."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import METHODS, ROOT

from harness.errors import UserError
from harness.method.method_source import read_specs
from harness.runner.resolve_suite import judge_suite, resolve_suite
from harness.suite.groups import Group
from harness.suite.make_groups import Overrides
from harness.suite.ranges import Range
from harness.suite.search import Search
from harness.suite.sweeps import size_of

HEAD = """\
suite: searched
backbones: [micro-t5]
tasks: [micro_sentiment]
seeds: [1, 2]
"""
TUNING = "tuning: {strategy: random, trials: 12}\n"


def groups_of(folder: Path, text: str) -> list[Group]:
    (folder / "suite.yaml").write_text(HEAD + text)
    return resolve_suite(folder / "suite.yaml", Overrides(), read_specs()).groups


@given(
    st.floats(1e-9, 1e3), st.floats(1.01, 1e6), st.booleans(), st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_a_value_lies_in_its_range_and_has_few_digits(low: float, factor: float, log: bool, share: float) -> None:
    span = Range(low, low * factor, log)
    value = span.at(share)
    assert span.low <= value <= span.high
    assert span.rounded(value) == value, "rounded once, or a stored value would be another one"
    assert span.rounded(math.nextafter(value, 2 * value)) == value, "the last digit of a platform moves no value"


@given(st.integers(1, 50), st.integers(1, 200), st.booleans(), st.floats(0, 1, exclude_max=True))
def test_whole_numbers_stay_whole(low: int, width: int, log: bool, share: float) -> None:
    value = Range(low, low + width, log).at(share)
    assert type(value) is int
    assert low <= value <= low + width


def test_both_ends_of_whole_numbers_are_as_likely_as_the_others() -> None:
    drawn = [Range(1, 4).at((i + 0.5) / 400) for i in range(400)]
    assert [drawn.count(value) for value in (1, 2, 3, 4)] == [100] * 4


def test_more_trials_go_on_where_fewer_ended_and_methods_meet_the_same_values() -> None:
    lr = Range(1e-4, 1.0, log=True)
    few, many = (Search("random", {"recipe.lr": lr}, trials, 0, 8, 4) for trials in (4, 12))
    assert many.first_points()[:4] == few.first_points()
    wider = Search("random", {"recipe.lr": lr, "hp.rank": [2, 4, 8]}, 4, 0, 8, 4)
    assert [point["recipe.lr"] for point in wider.first_points()] == [p["recipe.lr"] for p in few.first_points()]
    assert few.name == many.name, "the same search, with a larger budget"
    other = Search("random", {"recipe.lr": lr}, 4, 1, 8, 4)
    assert len({few.name, wider.name, other.name}) == 3
    assert few.first_points() != other.first_points(), "tuning.seed decides them"
    assert few.name == Search("random", {"recipe.lr": lr}, 4, 0, 2, 4).name, "startup is of tpe"
    guided = Search("tpe", {"recipe.lr": lr}, 12, 0, 8, 4)
    assert guided.name != Search("tpe", {"recipe.lr": lr}, 12, 0, 2, 4).name
    assert guided.first_points() == many.first_points()[:8], "both begin with the same points"
    all_of_them = Search("random", {"hp.rank": list(range(12))}, 12, 0, 8, 4).first_points()
    assert sorted(point["hp.rank"] for point in all_of_them) == list(range(12)), "none is tried twice"


def test_a_linear_range_far_from_0_keeps_the_digits_of_its_width() -> None:
    drawn = {Range(1e5, 1e5 + 1).at((i + 0.5) / 20) for i in range(20)}
    assert len(drawn) == 20


def test_points_are_known_before_anything_is_trained(tmp_path: Path) -> None:
    text = TUNING + (
        "recipe: {lr: {range: [0.001, 1], log: true}}\n"
        "methods:\n  majority:\n  prompt_tuning: {prompt_length: {range: [2, 9]}}\n  dept: {recipe: {lr: 0.1}, "
        "added_lr: {sweep: [0.01, 0.1]}}\n"
    )
    majority, drawn, few = groups_of(tmp_path, text)
    assert (len(drawn.points), drawn.num_points, len(drawn.cells)) == (12, 12, 24)
    lengths = [point["hp.prompt_length"] for point in drawn.points]
    assert set(lengths) <= set(range(2, 10))
    assert len(set(lengths)) > 3
    cells = [drawn.cells[(at, 1)] for at in range(12)]
    assert [cell.hp["prompt_length"] for cell in cells] == lengths
    assert {cell.study for cell in cells} == {drawn.search and drawn.search.name}
    assert len({cell.group_id for cell in cells}) == 1
    assert (len(few.points), few.search) == (2, None), "a space of two points has no twelve to try"
    assert len(majority.points) == 1


def test_a_point_is_the_cell_that_a_grid_makes_of_it(tmp_path: Path) -> None:
    (drawn,) = groups_of(tmp_path, TUNING + "methods: {lora: {recipe: {lr: {range: [0.001, 1], log: true}}}}\n")
    swept = json.dumps([point["recipe.lr"] for point in drawn.points])
    (grid,) = groups_of(tmp_path, f"methods: {{lora: {{recipe: {{lr: {{sweep: {swept}}}}}}}}}\n")
    assert [cell.cell_id for cell in grid.cells.values()] == [cell.cell_id for cell in drawn.cells.values()]
    assert {cell.group_id for cell in grid.cells.values()} == {cell.group_id for cell in drawn.cells.values()}


@pytest.mark.parametrize(
    ("name", "digest"), [("quickstart", "2dd16bf1c5f1b3a6"), ("transfer-few-shot", "913bbd0b4718a623")]
)
def test_stored_grids_keep_their_ids(name: str, digest: str) -> None:
    """The digests are those of commit 6566d40, which knew no ranges. A suite that is edited gets another one."""
    groups = resolve_suite(ROOT / "suites" / f"{name}.yaml", Overrides(), read_specs()).groups
    ids = " ".join(f"{cell.cell_id} {cell.group_id}" for group in groups for cell in group.cells.values())
    assert hashlib.sha256(ids.encode()).hexdigest()[:16] == digest


def test_a_method_file_has_ranges_beside_its_grid(tmp_path: Path) -> None:
    source = (METHODS / "bitfit.py").read_text()
    source = source.replace('name = "bitfit"', 'name = "spanned"')
    source = source.replace(
        'Defaults(recipe={"lr": sweep(1e-4, 3e-4, 1e-3)})',
        'Defaults(recipe={"lr": sweep(1e-4, 3e-4, 1e-3)}, search={"recipe.lr": span(1e-5, 1e-2, log=True)})',
    )
    (tmp_path / "spanned.py").write_text(source)
    path = tmp_path / "suite.yaml"
    specs = read_specs([tmp_path])
    points = {}
    for tuning in ("", TUNING):
        path.write_text(HEAD + tuning + "methods: [spanned]\n")
        (group,) = resolve_suite(path, Overrides(), specs).groups
        points[tuning] = [point["recipe.lr"] for point in group.points]
    assert points[""] == [1e-4, 3e-4, 1e-3]
    assert len(points[TUNING]) == 12
    assert min(points[TUNING]) < 1e-4


LORA = "methods: [lora]\n"
LR = "methods: {lora: {recipe: {lr: VALUE}}}\n"
RANGES = {
    "{range: [1, 0.1]}": "5: recipe.lr.range: must rise.*Did you mean",
    "{range: [0.1, 0.1]}": "5: recipe.lr.range: must rise.*the value itself",
    "{range: [0, 0.1], log: true}": "5: recipe.lr.range: must lie above 0",
    "{range: [0.1, .inf]}": "5: recipe.lr.range: needs finite ends",
    "{range: [0.1]}": r"5: recipe.lr.range: expected \[lowest, highest\]",
    "{range: [0.1, one]}": r"5: recipe.lr.range: expected \[lowest, highest\]",
    "{range: [0.1, 1], lg: true}": "5: recipe.lr.lg: unknown.*did you mean log?",
    "{range: [0.1, 1], log: maybe}": "5: recipe.lr.log: expected true or false",
    "{range: [0.1, 1], sweep: [1]}": "5: recipe.lr: takes a sweep or a range, not both",
    "{rnge: [0.1, 1]}": "5: .*recipe.lr: expected a value, .*did you mean range?",
    "{range: [0.0, 1]}": "5: .*recipe.lr: cannot be searched over this range: at 0.0",
}
MISTAKES = {
    "tuning: {strategy: tpee, trials: 4}\n" + LORA: "5: tuning.strategy: unknown value, .*did you mean tpe?",
    TUNING.replace("12", "0") + LORA: "5: tuning.trials: .*greater than or equal to 1, got 0",
    TUNING.replace("12", "1001") + LORA: "5: tuning.trials: .*less than or equal to 1000, got 1001",
    "tuning: {strategy: tpe}\n" + LORA: "5: tuning: .*needs trials",
    "tuning: {trials: 4}\n" + LORA: "5: tuning: .*tries every point of its sweeps",
    "tuning: {strategy: tpe, trials: 4, seeds: each}\n" + LORA: "5: tuning: .*on the first seed",
    LR.replace("VALUE", "{range: [0.1, 1]}"): "5: recipe.lr.range: takes a list.*strategy is grid",
    "methods: {lora: {rank: {range: [2, 8]}}}\n": "5: methods.lora.rank.range: takes a list",
    TUNING + "recipe: {schedule: {range: [0, 1]}}\n" + LORA: "6: .*schedule: cannot be searched .*: at 0",
    TUNING + "recipe: {steps: {range: [0.5, 2.5]}}\n" + LORA: "6: .*steps: cannot be .*at 0.5, expected an integer",
    TUNING + "methods: {spot: {init_from: {range: [0, 1]}}}\n": "6: methods.spot.init_from: names cells",
    **{LR.replace("VALUE", value) + TUNING: expected for value, expected in RANGES.items()},
}
"""What stands below HEAD -> what the message holds, from the number of its line on."""


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_told_with_file_and_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(HEAD + text)
    with pytest.raises(UserError, match=f"(?s)suite.yaml:{MISTAKES[text]}"):
        judge_suite(tmp_path / "suite.yaml", Overrides())


def test_a_space_that_is_too_small_is_told(tmp_path: Path) -> None:
    text = TUNING + LR.replace("VALUE", "{range: [1.0, 1.0002], log: true}")
    with pytest.raises(UserError, match=r"recipe\.lr: holds fewer than 12 different points"):
        groups_of(tmp_path, text)


def test_sizes_of_spaces() -> None:
    known: dict[str, Any] = {"hp.rank": Range(1, 4), "hp.init": ["a", "b"]}
    assert size_of(known) == 8
    assert size_of({**known, "recipe.lr": Range(0.1, 1.0)}) is None
    assert size_of({}) == 1
