"""Runs that are stopped, that share a folder, whose cells fail, or whose results have become stale."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from kill_harness import lay_out, outcomes, suite_text
from typer.testing import CliRunner
from typing_help import present

import harness
from harness import provenance, stop
from harness.cli.commands import app
from harness.cli.listings import describe_plan
from harness.data import splits
from harness.data.examples import TaskData
from harness.data.splits import load_task
from harness.data.tasks import Task
from harness.method.method import Method
from harness.results.schema import DevScore, Result
from harness.results.stale import changed_since
from harness.results.store import NotStored, ResultStore
from harness.runner import run_suite as runner
from harness.runner.engines import LocalEngine
from harness.runner.plan import make_plan
from harness.runner.progress import Progress
from harness.suite.cell import Key
from harness.suite.make_groups import Overrides
from harness.train import bundle as bundle_module
from harness.train.bundle import Bundle
from harness.train.cell_result import OnCellResult
from harness.train.method_fit import build_to_train

ONE = suite_text(steps=4, every=2)
METHOD = '''\
"""Shift: one vector added to every token embedding."""
import torch
from torch import nn
from harness.method import Method, Paper


class Shift(Method):
    name = "shift"
    paper = Paper("nobody-2026-shift", "https://example.org/shift")

    def __init__(self, hp, backbone):
        super().__init__(hp, backbone)
        self.vector = nn.Parameter(torch.zeros(1, backbone.hidden, dtype=backbone.embedding.weight.dtype))
        self.calls = 0

    def prompt(self):
        BODY
        return self.vector

    def on_step(self, step, num_steps):
        ON_STEP
'''


def run(folder: Path, **options: Any) -> runner.RunSummary:
    return harness.run(folder / "suite.yaml", results=folder / "results", **{"quiet": True, **options})


def results_of(folder: Path) -> list[Result]:
    return [result for _, result in ResultStore(folder / "results").scan()]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untouched") / "run"
    lay_out(folder, ONE)
    run(folder, methods=["majority", "dept"])
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lay_out(tmp_path / "run", ONE)
    return tmp_path / "run"


class SignallingEngine(LocalEngine):
    """Sends itself a signal after a step."""

    def __init__(self, at: int, *signals: int) -> None:
        self.at, self.signals = at, signals
        self.seen: list[int] = []

    def run(self, bundles: Iterable[Bundle], progress: Progress, on_product: OnCellResult) -> None:
        original = progress.step

        def step(number: int, steps: int, scores: dict[Key, DevScore]) -> None:
            original(number, steps, scores)
            self.seen.append(number)
            if number == self.at:
                for number in self.signals:
                    signal.raise_signal(number)

        with patch.object(progress, "step", step):
            super().run(bundles, progress, on_product)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_behind_the_step_and_the_same_command_continues(
    number: int, code: int, folder: Path, untouched: Path
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(stop.Stopped) as stopped:
        run(folder, methods=["majority", "dept"], engine=SignallingEngine(3, number))
    assert stopped.value.exit_code == code
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(list((folder / "results" / ".checkpoints").rglob("*.safetensors"))) == 1
    assert not (folder / "results" / ".claims").exists()
    engine = SignallingEngine(-1)
    run(folder, methods=["majority", "dept"], engine=engine)
    assert engine.seen[0] == 4, "three steps were done already"
    assert outcomes(folder, exact=True) == outcomes(untouched, exact=True)
    assert not (folder / "results" / ".checkpoints").exists() or not any(
        (folder / "results" / ".checkpoints").rglob("*.*")
    )


def test_other_code_of_the_program_starts_anew_and_another_commit_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "package"
    (package / "train").mkdir(parents=True)
    (package / "train" / "loop.py").write_text("one\n")
    monkeypatch.setattr(provenance, "PACKAGE", package)

    def steps(stop_at: int = -1) -> list[int]:
        provenance.code_digest.cache_clear()
        engine = SignallingEngine(stop_at, signal.SIGINT)
        with contextlib.suppress(stop.Stopped):
            run(folder, methods=["dept"], engine=engine, quiet=False)
        return engine.seen

    try:
        assert steps(1) == [1]
        monkeypatch.setattr(provenance, "_git", lambda *arguments: "another")
        provenance._fixed.cache_clear()
        (package / "notes.txt").write_text("no code\n")
        assert steps(2) == [2]
        (package / "train" / "loop.py").write_text("two\n")
        assert steps(3)[0] == 1
        assert "is passed over: other code of the program\n" in capsys.readouterr().err
    finally:
        provenance.code_digest.cache_clear()
        provenance._fixed.cache_clear()


def test_a_second_signal_stops_at_once(folder: Path) -> None:
    with pytest.raises(stop.Stopped):
        run(folder, methods=["dept"], engine=SignallingEngine(1, signal.SIGINT, signal.SIGINT))
    assert not list((folder / "results").rglob("*.safetensors"))


def test_the_command_says_how_to_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: object, **options: Any) -> None:
        raise stop.Stopped(signal.SIGTERM)

    monkeypatch.setattr("harness.runner.run", stopped)
    done = CliRunner().invoke(app, ["run", str(folder / "suite.yaml"), "--checkpoint-every", "10m"])
    assert done.exit_code == 143
    assert "the same command continues" in done.output


def test_what_another_process_has_is_left_to_it(folder: Path, untouched: Path) -> None:
    """The cells of a bundle are claimed elsewhere; they are stored while this process waits."""
    from harness.runner.claims import Claims

    (folder / "results").mkdir()
    stored = [(path, result) for path, result in ResultStore(untouched / "results").scan()]
    with Claims(folder / "results") as theirs:
        for _, result in stored:
            if result.cell.label == "dept":
                assert theirs.take(result.cell)

        def finish_elsewhere(seconds: float) -> None:
            for path, result in stored:
                if result.cell.label == "dept":
                    target = folder / "results" / path.relative_to(untouched / "results")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    for file in path.parent.glob(f"{path.stem}*"):
                        os.link(file, target.with_name(file.name))

        original, stop.sleep = stop.sleep, finish_elsewhere
        try:
            summary = run(folder, methods=["majority", "dept"])
        finally:
            stop.sleep = original
    assert (summary.num_trained, summary.num_elsewhere) == (2, 3)
    assert outcomes(folder, exact=True) == outcomes(untouched, exact=True)


def with_method(folder: Path, body: str = "pass", on_step: str = "pass") -> dict[str, object]:
    (folder / "mine").mkdir()
    (folder / "mine" / "shift.py").write_text(METHOD.replace("BODY", body).replace("ON_STEP", on_step))
    text = (folder / "suite.yaml").read_text().replace("methods:\n", "methods:\n  shift: {recipe: {lr: 0.1}}\n")
    (folder / "suite.yaml").write_text(text)
    return {"methods": ["shift", "dept"], "method_dirs": [folder / "mine"], "seeds": [1]}


@pytest.mark.parametrize(
    ("body", "on_step"),
    [
        ("self.calls += 1\n        if self.calls > 5: raise RuntimeError('on purpose')", "pass"),
        ("pass", "if step == 2: raise RuntimeError('on purpose')"),
    ],
)
def test_an_exception_in_a_method_drops_its_cell_and_the_bundle_goes_on(
    body: str, on_step: str, folder: Path, untouched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = with_method(folder, body, on_step)
    built: list[tuple[Any, ...]] = []

    def counted(*args: Any) -> Method:
        built.append(args)
        return build_to_train(*args)

    monkeypatch.setattr(bundle_module, "build_to_train", counted)
    summary = run(folder, **options)
    assert (summary.num_trained, summary.num_failed) == (3, 1)
    assert len(built) == 3, "nobody else began anew"
    failed = next(result for result in results_of(folder) if result.status == "failed")
    assert failed.cell.label == "shift"
    assert "on purpose" in present(failed.failure).traceback
    assert present(failed.failure).step
    expected = outcomes(untouched, exact=False)
    ours = {name: item for name, item in outcomes(folder, exact=False).items() if name[0] == "dept"}
    assert ours == {name: expected[name] for name in ours}


def test_a_mistake_in_the_rows_of_one_task_fails_its_cells_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(task: Task, data_dir: str | None) -> TaskData:
        if task.name == "two":
            raise UnicodeDecodeError("utf-8", b"x", 0, 1, "made up")
        return load_task(task, data_dir)

    monkeypatch.setattr(splits, "load_task", failing)
    splits._load_rows.cache_clear()
    (folder / "suite.yaml").write_text(suite_text("one, two", steps=2, every=2))
    summary = run(folder, methods=["majority", "dept"], seeds=[1])
    assert summary.num_failed == 3
    assert {(r.cell.task, r.status) for r in results_of(folder)} == {("one", "done"), ("two", "failed")}
    assert "UnicodeDecodeError" in next(
        present(r.failure).traceback for r in results_of(folder) if r.status == "failed"
    )
    monkeypatch.undo()
    assert run(folder, methods=["majority", "dept"], seeds=[1], rerun="failed").num_trained == 3


def test_a_result_without_room_is_a_failure_and_the_others_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if ".safetensors." in self.name and "lora" in str(self):
            original(self, data[:10])
            raise OSError(28, "No space left on device")
        return original(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    summary = run(folder, methods=["lora", "majority"], seeds=[1])
    assert (summary.num_trained, summary.num_failed) == (3, 2)
    failed = [result for result in results_of(folder) if result.status == "failed"]
    assert {result.cell.label for result in failed} == {"lora"}
    assert "No space left on device" in present(failed[0].failure).traceback
    assert not list((folder / "results").rglob("*.tmp"))
    monkeypatch.setattr(Path, "write_bytes", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(NotStored, match="could not be stored: No space left"):
        run(folder, methods=["lora"], seeds=[1], rerun="failed")


def test_a_raised_version_makes_results_stale_until_asked(folder: Path) -> None:
    options = {"methods": ["majority"]}
    run(folder, **options)
    text = (folder / "suite.yaml").read_text().replace("{files: rows.csv", "{version: 2, files: rows.csv")
    (folder / "suite.yaml").write_text(text)
    summary = run(folder, **options)
    assert (summary.num_trained, summary.num_stale) == (0, 2)
    plan = make_plan(folder / "suite.yaml", Overrides(methods=["majority"]), folder / "results", None)
    (group,) = describe_plan(plan)["groups"]
    assert (group["stale"], group["missing"], group["done"]) == (2, 0, 0)
    assert run(folder, **options, rerun="stale").num_trained == 2
    assert run(folder, **options).num_stale == 0


def test_a_report_says_what_has_changed_since(folder: Path) -> None:
    run(folder, methods=["majority"], seeds=[1])
    store = ResultStore(folder / "results")
    (result,) = results_of(folder)
    assert changed_since(result) == []
    runs = CliRunner()
    assert "stale" not in runs.invoke(app, ["report", str(folder / "results")]).output
    store.write(result.model_copy(update={"method_sha256": "another"}), [], None)
    shown = runs.invoke(app, ["report", str(folder / "results"), "--format", "json"]).output
    entry = json.loads(shown)[0]["rows"][0]["tasks"]["one"]
    assert entry["stale"] == ["the method's file"]
    text = runs.invoke(app, ["report", str(folder / "results"), "--format", "markdown"]).output
    assert "stale: the method's file changed since; rerun with --rerun stale" in text
