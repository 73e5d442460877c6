"""Figures of boards: what they show, that labels keep apart, that a method looks the same everywhere."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from paths import ROOT
from test_report import result
from typer.testing import CliRunner

from harness.backbone.record import BackboneRecord
from harness.cli.commands import app
from harness.report.boards import Board, collect_boards
from harness.report.figures.base import STYLE
from harness.report.figures.colours import Look, method_looks
from harness.report.figures.cost import COSTS, draw_cost, pareto_front
from harness.report.figures.labels import place_labels
from harness.report.figures.write import draw_curves, draw_ranks, draw_sizes, thinned
from harness.report.site.plots import scatter
from harness.report.statistics.intervals import rank_methods
from harness.results.schema import DevScore, ParamCounts, Result, Usage
from harness.suite.blocks import Draw

METHODS = sorted(path.stem for path in (ROOT / "methods").glob("*.py"))
SIZES = {"small": 60_000_000, "base": 220_000_000, "large": 740_000_000}


def run(label: str, test: float, trained: int, backbone: str = "base", seed: int = 1) -> Result:
    """A finished run with a dev curve and a model size."""
    made = result(label, "cb", seed, 50, test, backbone=backbone)
    curve = [DevScore(step=s, selection=test * s / 30, metrics={}, train_loss=30 / s) for s in (10, 20, 30)]
    return made.model_copy(
        update={
            "params": ParamCounts(num_trained=trained, num_kept=trained),
            "backbone": BackboneRecord(source="x", revision="", fingerprint="w", num_params=SIZES[backbone]),
            "dev_history": curve,
        }
    )


def crowded() -> Board:
    """Every shipped method, most of them close together, two without parameters."""
    runs = [run(name, 90 + i % 5 / 2, 1_000 + 400 * (i % 7)) for i, name in enumerate(METHODS[:-2])]
    runs += [run(METHODS[-2], 55, 220_000_000), run(METHODS[-1], 40, 0), run("zeros", 41, 0)]
    return collect_boards(runs)[0]


def styles(board: Board) -> dict[str, Look]:
    return dict(method_looks(row.label for row in board.rows))


def assert_labels_keep_apart(figure: Figure) -> None:
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    for (one, first), (other, second) in itertools.combinations(boxes.items(), 2):
        assert not first.overlaps(second), f"{one} covers {other}"
    outer = axes.get_window_extent()
    for name, box in boxes.items():
        assert outer.x0 - 1 <= box.x0 <= box.x1 <= outer.x1 + 1, f"{name} sticks out"
        assert outer.y0 - 1 <= box.y0 <= box.y1 <= outer.y1 + 1, f"{name} sticks out"


def test_every_method_is_labelled_and_no_label_covers_another() -> None:
    board = crowded()
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = draw_cost(board, COSTS[0], None, styles(board))
        assert {text.get_text() for text in figure.axes[0].texts} == {row.name for row in board.rows}
        assert_labels_keep_apart(figure)


def test_labels_keep_apart_at_the_resolution_of_a_vector_file() -> None:
    board = crowded()
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = draw_cost(board, COSTS[0], None, styles(board))
        figure.set_dpi(72)
        assert_labels_keep_apart(figure)


@given(st.lists(st.tuples(st.integers(1, 1_000), st.integers(0, 100)), max_size=20))
def test_the_pareto_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)
    for point in points:
        beaten = any(cost <= point[0] and score >= point[1] and (cost, score) != point for cost, score in points)
        assert (point in front) == (not beaten)


def lines(axes: Axes) -> dict[str, list[float]]:
    """Label -> x, y, x, y, ... of each line."""
    return {str(line.get_label()): np.asarray(line.get_xydata()).ravel().tolist() for line in axes.lines}


def test_curves_are_means_over_seeds() -> None:
    (board,) = collect_boards([run("lora", 60, 10), run("lora", 90, 10, seed=2)])
    loss, dev = draw_curves(board, "cb", styles(board)).axes
    assert lines(dev)["lora"] == pytest.approx([10, 25, 20, 50, 30, 75])
    assert lines(loss)["lora"] == pytest.approx([10, 3, 20, 1.5, 30, 1])
    assert dev.get_ylabel() == "dev Acc."


def test_a_curve_has_a_tick_at_each_evaluation() -> None:
    (board,) = collect_boards([run("lora", 60, 10)])
    for axes in draw_curves(board, "cb", styles(board)).axes:
        assert axes.get_xticks().tolist() == [10, 20, 30]


@given(st.sets(st.integers(1, 100_000), min_size=1, max_size=60))
def test_ticks_of_many_evaluations_are_some_of_these_and_apart(steps: set[int]) -> None:
    ticks = thinned(sorted(steps))
    assert 1 <= len(ticks) <= 8
    assert set(ticks) <= steps
    span = max(steps) - min(steps)
    assert all(later - earlier > span / 20 for earlier, later in itertools.pairwise(ticks))


def test_ticks_of_regular_evaluations_are_round() -> None:
    assert thinned(range(100, 30_001, 100)) == [5_000, 10_000, 15_000, 20_000, 25_000, 30_000]


def few_shot(name: str, k: int, test: float, trained: int = 1_000, seed: int = 1) -> Result:
    """A finished run on k rows."""
    made = run(name, test, trained, seed=seed)
    cell = made.cell.model_copy(update={"few_shot": Draw(k=k, rule="balanced", seed=seed)})
    return made.model_copy(update={"cell": cell, "cell_id": cell.cell_id, "group_id": cell.group_id})


def test_rows_that_differ_only_in_k_have_lines_of_their_own() -> None:
    board = collect_boards([few_shot(name, k, 60 + k) for name in ("lora", "ept") for k in range(1, 17)])[0]
    for axes in draw_curves(board, "cb", styles(board)).axes:
        drawn = {(d.get_color(), d.get_marker(), str(vars(d)["_unscaled_dash_pattern"]), d.get_markerfacecolor())
                 for d in axes.lines}  # fmt: skip
        assert len(drawn) == len(axes.lines) == 32
    sized = [few_shot("lora", k, 60 + k) for k in (4, 16)] + [
        item.model_copy(update={"cell": item.cell.model_copy(update={"backbone": "large"}),
                                "backbone": BackboneRecord(source="x", revision="", fingerprint="w", num_params=740)})
        for item in (few_shot("lora", k, 70 + k) for k in (4, 16))
    ]  # fmt: skip
    (axes,) = draw_sizes(collect_boards(sized), method_looks(["lora"])).axes
    assert len({line.get_linestyle() for line in axes.lines}) == len(axes.lines) == 2
    assert [line.get_label() for line in axes.lines] == ["lora (k=4)", "lora (k=16)"]


def test_each_k_has_a_pareto_front_of_its_own() -> None:
    runs = [few_shot("lora", 4, 50, 9), few_shot("ept", 4, 55, 99)]
    board = collect_boards([*runs, few_shot("lora", 16, 70, 9), few_shot("ept", 16, 75, 99)])[0]
    (axes,) = draw_cost(board, COSTS[0], None, styles(board)).axes
    fronts = {k: v for k, v in lines(axes).items() if k.startswith("Pareto")}
    assert {name: points[1::2] for name, points in fronts.items()} == {
        "Pareto front of k=4": [50, 55], "Pareto front of k=16": [70, 75],
    }  # fmt: skip


def test_ranks_stand_in_order_beside_the_band_of_the_best() -> None:
    ranking = rank_methods({"lora": [90, 80, 85], "ept": [60, 70, 65], "dept": [50, 40, 30]})
    assert ranking is not None
    (board,) = collect_boards([run(name, 60, 10) for name in ranking.ranks])
    (axes,) = draw_ranks(board, ranking, styles(board)).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["lora", "ept", "dept"]
    assert [np.asarray(line.get_xdata())[0] for line in axes.lines] == [1, 2, 3]
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((1, 1 + ranking.critical_difference))


def test_scores_by_model_size_are_joined_from_small_to_large() -> None:
    boards = collect_boards(
        [run("lora", score, 10, backbone=name) for name, score in (("large", 80), ("small", 60), ("base", 70))]
    )
    (axes,) = draw_sizes(boards, method_looks(["lora"])).axes
    assert lines(axes)["lora"] == [60e6, 60, 220e6, 70, 740e6, 80]


def test_a_method_looks_the_same_whoever_stands_beside_it_and_no_two_look_alike() -> None:
    everyone = method_looks([*METHODS, "mine", "yours"])
    assert method_looks(["mine"])["lora"] == everyone["lora"] == method_looks([])["lora"]
    assert len(set(everyone.values())) == len(everyone)


def test_a_figure_without_room_for_its_labels_grows() -> None:
    figure = Figure(figsize=(1.5, 1.5))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    made = place_labels(axes, [(0.5, 0.5)] * 30, [f"label {i}" for i in range(30)], ["#000000"] * 30)
    assert len(made) == 30
    assert_labels_keep_apart(figure)


def test_labels_of_equal_points_keep_apart() -> None:
    board = collect_boards([run(name, 80, 76_800) for name in METHODS])[0]
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = draw_cost(board, COSTS[0], None, styles(board))
        assert len(figure.axes[0].texts) == len(METHODS)
        assert_labels_keep_apart(figure)


def test_a_legend_of_many_rows_stays_on_the_figure() -> None:
    board = collect_boards([few_shot(name, k, 60 + k) for name in METHODS for k in (4, 16, 32)])[0]
    figure = draw_curves(board, "cb", styles(board))
    figure.canvas.draw()
    box, outer = figure.legends[0].get_window_extent(), figure.bbox
    assert outer.y0 <= box.y0 <= box.y1 <= outer.y1
    assert box.x1 <= outer.x1


def test_the_command_draws_each_figure_in_each_format(small_results: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        done = CliRunner().invoke(app, ["figures", str(small_results), "--out", str(tmp_path / folder)])
        assert done.exit_code == 0, done.output
    costs = {f"{cost.name}-small-micro-t5" for cost in COSTS}
    names = {*costs, "curves-small-micro-t5-micro_sentiment", "budget-small-micro-t5"}
    assert {path.stem for path in (tmp_path / "one").iterdir()} == names
    assert {path.suffix for path in (tmp_path / "one").iterdir()} == {".svg", ".pdf", ".png"}
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), "the same results make the same file"
    assert "prompt_tuning" in (tmp_path / "one" / "parameters-small-micro-t5.svg").read_text()


def test_a_folder_that_cannot_be_written_is_a_mistake(small_results: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["figures", str(small_results), "--out", str(tmp_path / "file")])
    assert "--out" in str(done.exception)


def test_figure_and_page_say_the_same_of_the_time_of_training() -> None:
    usage = Usage(
        num_steps=10, num_samples=1, num_tokens=1, train_s=0, eval_s=0, total_s=0, peak_memory_bytes=1, bundle_cells=1
    )
    runs = [result("lora", task, seed, 50, 60) for task, seed in (("cb", 1), ("cb", 2), ("rte", 1))]
    seconds = (10.0, 20.0, 60.0)
    timed = [
        run.model_copy(update={"usage": usage.model_copy(update={"train_s": s})})
        for run, s in zip(runs, seconds, strict=True)
    ]
    (board,) = collect_boards(timed)
    (axis,) = [
        item for item in scatter(board, None, method_looks(["lora"]))["x"] if item["label"].startswith("seconds")
    ]
    assert axis["values"] == [37.5] == [COSTS[1].of(board.rows[0])]
