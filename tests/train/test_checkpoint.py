"""A bundle that was stopped and continued ends with the same bits as one that was not."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_fused import SPECS, make_cell, trainer

from harness.backbone.seal import BackboneChanged
from harness.results.schema import DevScore
from harness.runner.claimed_bundles import interval
from harness.suite.cell import Cell, Key
from harness.train import checkpoint
from harness.train.cell_state import Outcome
from harness.train.checkpoint import CheckpointPlan, CheckpointWriter, read_header
from harness.train.loop import BundleTrainer
from harness.train.race import Race


class Killed(BaseException):
    """Ends a run as a signal would, wherever it is."""


def bundle() -> list[Cell]:
    """Cells of different lengths; one depends on the text, one leaves early."""
    short, long = make_cell(*SPECS[0], steps=11), [make_cell(*spec, steps=14) for spec in SPECS[1:3]]
    cells = [short, *long, make_cell("by_text", {}, 0.1, 5, 4, steps=14)]
    changes = {"eval_every": 5, "forgetting_text": "shipped"}
    return [c.model_copy(update={"recipe": c.recipe.model_copy(update=changes)}) for c in cells]


def made(cells: list[Cell]) -> BundleTrainer:
    torch.manual_seed(7)
    return trainer(cells, max_tokens=150)


def finish(made: BundleTrainer, plan: CheckpointPlan | None = None, kill_at: int | None = None) -> dict[str, Outcome]:
    ended: dict[str, Outcome] = {}

    def on_step(step: int, steps: int, scores: dict[Key, DevScore]) -> None:
        if step == kill_at:
            raise Killed

    made.run(on_step, lambda outcome: ended.update({outcome.cell.cell_id: outcome}), CheckpointWriter(plan))
    return ended


def bits(outcome: Outcome) -> tuple[object, ...]:
    tensors = {name: tensor.numpy().tobytes() for name, tensor in outcome.method.state_dict().items()}
    counts = outcome.num_steps, dataclasses.asdict(outcome.work), outcome.selected_step
    return tensors, outcome.history, outcome.answers, outcome.scores, outcome.forgetting, counts


@pytest.fixture(scope="module")
def untouched() -> dict[str, Outcome]:
    return finish(made(bundle()))


@pytest.mark.parametrize("kill_at", [2, 6, 13])
def test_a_continued_bundle_ends_with_the_same_bits(
    kill_at: int, untouched: dict[str, Outcome], tmp_path: Path
) -> None:
    plan = CheckpointPlan(tmp_path / "x" / "state.safetensors", "key", every_steps=2)
    ended: dict[str, Outcome] = {}
    first = made(bundle())
    with pytest.raises(Killed):
        ended |= finish(first, plan, kill_at)
    second = made(bundle())
    torch.manual_seed(99)
    assert second.restore(plan) == (kill_at > 2)
    assert second.step == {2: 0, 6: 4, 13: 11}[kill_at]
    ours = finish(second, plan)
    for name, outcome in ours.items():
        assert bits(outcome) == bits(untouched[name]), outcome.cell.method
    handed_over = {state.outcome.cell.cell_id for state in first.states if state.outcome.scores.get("test")}
    assert ours.keys() | handed_over == untouched.keys()


def test_no_checkpoint_holds_what_a_changed_backbone_has_computed(tmp_path: Path) -> None:
    """A run that goes on from it loads the backbone anew, so nothing could tell any more."""
    plan = CheckpointPlan(tmp_path / "state.safetensors", "key", every_steps=2)
    first = made(bundle())

    def on_step(step: int, steps: int, scores: dict[Key, DevScore]) -> None:
        first.backbone.embedding.weight.data[0] += 1  # raises no version; the next evaluation is after step 5

    with pytest.raises(BackboneChanged):
        first.run(on_step, lambda outcome: None, CheckpointWriter(plan))
    assert not plan.path.exists()


def test_a_stop_within_an_evaluation_loses_nothing(
    untouched: dict[str, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness import stop

    plan = CheckpointPlan(tmp_path / "state.safetensors", "key")
    first = made(bundle())
    original = first._written_answers

    def stopped(split: str, cells: list[int]) -> dict[int, list[str]]:
        original(split, cells)
        raise stop.Stopped(15)

    monkeypatch.setattr(first, "_written_answers", stopped)
    with pytest.raises(stop.Stopped):
        finish(first, plan)
    header = read_header(plan.path)
    assert header is not None
    assert header.step == 5
    assert all(not cell["history"] for cell in header.cells)
    second = made(bundle())
    assert second.restore(plan)
    for name, outcome in finish(second).items():
        assert bits(outcome) == bits(untouched[name])


def test_cells_that_are_finished_meanwhile_may_be_missing(untouched: dict[str, Outcome], tmp_path: Path) -> None:
    plan = CheckpointPlan(tmp_path / "state.safetensors", "key", every_steps=4)
    with pytest.raises(Killed):
        finish(made(bundle()), plan, kill_at=6)
    rest = made(bundle()[1:3])
    assert rest.restore(plan)
    assert rest.step == 4
    for name, outcome in finish(rest).items():
        assert [item.selection for item in outcome.history] == [item.selection for item in untouched[name].history]
        assert outcome.answers == untouched[name].answers


def test_a_race_goes_on_with_who_was_left(tmp_path: Path) -> None:
    def raced(keys: list[Key] | None = None) -> BundleTrainer:
        cells = [make_cell("prompt_tuning", {"prompt_length": 4}, lr, 1, 4, steps=16) for lr in (1e-4, 0.3, 0.1, 1.0)]
        cells = [c.model_copy(update={"recipe": c.recipe.model_copy(update={"eval_every": 2})}) for c in cells]
        racing = made([cell for cell in cells if keys is None or cell.key in keys])
        racing.races = [Race("prompt_tuning", 1, 4, begins_at_once=True)]
        return racing

    expected = finish(raced())
    plan = CheckpointPlan(tmp_path / "state.safetensors", "key", every_steps=1)
    with pytest.raises(Killed):
        finish(raced(), plan, kill_at=6)
    header = read_header(plan.path)
    assert header is not None
    second = raced(header.keys)
    assert second.restore(plan)
    assert len(second.active) == 2
    for name, outcome in finish(second).items():
        assert bits(outcome) == bits(expected[name])
        assert outcome.raced_out_at == expected[name].raced_out_at


def test_every_stream_of_random_numbers_is_kept(tmp_path: Path) -> None:
    plan = CheckpointPlan(tmp_path / "state.safetensors", "key")
    training = made(bundle()).training_state()
    checkpoint.write_checkpoint(plan, training)
    expected = torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]
    assert checkpoint.restore_checkpoint(plan, training) is not None
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]) == expected


@pytest.mark.parametrize("damage", ["other key", "cut short", "empty", "newer", "other cells"])
def test_a_checkpoint_of_something_else_is_not_there(damage: str, tmp_path: Path) -> None:
    plan = CheckpointPlan(tmp_path / "state.safetensors", "key")
    checkpoint.write_checkpoint(plan, made(bundle()[:2]).training_state())
    cells = bundle()[:2]
    if damage == "other key":
        plan = dataclasses.replace(plan, key="another")
    elif damage == "other cells":
        cells = bundle()[1:3]
    elif damage == "newer":
        now, later = (f'\\"format\\": {number}'.encode() for number in (checkpoint.FORMAT, checkpoint.FORMAT + 1))
        assert now in plan.path.read_bytes()
        plan.path.write_bytes(plan.path.read_bytes().replace(now, later))
    else:
        plan.path.write_bytes(b"" if damage == "empty" else plan.path.read_bytes()[:-50])
    fresh = made(cells)
    assert not fresh.restore(plan)
    assert fresh.step == 0


def test_a_checkpoint_that_cannot_be_written_is_a_warning(untouched: dict[str, Outcome], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    keeper = CheckpointWriter(
        CheckpointPlan(tmp_path / "file" / "state.safetensors", "key", every_steps=1), said.append
    )
    ended: list[Outcome] = []
    made(bundle()).run(lambda *_: None, ended.append, keeper)
    assert [bits(o) for o in ended] == [bits(untouched[o.cell.cell_id]) for o in ended]
    assert len(said) == 1
    assert "no checkpoint could be written" in said[0]


def test_a_checkpoint_holds_plain_tensors_and_json(tmp_path: Path) -> None:
    plan = CheckpointPlan(tmp_path / "state.safetensors", "key")
    checkpoint.write_checkpoint(plan, made(bundle()).training_state())
    assert [path.name for path in tmp_path.iterdir()] == [plan.path.name]
    plain = tmp_path / "plain"
    plain.touch()
    assert plan.path.stat().st_mode == plain.stat().st_mode, "several users may share a folder of results"
    assert all(isinstance(tensor, torch.Tensor) for tensor in load_file(plan.path).values())
    header = read_header(plan.path)
    assert header is not None
    json.dumps(dataclasses.asdict(header))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", (90.0, None)), ("5m", (300.0, None)), ("2h", (7200.0, None)), ("500 steps", (None, 500)),
     ("500steps", (None, 500)), ("off", (None, None))],
)  # fmt: skip
def test_intervals_are_times_or_steps(text: str, expected: tuple[float | None, int | None]) -> None:
    assert interval(text) == expected
