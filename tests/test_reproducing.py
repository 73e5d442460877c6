"""The page of tables and figures: complete, and its cells and hours those that the suites have now."""

from __future__ import annotations

import functools
import json
import re

from paths import ROOT
from test_docs import assert_shown
from test_suites_all import SUITES, plan_of

from harness.backbone.flops import MatmulParams, matmul_params, peak_flops
from harness.backbone.load import meta_backbone
from harness.method.method import Method
from harness.runner.plan import Plan
from harness.runner.time_estimate import TextLengths, rows_of
from harness.suite.cell import Cell
from harness.suite.make_groups import Group

PAGE = ROOT / "docs" / "reproducing.md"
OTHERS = {"peft", "quickstart", "methods", "transfer", "transfer-few-shot", "peft-board", "commonsense", "arithmetic",
          "generation", "choices", "real-encoder", "real-decoder"}  # fmt: skip
MEANS: dict[str, float] = json.loads((ROOT / "benchmarks" / "mean_lengths.json").read_text())
STAND_INS = {"mrpc": "rte", "stsb": "rte", "wsc": "rte"}
TARGET_TOKENS = {"classification": 2.0, "regression": 4.0, "text": 6.0}
REACHED = 0.4
EVALUATION_FLOPS = 2.0  # per weight and position, forward alone


def lengths_of(plan: Plan, cell: Cell) -> TextLengths:
    task = plan.tasks[cell.task]
    limit = cell.recipe.max_source_length or task.max_source_length
    mean = MEANS.get(STAND_INS.get(cell.task, cell.task), float(limit))
    assert task.sizes is not None
    return TextLengths(min(mean, limit), TARGET_TOKENS[task.kind], task.sizes[1], task.sizes[2])


@functools.cache
def matmul(backbone: str) -> MatmulParams:
    return matmul_params(meta_backbone(backbone))


def floor_hours(plan: Plan, group: Group) -> float:
    """Hours at the peak of an H200 for all cells of an entry."""
    cell = group.cells[(0, group.seeds[0])]
    method = plan.methods[cell.method]
    if method.spec.is_rule:
        return 0.0
    assert method.cls is not None
    assert issubclass(method.cls, Method)
    rows = rows_of(cell, lengths_of(plan, cell), int(cell.hp.get("prompt_length", 0)))
    weights = matmul(cell.backbone)
    flops = weights.step_flops(*rows.training, num_passes=3 if method.cls.trains_weights else 2)
    flops += EVALUATION_FLOPS * weights.per_source * rows.evaluation
    peak = peak_flops("NVIDIA H200", cell.recipe.precision)
    assert peak is not None
    return plan.num_cells(group) * flops / peak / 3600


def suites_table() -> str:
    rows = ["| suite | backbones | cells | hours at the peak | hours at 40 % |", "|---|---|---:|---:|---:|"]
    for suite in SUITES:
        if suite not in OTHERS:
            plan = plan_of(suite)
            cells = sum(plan.num_cells(group) for group in plan.groups)
            hours = sum(floor_hours(plan, group) for group in plan.groups)
            backbones = ", ".join(plan.suite.backbone_sources)
            rows.append(f"| `{suite}` | {backbones} | {cells:,} | {show(hours)} | {show(hours / REACHED)} |")
    return "\n".join(rows) + "\n"


def show(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}"


def test_the_page_shows_the_cells_and_hours_of_the_suites_as_they_are() -> None:
    assert_shown(PAGE, "suites", suites_table(), "UPDATE_GOLDEN=1 pytest tests/test_reproducing.py")


def test_the_page_names_every_suite_and_none_that_does_not_exist() -> None:
    text = PAGE.read_text().split("<!-- suites:begin -->")[0]
    named = {name for line in text.splitlines() if line.startswith("|") for name in re.findall(r"`([a-z0-9-]+)`", line)}
    assert {*SUITES} - OTHERS - {"calibration"} <= named
    layouts = {"prompt-length", "gates", *(name for name in named if re.match(r"(accept|ept)-figure-", name))}
    assert named - layouts <= {*SUITES}


def test_the_page_has_every_table_and_figure_of_both_papers() -> None:
    accept, ept = PAGE.read_text().split("## EPT")
    assert items(accept, "Figure") == {1, 2, 3, 4, 5}
    assert items(accept, "Table") == {*range(1, 17)}
    assert items(ept.split("## Where")[0], "Figure") == {1, 2, 3, 4, 5, 6, 7, 8}
    assert items(ept.split("## Where")[0], "Table") == {1, 2, 3, 4, 5}


def items(text: str, kind: str) -> set[int]:
    """Numbers in the first column of the rows about tables or figures."""
    heads = [line.split("|")[1] for line in text.splitlines() if line.startswith(f"| {kind}")]
    return {int(number) for head in heads for number in re.findall(r"\d+", head)}
