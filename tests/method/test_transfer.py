"""Cells that start from other cells: planned as a graph, trained once, invalidated together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from safetensors.torch import load_file, save_file

from harness.errors import UserError
from harness.method.export import export_result
from harness.results.schema import Result
from harness.results.store import ResultStore, tensors_path
from harness.runner.plan import Plan, make_plan
from harness.runner.run_suite import RunSummary, run
from harness.suite.make_groups import Overrides

pytestmark = pytest.mark.usefixtures("few_rows")

Write = Callable[[str], Path]

SUITE = """\
suite: transfer
backbones: [micro-t5]
tasks: [micro_sentiment]
seeds: [1, 2]
recipe: {steps: 2, batch_size: 2, eval_every: 2, backbone_dropout: false, lr: 0.3}
sources:
  teacher: {method: prompt_tuning, prompt_length: 4, recipe: {lr: {sweep: [0.1, 0.3]}}}
  scpp: {method: accept, prompt_length: 4, budget_length: 20, added_side: lowrank, added_lr: 0.001}
  scap: {method: accept, prompt_length: 4, budget_length: 20, prompt_side: free, added_lr: 0.001}
methods:
  spot: {prompt_length: 4, init_from: {method: teacher, task: micro_entailment}}
  again: {method: spot, prompt_length: 4, init_from: {method: teacher, task: micro_entailment}, recipe: {lr: 0.2}}
  target:
    method: accept
    prompt_length: 4
    budget_length: 20
    added_lr: 0.001
    init_from: {sweep: [none, [{method: scpp}, {method: scap}]]}
"""


def plan_of(path: Path, results: Path, **overrides: Any) -> Plan:
    return make_plan(path, Overrides(**overrides), results, None)


def train(path: Path, results: Path, **options: Any) -> RunSummary:
    return run(path, results=results, quiet=True, **options)


def found(results: Path, label: str) -> list[Result]:
    return [result for _, result in ResultStore(results).scan() if result.cell.label == label]


def path_of(results: Path, result: Result) -> Path:
    return ResultStore(results).path(result.cell)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with suite.yaml and its results."""
    folder = tmp_path_factory.mktemp("transfer")
    (folder / "suite.yaml").write_text(SUITE)
    assert train(folder / "suite.yaml", folder / "results").num_failed == 0
    return folder


def test_a_source_is_an_ordinary_cell_that_all_share(trained: Path) -> None:
    teachers = found(trained / "results", "teacher")
    assert {(r.cell.suite, r.cell.task, r.cell.seed) for r in teachers} == {("sources", "micro_entailment", 1)}
    assert len(teachers) == 2, "its grid, once, for both rows and both seeds"


def test_a_cell_starts_from_the_point_of_the_source_that_dev_chose(trained: Path) -> None:
    results = trained / "results"
    teachers = sorted(found(results, "teacher"), key=lambda r: r.cell.grid_index)
    best = max(teachers, key=lambda r: r.dev_history[-1].selection)
    for result in (*found(results, "spot"), *found(results, "again")):
        assert [record.cell_id for record in result.starts] == [best.cell_id]
        start = load_file(tensors_path(path_of(results, best)))["vectors"]
        now = load_file(tensors_path(path_of(results, result)))["vectors"]
        # the first of two steps has a warm-up factor of one here: AdamW moves every number by at most lr per step
        assert 0 < float((now - start).abs().max()) < 2.5 * result.cell.recipe.lr


def test_a_swept_source_is_a_grid_dimension_and_dev_chooses(trained: Path) -> None:
    grid = [r for r in found(trained / "results", "target") if r.cell.seed == 1]
    assert [r.cell.grid["cell.init_from"] for r in sorted(grid, key=lambda r: r.cell.grid_index)] == [
        "none",
        "scpp on the own task + scap on the own task",
    ]
    assert len(found(trained / "results", "target")) == 3, "the winner alone is trained on the second seed"
    joined = next(r for r in grid if r.starts)
    assert [record.title for record in joined.starts] == ["scpp on micro_sentiment", "scap on micro_sentiment"]


def test_both_sides_start_from_the_run_that_trained_them_alone(trained: Path) -> None:
    results = trained / "results"
    joined = next(r for r in found(results, "target") if r.starts)
    tensors = load_file(tensors_path(path_of(results, joined)))
    for label, part in (("scpp", "front"), ("scap", "offset")):
        source = load_file(tensors_path(path_of(results, found(results, label)[0])))
        for name in ("weights", "codebooks"):
            moved = (tensors[f"{part}.{name}"] - source[f"{part}.{name}"]).abs().max()
            assert float(moved) < 2.5 * 0.3, "two steps away from where the source ended, not another random start"


