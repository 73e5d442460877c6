"""The commands as a user types them: exit codes, one-line messages, JSON where a program reads."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from conftest import SMALL_SUITE
from paths import ROOT
from typer.testing import CliRunner

from harness.cli.commands import app, main
from harness.errors import UserError


def harness(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The command as a shell runs it, in this process: another would take ten seconds to import torch."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["harness", *arguments])
        for name, value in {"HF_HUB_OFFLINE": "1", **env}.items():
            patch.setenv(name, value)
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return subprocess.CompletedProcess(list(arguments), code, out.getvalue(), err.getvalue())


def test_the_program_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness", "run", "quickstrt"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: quickstrt: no such file, nor a shipped suite of that name; did you mean quick"
    )
    assert "Traceback" not in done.stderr


COMMANDS = [command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert f"Example: harness {command}" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["report", "out", "--tuning"], "harness tuning [RESULTS]"),
        (["report", "out", "--fidelity", "accept-2024"], "harness fidelity NAME [RESULTS]"),
        (["report", "--figures=drawn", "out"], "harness figures [RESULTS] --out DIR"),
        (["report", "--table", "accept-1", "--where", "task=cb"], "harness table A,B,... [RESULTS]"),
        (["report", "--format", "site", "--out", "pages"], "harness site [RESULTS] --out DIR"),
        (["report", "--format=site"], "harness site [RESULTS] --out DIR"),
        (["plan", "--device", "h200"], "harness devices NAME"),
    ],
)
def test_an_old_spelling_names_the_new_command(old: list[str], new: str) -> None:
    done = CliRunner().invoke(app, old)
    assert isinstance(done.exception, UserError)
    assert str(done.exception).endswith(f"is a command of its own now: {new}")


def test_run_plan_and_report_from_another_folder(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SMALL_SUITE)
    run = harness("run", "suite.yaml", "--methods", "majority,dept", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "4 cells trained, 0 of them failed; 0 were there already" in run.stdout
    assert "[4/4]" in run.stderr
    again = harness("run", "suite.yaml", "--methods", "majority,dept", cwd=tmp_path)
    assert "0 cells trained" in again.stdout
    plan = json.loads(harness("plan", "suite.yaml", "--format", "json", cwd=tmp_path).stdout)
    assert {item["method"]: item["missing"] for item in plan["budgets"]} == {
        "majority": 0, "prompt_tuning": 3, "dept": 0,
    }  # fmt: skip
    report = harness("report", "--format", "markdown", cwd=tmp_path)
    assert "| dept" in report.stdout
    assert harness("report", "--suite", "other", cwd=tmp_path).returncode == 2


def test_a_failed_cell_makes_the_exit_code_one(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SMALL_SUITE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "broken.py").write_text("import nothing_of_this_name\n")
    done = harness("run", "suite.yaml", "--methods", "broken", "--methods-dir", "mine", cwd=tmp_path)
    assert done.returncode == 1
    again = harness("run", "suite.yaml", "--methods", "broken", "--methods-dir", "mine", cwd=tmp_path)
    assert again.returncode == 1
    assert "2 were there already, 2 as failures (--rerun failed tries again)" in again.stdout
    listed = harness("methods", "--methods-dir", "mine", cwd=tmp_path)
    assert "BROKEN: ModuleNotFoundError: No module named 'nothing_of_this_name' (line 1)" in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "suite.yaml", "--methods", "detp"], "did you mean dept?"),
        (["run", "nowhere.yaml"], "no such file"),
        (["run", "quickstrt"], "did you mean quickstart?"),
        (["tasks", "--data", "nowhere"], "no such data folder"),
        (["run", "suite.yaml", "--set", "recipe.steps"], "expected KEY=VALUE"),
        (["run", "suite.yaml", "--seeds", "one"], "expected whole numbers"),
        (["run", "suite.yaml", "--data", "nowhere", "--tasks", "cb", "--methods", "majority"], "no such data folder"),
        (["report", "nowhere"], "no such results folder"),
        (["report", "nowhere", "--published", "acept-2024"], "did you mean accept-2024?"),
        (["params", "--backbone", "t5-bas"], "did you mean t5-base?"),
        (["params", "--methods", "dept", "--set", "dept.ranks=3"], "did you mean rank?"),
        (["params", "--backbone", "llama-3-8b", "--methods", "hyperdecoder"], "reads the output of an encoder"),
        (["preview", "boolqq"], "did you mean boolq?"),
        (["check", "nowhere.py"], "no such file"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_two(tmp_path: Path, arguments: list[str], expected: str) -> None:
    (tmp_path / "suite.yaml").write_text(SMALL_SUITE)
    done = harness(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["suite.yaml"]


def test_listings_speak_json(tmp_path: Path) -> None:
    methods = json.loads(harness("methods", "--format", "json", cwd=tmp_path).stdout)["methods"]
    assert {"accept", "majority"} <= {item["name"] for item in methods}
    tasks = json.loads(harness("tasks", "--format", "json", cwd=tmp_path).stdout)["tasks"]
    assert "boolq" in {item["name"] for item in tasks}
    params = json.loads(harness("params", "--methods", "ept", "--format", "json", cwd=tmp_path).stdout)
    assert params["methods"][0]["num_trained"] == 1_656_836
    rows = json.loads(harness("preview", "micro_entailment", "--rows", "2", "--format", "json", cwd=tmp_path).stdout)
    assert len(rows["rows"]) == 2
    assert rows["rows"][0]["source"].startswith("premise:")
    assert rows["rows"][0]["source_tokens"] > 5


def test_a_shipped_suite_is_found_by_name_and_checks(tmp_path: Path) -> None:
    for name in ("quickstart", "superglue"):
        done = harness("check", f"{name}.yaml", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "every setting is known and fits" in done.stdout
