"""Searching a grid by halving: weak points leave early, the others are what they would be without a race."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ALL_ROWS, micro_rows
from hypothesis import given
from hypothesis import strategies as st
from typing_help import present

import harness
from harness.data.splits import load_task
from harness.data.tasks import all_tasks
from harness.errors import UserError
from harness.report.boards import collect_boards
from harness.report.tables import render_boards
from harness.report.tuning import lay_out_tuning, tuning_records
from harness.results.schema import Result
from harness.results.selection import best_point
from harness.results.store import ResultStore
from harness.runner.engines import LocalEngine
from harness.runner.pack import pack
from harness.runner.plan import make_plan
from harness.runner.progress import Progress
from harness.suite.make_groups import Overrides
from harness.train.bundle import Bundle
from harness.train.cell_result import CellResult
from harness.train.evaluate import chance_level
from harness.train.race import ChanceLevel, eliminated, rungs, standard_error

pytestmark = pytest.mark.usefixtures("fewest_rows")

SUITE = """\
suite: race
backbones: [micro-t5]
tasks: [micro_sentiment]
seeds: [1, 2]
tuning: {strategy: halving, begin: at_once}
recipe: {steps: 8, batch_size: 4, eval_every: 2, warmup_steps: 1, warmup_max_share: 1.0, backbone_dropout: false}
methods:
  prompt_tuning: {prompt_length: 4, recipe: {lr: {sweep: [0.0001, 0.3, 0.01, 1.0]}}}
