"""Training in several processes takes the steps that one process takes."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from test_fused import cells, trainer

from harness import stop
from harness.checkpoint import read_header
from harness.distributed import Team, TeamError, run_team
from harness.errors import UserError
from harness.results import ResultStore, load_results
from harness.runner import run

ROOT = Path(__file__).resolve().parent.parent
SUITE = """\
suite: team
backbones: [micro-t5]
tasks: [micro_sentiment]
seeds: [1]
recipe: {steps: 3, batch_size: 5, eval_every: 3, warmup_steps: 1, warmup_max_share: 1.0, backbone_dropout: false}
methods: {finetune: {recipe: {lr: 0.001}}}
"""


class Recorded(Team):
    """A member whose others are not there: sums are left to the test."""

    def add_up(self, losses: object, parameters: object) -> None:
        pass


def test_gradients_of_the_shares_add_up_to_those_of_the_whole() -> None:
    whole = trainer(cells(5), max_tokens=100)
    expected = whole._accumulate(whole._draw())
    shares = []
    for rank in range(2):
        made = trainer(cells(5), max_tokens=100)
        made.team = Recorded(rank, 2)
        losses = made._accumulate(made._draw())
        shares.append((losses, [p.grad for state in made.states for p in state.parameters]))
    torch.testing.assert_close(shares[0][0] + shares[1][0], expected, rtol=1e-12, atol=1e-12)
    gradients = [p.grad for state in whole.states for p in state.parameters]
    for mine, yours, both in zip(shares[0][1], shares[1][1], gradients, strict=True):
        parts = [part for part in (mine, yours) if part is not None]
        assert both is not None
        torch.testing.assert_close(torch.stack(parts).sum(0), both, rtol=1e-12, atol=1e-12)


def test_every_row_has_one_process() -> None:
    for count in (0, 1, 7):
        shares = [Team(rank, 3).share(count).tolist() for rank in range(3)]
        assert sorted(itertools.chain(*shares)) == list(range(count))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Results of full fine-tuning by one process and by two."""
    found = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"by{processes}")
        (folder / "team.yaml").write_text(SUITE)
        settings = {"execution.processes": processes}
        summary = run(folder / "team.yaml", results=folder / "out", settings=settings, quiet=True)
        assert (summary.num_trained, summary.num_failed) == (1, 0)
        found[processes] = folder / "out"
    return found


def test_two_processes_store_what_one_does(folders: dict[int, Path]) -> None:
    paths = {n: {path.name: path for path in folder.glob("**/*.safetensors")} for n, folder in folders.items()}
    assert paths[1].keys() == paths[2].keys()
    for name, path in paths[1].items():
        alone, together = load_file(path), load_file(paths[2][name])
        assert alone.keys() == together.keys()
        for key, tensor in alone.items():
            torch.testing.assert_close(together[key], tensor, rtol=1e-4, atol=1e-5)
    frames = [load_results(folder).drop(columns="path") for folder in folders.values()]
    assert frames[0].equals(frames[1])


LONG = {"execution.processes": 2, "execution.checkpoint_every": "2 steps", "recipe.steps": 60, "recipe.eval_every": 20,
        "recipe.backbone_dropout": True}  # fmt: skip


@contextlib.contextmanager
def once_begun(folder: Path, act: Callable[[], object]) -> Iterator[None]:
    """Call `act` when there is a checkpoint."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            headers = [read_header(path) for path in (folder / "out").glob(".checkpoints/*/*.safetensors")]
            if any(header is not None and 2 < header.step < 50 for header in headers):
                act()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def outcome(folder: Path) -> tuple[object, bytes]:
    ((path, made),) = ResultStore(folder / "out").scan()
    return made.model_dump(include={"dev", "test", "dev_history", "status"}), path.with_suffix(
        ".safetensors"
    ).read_bytes()


def lay_out(folder: Path) -> Path:
    folder.mkdir()
    (folder / "team.yaml").write_text(SUITE)
    return folder


@pytest.mark.parametrize("sharding", [pytest.param("none", marks=pytest.mark.slow), "fsdp"])
def test_a_team_that_is_stopped_or_killed_goes_on_as_if_nothing_had_been(
    sharding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**LONG, "execution.sharding": sharding}
    whole, broken = lay_out(tmp_path / "whole"), lay_out(tmp_path / "broken")
    assert run(whole / "team.yaml", results=whole / "out", settings=settings, quiet=True).num_failed == 0
    if sharding == "none":
        kill(broken, settings)
    else:
        with once_begun(broken, lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(stop.Stopped):
            run(broken / "team.yaml", results=broken / "out", settings=settings, quiet=True)
    assert not list(ResultStore(broken / "out").scan())
    assert run(broken / "team.yaml", results=broken / "out", settings=settings).num_failed == 0
    assert "continued from a checkpoint at step" in capsys.readouterr().err
    assert outcome(broken) == outcome(whole)
    assert not list((broken / "out").glob(".checkpoints/*/*"))


def kill(folder: Path, settings: dict[str, object]) -> None:
    """Start a run, kill the process that was started once there is a checkpoint; its team must end with it."""
    options = [f"--set={key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "harness", "run", "team.yaml", "--results", "out", *options]
    started = subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})
    members: list[psutil.Process] = []
    with once_begun(folder, lambda: (members.extend(psutil.Process(started.pid).children()), started.kill())):
        started.wait()
    assert len(members) >= 2
    _, alive = psutil.wait_procs(members, timeout=60)
    assert not alive


def fail(team: Team, send: object, words: str) -> None:
    if team.rank == 1:
        raise UserError(words) if words == "a mistake" else RuntimeError(words)
    import torch.distributed as dist

    dist.barrier()  # for ever, did nobody end it


@pytest.mark.parametrize(("words", "kind"), [("a mistake", UserError), ("broken", TeamError)])
def test_a_process_that_fails_ends_the_others_and_is_heard(words: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=words):
        run_team(2, fail, (words,), lambda message: None)
