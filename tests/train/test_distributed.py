"""Training in several processes takes the steps that one process takes."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest
import torch
from paths import ROOT
from safetensors.torch import load_file
from test_fused import cells, trainer
from watching import meanwhile

from harness import stop
from harness.errors import UserError
from harness.results.store import ResultStore, load_results
from harness.runner.run_suite import run
from harness.train.checkpoint import read_header
from harness.train.data_parallel import Team, TeamError, run_team

# few rows: processes of their own would make and answer all 600 of a generated task at every evaluation
SUITE = """\
suite: team
backbones: [micro-t5]
tasks: [reviews]
seeds: [1]
recipe: {steps: 3, batch_size: 5, eval_every: 3, warmup_steps: 1, warmup_max_share: 1.0, backbone_dropout: false}
define_tasks:
  reviews: {files: rows.csv, fields: {review: text}, label: verdict, labels: [bad, good], dev_share: 7, test_share: 9}
methods: {finetune: {recipe: {lr: 0.001}}}
"""
ROWS = [f"number {i} was {'fine' if i % 2 else 'no use'},{'good' if i % 2 else 'bad'}" for i in range(60)]


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
        shares = [range(count)[Team(rank, 3).share] for rank in range(3)]
        assert sorted(itertools.chain(*shares)) == list(range(count))


def lay_out(folder: Path) -> Path:
    folder.mkdir()
    (folder / "team.yaml").write_text(SUITE)
    (folder / "rows.csv").write_text("\n".join(["text,verdict", *ROWS]) + "\n")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Results of full fine-tuning by one process and by two."""
    found = {}
    for processes in (1, 2):
        folder = lay_out(tmp_path_factory.mktemp("team") / f"by{processes}")
        settings: dict[str, object] = {"execution.processes": processes}
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


STEPS = 16
LONG = {"execution.processes": 2, "execution.checkpoint_every": "2 steps", "recipe.steps": STEPS,
        "recipe.eval_every": STEPS // 2, "recipe.backbone_dropout": True}  # fmt: skip


def step_of(folder: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    headers = [read_header(path) for path in (folder / "out").glob(".checkpoints/*/*.safetensors")]
    return max((header.step for header in headers if header is not None), default=0)


def once_begun(folder: Path, act: Callable[[], object], after: int = 2) -> AbstractContextManager[None]:
    """Call `act` when there is a checkpoint of a step behind `after`."""

    def look() -> bool:
        is_begun = after < step_of(folder) < STEPS
        if is_begun:
            act()
        return is_begun

    return meanwhile(look)


def members(process: psutil.Process) -> list[psutil.Process]:
    """The processes of its team: spawned, or forked by a server of its own."""

    def is_member(child: psutil.Process) -> bool:
        words = " ".join(child.cmdline())
        return "spawn_main" in words or ("forkserver" in words and child.ppid() != process.pid)

    return [child for child in process.children(recursive=True) if is_member(child)]


def outcome(folder: Path) -> tuple[object, bytes]:
    ((path, made),) = ResultStore(folder / "out").scan()
    return made.model_dump(include={"dev", "test", "dev_history", "status"}), path.with_suffix(
        ".safetensors"
    ).read_bytes()


@pytest.mark.usefixtures("forked_team")
def test_a_team_goes_on_after_a_stop_and_after_the_death_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**LONG, "execution.sharding": "fsdp"}
    whole, broken = lay_out(tmp_path / "whole"), lay_out(tmp_path / "broken")
    assert run(whole / "team.yaml", results=whole / "out", settings=settings, quiet=True).num_failed == 0
    with once_begun(broken, lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(stop.Stopped):
        run(broken / "team.yaml", results=broken / "out", settings=settings, quiet=True)
    assert not list(ResultStore(broken / "out").scan())
    assert not members(psutil.Process())
    with once_begun(broken, lambda: members(psutil.Process())[-1].kill(), after=step_of(broken)):
        assert run(broken / "team.yaml", results=broken / "out", settings=settings).num_failed == 0
    said = capsys.readouterr().err
    assert said.count("continued from a checkpoint at step") == 2
    assert "was killed by signal 9; new processes go on" in said
    assert outcome(broken) == outcome(whole)
    assert not list((broken / "out").glob(".checkpoints/*/*"))


@pytest.mark.slow
def test_a_team_ends_with_the_command_that_started_it_and_the_next_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = lay_out(tmp_path / "whole"), lay_out(tmp_path / "broken")
    assert run(whole / "team.yaml", results=whole / "out", settings=LONG, quiet=True).num_failed == 0
    options = [f"--set={key}={value}" for key, value in LONG.items()]
    command = [sys.executable, "-m", "harness", "run", "team.yaml", "--results", "out", *options]
    started = psutil.Popen(command, cwd=broken, env={**os.environ, "PYTHONPATH": str(ROOT)})
    team: list[psutil.Process] = []

    def kill() -> None:
        team.extend(members(started))
        started.kill()

    with once_begun(broken, kill):
        started.wait()
    assert len(team) == 2
    _, alive = psutil.wait_procs(team, timeout=60)
    assert not alive
    assert run(broken / "team.yaml", results=broken / "out", settings=LONG).num_failed == 0
    assert "continued from a checkpoint at step" in capsys.readouterr().err
    assert outcome(broken) == outcome(whole)


def fail(team: Team, send: object, words: str) -> None:
    if team.rank == 1:
        raise UserError(words) if words == "a mistake" else RuntimeError(words)
    import torch.distributed as dist

    dist.barrier()  # for ever, did nobody end it


@pytest.mark.usefixtures("forked_team")
@pytest.mark.parametrize(("words", "kind"), [("a mistake", UserError), ("broken", TeamError)])
def test_a_process_that_fails_ends_the_others_and_is_heard(words: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=words):
        run_team(2, fail, (words,), lambda message: None)