"""


def run(folder: Path, text: str = SUITE, **options: Any) -> list[Result]:
    (folder / "suite.yaml").write_text(text)
    summary = harness.run(folder / "suite.yaml", results=folder / "results", quiet=True, **options)
    assert summary.num_failed == 0
    return stored(folder)


def stored(folder: Path) -> list[Result]:
    results = [result for _, result in ResultStore(folder / "results").scan()]
    return sorted(results, key=lambda r: (r.cell.label, r.cell.seed, r.cell.grid_index))


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raced")
    run(folder)
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    return run(tmp_path_factory.mktemp("full"), SUITE.replace("halving, begin: at_once", "grid"))


@pytest.fixture
def all_to_learn_from() -> Iterator[None]:
    """All rows of train, and of the others as many as tell 90 % from chance."""
    with micro_rows({**ALL_ROWS, "validation": 60, "test": 60}):
        yield


def test_marks_are_halvings_that_end_with_one_point() -> None:
    assert rungs(6, 30_000, 1_000) == {4_000: 3, 8_000: 2, 15_000: 1}
    assert rungs(4, 16, 2) == {4: 2, 8: 1}
    assert rungs(2, 10, 10) == {}, "no evaluation before the end, no race"
    assert rungs(1, 100, 1) == {}


@given(st.integers(1, 64), st.integers(1, 5_000), st.integers(1, 1_000))
def test_marks_lie_on_evaluations_and_always_leave_a_point(points: int, steps: int, every: int) -> None:
    found = rungs(points, steps, every)
    assert all(0 < step < steps and step % every == 0 for step in found)
    kept = [points, *(found[step] for step in sorted(found))]
    assert all(b < a and b >= a // 2 for a, b in itertools.pairwise(kept))
    assert kept[-1] >= 1


@given(st.lists(st.sampled_from([0.0, 50.0, 75.0]), min_size=1, max_size=9), st.integers(1, 9))
def test_losers_score_no_better_than_who_stays_and_come_later_among_equals(scores: list[float], keep: int) -> None:
    leaving = eliminated(dict(enumerate(scores)), keep)
    staying = [key for key in range(len(scores)) if key not in leaving]
    assert len(staying) == min(keep, len(scores))
    assert all((scores[a], -a) > (scores[b], -b) for a in staying for b in leaving)


def test_the_weaker_half_leaves_at_each_mark(raced: Path, full: list[Result]) -> None:
    search = [r for r in stored(raced) if r.cell.seed == 1]
    whole = {r.cell.grid_index: r for r in full if r.cell.seed == 1}
    assert sorted(r.raced_out_at or 8 for r in search) == [2, 2, 4, 8]
    alive = [0, 1, 2, 3]
    for step, keep in ((2, 2), (4, 1)):
        best = {i: max(d.selection for d in whole[i].dev_history if d.step <= step) for i in alive}
        expected = eliminated(best, keep)
        assert {r.cell.grid_index for r in search if r.raced_out_at == step} == set(expected)
        alive = [i for i in alive if i not in expected]


def test_no_race_is_decided_before_a_point_has_learnt_anything(raced: Path, full: list[Result], tmp_path: Path) -> None:
    waiting = run(tmp_path, SUITE.replace(", begin: at_once", ""), seeds=[1])
    assert [r.raced_out_at for r in waiting] == [None] * 4
    assert [r.test for r in waiting] == [r.test for r in full if r.cell.seed == 1]


@pytest.mark.usefixtures("all_to_learn_from")
def test_a_race_begins_when_a_point_has_learnt(tmp_path: Path) -> None:
    text = SUITE.split("methods:")[0].replace(", begin: at_once", "").replace("steps: 8, batch_size: 4, eval_every: 2",
        "steps: 80, batch_size: 16, eval_every: 40")  # fmt: skip
    text += "methods:\n  lora: {rank: 8, dropout: 0.0, alpha: 16, recipe: {lr: {sweep: [0.000001, 0.01]}}}\n"
    slow, fast = run(tmp_path, text, seeds=[1])
    assert (slow.raced_out_at, fast.raced_out_at) == (40, None)
    assert present(fast.test).score > 90


@pytest.mark.usefixtures("all_rows")
def test_learnt_means_clearly_above_the_best_constant_answer_on_dev() -> None:
    data = load_task(all_tasks()["micro_paraphrase"], None)
    targets = [example.target for example in data.dev]
    constant = 100 * max(targets.count(label) for label in data.task.targets) / len(targets)
    chance = chance_level(data)
    assert chance.score == pytest.approx(constant)
    assert chance.standard_error == pytest.approx(50 / math.sqrt(len(targets)))
    assert not chance.is_below(constant + 10)
    assert chance.is_below(constant + 11)


def test_the_best_of_many_looks_at_chance_hardly_ever_begins_a_race() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (300, 24, 100))  # races, looks at scores, rows
    shares = 100 * labels.mean(2)
    begun = [ChanceLevel(50.0, standard_error("accuracy", 100)).is_below(looks.max()) for looks in shares]
    assert np.mean(begun) < 0.06
    other = rng.integers(0, 2, (300, 24, 100)) - 0.5
    correlations = 100 * ((labels - labels.mean(2, keepdims=True)) * other).mean(2) / labels.std(2) / other.std(2)
    begun = [ChanceLevel(0.0, standard_error("matthews", 100)).is_below(looks.max()) for looks in correlations]
    assert np.mean(begun) < 0.06


def test_the_constant_answer_to_a_mixture_is_one_for_each_task() -> None:
    parts = tuple(load_task(all_tasks()[name], None) for name in ("micro_sentiment", "micro_qa"))
    assert not parts[1].task.targets
    one, other = (chance_level(part) for part in parts)
    both = chance_level(replace(parts[0], parts=parts))
    assert both.score == pytest.approx((one.score + other.score) / 2)
    assert both.standard_error == pytest.approx(math.sqrt(one.standard_error**2 + other.standard_error**2) / 2)


def test_a_race_changes_nothing_in_who_stays(raced: Path, full: list[Result]) -> None:
    whole = {(r.cell.seed, r.cell.grid_index): r for r in full}
    for result in stored(raced):
        if result.cell.seed != 1:
            continue
        same = whole[(1, result.cell.grid_index)]
        end = result.raced_out_at or 8
        assert result.cell_id == same.cell_id, "the strategy is no part of a cell"
        assert [d.selection for d in result.dev_history] == [d.selection for d in same.dev_history if d.step <= end]
        if result.raced_out_at is None:
            assert result.test == same.test


def test_who_left_is_done_untested_and_never_wins(raced: Path) -> None:
    search = [r for r in stored(raced) if r.cell.seed == 1]
    for result in search:
        assert result.status == "done"
        if result.raced_out_at:
            assert result.test is None
            assert result.files.tensors is None
            assert present(result.usage).num_steps == result.raced_out_at
            assert result.dev is not None
    winner = present(best_point(search))
    assert search[winner].raced_out_at is None
    (other,) = [r for r in stored(raced) if r.cell.seed == 2]
    assert other.cell.grid == search[winner].cell.grid
    assert other.raced_out_at is None, "a winner's further seed has nobody to race"
    better = [r if r.raced_out_at is None else _with_dev(r, 100.0) for r in search]
    assert best_point(better) == winner


def _with_dev(result: Result, value: float) -> Result:
    history = [item.model_copy(update={"selection": value}) for item in result.dev_history]
    return result.model_copy(update={"dev_history": history})


class StoppedEngine(LocalEngine):
    """Breaks off after the first results, as a power cut would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def run(self, bundles: Iterable[Bundle], progress: Progress, on_product: Callable[[CellResult], None]) -> None:
        def hand_over(product: CellResult) -> None:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            on_product(product)

        super().run(bundles, progress, hand_over)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_race_that_was_broken_off_goes_on_to_the_same_end(tmp_path: Path, raced: Path, after: int) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    with pytest.raises(KeyboardInterrupt):
        harness.run(tmp_path / "suite.yaml", results=tmp_path / "results", quiet=True, engine=StoppedEngine(after))
    assert len(stored(tmp_path)) == after
    ended = run(tmp_path)
    key = [(r.cell_id, r.raced_out_at, r.test and r.test.score, present(r.dev).score) for r in ended]
    assert key == [(r.cell_id, r.raced_out_at, r.test and r.test.score, present(r.dev).score) for r in stored(raced)]


