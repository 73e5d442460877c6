"""The workflow of docs/submission-workflow.yml: its own commands, run by bash in a repository with a board."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paths import DOCS, ROOT
from ruamel.yaml import YAML

WORKFLOW: dict[str, Any] = YAML(typ="safe", pure=True).load((DOCS / "submission-workflow.yml").read_text())
STEPS: list[dict[str, Any]] = WORKFLOW["jobs"]["verify"]["steps"]
ONE_FOLDER, CHECK, BOARD = STEPS[-3:]


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


class Board:
    """A repository with the results of one submitter, and a branch with those of another."""

    def __init__(self, folder: Path, results: Path) -> None:
        self.folder, self.temp = folder / "board", folder / "runner"
        (self.folder / "submissions").mkdir(parents=True)
        self.temp.mkdir()
        (self.temp / "harness").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m harness "$@"\n')
        (self.temp / "harness").chmod(0o755)
        shutil.copy(results.parent / "small.yaml", self.folder / "board.yaml")
        self.add(results, "first", "dept", "majority")
        git(self.folder, "init", "-q")
        self.base = self.commit()
        self.add(results, "second", "prompt_tuning")

    def add(self, results: Path, name: str, *rows: str) -> None:
        for row in rows:
            place = self.folder / "submissions" / name / "small" / "micro_sentiment" / row
            shutil.copytree(results / "small" / "micro_sentiment" / row, place)

    def commit(self) -> str:
        git(self.folder, "add", "--all")
        git(self.folder, "commit", "-q", "-m", "x")
        return git(self.folder, "rev-parse", "HEAD")

    def run(self, step: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        """Run a step as the runner of GitHub does: bash with -e and pipefail."""
        environment = {
            **os.environ, "PATH": f"{self.temp}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "BASE": self.base,
            "RUNNER_TEMP": str(self.temp), "GITHUB_STEP_SUMMARY": str(self.temp / "summary.md"),
        }  # fmt: skip
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def board(tmp_path: Path, small_results: Path) -> Board:
    return Board(tmp_path, small_results)


def test_it_runs_on_requests_of_strangers_without_rights_or_secrets() -> None:
    assert set(WORKFLOW["on"]) == {"pull_request"}
    assert WORKFLOW["permissions"] == {"contents": "read"}
    text = (DOCS / "submission-workflow.yml").read_text()
    assert "secrets." not in text
    # what a stranger names reaches the shell through variables and files alone
    assert not any("${{" in step.get("run", "") for step in STEPS)


def test_an_honest_submission_passes_and_is_on_the_board(board: Board) -> None:
    board.commit()
    for step in (ONE_FOLDER, CHECK, BOARD):
        done = board.run(step)
        assert done.returncode == 0, (step["name"], done.stdout, done.stderr)
    table = (board.temp / "summary.md").read_text()
    assert all(f"| {name} " in table for name in ("majority", "dept", "prompt_tuning"))


def _edit_another(board: Board) -> None:
    shutil.rmtree(board.folder / "submissions" / "first" / "small" / "micro_sentiment" / "dept")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda board: (board.folder / "board.yaml").write_text("suite: easy"), "board.yaml\nchanges files outside"),
        (lambda board: (board.folder / "a\nb").write_text(""), "changes files outside"),
        (_edit_another, "submissions/first\nsubmissions/second\nchanges more than one folder"),
    ],
)
def test_a_request_that_changes_more_than_its_folder_fails(
    board: Board, change: Callable[[Board], object], words: str
) -> None:
    change(board)
    board.commit()
    done = board.run(ONE_FOLDER)
    assert done.returncode == 1, done.stderr
    assert words in done.stdout


def test_a_submission_with_findings_fails(board: Board) -> None:
    [path, *_] = sorted((board.folder / "submissions" / "second").rglob("*.json"))
    path.write_text(path.read_text().replace('"score": ', '"score": 1', 1))
    board.commit()
    assert board.run(ONE_FOLDER).returncode == 0
    done = board.run(CHECK)
    assert done.returncode != 0
    assert "edited: was changed since it was stored" in done.stdout
