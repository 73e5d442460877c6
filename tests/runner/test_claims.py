"""Claims: one process has a cell, the dead lose theirs, and of several that want a dead one's cell one gets it."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from kill_harness import lay_out, suite_text

import harness
from harness.results.store import NotStored, ResultStore
from harness.runner.claims import Claims
from harness.suite.blocks import ProtocolReference
from harness.suite.cell import Cell
from harness.suite.file_schema import Recipe


def cell(seed: int = 1) -> Cell:
    return Cell(
        suite="s", label="dept", method="dept", hp={}, task="t", task_version=1, backbone="b", seed=seed,
        recipe=Recipe(), search_seed=1, protocol=ProtocolReference(),
    )  # fmt: skip


def in_child(work: Callable[[], int]) -> int:
    """Fork; the child ends with what `work` returns."""
    child = os.fork()
    if not child:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return child


def dead_claim(root: Path) -> None:
    """A claim whose owner was killed."""

    def work() -> int:
        claims = Claims(root)
        claims.__enter__()
        assert claims.take(cell())
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    os.waitpid(in_child(work), 0)
    assert len(list((root / ".claims").glob("*.claim"))) == 1


def elsewhere(claims: Claims) -> Claims:
    """As if its process ran on another machine."""
    claims.me = replace(claims.me, host="other", place="other")
    return claims


def test_a_cell_belongs_to_one_until_it_is_given_back(tmp_path: Path) -> None:
    with Claims(tmp_path) as mine, Claims(tmp_path) as theirs:
        assert mine.take(cell())
        assert mine.take(cell()), "what one has, one has"
        assert not theirs.take(cell())
        assert theirs.take(cell(2))
        mine.release(cell())
        assert not mine.holds(cell())
        assert theirs.take(cell())
        assert theirs.holds(cell())
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_killed_process_loses_its_cells_at_once(tmp_path: Path) -> None:
    dead_claim(tmp_path)
    with Claims(tmp_path) as mine:
        assert mine.take(cell())
        assert mine.holds(cell())
    assert not list(tmp_path.iterdir())


def test_what_the_dead_left_is_swept_even_where_nobody_wants_it(tmp_path: Path) -> None:
    dead_claim(tmp_path)
    with Claims(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_another_machine_keeps_its_cells_while_it_gives_signs_of_life(tmp_path: Path) -> None:
    with elsewhere(Claims(tmp_path)) as theirs, Claims(tmp_path, expire_s=60) as mine:
        assert theirs.take(cell())
        assert not mine.take(cell())
        sign = tmp_path / ".claims" / f"{theirs.me.token}.alive"
        os.utime(sign, (time.time() - 61, time.time() - 61))
        assert mine.take(cell())
        assert not theirs.holds(cell()), "who slept for too long finds out before it stores anything"
        assert mine.holds(cell())


def test_a_sign_of_life_is_renewed(tmp_path: Path) -> None:
    with Claims(tmp_path, renew_s=0.01) as mine:
        sign = tmp_path / ".claims" / f"{mine.me.token}.alive"
        os.utime(sign, (1, 1))
        for _ in range(500):
            if sign.stat().st_mtime > 1:
                break
            time.sleep(0.01)
        assert sign.stat().st_mtime > 1


def test_of_many_that_take_over_a_dead_claim_one_wins(tmp_path: Path) -> None:
    for trial in range(5):
        root = tmp_path / str(trial)
        root.mkdir()
        dead_claim(root)
        gate, wait = os.pipe()

        def work(root: Path = root, gate: int = gate, wait: int = wait) -> int:
            os.close(wait)
            claims = Claims(root)
            claims.__enter__()
            os.read(gate, 1)  # all at once
            won = claims.take(cell()) and claims.holds(cell())
            (root / f"{os.getpid()}.done").write_text(str(won))
            while len(list(root.glob("*.done"))) < 6:  # nobody may die before all have tried
                time.sleep(0.005)
            return int(won)

        children = [in_child(work) for _ in range(6)]
        os.close(gate)
        os.close(wait)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert sorted(codes) == [0, 0, 0, 0, 0, 1]


def test_a_killed_takeover_can_be_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead_claim(tmp_path)

    def work() -> int:
        claims = Claims(tmp_path)
        claims.__enter__()
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # the moment before it gets the claim
        claims.take(cell())
        return 0

    os.waitpid(in_child(work), 0)
    assert len(list((tmp_path / ".claims").glob("end-*.claim"))) == 1
    with Claims(tmp_path) as mine:
        assert mine.take(cell())
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_hard_links_serves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with Claims(tmp_path) as mine, Claims(tmp_path) as theirs:
        assert mine.take(cell())
        assert not theirs.take(cell())


def test_a_claim_that_makes_no_sense_is_nobodys(tmp_path: Path) -> None:
    with Claims(tmp_path) as mine:
        assert mine.take(cell())
        (path,) = (tmp_path / ".claims").glob("*.claim")
        path.write_text("{")
        assert not mine.holds(cell())
        assert mine.take(cell())


def test_a_claim_that_cannot_be_written_is_one_message_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk meets a run that takes over from a dead one: the next one goes on."""
    folder = tmp_path / "run"
    lay_out(folder, suite_text(steps=2, every=2))

    def run() -> None:
        harness.run(folder / "suite.yaml", methods=["majority", "dept"], results=folder / "results", quiet=True)

    original = Claims.take

    def full(self: Claims, cell: Cell) -> bool:
        if cell.label == "dept":
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, cell)

    with monkeypatch.context() as patched:
        patched.setattr(Claims, "take", full)
        with pytest.raises(NotStored, match="cannot be used: No space left on device"):
            run()
    stored = len(list(ResultStore(folder / "results").scan()))
    assert stored > 0
    run()
    assert len(list(ResultStore(folder / "results").scan())) > stored