def test_a_full_search_trains_anew_what_left_a_race(raced: Path, full: list[Result], tmp_path: Path) -> None:
    shutil.copytree(raced / "results", tmp_path / "results")
    (tmp_path / "suite.yaml").write_text(SUITE.replace("halving, begin: at_once", "grid"))
    plan = make_plan(tmp_path / "suite.yaml", Overrides(), tmp_path / "results", None)
    assert len(plan.pending()) == 3
    again = [r for r in run(tmp_path, SUITE.replace("halving, begin: at_once", "grid")) if r.cell.seed == 1]
    assert [r.test for r in again] == [r.test for r in full if r.cell.seed == 1]
    assert all(r.raced_out_at is None for r in again)


def test_the_report_says_how_the_grid_was_searched(raced: Path, full: list[Result]) -> None:
    boards = collect_boards(stored(raced))
    text = render_boards(boards, "markdown")
    assert "4 [1] [2] |" in text
    assert "searched by halving: 3 of 4 grid runs left early, by dev score" in text
    (row,) = boards[0].rows
    entry = row.entries["micro_sentiment"]
    assert (entry.num_grid_runs, entry.num_raced_out, len(entry.runs)) == (4, 3, 2)
    shown = json.loads(render_boards(boards, "json"))
    assert shown[0]["rows"][0]["tasks"]["micro_sentiment"]["num_raced_out"] == 3
    assert "halving" not in render_boards(collect_boards(full), "markdown")


def test_what_tuning_gave_is_not_told_from_the_survivors_of_a_race(raced: Path) -> None:
    boards = collect_boards(stored(raced))
    (record,) = tuning_records(boards[0])
    assert (record.num_points, record.num_failed, record.num_raced_out) == (4, 0, 3)
    assert (record.by_test, record.optimism, record.expected_best_dev) == (None, None, ())
    table = lay_out_tuning(boards[0])
    assert table.remarks == [], "no optimism of a table that nobody could have chosen by test"
    assert "3 of 4 left early" in table.notes[0]


def test_methods_that_cannot_share_a_bundle_are_searched_in_full(tmp_path: Path) -> None:
    text = SUITE.split("methods:")[0].replace("steps: 8", "steps: 4") + (
        "methods:\n  adamix: {rank: 2, recipe: {lr: {sweep: [0.001, 0.01]}}}\n"
        "  prompt_tuning: {prompt_length: 2, recipe: {lr: 0.1, max_source_length: {sweep: [8, 16]}}}\n"
        "  longer: {method: prompt_tuning, prompt_length: 2, recipe: {lr: 0.1, steps: {sweep: [4, 8]}}}\n"
    )
    (tmp_path / "suite.yaml").write_text(text)
    plan = make_plan(tmp_path / "suite.yaml", Overrides(seeds=[1]), tmp_path / "none", None)
    bundles = pack(plan, plan.pending())
    assert any({cell.label for cell in bundle.cells} == {"longer"} or len(bundle.cells) > 2 for bundle in bundles)
    assert all(bundle.races == () for bundle in bundles), "points of different lengths have no marks in common"
    done = run(tmp_path, text, seeds=[1])
    assert len(done) == 6
    assert all(result.raced_out_at is None for result in done)


def test_a_grid_larger_than_a_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE + "execution: {bundle_cells: 3}\n")
    with pytest.raises(UserError, match=r"races 4 grid points in one bundle, execution\.bundle_cells is 3"):
        harness.run(tmp_path / "suite.yaml", results=tmp_path / "results", quiet=True)
    assert not list((tmp_path / "results").rglob("*.json"))


def test_races_of_two_seeds_are_apart(tmp_path: Path) -> None:
    each = SUITE.replace("{strategy: halving,", "{strategy: halving, seeds: each,")
    done = run(tmp_path, each.replace("0.0001, 0.3, ", ""))
    for seed in (1, 2):
        assert sorted(r.raced_out_at or 8 for r in done if r.cell.seed == seed) == [4, 8]


def test_the_tidy_table_tells_who_left(raced: Path) -> None:
    table = harness.load_results(raced / "results")
    left = table[table["raced_out_at"].notna()]
    assert set(left["split"]) == {"dev"}
    assert left["cell_id"].nunique() == 3
