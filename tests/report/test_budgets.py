"""What the choice of settings has cost, and tables whose rows had unequal budgets."""

from __future__ import annotations

import csv
import io
import itertools
import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from test_report import result, searching

from harness.report.boards import Board, Entry, collect_boards
from harness.report.budgets import entry_budget, row_budget, unequal_budgets
from harness.report.figures.budget import draw_budget
from harness.report.figures.colours import method_looks
from harness.report.search_curves import best_of_draws, search_curve
from harness.report.tables import render_boards
from harness.report.tuning import tuning_records
from harness.results.schema import AnsweringCost, AnsweringForm, Result, StartRecord, Usage
from harness.suite.blocks import Draw
from harness.suite.cell import Mixture, Part, Start

USAGE = Usage(
    num_steps=100, num_samples=1_600, num_tokens=9, train_s=2.0, eval_s=1.0, total_s=3.0, peak_memory_bytes=1,
    bundle_cells=1,
)  # fmt: skip


def search(label: str, points: int, steps: int = 100, failed: int = 0) -> list[Result]:
    """A grid on one seed, whose winner runs a second one."""
    usage = USAGE.model_copy(update={"num_steps": steps, "num_samples": 16 * steps})
    found = [result(label, "cb", 1, dev=50 + i, test=60, lr=0.1 * (i + 1), index=i) for i in range(points)]
    found += [result(label, "cb", 1, dev=0, test=None, lr=9 + i, index=points + i) for i in range(failed)]
    found.append(result(label, "cb", 2, dev=50, test=60, lr=0.1 * points, index=points - 1))
    return [run.model_copy(update={"usage": usage}) for run in found]


def board(*results: Result) -> Board:
    (made,) = collect_boards(results)
    return made


def test_a_budget_counts_every_trial_of_the_search_and_no_further_seed() -> None:
    made = board(*search("grid", 3, failed=1))
    budget = entry_budget(made.rows[0].entries["cb"])
    assert budget is not None
    assert (budget.trials, budget.steps, budget.samples, budget.device_s) == (4, 400, 6_400, 12)
    assert row_budget(made.rows[0]) == budget


def test_what_a_mixture_took_is_divided_over_its_tasks() -> None:
    parts = [Part(task=task, task_version=1) for task in ("cb", "rte", "boolq", "wic")]
    mixture = Mixture(parts=parts, sampling="equal", temperature=1)
    alone = search("grid", 3)
    mixed = [run.model_copy(update={"cell": run.cell.model_copy(update={"mixture": mixture})}) for run in alone]
    budgets = [entry_budget(Entry(runs=runs[-1:], searches=[runs[:3]])) for runs in (alone, mixed)]
    found = [(b.trials, b.steps, b.samples, b.device_s) for b in budgets if b is not None]
    assert found == [(3, 300, 4_800, 9), (3, 75, 1_200, 2.25)]


def test_a_table_of_unequal_budgets_says_so_above_itself() -> None:
    rule = result("majority", "cb", 1, dev=50, test=50)
    made = board(*search("narrow", 3), *search("wide", 12), rule)
    sentence = "Unequal search budgets, so ranks follow them too; settings tried for a score: narrow 3, wide 12."
    assert unequal_budgets(made) == sentence
    for style in ("markdown", "terminal"):
        text = render_boards([made], style)
        assert text.index(sentence) < text.index("params")
    assert sentence in render_boards([made], "latex")
    assert json.loads(render_boards([made], "json"))[0]["unequal_budgets"] == sentence


def test_equal_budgets_are_not_mentioned() -> None:
    assert unequal_budgets(board(*search("one", 4), *search("two", 3, failed=1))) == ""
    assert "Unequal" not in render_boards([board(*search("one", 4), *search("two", 4))], "markdown", costs=True)


def test_a_point_that_does_not_fit_the_backbone_is_no_trial() -> None:
    unfit = result("one", "cb", 1, dev=0, test=None, lr=9, index=3).model_copy(update={"status": "unfit"})
    made = board(*search("one", 3), unfit, *search("two", 3))
    assert {row.label: entry_budget(row.entries["cb"]).trials for row in made.rows} == {"one": 3, "two": 3}  # type: ignore[union-attr]
    assert unequal_budgets(made) == ""


def starting_from(run: Result, source: Result) -> Result:
    start = Start(title="src", label=source.cell.label, task=source.cell.task, backbone="tiny", seed=source.cell.seed,
                  identity="i", family="f")  # fmt: skip
    cell = run.cell.model_copy(update={"init_from": [start]})
    record = StartRecord(title="src", cell_id=source.cell_id, tensors="t")
    return run.model_copy(update={"cell": cell, "cell_id": cell.cell_id, "group_id": cell.group_id, "starts": [record]})