def test_everything_is_done_after_one_run_and_nothing_is_stale(trained: Path) -> None:
    plan = plan_of(trained / "suite.yaml", trained / "results")
    assert plan.asked() == []
    assert not any(plan.is_stale(result) for results in plan.results for result in results.values())


def test_a_source_made_anew_makes_its_dependents_stale(trained: Path, tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    for file, result in ResultStore(trained / "results").scan():
        tensors = tensors_path(file).read_bytes()
        other = result.cell.label == "teacher"
        store.write(result, [], tensors.replace(tensors[-4:], b"\0\0\0\0") if other else tensors)
    plan = plan_of(trained / "suite.yaml", tmp_path)
    stale = {r.cell.label for results in plan.results for r in results.values() if plan.is_stale(r)}
    assert stale == {"spot", "again"}


def test_another_setting_of_the_source_makes_another_cell_of_its_dependents(write_suite: Write, tmp_path: Path) -> None:
    def ids(text: str) -> dict[str, str]:
        plan = plan_of(write_suite(text), tmp_path / "none")
        return {group.label: group.cells[(0, 1)].cell_id for group in plan.groups}

    before, after = ids(SUITE), ids(SUITE.replace("sweep: [0.1, 0.3]", "sweep: [0.1, 0.2]"))
    assert before["spot"] != after["spot"]
    assert before["scpp"] == after["scpp"]
    assert before["target"] == after["target"]
    assert before["spot"] != before["again"]


def test_a_source_that_stands_in_the_table_is_that_cell_whether_or_not_it_is_shown(
    write_suite: Write, tmp_path: Path
) -> None:
    path = write_suite(SUITE.replace("init_from: {method: teacher, task: micro_entailment}", "init_from: {method: row}")
                       + "  row: {method: prompt_tuning, prompt_length: 4}\n")  # fmt: skip
    groups = {group.label: group for group in plan_of(path, tmp_path / "none").groups}
    assert not groups["row"].is_source
    filtered = {group.label: group for group in plan_of(path, tmp_path / "none", methods=["spot"]).groups}
    assert filtered["row"].is_source
    one, other = groups["row"].cells[(0, 1)], filtered["row"].cells[(0, 1)]
    assert (one.suite, one.cell_id) == (other.suite, other.cell_id) == ("transfer", one.cell_id)


def test_only_sources_that_are_needed_are_planned(write_suite: Write, tmp_path: Path) -> None:
    plan = plan_of(write_suite(SUITE), tmp_path / "none", methods=["spot"])
    assert [group.label for group in plan.groups] == ["spot", "teacher"]
    assert {cell.label for cell in plan.pending()} == {"teacher"}, "the dependents wait"
    assert {cell.label for cell in plan.asked()} == {"teacher", "spot"}


def test_a_source_that_fails_fails_its_dependents_and_the_rest_goes_on(write_suite: Write, tmp_path: Path) -> None:
    text = SUITE.replace("lr: {sweep: [0.1, 0.3]}", "lr: 3.0e+38, steps: 4")
    summary = train(write_suite(text), tmp_path / "out", methods=["spot", "target"], seeds=[1])
    failed = [r for _, r in ResultStore(tmp_path / "out").scan() if r.status == "failed"]
    assert sorted(r.cell.label for r in failed) == ["spot", "teacher"]
    assert summary.num_failed == 2
    assert summary.num_trained == 6
    failure = next(r.failure for r in failed if r.cell.label == "spot")
    assert failure is not None
    assert "the source 'teacher on micro_entailment' failed: " in failure.message


def test_an_exported_prompt_file_can_stand_in_for_a_source(trained: Path, tmp_path: Path) -> None:
    teacher = found(trained / "results", "teacher")[0]
    export_result(path_of(trained / "results", teacher), tmp_path / "own.safetensors", None)
    text = SUITE.replace("{method: teacher, task: micro_entailment}", "{file: own.safetensors}")
    (tmp_path / "suite.yaml").write_text(text)
    assert train(tmp_path / "suite.yaml", tmp_path / "out", methods=["spot"], seeds=[1]).num_failed == 0
    (result,) = found(tmp_path / "out", "spot")
    assert result.starts[0].cell_id is None
    assert result.starts[0].title == "own.safetensors"
    save_file({"prompt_embeddings": torch.zeros(4, 96)}, tmp_path / "own.safetensors")  # as PEFT names it
    plan = plan_of(tmp_path / "suite.yaml", tmp_path / "out", methods=["spot"], seeds=[1])
    assert len(plan.asked()) == 1, "another content is another cell"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("init_from: {method: teacher, tusk: mnli}", "init_from.tusk: unknown; did you mean task?"),
        ("init_from: {method: taecher}", "no row and no method is called 'taecher'; did you mean teacher?"),
        ("init_from: {method: teacher, task: micro_sentment}", "unknown task 'micro_sentment'; did you mean"),
        ("init_from: {method: majority}", "'majority' trains nothing"),
        ("init_from: {file: none.safetensors}", "none.safetensors: cannot be read"),
        ("init_from: none", "'spot' starts from at least 1 sources, got 0"),
        ("init_from: {}", "give one of method, whose cell is the source, file, or adapter"),
        ("init_from: {method: spot}", "would start from itself: spot on micro_sentiment <- spot on micro_sentiment"),
        ("init_from: 3", "expected {method: ..., task: ...}"),
    ],
)
def test_mistakes_are_named_with_their_line(write_suite: Write, tmp_path: Path, change: str, message: str) -> None:
    path = write_suite(SUITE.replace("init_from: {method: teacher, task: micro_entailment}", change, 1))
    with pytest.raises(UserError) as caught:
        plan_of(path, tmp_path / "none", methods=["spot"])
    assert message in str(caught.value)
    assert "suite.yaml:11" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("methd: prompt_tuning", "row 'teacher' names no method, and no method is called so (allowed: "),
        ("method: prompt_tunning", "unknown method 'prompt_tunning'; did you mean prompt_tuning?"),
    ],
)
def test_a_row_of_sources_without_a_method_is_told_with_its_own_line(
    write_suite: Write, tmp_path: Path, key: str, message: str
) -> None:
    path = write_suite(SUITE.replace("method: prompt_tuning", key, 1))
    with pytest.raises(UserError) as caught:
        plan_of(path, tmp_path / "none", methods=["spot"])
    assert message in str(caught.value)
    assert "suite.yaml:7" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{prompt_length: 5, init_from", "cannot start from teacher on micro_entailment: a source's prompt is [4, 96]"),
        ("{prompt_length: 4, init_from", ""),
    ],
)
def test_shapes_that_do_not_fit_are_refused_before_anything_is_trained(
    write_suite: Write, tmp_path: Path, change: str, message: str
) -> None:
    path = write_suite(SUITE.replace("{prompt_length: 4, init_from", change, 1))
    if not message:
        assert plan_of(path, tmp_path / "none").asked()
        return
    with pytest.raises(UserError, match="a source's prompt is") as caught:
        train(path, tmp_path / "out", methods=["spot"])
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_method_that_takes_no_source_says_so(write_suite: Write, tmp_path: Path) -> None:
    path = write_suite(SUITE.replace("{method: prompt_tuning, ", "{method: prompt_tuning, init_from: {method: spot}, "))
    with pytest.raises(UserError, match="'prompt_tuning' cannot start from other cells"):
        plan_of(path, tmp_path / "none")


