"""Few-shot draws: the papers' code, followed row by row; the same rows for every method; labels honestly counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import moved
from test_report import result as made

from harness.cli.listings import describe_plan
from harness.data.examples import Example, TaskData
from harness.data.few_shot import draw_few
from harness.data.splits import load_task
from harness.data.tasks import all_tasks
from harness.errors import UserError
from harness.results.stale import superseded
from harness.results.store import ResultStore, load_results
from harness.runner.pack import pack
from harness.runner.plan import make_plan
from harness.runner.run_suite import run
from harness.suite.blocks import Draw
from harness.suite.make_groups import Overrides

TASKS = all_tasks()
BASE = load_task(TASKS["micro_entailment"], None).record

SUITE = """\
suite: few
backbones: [micro-t5]
tasks: [micro_entailment]
seeds: [1, 2]
few_shot: {k: [4, 6], draw_seeds: [7, 8]}
recipe: {steps: 2, batch_size: 4, eval_every: 1, backbone_dropout: false}
methods:
  majority:
  prompt_tuning: {prompt_length: 4, recipe: {lr: {sweep: [0.1, 0.3]}}}
"""


def rows_of(task: str, targets: list[str]) -> TaskData:
    examples = [Example(f"text {index}", target, (target,)) for index, target in enumerate(targets)]
    return TaskData(TASKS[task], examples, examples[:5], examples[:3], BASE)


def targets_of(num_rows: int, classes: int, seed: int) -> list[str]:
    return [str(value) for value in np.random.default_rng(seed).integers(0, classes, num_rows)]


def as_the_papers_code(targets: list[str], classes: list[str], k: int, seed: int) -> list[int]:
    """The loop of DePT's and ACCEPT's train.py, over a data set that `datasets` itself shuffles."""
    from datasets import Dataset

    shuffled = Dataset.from_dict({"row": range(len(targets)), "target": targets}).shuffle(seed=seed)
    per_class = dict.fromkeys(classes, 0)
    chosen = []
    for item in shuffled:
        if sum(per_class.values()) == k:
            break
        if per_class[item["target"]] < k // len(classes) or sum(per_class.values()) == k - 1:
            per_class[item["target"]] += 1
            chosen.append(item["row"])
    return chosen


@pytest.mark.parametrize(("task", "classes"), [("boolq", 2), ("cb", 3)])
@pytest.mark.parametrize("k", [4, 16, 32])
@pytest.mark.parametrize("seed", [42, 43])
def test_a_balanced_draw_is_that_of_the_papers_code(task: str, classes: int, k: int, seed: int) -> None:
    targets = targets_of(250, classes, seed=1)
    drawn = draw_few(rows_of(task, targets), Draw(k=k, rule="balanced", seed=seed)).record.few_shot
    assert drawn is not None
    assert drawn.rows == as_the_papers_code(targets, [str(i) for i in range(classes)], k, seed)


def test_three_classes_at_k_32_give_30_rows_and_two_at_k_4_may_give_three_of_one() -> None:
    three = rows_of("cb", targets_of(250, 3, seed=1))
    record = draw_few(three, Draw(k=32, rule="balanced", seed=42)).record
    assert (record.num_train, record.few_shot.class_counts) == (30, {"0": 10, "1": 10, "2": 10})  # type: ignore[union-attr]
    two = rows_of("boolq", targets_of(250, 2, seed=1))
    counts = {
        tuple(draw_few(two, Draw(k=4, rule="balanced", seed=seed)).record.few_shot.class_counts.values())  # type: ignore[union-attr]
        for seed in range(20)
    }
    assert counts == {(2, 2), (1, 3), (3, 1)}


def test_an_unbalanced_draw_is_the_start_of_a_random_permutation() -> None:
    targets = targets_of(100, 3, seed=2)
    drawn = draw_few(rows_of("cb", targets), Draw(k=16, rule="unbalanced", seed=5)).record.few_shot
    assert drawn is not None
    assert drawn.rows == torch.randperm(100, generator=torch.Generator().manual_seed(5))[:16].tolist()


@settings(max_examples=30, deadline=None)
@given(k=st.integers(3, 40), seed=st.integers(0, 2**31), select_with=st.sampled_from(["dev", "k"]))
def test_a_strict_draw_has_equally_many_of_each_class_and_selection_other_rows(
    k: int, seed: int, select_with: str
) -> None:
    data = rows_of("cb", targets_of(400, 3, seed=3))
    found = draw_few(data, Draw.model_validate({"k": k, "rule": "strict", "seed": seed, "select_with": select_with}))
    record = found.record.few_shot
    assert record is not None
    assert set(Counter(example.target for example in found.train).values()) == {k // 3}
    assert [data.train[row] for row in record.rows] == found.train
    assert record.num_selection_labels == len(found.dev)
    if select_with == "k":
        assert record.selection_rows is not None
        assert len(record.selection_rows) == len(record.rows)
        assert not set(record.selection_rows) & set(record.rows)
        assert [data.train[row] for row in record.selection_rows] == found.dev
    else:
        assert (record.selection_rows, found.dev) == (None, data.dev)
    assert found.test == data.test


def test_stsb_counts_as_two_classes_cut_at_two_and_a_half() -> None:
    targets = [f"{index / 10:.1f}" for index in range(50)]  # 0.0 to 4.9: 26 rows up to the cut
    found = draw_few(rows_of("stsb", targets), Draw(k=16, rule="balanced", seed=42))
    low = sum(float(example.target) <= 2.5 for example in found.train)
    assert (low, len(found.train)) == (8, 16)
    classes = ["0" if float(target) <= 2.5 else "1" for target in targets]
    assert found.record.few_shot.rows == as_the_papers_code(classes, ["0", "1"], 16, 42)  # type: ignore[union-attr]


def test_a_task_without_classes_draws_k_of_all_rows() -> None:
    found = draw_few(rows_of("squad", ["an answer"] * 50), Draw(k=16, rule="balanced", seed=1))
    assert len(found.train) == 16


@pytest.mark.parametrize(
    ("k", "rule", "why"),
    [(2, "balanced", "3 classes"), (200, "strict", "give only"), (999, "unbalanced", "give only")],
)
def test_rows_that_are_not_there_are_refused(k: int, rule: str, why: str) -> None:
    data = rows_of("cb", targets_of(60, 3, seed=3))
    with pytest.raises(UserError, match=why):
        draw_few(data, Draw.model_validate({"k": k, "rule": rule, "seed": 1}))


@pytest.fixture(scope="module")
def few_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    (folder / "few.yaml").write_text(SUITE)
    summary = run(folder / "few.yaml", results=folder / "out", quiet=True)
    assert (summary.num_trained, summary.num_failed) == (10, 0)  # per k: 2 of the rule, 2 grid points and a second seed
    return folder / "out"


def test_every_method_sees_the_same_rows_and_the_result_holds_them(few_results: Path) -> None:
    results = [result for _, result in ResultStore(few_results).scan()]
    rows: dict[tuple[int, int], set[str]] = {}
    whole = load_task(TASKS["micro_entailment"], None)
    for result in results:
        assert result.cell.few_shot is not None
        assert result.data is not None
        record = result.data.few_shot
        assert record is not None
        k, seed = result.cell.few_shot.k, result.cell.seed
        assert result.cell.few_shot.seed == {1: 7, 2: 8}[seed]
        rows.setdefault((k, seed), set()).add(f"{record.rows} {record.fingerprint}")
        expected = draw_few(whole, result.cell.few_shot).record
        assert (record, result.data.num_train) == (expected.few_shot, expected.num_train)
        assert record.num_selection_labels == len(whole.dev)
        assert result.protocol["fewshot.sampling"] == "balanced"
    assert {key: len(found) for key, found in rows.items()} == dict.fromkeys([(4, 1), (4, 2), (6, 1), (6, 2)], 1)
    assert len({next(iter(found)) for found in rows.values()}) == 4


def test_each_k_is_an_entry_of_its_own(few_results: Path) -> None:
    frame = load_results(few_results)
    assert set(frame["k"]) == {4, 6}
    assert frame.groupby(["method", "k"])["group_id"].nunique().eq(1).all()
    assert frame["group_id"].nunique() == 4


def test_a_draw_is_part_of_a_cell(write_suite: Callable[[str], Path], tmp_path: Path) -> None:
    def cells(text: str) -> set[str]:
        plan = make_plan(write_suite(text), Overrides(), tmp_path / "none", None)
        return {cell.cell_id for group in plan.groups for cell in group.cells.values()}

    whole, few = SUITE.replace("few_shot: {k: [4, 6], draw_seeds: [7, 8]}\n", ""), cells(SUITE)
    assert len(few) == 12
    assert not few & cells(whole)
    assert not few & cells(SUITE.replace("[7, 8]", "[9, 10]"))
    assert cells(SUITE.replace("draw_seeds: [7, 8]", "draw_seeds: [1, 2]")) == cells(
        SUITE.replace(", draw_seeds: [7, 8]", "")
    ), "without draw_seeds a seed draws for itself"


def test_cells_with_different_rows_share_no_bundle(write_suite: Callable[[str], Path], tmp_path: Path) -> None:
    plan = make_plan(write_suite(SUITE), Overrides(), tmp_path / "none", None)
    cells = [cell for group in plan.groups for cell in group.cells.values() if cell.method != "majority"]
    bundles = pack(plan, cells)
    assert sorted(len(bundle.cells) for bundle in bundles) == [2, 2, 2, 2]
    assert all(len({cell.few_shot for cell in bundle.cells}) == 1 for bundle in bundles)


def test_a_plan_says_how_many_labels_selection_uses(write_suite: Callable[[str], Path], tmp_path: Path) -> None:
    def shown(text: str) -> str:
        return str(describe_plan(make_plan(write_suite(text), Overrides(), tmp_path / "none", None))["text"])

    text = SUITE.replace("micro_entailment", "cb")
    assert "cb: few-shot, k = 4, 6 training rows by the rule 'balanced', draw seeds 7, 8" in shown(text)
    assert "all 28 labels of dev, far more than k" in shown(text)
    assert "so 2 k labels are used in all" in shown(text.replace("draw_seeds: [7, 8]", "select_with: k"))


def test_the_protocol_sets_seeds_steps_and_rule_of_few_shot_cells_only(
    write_suite: Callable[[str], Path], tmp_path: Path
) -> None:
    text = "suite: s\nbackbones: [t5-base]\ntasks: [mnli]\nfew_shot: {k: [4]}\nmethods: [prompt_tuning]\n"
    (group,) = make_plan(write_suite(text), Overrides(), tmp_path / "none", None).groups
    cell = next(iter(group.cells.values()))
    assert (group.seeds, cell.recipe.steps, cell.few_shot and cell.few_shot.rule) == ((42, 43, 44), 30_000, "balanced")
    whole = make_plan(write_suite(text.replace("few_shot: {k: [4]}\n", "")), Overrides(), tmp_path / "none", None)
    assert (whole.groups[0].seeds, next(iter(whole.groups[0].cells.values())).recipe.steps) == ((42,), 300_000)
    changed = Overrides(settings={"protocol.fewshot.sampling": "strict"})
    plan = make_plan(write_suite(text), changed, tmp_path / "none", None)
    assert {cell.few_shot and cell.few_shot.rule for cell in plan.groups[0].cells.values()} == {"strict"}


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("{k: []}", "few_shot.k"),
        ("{k: [4, 4]}", "few_shot.k"),
        ("{k: [4], draw: code}", "few_shot.draw"),
        ("{k: [4], draw_seeds: [1, 2, 3]}", "3 draw seeds for 2 training seeds"),
        ("{k: [4], shots: 1}", "shots"),
    ],
)
def test_a_wrong_block_is_refused_by_name(
    block: str, why: str, write_suite: Callable[[str], Path], tmp_path: Path
) -> None:
    path = write_suite(SUITE.replace("{k: [4, 6], draw_seeds: [7, 8]}", block))
    with pytest.raises(UserError) as error:
        make_plan(path, Overrides(), tmp_path / "none", None)
    assert why in str(error.value)


def test_a_seed_from_the_command_line_keeps_its_draw_or_is_refused(
    write_suite: Callable[[str], Path], tmp_path: Path
) -> None:
    plan = make_plan(write_suite(SUITE), Overrides(seeds=[2]), tmp_path / "none", None)
    assert {cell.few_shot and cell.few_shot.seed for group in plan.groups for cell in group.cells.values()} == {8}
    with pytest.raises(UserError, match="training seed 5 has no draw"):
        make_plan(write_suite(SUITE), Overrides(seeds=[5]), tmp_path / "none", None)


def test_too_few_rows_stop_a_run_before_anything_is_written(write_suite: Callable[[str], Path], tmp_path: Path) -> None:
    path = write_suite(SUITE.replace("k: [4, 6]", "k: [4, 100000]"))
    with pytest.raises(UserError, match="cannot draw 100000 rows"):
        run(path, results=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_every_task_of_classes_can_be_drawn_by_class() -> None:
    assert TASKS["stsb"].class_cut == 2.5
    assert all(task.class_cut is None for task in TASKS.values() if task.kind != "regression")
    words = replace(TASKS["cb"], target_style="words")
    data = replace(rows_of("cb", ["entailment", "contradiction", "neutral"] * 5), task=words)
    assert len(draw_few(data, Draw(k=3, rule="strict", seed=1)).train) == 3


def test_rows_that_stand_in_train_are_counted_of_the_drawn_rows() -> None:
    targets = ["0", "1"] * 20
    data = rows_of("micro_entailment", targets)
    texts = [example.source for example in data.train]
    leaked = [Example(texts[i], "0", ("0",)) for i in range(40)]
    data = replace(data, dev=leaked[:10], test=leaked[10:])
    few = draw_few(data, Draw(k=4, rule="unbalanced", seed=3))
    assert few.record.num_duplicates == 4  # each drawn row stands once in dev or test
    own = draw_few(data, Draw(k=4, rule="unbalanced", seed=3, select_with="k"))
    drawn = {example.source for example in own.train}
    assert own.record.num_duplicates == sum(example.source in drawn for example in [*own.dev, *own.test])


def test_each_k_and_draw_is_superseded_by_its_own_kind(tmp_path: Path) -> None:
    store, cells = ResultStore(tmp_path), []
    for k, draw in ((4, 7), (16, 7), (4, 8)):
        old = moved(made("plain", "cb", 1, 1, 50), few_shot=Draw(k=k, rule="balanced", seed=draw))
        old = old.model_copy(update={"cell_id": old.cell.cell_id, "group_id": old.cell.group_id})
        store.write(old, [], None)
        cells.append(old.cell.model_copy(update={"task_version": 2}))
    found = superseded(store, cells)
    assert set(found) == {cell.key for cell in cells}
    for cell in cells:
        assert found[cell.key].cell.few_shot == cell.few_shot