def test_what_source_cells_took_is_part_of_the_budget() -> None:
    """The source was searched over three points; its winner's second seed, which the row starts from, is a run more."""
    apart = {"suite": "sources", "task": "rte"}
    sources = []
    for run in search("src", 3):
        cell = run.cell.model_copy(update=apart)
        sources.append(run.model_copy(update={"cell": cell, "cell_id": cell.cell_id, "group_id": cell.group_id}))
    rows = [starting_from(run, sources[-1]) for run in search("transfer", 2)]
    made = next(one for one in collect_boards([*sources, *rows, *search("plain", 2)]) if one.suite == "demo")
    budgets = {row.label: entry_budget(row.entries["cb"]) for row in made.rows}
    found = budgets["transfer"]
    assert found is not None
    assert (found.trials, found.steps, found.samples, found.num_unknown) == (2, 200 + 400, 9_600, 0)
    assert "training samples spent for a score: plain 3,200, transfer 9,600" in unequal_budgets(made)
    first = starting_from(search("transfer", 1)[0], sources[0])
    (alone,) = [one for one in collect_boards([*sources[:1], first]) if one.suite == "demo"]
    assert row_budget(alone.rows[0]) == entry_budget(alone.rows[0].entries["cb"])
    (lacking,) = collect_boards(rows)
    assert "without source cells that the row starts from" in render_boards([lacking], "markdown", costs=True)


def test_as_many_trials_of_more_steps_are_no_equal_budget() -> None:
    sentence = unequal_budgets(board(*search("short", 4), *search("long", 4, steps=200)))
    assert "training samples spent for a score: short 6,400, long 12,800" in sentence


def test_a_budget_is_the_mean_over_searches_and_then_over_tasks() -> None:
    def own(seed: int, index: int, steps: int, task: str = "cb") -> Result:
        run = searching(result("one", task, seed, dev=50, test=60, lr=0.1 * (index + 1), index=index))
        return run.model_copy(update={"usage": USAGE.model_copy(update={"num_steps": steps})})

    runs = [own(1, 0, 100), own(1, 1, 100), own(2, 0, 200), own(2, 1, 400), own(1, 0, 1_000, "rte")]
    (row,) = board(*runs).rows
    entry, whole = entry_budget(row.entries["cb"]), row_budget(row)
    assert entry is not None
    assert whole is not None
    assert (entry.trials, entry.steps) == (2, (200 + 600) / 2)
    assert (whole.trials, whole.steps) == ((2 + 1) / 2, (400 + 1_000) / 2)


def test_rows_of_another_k_are_not_held_to_one_budget() -> None:
    def drawn(label: str, k: int, points: int) -> list[Result]:
        made = []
        for run in search(label, points):
            cell = run.cell.model_copy(update={"few_shot": Draw(k=k, rule="balanced", seed=run.cell.seed)})
            made.append(run.model_copy(update={"cell": cell, "cell_id": cell.cell_id, "group_id": cell.group_id}))
        return made

    assert unequal_budgets(board(*drawn("one", 4, 2), *drawn("two", 4, 2), *drawn("one", 16, 5))) == ""
    assert "one 2, two 3" in unequal_budgets(board(*drawn("one", 4, 2), *drawn("two", 4, 3)))


def test_samples_that_differ_by_a_tenth_are_equal() -> None:
    assert unequal_budgets(board(*search("one", 2, steps=100), *search("two", 2, steps=110))) == ""
    assert "samples" in unequal_budgets(board(*search("one", 2, steps=100), *search("two", 2, steps=111)))


def test_csv_and_json_hold_the_budget_always() -> None:
    made = board(*search("grid", 3))
    line = next(csv.DictReader(io.StringIO(render_boards([made], "csv"))))
    assert [line[f"searched_{name}"] for name in ("steps", "samples", "device_s")] == ["300", "4800", "9.0"]
    stored = json.loads(render_boards([made], "json"))[0]["rows"][0]["tasks"]["cb"]["budget"]
    assert stored == {"trials": 3, "steps": 300, "samples": 4_800, "device_s": 9, "num_unknown": 0}


def test_costs_show_what_the_search_took() -> None:
    text = render_boards([board(*search("grid", 3))], "markdown", costs=True)
    (head,) = [line for line in text.splitlines() if line.startswith("| method")]
    (row,) = [line for line in text.splitlines() if line.startswith("| grid")]
    cells = dict(zip((c.strip() for c in head.split("|")), (c.strip() for c in row.split("|")), strict=True))
    assert [cells[name] for name in ("steps searched", "samples searched", "device s searched")] == [
        "300",
        "4,800",
        "9",
    ]


