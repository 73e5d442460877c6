"""Live curves: what a tracker is told, that a failing one harms nothing, that none is needed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from harness.errors import UserError
from harness.results.schema import Result
from harness.results.store import ResultStore
from harness.runner import tracking
from harness.runner.run_suite import run

pytestmark = pytest.mark.usefixtures("few_rows")

SUITE = """\
suite: tracked
backbones: [micro-t5]
tasks: [micro_sentiment]
seeds: [1]
recipe: {steps: 4, batch_size: 2, eval_every: 2, warmup_steps: 2, warmup_max_share: 1.0, backbone_dropout: false}
methods:
  majority:
  prompt_tuning: {prompt_length: 2, recipe: {lr: {sweep: [0.1, 0.3]}}}
"""


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with TensorBoard beside it, once for all tests here."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "suite.yaml").write_text(SUITE)
    assert run(folder / "suite.yaml", results=folder / "results", quiet=True, track="tensorboard").num_failed == 0
    return folder


def results(folder: Path) -> list[Result]:
    return [result for _, result in ResultStore(folder / "results").scan()]


def events(folder: Path, result: Result) -> EventAccumulator:
    cell = result.cell
    place = folder / "results-tracking" / "tensorboard" / cell.suite / cell.task / cell.label / cell.backbone
    found = EventAccumulator(str(place / cell.cell_id))
    found.Reload()
    return found


def scalars(found: EventAccumulator, tag: str) -> dict[int, float]:
    return {item.step: item.value for item in found.Scalars(tag)}


def test_each_cell_has_a_run_with_its_dev_scores_loss_and_test(tracked: Path) -> None:
    trained = [result for result in results(tracked) if result.cell.label == "prompt_tuning"]
    assert len(trained) == 2
    for result in trained:
        found = events(tracked, result)
        dev = {item.step: item.metrics["accuracy"] for item in result.dev_history}
        loss = {item.step: item.train_loss for item in result.dev_history}
        assert result.test is not None
        assert scalars(found, "dev/accuracy") == pytest.approx(dev)
        assert scalars(found, "train_loss") == pytest.approx(loss)
        assert scalars(found, "test/score") == pytest.approx({4: result.test.score})


def test_the_learning_rate_is_that_of_each_step(tracked: Path) -> None:
    (result,) = [result for result in results(tracked) if result.cell.grid.get("recipe.lr") == 0.3]
    assert scalars(events(tracked, result), "lr") == pytest.approx({1: 0.0, 2: 0.15, 3: 0.3, 4: 0.15})


def test_settings_are_logged_as_plain_values(tracked: Path) -> None:
    for result in results(tracked):
        settings = tracking.settings_of(result.cell)
        assert settings["task"] == "micro_sentiment"
        assert all(isinstance(value, bool | int | float | str) for value in settings.values())
    assert {"recipe.lr", "hp.prompt_length"} <= set(settings)
    files = list((tracked / "results-tracking").rglob("hparams.yml"))
    assert len(files) == 3


def test_tracking_changes_no_result_and_writes_nothing_beside_them(tracked: Path, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    run(tmp_path / "suite.yaml", results=tmp_path / "results", quiet=True)
    for one, two in zip(results(tracked), results(tmp_path), strict=True):
        assert (one.cell_id, one.dev_history, one.test, one.files) == (
            two.cell_id,
            two.dev_history,
            two.test,
            two.files,
        )
    names = [{path.relative_to(root).as_posix() for path in root.rglob("*")}
             for root in (tracked / "results", tmp_path / "results")]  # fmt: skip
    assert names[0] == names[1]
    assert not (tmp_path / "results-tracking").exists()


def test_a_tracker_that_fails_is_left_out_and_no_cell_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    (tmp_path / "results-tracking").write_text("a file where the tracker wants a folder")
    summary = run(tmp_path / "suite.yaml", results=tmp_path / "results", methods=["majority"], track="tensorboard")
    assert (summary.num_trained, summary.num_failed) == (1, 0)
    assert capfd.readouterr().err.count("tensorboard failed and is left out") == 1


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_missing_package_is_named_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    with pytest.raises(UserError, match="needs the package wandb") as caught:
        run(tmp_path / "suite.yaml", results=tmp_path / "results", track="wandb")
    assert "pip install" in str(caught.value)
    assert not (tmp_path / "results").exists()
