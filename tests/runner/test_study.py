"""Searches by TPE: the points follow from the suite and the stored results alone, whoever trains them and whenever."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import optuna
import pytest
from kill_harness import forked
from test_report import result as made_result

import harness
from harness.cli.listings import describe_plan
from harness.errors import UserError
from harness.report.boards import collect_boards
from harness.report.search_curves import search_curve
from harness.report.tables import render_boards
from harness.report.tuning import tuning_records
from harness.results.schema import DevScore, Files, Result
from harness.results.store import ResultStore
from harness.runner.engines import LocalEngine
from harness.runner.pack import pack
from harness.runner.plan import Plan, make_plan
from harness.runner.progress import Progress
from harness.runner.study import Study, asked_point, inner_params, point_of, told, trial_seed
from harness.suite.make_groups import Overrides
from harness.suite.ranges import Range
from harness.suite.search import Search
from harness.train.bundle import Bundle
from harness.train.cell_result import CellResult

pytestmark = pytest.mark.usefixtures("fewest_rows")

SUITE = """\
suite: searched
backbones: [micro-t5]
tasks: [micro_sentiment]
seeds: [1, 2]
tuning: {strategy: tpe, trials: 7, startup: 3, batch: 2}
recipe: {steps: 4, batch_size: 4, eval_every: 2, warmup_steps: 1, warmup_max_share: 1.0, backbone_dropout: false,
         lr: {range: [0.001, 1], log: true}}
methods:
  prompt_tuning: {prompt_length: {range: [2, 6]}}
  fragile:
"""
FRAGILE = '''\
"""A prompt that breaks when it is strong."""

from dataclasses import dataclass

from torch import Tensor, nn

from harness.method import Backbone, Defaults, Method, Paper, span, vocabulary_rows


class Fragile(Method):
    """X = [s P; E(x)]."""

    name = "fragile"
    paper = Paper("none", "https://example.org")
    defaults = Defaults(search={"hp.strength": span(0.0, 1.0)})

    @dataclass(frozen=True, kw_only=True)
    class HP:
        strength: float = 0.1

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        self.strength = hp.strength
        self.vectors = nn.Parameter(vocabulary_rows(backbone, 2, "top5000"))

    def prompt(self) -> Tensor:
        if self.strength > 0.5:
            raise RuntimeError("too strong")
        return self.vectors * self.strength
'''
SPACE = Search(
    "tpe", {"recipe.lr": Range(1e-4, 1.0, log=True), "hp.rank": Range(1, 64), "hp.init": ["a", "b", "c"]},
    trials=20, seed=5, startup=4, batch=1,
)  # fmt: skip


def run(folder: Path, text: str = SUITE, **options: Any) -> Any:
    (folder / "fragile.py").write_text(FRAGILE)
    (folder / "suite.yaml").write_text(text)
    return harness.run(folder / "suite.yaml", results=folder / "results", method_dirs=[folder], quiet=True, **options)


def plan_of(folder: Path, text: str = SUITE) -> Plan:
    (folder / "fragile.py").write_text(FRAGILE)
    (folder / "suite.yaml").write_text(text)
    return make_plan(folder / "suite.yaml", Overrides(), folder / "results", None, [str(folder)])


def stored(folder: Path) -> list[Result]:
    found = [result for _, result in ResultStore(folder / "results").scan()]
    return sorted(found, key=lambda r: (r.cell.label, r.cell.seed, r.cell.grid_index))


def outcome(results: Iterable[Result]) -> list[tuple[Any, ...]]:
    """What a search was: which cells, in which order, with which scores."""
    return [
        (r.key, r.cell.seed, r.cell.grid_index, r.status, r.test and r.test.score, r.dev and r.dev.score)
        for r in results
    ]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    run(folder)
    return folder


def score(point: dict[str, Any]) -> float:
    """A toy: best at lr 0.03, rank 20, init b."""
    made: float = (
        100
        - 10 * abs(math.log10(point["recipe.lr"] / 0.03))
        - abs(point["hp.rank"] - 20)
        + 5 * (point["hp.init"] == "b")
    )
    return made


def scored(dev: float) -> Result:
    return made_result("grid", "cb", 1, dev=dev, test=50.0)


def run_toy(search: Search, value: Callable[[dict[str, Any]], float | None] = score) -> list[dict[str, Any]]:
    """All points of a search; a value of None is a failed trial. The study is made anew for each question."""
    points: list[dict[str, Any]] = search.first_points()
    while len(points) < search.trials:
        values = map(value, points)
        results = [made_result("grid", "cb", 1, 0, None) if item is None else scored(item) for item in values]
        points += Study(search, []).next_points(points, results)
    return points


def test_trials_are_those_of_optunas_own_sequential_study() -> None:
    class Rounding(optuna.samplers.TPESampler):  # type: ignore[misc]
        """Proposes the values that a cell can hold."""

        def sample_relative(self, *args: Any) -> dict[str, Any]:
            found: dict[str, Any] = super().sample_relative(*args)
            return inner_params(SPACE, point_of(SPACE, found)) if found else found

    def sampler(number: int) -> Rounding:
        return Rounding(seed=trial_seed(SPACE, str(number)), n_startup_trials=1)

    seen = []

    def objective(trial: optuna.Trial) -> float:
        params = {
            "recipe.lr": trial.suggest_float("recipe.lr", 1e-4, 1.0, log=True),
            "hp.rank": trial.suggest_int("hp.rank", 1, 64),
            "hp.init": trial.suggest_categorical("hp.init", range(3)),
        }
        seen.append(point_of(SPACE, params))
        return score(seen[-1])

    def next_sampler(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        study.sampler = sampler(trial.number + 1)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=sampler(0))
    for point in SPACE.first_points():
        study.enqueue_trial(inner_params(SPACE, point))
    study.optimize(objective, n_trials=20, callbacks=[next_sampler])
    assert run_toy(SPACE) == seen
    assert max(map(score, seen[8:])) > max(map(score, seen[:4])), "results guide it"


def test_a_batch_lies_apart_and_a_repeated_point_is_asked_again() -> None:
    four = Search("tpe", SPACE.space, 20, 5, 4, 4)
    points = run_toy(four)
    assert len(points) == 20
    assert points == run_toy(four)
    few: dict[str, Any] = {"hp.rank": Range(1, 4), "hp.init": ["a", "b", "c"]}
    tight = Search("tpe", few, 11, 0, 4, 4)
    tried = run_toy(tight, lambda point: float(point["hp.rank"]))
    assert len({str(point) for point in tried}) == 11, "each of the budget is another cell"


def test_failed_trials_are_told_as_failed_and_count() -> None:
    batch = Search("tpe", SPACE.space, 12, 5, 4, 4)
    points = run_toy(batch, lambda point: None if point["hp.init"] == "b" else score(point))
    assert len(points) == 12
    failed = told(SPACE, points[0], made_result("grid", "cb", 1, 0, None))
    assert failed.state == optuna.trial.TrialState.FAIL
    early = scored(70.0).model_copy(update={"raced_out_at": 10})
    pruned = told(SPACE, points[0], early)
    assert (pruned.state, pruned.intermediate_values) == (optuna.trial.TrialState.PRUNED, {10: 70.0})
    assert told(SPACE, points[0], None).state == optuna.trial.TrialState.RUNNING
    everything = run_toy(batch, lambda point: None)
    assert len(everything) == 12, "where all fail the budget ends the search"


def test_no_more_points_while_a_result_is_missing_or_nothing_fits() -> None:
    batch = Search("tpe", SPACE.space, 12, 5, 4, 4)
    first = batch.first_points()
    results: list[Result | None] = [scored(score(point)) for point in first]
    assert Study(batch, []).next_points(first, [*results[:3], None]) == []
    unfit = [scored(1.0).model_copy(update={"status": "unfit"})] * 4
    assert Study(batch, []).next_points(first, unfit) == []


def test_a_search_has_its_budget_and_its_winner_runs_the_other_seed(searched: Path) -> None:
    results = stored(searched)
    plan = plan_of(searched)
    assert plan.pending() == []
    assert not any(group.num_to_come for group in plan.groups)
    for label in ("prompt_tuning", "fragile"):
        first = [r for r in results if (r.cell.label, r.cell.seed) == (label, 1)]
        assert [r.cell.grid_index for r in first] == list(range(7)), "seven trials, failed ones among them"
        assert len({r.cell_id for r in first}) == 7
    failed = [r for r in results if r.status == "failed"]
    assert {r.cell.label for r in failed} == {"fragile"}
    assert all(r.cell.hp["strength"] > 0.5 for r in failed)
    (board,) = collect_boards(results)
    for row in board.rows:
        entry = row.entries["micro_sentiment"]
        assert (entry.num_grid_runs, len(entry.runs)) == (7, 2), "the table shows the point that the runner chose"
    text = render_boards([board], "markdown")
    assert "points drawn by tpe" in text
    curve = search_curve(board.rows[0].entries["micro_sentiment"])
    assert curve is not None
    assert (curve.is_guided, curve.best) == (True, sorted(curve.best)), "the best so far, in the order of the trials"
    records = {record.method: record for record in tuning_records(board)}
    assert list(records["prompt_tuning"].expected_best_dev) == sorted(records["prompt_tuning"].expected_best_dev)


def test_a_finished_search_asks_nothing_of_optuna(searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.runner.study.importlib.util.find_spec", lambda name: None)
    assert plan_of(searched).pending() == []
    with pytest.raises(UserError, match=r"suite\.yaml:5: tuning\.strategy: tpe needs the package optuna.*\[tuning\]"):
        plan_of(searched, SUITE.replace("trials: 7", "trials: 8"))


@pytest.mark.parametrize("kept", [1, 4])
def test_a_study_is_rebuilt_from_what_is_stored(kept: int, searched: Path, tmp_path: Path) -> None:
    shutil.copytree(searched / "results", tmp_path / "results")
    for path, result in ResultStore(tmp_path / "results").scan():
        if result.cell.grid_index >= kept or result.cell.seed == 2:
            path.unlink()
    plan = plan_of(tmp_path)
    # the batches are 0 to 2, 3 and 4, 5 and 6
    assert {cell.grid_index for cell in plan.pending()} == set(range(kept, 3 if kept < 3 else 5 if kept < 5 else 7))
    run(tmp_path)
    assert outcome(stored(tmp_path)) == outcome(stored(searched))


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


def test_a_search_that_was_broken_off_goes_on_to_the_same_end(searched: Path, tmp_path: Path) -> None:
    for after in (4, 5):  # in the second batch, then in the third
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, engine=StoppedEngine(after))
    assert len(stored(tmp_path)) == 9
    run(tmp_path)
    assert outcome(stored(tmp_path)) == outcome(stored(searched))


def test_two_processes_share_a_search(searched: Path, tmp_path: Path) -> None:
    plan_of(tmp_path)  # writes the files
    children = [forked(lambda: _train_quietly(tmp_path)) for _ in range(2)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0]
    assert outcome(stored(tmp_path)) == outcome(stored(searched))


def _train_quietly(folder: Path) -> None:
    harness.run(folder / "suite.yaml", results=folder / "results", method_dirs=[folder], quiet=True)


def test_a_failure_that_is_tried_again_moves_no_later_trial(searched: Path, tmp_path: Path) -> None:
    shutil.copytree(searched / "results", tmp_path / "results")
    summary = run(tmp_path, rerun="failed")
    again = [r for r in stored(searched) if r.status == "failed"]
    assert summary.num_trained == len(again) > 0
    assert [row[0] for row in outcome(stored(tmp_path))] == [row[0] for row in outcome(stored(searched))]


def test_more_trials_go_on_with_the_same_study_and_other_ranges_begin_another(searched: Path, tmp_path: Path) -> None:
    shutil.copytree(searched / "results", tmp_path / "results")
    more = SUITE.replace("trials: 7", "trials: 9")
    plan = plan_of(tmp_path, more)
    assert {(cell.label, cell.grid_index) for cell in plan.pending()} == {
        (label, number) for label in ("prompt_tuning", "fragile") for number in (7, 8)
    }
    store = ResultStore(tmp_path / "results")
    for result in stored(searched):  # a repeat is no further point that was tried before
        again = result.cell.model_copy(update={"repeat": 2})
        store.write(result.model_copy(update={"cell": again, "cell_id": again.cell_id, "files": Files()}), [], None)
    known = {r.cell_id for r in stored(searched) if r.cell.seed == 1}
    other = plan_of(tmp_path, SUITE.replace("range: [0.001, 1]", "range: [0.01, 1]"))
    for group in other.groups:
        assert (group.num_earlier, group.num_points, group.num_to_come) == (7, 14, 4)
        assert {group.cells[(at, 1)].cell_id for at in range(7)} <= known
    assert {cell.grid_index for cell in other.pending()} == {0, 1, 2}
    assert not known & {cell.cell_id for cell in other.pending()}


def with_dev(root: Path, dev: Callable[[float], float]) -> None:
    """Give every result of the first seed other dev scores."""
    store = ResultStore(root)
    for _, result in list(store.scan()):
        if result.cell.seed == 1:
            history = [item.model_copy(update={"selection": dev(item.selection)}) for item in result.dev_history]
            store.write(result.model_copy(update={"dev_history": history, "files": Files()}), [], None)


def test_of_equal_points_the_first_asked_wins_and_the_count_ends_where_it_should(
    searched: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(searched / "results", tmp_path / "results")
    with_dev(tmp_path / "results", lambda score: score - 200)  # so that one of the new points wins
    other = SUITE.replace("range: [0.001, 1]", "range: [0.01, 1]").split("  fragile:")[0]
    (tmp_path / "suite.yaml").write_text(other)
    harness.run(tmp_path / "suite.yaml", results=tmp_path / "results")
    counts = [line.split("]")[0] for line in capfd.readouterr().err.splitlines() if line.startswith("[")]
    assert counts[0] == "[1/7", "the winner so far has its second seed"
    assert counts[-1] == "[8/8"
    with_dev(tmp_path / "results", lambda score: 50.0)
    plan = plan_of(tmp_path, other)
    mine = [r for r in stored(tmp_path) if r.cell.label == "prompt_tuning" and r.cell.seed == 1]
    first = min(mine, key=lambda r: (r.started_at, r.cell.grid_index))
    assert first.cell.study in {r.cell.study for r in stored(searched)}
    assert [cell.grid for cell in plan.pending()] in ([], [first.cell.grid])
    (board,) = collect_boards(mine)
    assert board.rows[0].entries["micro_sentiment"].runs == [first], "as in the runner"


def test_a_point_that_is_no_longer_possible_takes_no_other_with_it(searched: Path, tmp_path: Path) -> None:
    shutil.copytree(searched / "results", tmp_path / "results")
    strict = FRAGILE.replace(
        "strength: float = 0.1\n",
        "strength: float = 0.1\n\n        def __post_init__(self) -> None:\n            if self.strength > 0.5:\n"
        "                raise ValueError('too strong')\n",
    )
    other = SUITE.replace("  fragile:\n", "  fragile: {strength: {range: [0.0, 0.4]}}\n")
    plan_of(tmp_path, other)
    (tmp_path / "fragile.py").write_text(strict)
    plan = make_plan(
        tmp_path / "suite.yaml", Overrides(methods=["fragile"]), tmp_path / "results", None, [str(tmp_path)]
    )
    tried = [r.cell for r in stored(searched) if (r.cell.label, r.cell.seed) == ("fragile", 1)]
    fits = [cell for cell in tried if cell.hp["strength"] <= 0.5]
    assert 0 < len(fits) < len(tried)
    assert plan.groups[0].num_earlier == len(fits)
    assert plan.groups[0].points[: len(fits)] == tuple(cell.grid for cell in fits)
    told = describe_plan(plan, probe=False)
    assert told["groups"][0]["unresolved_points"] == [cell.grid for cell in tried if cell not in fits]
    assert f"{len(tried) - len(fits)} stored points of earlier searches are left out" in told["text"]


def test_a_point_that_a_grid_has_run_is_not_run_again(tmp_path: Path) -> None:
    base = SUITE.split("  fragile:")[0].replace("lr: {range: [0.001, 1], log: true}", "lr: 0.1")
    grid = base.replace("tuning: {strategy: tpe, trials: 7, startup: 3, batch: 2}\n", "")
    run(tmp_path, grid.replace("{range: [2, 6]}", "{sweep: [2, 3, 4]}"), seeds=[1])
    trained = {r.cell_id for r in stored(tmp_path)}
    drawn = base.replace("trials: 7", "trials: 4")
    (group,) = plan_of(tmp_path, drawn).groups
    kept = {group.cells[(at, 1)].cell_id for at in range(len(group.points))} & trained
    assert kept == trained, "as trials, or as points that were tried before"
    assert not {cell.cell_id for cell in plan_of(tmp_path, drawn).pending()} & trained


def test_weak_points_leave_their_batch_early(tmp_path: Path) -> None:
    text = SUITE.split("  fragile:")[0].replace("steps: 4", "steps: 8").replace("seeds: [1, 2]", "seeds: [1]")
    text = text.replace("startup: 3, batch: 2", "startup: 4, batch: 3, pruning: halving, begin: at_once")
    run(tmp_path, text)
    left = {r.cell.grid_index: r.raced_out_at for r in stored(tmp_path)}
    assert len(left) == 7
    assert sum(left[i] is None for i in range(4)) == 1, "one of the first four trains to its end"
    assert sum(left[i] is None for i in range(4, 7)) == 1
    assert plan_of(tmp_path, text).pending() == []
    (group,) = plan_of(tmp_path, text).groups
    again = [group.cells[(point, 1)] for point in (0, 1, 5)]  # as --rerun failed asks for them
    (bundle,) = pack(plan_of(tmp_path, text), again)
    assert [(race.num_points, sum(map(race.holds, again))) for race in bundle.races] == [(4, 2), (3, 1)], "by batch"
    full = plan_of(tmp_path, text.replace("pruning: halving, begin: at_once", "pruning: none"))
    assert {cell.grid_index for cell in full.pending()} <= {i for i, step in left.items() if step is not None}
    other = plan_of(tmp_path, text.replace("pruning: halving, begin: at_once", "pruning: none, seed: 9"))
    assert other.groups[0].num_earlier == sum(step is None for step in left.values())
    assert {cell.study for cell in other.pending()} == {other.groups[0].search.name}, "no loser of a race goes on"  # type: ignore[union-attr]


def test_a_batch_shares_a_bundle(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, SUITE.replace("  fragile:\n", "  dept: {prompt_length: 3, budget_length: 6}\n"))
    (bundle,) = pack(plan, plan.pending())
    assert len(bundle.cells) == 6, "three trials of each row"


def test_dev_scores_alone_guide_a_search() -> None:
    points = SPACE.first_points()
    same = [scored(score(point)) for point in points]
    history = [DevScore(step=10, selection=score(point), metrics={}) for point in points]
    other = [r.model_copy(update={"test": None, "dev_history": [h]}) for r, h in zip(same, history, strict=True)]
    assert asked_point(SPACE, "4", points, same) == asked_point(SPACE, "4", points, other)
