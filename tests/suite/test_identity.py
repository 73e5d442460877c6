"""A cell has one key: it is planned, claimed, checkpointed and stored under it, and hashed once."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from suite_rows import write_tiny_task

from harness.data.tasks import all_tasks
from harness.results.store import ResultStore
from harness.runner.plan import Plan, make_plan
from harness.runner.run_suite import run
from harness.suite import cell as schema
from harness.suite.cell import Cell
from harness.suite.groups import SOURCES_SUITE
from harness.suite.make_groups import Overrides

pytestmark = pytest.mark.usefixtures("few_rows")

Write = Callable[[str], Path]

# MRQA has three seeds under this protocol, every other task one: `spot` asks the table's own row for seeds it lacks
SUITE = """\
suite: shared
protocol: accept-2024
backbones: [micro-t5]
tasks: [micro_sentiment, newsqa]
execution: {bundle_cells: BUNDLE}
recipe: {steps: 1, batch_size: 2, eval_every: 1, backbone_dropout: false, lr: 0.3, warmup_steps: 0}
methods:
  row: {method: prompt_tuning, prompt_length: 2, recipe: {lr: {sweep: [0.1, 0.3]}}}
  spot: {prompt_length: 2, init_from: {method: row, task: micro_sentiment, seed: own}}
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_tiny_task(folder, all_tasks()["newsqa"])
    return folder


def planned(path: Path, results: Path, rows: Path | None = None) -> Plan:
    return make_plan(path, Overrides(), results, None if rows is None else str(rows))


def cells_of(plan: Plan) -> list[Cell]:
    return [cell for group in plan.groups for cell in group.cells.values()]


def test_a_source_that_is_a_cell_of_the_table_too_is_one_cell(write_suite: Write, tmp_path: Path) -> None:
    plan = planned(write_suite(SUITE.replace("BUNDLE", "8")), tmp_path)
    row, source = (next(g for g in plan.groups if (g.label, g.task, g.is_source) == ("row", "micro_sentiment", kind))
                   for kind in (False, True))  # fmt: skip
    assert (row.seeds, source.seeds, source.shared_seeds) == ((42,), (42, 43, 44), frozenset({42}))
    for point in row.cells:
        assert source.cells[point].key == row.cells[point].key
    assert {cell.suite for cell in source.own_cells().values()} == {SOURCES_SUITE}
    asked = [cell.key for cell in plan.asked()]
    assert len(asked) == len(set(asked))
    assert [plan.num_cells(group) for group in (row, source)] == [2, 2], "its grid counts in the table alone"


def test_further_points_of_such_a_source_are_cells_of_the_table_too(write_suite: Write, tmp_path: Path) -> None:
    text = SUITE.replace("BUNDLE", "8").replace("{sweep: [0.1, 0.3]}", "{range: [0.1, 1.0]}")
    plan = planned(write_suite(text + "tuning: {strategy: tpe, trials: 4, startup: 2}\n"), tmp_path)
    row, source = (next(g for g in plan.groups if (g.label, g.task, g.is_source) == ("row", "micro_sentiment", kind))
                   for kind in (False, True))  # fmt: skip
    old = [row.make_cells([{"recipe.lr": 0.7}], [0], "")[(0, 42)]]
    for grown in ([group.with_points([{"recipe.lr": 0.5}]) for group in (row, source)],
                  [group.behind(old) for group in (row, source)]):  # fmt: skip
        for point, cell in grown[0].cells.items():
            assert grown[1].cells[point].key == cell.key
        assert {cell.suite for cell in grown[1].own_cells().values()} == {SOURCES_SUITE}


@pytest.mark.parametrize("bundle_cells", [1, 8])
def test_such_a_cell_is_trained_once_and_found_by_both(
    bundle_cells: int, rows: Path, write_suite: Write, tmp_path: Path
) -> None:
    path = write_suite(SUITE.replace("BUNDLE", str(bundle_cells)))
    summary = run(path, results=tmp_path / "out", data=rows, quiet=True)
    found = [result for _, result in ResultStore(tmp_path / "out").scan()]
    assert (summary.num_failed, summary.num_trained) == (0, len(found))
    assert len({(r.cell.label, r.cell_id) for r in found}) == len(found), "no cell stands under two suites"
    plan = planned(path, tmp_path / "out", rows)
    assert not plan.pending()
    assert not any(plan.num_missing(index) for index in range(len(plan.groups)))
    assert len(found) == sum(plan.num_cells(group) for group in plan.groups)
    again = run(path, results=tmp_path / "out", data=rows, quiet=True)
    assert (again.num_trained, again.num_kept) == (0, len(found))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The title of a cell for each time that one is hashed."""
    made: list[str] = []
    original = Cell._identity

    def counted(cell: Cell) -> dict[str, object]:
        made.append(f"{cell.label} {cell.task} {cell.seed} {cell.grid}")
        return original(cell)

    monkeypatch.setattr(schema.Cell, "_identity", counted)
    return made


def test_a_plan_hashes_each_cell_once(write_suite: Write, tmp_path: Path, hashed: list[str]) -> None:
    methods = SUITE.split("  spot:")[0]  # sources ask for the identity of groups too
    plan = planned(write_suite(methods.replace("BUNDLE", "8").replace("[0.1, 0.3]", "[0.1, 0.2, 0.3]")), tmp_path)
    for _ in range(3):
        plan.pending()
        plan.stages()
    assert len(hashed) == len(cells_of(plan))


def test_a_plan_of_cells_that_start_from_others_hashes_each_twice_at_most(
    write_suite: Write, tmp_path: Path, hashed: list[str]
) -> None:
    swept = SUITE.replace("BUNDLE", "8").replace(
        "spot: {prompt_length: 2,", "spot: {prompt_length: 2, recipe: {lr: {sweep: [0.1, 0.2, 0.3, 0.4, 0.5]}},"
    )
    plan = planned(write_suite(swept), tmp_path)
    for _ in range(3):
        plan.pending()
        plan.stages()
    # two hashes, of the cell and of its group; a source's cell that the table has too is made apart and then replaced
    assert max(Counter(hashed).values()) <= 2 * 2


def test_steps_and_evaluations_hash_nothing(write_suite: Write, tmp_path: Path, hashed: list[str]) -> None:
    path = write_suite(SUITE.replace("BUNDLE", "8").replace("[micro_sentiment, newsqa]", "[micro_sentiment]"))
    counts = []
    for steps in (1, 3):
        run(path, methods=["row"], results=tmp_path / str(steps), settings={"recipe.steps": steps}, quiet=True)
        counts.append(len(hashed))
        hashed.clear()
    assert counts[0] == counts[1]


def test_a_copy_with_another_value_is_another_cell(write_suite: Write, tmp_path: Path) -> None:
    cell = cells_of(planned(write_suite(SUITE.replace("BUNDLE", "8")), tmp_path))[0]
    assert cell.key == (cell.suite, cell.label, cell.cell_id)
    other = cell.model_copy(update={"seed": cell.seed + 1})
    assert other.cell_id != cell.cell_id
    assert other.model_copy(update={"seed": cell.seed}).key == cell.key
    assert cell.model_copy(update={"label": "renamed"}).key == (cell.suite, "renamed", cell.cell_id)
    sent = pickle.loads(pickle.dumps(cell))
    assert sent == cell
    assert sent.key == cell.key
    assert "cell_id" not in cell.model_dump()