def test_the_three_starts_of_the_docs_are_rows_and_dev_chooses_among_them(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "transfer.md").read_text()
    block = next(text for text in page.split("```yaml\n") if "accept_by_dev" in text).split("```")[0]
    head = "suite: starts\nbackbones: [t5-base]\ntasks: [cb, mnli]\nseeds: [1]\n"
    rates = "recipe: {lr: 0.3}\n"
    (tmp_path / "suite.yaml").write_text(head + rates + block)
    settings = {f"methods.{row}.added_lr": 0.001 for row in ("accept", "scpp", "scap", "accept_intermediate",
                                                            "accept_target", "accept_by_dev")}  # fmt: skip
    plan = plan_of(tmp_path / "suite.yaml", tmp_path / "none", settings=settings)
    points = {(group.label, group.task): len(group.points) for group in plan.groups}
    assert points[("accept_by_dev", "cb")] == 3
    assert points[("accept_by_dev", "mnli")] == 2, "on MNLI the intermediate task is the target task"
    rows = {group.label: group for group in plan.groups if group.task == "cb" and not group.is_source}
    swept = {cell.cell_id for cell in rows["accept_by_dev"].cells.values()}
    assert swept == {rows[label].cells[(0, 1)].cell_id for label in ("accept", "accept_intermediate", "accept_target")}
    sources = sorted((group.label, group.task) for group in plan.groups if group.is_source)
    assert sources == [("scap", "cb"), ("scap", "mnli"), ("scpp", "cb"), ("scpp", "mnli")]


@pytest.mark.parametrize(
    ("suite", "rows", "sources"),
    [
        ("transfer-glue", 4 * 8 * 3, (6 + 2) * 3),
        ("multitask-glue", 4 * 3, (8 + 2) * 3),
        ("transfer", 3 * 4, 2 * 4),
    ],
)
def test_shipped_suites_have_the_cells_that_their_design_implies(
    tmp_path: Path, suite: str, rows: int, sources: int
) -> None:
    path = ROOT / "suites" / f"{suite}.yaml"
    plan = plan_of(path, tmp_path / "none")
    assert sum(plan.num_cells(group) for group in plan.groups if not group.is_source) == rows
    assert sum(plan.num_cells(group) for group in plan.groups if group.is_source) == sources