@given(st.lists(st.integers(0, 100), min_size=2, max_size=6))
def test_the_band_holds_eight_of_ten_searches(scores: list[int]) -> None:
    low, high = best_of_draws(scores)
    for count in range(1, len(scores) + 1):
        best = [max(draw) for draw in itertools.combinations(scores, count)]
        assert low[count - 1] == np.quantile(best, 0.1, method="inverted_cdf")
        assert high[count - 1] == np.quantile(best, 0.9, method="inverted_cdf")


def test_all_rows_are_drawn_against_their_budget_in_one_figure() -> None:
    made = board(*search("narrow", 3), *search("wide", 6, failed=1), result("plain", "cb", 1, dev=1, test=1))
    curve = search_curve(next(row for row in made.rows if row.label == "wide").entries["cb"])
    assert curve is not None
    assert len(curve.best) == len(curve.low) == 7, "a failed trial was spent too"
    assert curve.best == sorted(curve.best)
    assert (curve.low[-1], curve.high[-1]) == (55, 55), "all seven were tried, so the best is known"
    figure = draw_budget(made, method_looks({row.method for row in made.rows}))
    assert figure is not None
    (axes,) = [axes for axes in figure.axes if axes.get_visible()]
    assert axes.get_legend_handles_labels()[1] == ["narrow", "wide"]
    assert len(axes.collections) == 2, "a band each"
    assert draw_budget(board(result("plain", "cb", 1, dev=1, test=1)), method_looks({"plain"})) is None


def test_each_task_has_a_panel_and_a_search_by_tpe_steps_and_no_band() -> None:
    runs = search("grid", 3)
    for index in range(3):
        run = result("guided", "rte", 1, dev=50 + index, test=60, lr=0.1 * (index + 1), index=index)
        runs.append(run.model_copy(update={"cell": run.cell.model_copy(update={"study": "tpe-0"})}))
    figure = draw_budget(board(*runs), method_looks({"grid", "guided"}))
    assert figure is not None
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    assert sorted(panels) == ["cb", "rte"]
    assert [len(panels[task].collections) for task in ("cb", "rte")] == [1, 0]
    assert [panels[task].lines[0].get_drawstyle() for task in ("cb", "rte")] == ["default", "steps-post"]


def test_a_search_of_which_every_point_failed_has_no_curve() -> None:
    runs = [result("grid", "cb", 1, dev=0, test=None, lr=0.1 * (i + 1), index=i) for i in range(3)]
    assert search_curve(board(*runs).rows[0].entries["cb"]) is None


def test_a_search_that_scored_0_throughout_is_in_the_mean_of_searches() -> None:
    def own(seed: int, dev: float, index: int) -> Result:
        return searching(result("some", "cb", seed, dev=dev, test=50, lr=0.1 * (index + 1), index=index))

    runs = [own(1, 0, 0), own(1, 0, 1), own(2, 40, 0), own(2, 60, 1)]
    curve = search_curve(board(*runs).rows[0].entries["cb"])
    assert curve is not None
    assert curve.best == [25, 30]


def test_points_that_do_not_fit_the_backbone_are_in_no_curve() -> None:
    runs = search("some", 3)
    unfit = result("some", "cb", 1, dev=0, test=None, lr=9, index=3).model_copy(update={"status": "unfit"})
    made, bare = board(*runs, unfit), board(*runs)
    curve, without = (search_curve(one.rows[0].entries["cb"]) for one in (made, bare))
    assert curve == without is not None
    (record,), (other,) = tuning_records(made), tuning_records(bare)
    assert (record.num_points, record.expected_best_dev) == (4, other.expected_best_dev)


def test_a_search_whose_points_were_scored_on_different_rows_has_no_curve() -> None:
    runs = search("some", 3)
    assert runs[0].data is not None
    runs[0] = runs[0].model_copy(update={"data": runs[0].data.model_copy(update={"fingerprint": "other"})})
    assert search_curve(board(*runs).rows[0].entries["cb"]) is None


def test_json_holds_what_answering_costs_as_the_table_does() -> None:
    form = AnsweringForm(ms_per_row=1.5, peak_bytes=9, disk_bytes=3)
    cost = AnsweringCost(num_rows=4, num_rounds=5, batch_tokens=64, bare=form, beside=form, not_merged="a prompt")
    measured = result("one", "cb", 1, dev=50, test=60).model_copy(update={"answering": cost})
    made = board(measured, result("two", "cb", 1, dev=50, test=60))
    rows = {row["label"]: row for row in json.loads(render_boards([made], "json"))[0]["rows"]}
    assert rows["one"]["answering"][0]["beside"] == {"ms_per_row": 1.5, "peak_bytes": 9, "disk_bytes": 3}
    assert "answering" not in rows["two"]
    assert "1.5 / 1.5 / –" in render_boards([made], "markdown", costs=True)
