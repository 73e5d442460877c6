"""Suites of absurd size are refused before a cell is made; what planning and running do grows with the cells alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.errors import UserError
from harness.runner.plan import make_plan
from harness.runner.run_suite import run
from harness.suite.make_groups import Overrides

HEAD = """\
suite: big
backbones: [micro-t5]
tasks: [micro_sentiment]
recipe: {steps: 2, batch_size: 4, eval_every: 2}
"""


def plan_of(folder: Path, text: str, **settings: Any) -> Any:
    path = folder / "big.yaml"
    path.write_text(HEAD + text)
    return make_plan(path, Overrides(settings=settings), folder / "results", None)


def numbers(count: int, step: float = 1) -> str:
    return ", ".join(f"{step * (number + 1):.6g}" for number in range(count))


@pytest.fixture
def no_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a cell is an error."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a cell was made")

    monkeypatch.setattr("harness.suite.groups.Cell", refuse)


@pytest.mark.usefixtures("no_cells")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"seeds: [{numbers(900)}]\nmethods: {{lora: {{recipe: {{lr: {{sweep: [{numbers(800, 1e-5)}]}}}}}}}}",
            "declares 720,000 cells (lora on micro_sentiment alone has 800 grid points x 900 seeds); "
            "execution.max_cells is 10,000",
        ),
        (
            f"seeds: [1]\nmethods: {{lora: {{recipe: {{lr: {{sweep: [{numbers(1_000, 1e-5)}]}}, "
            f"warmup_steps: {{sweep: [{numbers(1_000)}]}}}}}}}}",
            "declares 1,000,000 cells (lora on micro_sentiment alone has 1,000,000 grid points x 1 seeds)",
        ),
        (
            f"seeds: [1]\nfew_shot: {{k: [{numbers(300)}]}}\nmethods:\n"
            + "".join(f"  m{i}: {{method: lora}}\n" for i in range(100)),
            "declares 30,000 table entries (300 numbers of shots x 100 methods), each of one cell or more",
        ),
    ],
)
def test_too_many_cells_are_counted_and_refused_before_one_is_made(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UserError) as refused:
        plan_of(tmp_path, text)
    assert expected in str(refused.value)


def test_the_limit_is_a_key_and_the_last_cell_under_it_is_allowed(tmp_path: Path) -> None:
    text = "seeds: [1, 2, 3]\nmethods: {lora: {recipe: {lr: {sweep: [0.1, 0.2]}}}, majority: }\n"
    assert len(plan_of(tmp_path, text + "execution: {max_cells: 9}").groups) == 2
    with pytest.raises(UserError, match=r"declares 9 cells .* execution.max_cells is 8. If that is meant: --set exec"):
        plan_of(tmp_path, text + "execution: {max_cells: 8}")
    assert plan_of(tmp_path, text + "execution: {max_cells: 8}", **{"execution.max_cells": 9})


def test_cells_that_others_start_from_count_too(tmp_path: Path) -> None:
    text = (
        "seeds: [1, 2, 3, 4]\nexecution: {max_cells: %d}\n"
        "methods: {spot: {init_from: {method: src, task: micro_entailment, seed: own}, recipe: {lr: 0.1}}}\n"
        "sources: {src: {method: prompt_tuning, recipe: {lr: {sweep: [0.1, 0.2]}}}}\n"
    )
    assert sum(len(group.cells) for group in plan_of(tmp_path, text % 12).groups) == 12
    with pytest.raises(UserError, match=r"needs 12 cells .*src on micro_entailment has 2 grid points x 4 seeds"):
        plan_of(tmp_path, text % 11)


def calls_of(work: Callable[[], Any]) -> int:
    """Python functions that `work` calls, steps of generators included."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def seeds(count: int) -> str:
    return f"seeds: [{numbers(count)}]\nmethods: {{lora: {{recipe: {{lr: 0.1}}}}}}\n"


def points(count: int) -> str:
    return f"seeds: [1]\nmethods: {{lora: {{recipe: {{lr: {{sweep: [{numbers(count, 0.001)}]}}}}}}}}\n"


def rows(count: int) -> str:
    made = "".join(f"  m{number}: {{method: lora, recipe: {{lr: {number + 1}}}}}\n" for number in range(count))
    return f"seeds: [1]\nmethods:\n{made}"


def sources(count: int) -> str:
    return (
        f"seeds: [{numbers(count)}]\n"
        "methods: {spot: {init_from: {method: src, task: micro_entailment, seed: own}, recipe: {lr: 0.1}}}\n"
        "sources: {src: {method: prompt_tuning, recipe: {lr: 0.1}}}\n"
    )


def require_linear(costs: list[int]) -> None:
    """Costs at n, 2n and 3n cells: the third n may cost little more than the second."""
    second, third = costs[1] - costs[0], costs[2] - costs[1]
    assert third < 1.04 * second, costs


@pytest.mark.parametrize("shape", [seeds, points, rows, sources])
def test_planning_grows_with_the_number_of_cells(tmp_path: Path, shape: Callable[[int], str]) -> None:
    def work(count: int) -> Callable[[], Any]:
        return lambda: plan_of(tmp_path, shape(count)).pending()

    work(3)()  # what is remembered from the first time on
    require_linear([calls_of(work(count)) for count in (20, 40, 60)])


def test_running_grows_with_the_number_of_cells(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"

    def work(count: int) -> Callable[[], Any]:
        path.write_text(HEAD + f"seeds: [{numbers(count)}]\nmethods: [majority]\n")
        return lambda: run(path, results=tmp_path / str(count), quiet=True)

    work(3)()
    require_linear([calls_of(work(count)) for count in (10, 20, 30)])


def test_what_was_trained_elsewhere_counts_once_whatever_seeds_and_shots_there_are(tmp_path: Path) -> None:
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.zeros((3, 96), np.float32))
    rows = "methods: {lora: {rank: 2, recipe: {lr: 0.1}}, a: {adapter: a.npy}, b: {adapter: b.npy}}\n"
    head = "seeds: [1, 2, 3]\nfew_shot: {k: [4, 8]}\nexecution: {max_cells: %d}\n"
    plan = plan_of(tmp_path, head % 8 + rows)
    found = [(group.label, group.k, len(group.cells)) for group in plan.groups]
    assert found == [("lora", 4, 3), ("a", None, 1), ("b", None, 1), ("lora", 8, 3)]
    assert all(cell.few_shot is None for group in plan.groups if group.k is None for cell in group.cells.values())
    with pytest.raises(UserError, match="declares 8 cells"):
        plan_of(tmp_path, head % 7 + rows)
    with pytest.raises(UserError, match=r"declares 4 table entries \(2 numbers of shots x 3 methods, 2 of them once\)"):
        plan_of(tmp_path, head % 3 + rows)
