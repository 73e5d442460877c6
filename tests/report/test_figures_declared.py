"""Declared figures: scores against swept settings, relative times, gate weights from stored tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layout_runs import SIZES, made
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from safetensors.numpy import save
from test_figures import assert_labels_keep_apart
from test_input_methods import make
from typer.testing import CliRunner
from typing_help import present

from harness.cli.commands import app
from harness.errors import UserError
from harness.report.boards import collect_boards
from harness.report.declared.find_entries import EntryIndex
from harness.report.figures.base import STYLE
from harness.report.figures.categories import draw_categories
from harness.report.figures.colours import method_looks
from harness.report.figures.cost import COSTS, draw_cost
from harness.report.figures.gates import draw_gates, gate_weights, read_tensors
from harness.report.figures.sweep import draw_sweep
from harness.results.schema import Result
from harness.results.store import ResultStore, tensors_path
from harness.suite.report_block import FigureLayout, Gates
from harness.suite.report_layout_files import find_figure

LENGTHS = (20, 60, 100)
GATES = Gates(prompt="short", weight="gates.{i}.weight", bias="gates.{i}.bias")


def lengths(suite: str = "ablation-length", tasks: tuple[str, ...] = ("mrpc", "stsb")) -> list[Result]:
    """Two seeds of a method at three prompt lengths, each a row of its own."""
    return [
        made("accept", task, 80 + length / 20 + 2 * (seed - 1), suite=suite, label=f"accept_{length}", seed=seed,
             hp={"prompt_length": length}, seconds=length)
        for task in tasks for length in LENGTHS for seed in (1, 2)
    ]  # fmt: skip


def drawn(layout: FigureLayout, results: list[Result], **where: Any) -> Figure | None:
    keys = {layout.x.setting} if layout.x else set()
    return draw_sweep(layout, EntryIndex(results, keys), where, method_looks({r.cell.method for r in results}))


def shown(figure: Figure | None) -> list[Axes]:
    assert figure is not None
    return [axes for axes in figure.axes if axes.get_visible()]


def lines(axes: Axes) -> dict[str, list[float]]:
    """Label -> x, y, x, y, ... of each line."""
    handles, labels = axes.get_legend_handles_labels()
    found = {}
    for handle, label in zip(handles, labels, strict=True):
        line = handle[0] if isinstance(handle, tuple) else handle
        assert isinstance(line, Line2D)
        found[str(label)] = np.asarray(line.get_xydata()).ravel().tolist()
    return found


def test_scores_stand_over_the_swept_setting_and_times_below_relative_to_its_largest() -> None:
    timed = [r for r in lengths("length-time") if r.cell.seed == 1]
    mrpc, stsb, mrpc_time, stsb_time = shown(drawn(find_figure("accept-figure-4"), [*lengths(), *timed]))
    assert (mrpc.get_title(), stsb.get_title()) == ("MRPC", "STS-B")
    assert lines(mrpc)["ACCEPT"] == pytest.approx([20, 82, 60, 84, 100, 86])
    assert lines(mrpc_time)["ACCEPT"] == pytest.approx([20, 0.2, 60, 0.6, 100, 1.0]) == lines(stsb_time)["ACCEPT"]
    assert "ACCEPT at 100" in mrpc_time.get_ylabel()


def test_a_mean_of_tasks_has_a_point_only_where_each_task_has_a_score() -> None:
    layout = find_figure("accept-figure-4").model_copy(update={"panels": [PANEL]})
    results = [r for r in lengths() if (r.cell.task, r.cell.label) != ("stsb", "accept_60")]
    (axes,) = shown(drawn(layout, results))
    assert lines(axes)["ACCEPT"] == pytest.approx([20, 82, 100, 86])
    assert axes.get_ylabel() == "mean of 2 test scores"


PANEL = FigureLayout.model_validate(
    {"title": "", "x": {"setting": "size", "title": ""}, "panels": [{"title": "both", "tasks": ["mrpc", "stsb"]}]}
).panels[0]


def test_a_setting_swept_in_a_grid_is_an_axis_too() -> None:
    results = [
        made("ept", "cb", 70 + n, suite="mine", index=n, grid={"hp.spaces": n}, hp={"spaces": n}) for n in (2, 3)
    ]
    (axes,) = shown(drawn(find_figure("spaces"), results))
    assert lines(axes) == {"ept": [2, 72, 3, 73]}


def test_rows_of_one_method_that_share_a_place_become_lines_of_their_own() -> None:
    results = [
        made("ept", "cb", 70 + n + i, label=label, hp={"spaces": n, "fusion": label})
        for i, label in enumerate(("a", "b")) for n in (2, 3)
    ]  # fmt: skip
    (axes,) = shown(drawn(find_figure("spaces"), results))
    assert lines(axes) == {"a": [2, 72, 3, 73], "b": [2, 73, 3, 74]}
    styles = {line.get_linestyle() for line in axes.lines}
    assert len(styles) > 1, "lines of one method differ in their dashes"


def test_places_where_several_results_fit_are_left_out_and_named() -> None:
    results = [*lengths(), made("accept", "mrpc", 10, suite="ablation-length", hp={"prompt_length": 60, "rank": 3})]
    figure = drawn(find_figure("accept-figure-4"), results)
    mrpc, *_ = shown(figure)
    assert lines(mrpc)["ACCEPT"] == pytest.approx([20, 82, 100, 86])
    assert figure is not None
    assert "left out where several results fit: ACCEPT" in figure.get_suptitle()


def test_a_figure_needs_two_points_on_a_line() -> None:
    assert drawn(find_figure("spaces"), [made("ept", "cb", 70, hp={"spaces": 2})]) is None
    assert drawn(find_figure("accept-figure-4"), []) is None


def test_scores_by_model_size_have_a_panel_for_each_task() -> None:
    results = [made("accept", task, 70 + i, suite="scaling", backbone=name)
               for task in ("boolq", "multirc") for i, name in enumerate(SIZES)]  # fmt: skip
    boolq, multirc = shown(drawn(find_figure("ept-figure-6"), results))
    assert lines(boolq)["accept"] == [value for i, size in enumerate(SIZES.values()) for value in (size, 70 + i)]
    assert [text.get_text() for text in multirc.get_xticklabels()] == ["60.5M", "223M", "738M"]


def test_categories_stand_side_by_side_and_each_part_has_a_panel() -> None:
    results = [made(method, task, 80 + i + 10 * j + 2 * (seed - 1), suite=suite, backbone=backbone, seed=seed)
               for i, method in enumerate(("ept", "prompt_tuning"))
               for j, (suite, backbone, task) in enumerate([("t5-11b", "t5-11b", "rte"), ("t5-11b", "t5-11b", "cb"),
                                                            ("llama2-7b", "llama-2-7b", "sst2")])
               for seed in (1, 2)]  # fmt: skip
    layout = find_figure("ept-figure-3")
    t5, llama = shown(draw_categories(layout, EntryIndex(results), {}, method_looks(["ept", "prompt_tuning"])))
    assert (t5.get_title(), llama.get_title()) == ("T5-11B", "Llama-2-7B")
    assert [text.get_text() for text in t5.get_xticklabels()] == ["cb", "rte"]
    ept, prompt_tuning = lines(t5)["ept"], lines(t5)["prompt_tuning"]
    assert {round(x): y for x, y in zip(ept[::2], ept[1::2], strict=True)} == pytest.approx({0: 91, 1: 81})
    assert {round(x): y for x, y in zip(prompt_tuning[::2], prompt_tuning[1::2], strict=True)} == {0: 92, 1: 82}
    assert set(ept[::2]).isdisjoint(prompt_tuning[::2]), "points of two methods do not cover each other"
    assert lines(llama)["ept"][1::2] == [101]
    assert draw_categories(layout, EntryIndex([made("ept", "rte", 90)]), {}, method_looks(["ept"])) is None


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.name)
def test_scores_stand_against_each_cost_and_labels_keep_apart(cost: Any) -> None:
    results = [made(f"m{i}", "cb", 80 + i % 4 / 3, num_trained=1_000 * (1 + i % 5), seconds=10 + i % 6,
                    peak=(100 + 10 * (i % 3)) * 2**20) for i in range(14)]  # fmt: skip
    (board,) = collect_boards(results)
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = draw_cost(board, cost, None, method_looks(row.label for row in board.rows))
        assert {text.get_text() for text in figure.axes[0].texts} == {row.name for row in board.rows}
        assert_labels_keep_apart(figure)
    costs = {row.label: cost.of(row) for row in board.rows}
    assert costs["m7"] == {"parameters": 3_000, "time": 11, "memory": 110}[cost.name]


def tensors(spaces: int = 3, length: int = 4, width: int = 5, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    made_up = {"short": rng.normal(size=(length, width))}
    for i in range(spaces):
        made_up |= {f"gates.{i}.weight": rng.normal(size=(1, width)), f"gates.{i}.bias": rng.normal(size=1)}
    return {name: values.astype(np.float32) for name, values in made_up.items()}


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 99))
def test_gate_weights_are_shares(spaces: int, length: int, seed: int) -> None:
    stored = {name: values.astype(np.float64) for name, values in tensors(spaces, length, seed=seed).items()}
    weights = gate_weights(stored, GATES)
    assert weights is not None
    assert weights.shape == (spaces, length)
    np.testing.assert_allclose(weights.sum(0), 1)


def test_gate_weights_equal_those_of_the_method_under_the_names_that_it_stores() -> None:
    method: Any = make("ept", prompt_length=4, budget_length=6, source_length=8, spaces=3, bottleneck=2)
    layout = find_figure("ept-figure-8")
    assert layout.gates is not None
    stored = {name: tensor.detach().numpy() for name, tensor in method.state_dict().items()}
    weights = gate_weights(stored, layout.gates)
    assert weights is not None
    np.testing.assert_allclose(weights, method.gate_weights().detach().numpy()[..., 0])


def test_tensors_without_gates_have_no_weights() -> None:
    assert gate_weights({}, GATES) is None
    assert gate_weights({"short": np.zeros((2, 3))}, GATES) is None


@pytest.fixture
def gated(tmp_path: Path) -> ResultStore:
    store = ResultStore(tmp_path / "results")
    for i, task in enumerate(("cb", "rte", "cola")):
        store.write(made("ept", task, 70, suite="gates"), [], save(tensors(seed=i)))
    return store


def test_gates_are_drawn_for_each_task(gated: ResultStore) -> None:
    scanned = list(gated.scan())
    files = {result.key: path for path, result in scanned}
    pool = EntryIndex([result for _, result in scanned])
    (figure,) = draw_gates(find_figure("ept-figure-8"), pool, {}, files).values()
    FigureCanvasAgg(figure).draw()
    panels = [axes for axes in figure.axes if axes.images and axes.get_visible()]
    assert [axes.get_title() for axes in panels[:3]] == ["cb, seed 1", "cola, seed 1", "rte, seed 1"]
    stored = {name: values.astype(np.float64) for name, values in tensors(seed=0).items()}
    np.testing.assert_allclose(np.asarray(panels[0].images[0].get_array()), present(gate_weights(stored, GATES)))


def test_tensors_that_were_changed_are_not_drawn(gated: ResultStore) -> None:
    path, result = next(iter(gated.scan()))
    assert set(read_tensors(tensors_path(path), result.files.tensors)) >= {"short", "gates.0.bias"}
    tensors_path(path).write_bytes(save(tensors(seed=9)))
    with pytest.raises(UserError, match="SHA-256"):
        read_tensors(tensors_path(path), result.files.tensors)
    tensors_path(path).unlink()
    with pytest.raises(UserError, match="cannot be read as tensors"):
        read_tensors(tensors_path(path), result.files.tensors)


def test_the_command_draws_the_declared_figures_that_have_results(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    for result in lengths(tasks=("mrpc",)):
        store.write(result, [], None)
    done = CliRunner().invoke(app, ["figures", str(store.root), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    names = {path.stem for path in (tmp_path / "out").iterdir()}
    assert {"accept-figure-4-t5-base", "prompt-length-ablation-length-t5-base"} <= names
    assert not any(name.startswith(("ept-figure", "k-shot", "spaces")) for name in names)
