"""What a shell offers: the names there are, without importing what takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL_SUITE
from paths import ROOT
from typer.testing import CliRunner

from harness.cli.commands import app, main

HEAVY = ("torch", "transformers", "pandas", "scipy", "peft")
OWN = SMALL_SUITE.replace("  majority:", "  own_row: {method: dept}\n  majority:") + (
    "define_tasks: {own_task: {files: x.csv, fields: {a: b}}}\n"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(OWN)
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own_method.py").write_text("")
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("")
    return tmp_path


def offered(line: str) -> list[str]:
    """What bash is told for a command line, whose last word is the one to complete."""
    words = line.split(" ")
    environment = {
        "_HARNESS_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    return CliRunner().invoke(app, [], env=environment, prog_name="harness").output.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("harness run quick", ["quickstart"]),
        ("harness run m", ["methods", "mrqa", "multitask-glue", "mine/", "mine.yaml"]),
        ("harness check mine/o", ["mine/own_method.py"]),
        ("harness run quickstart --methods dep", ["dept"]),
        ("harness run quickstart --methods dept,ran", ["dept,random_guess"]),
        ("harness run quickstart --methods dept,dep", []),
        ("harness run mine.yaml --methods own", ["own_row"]),
        ("harness run quickstart --methods-dir mine --methods own", ["own_method"]),
        ("harness run broken.yaml --methods maj", ["majority"]),
        ("harness run mine.yaml --tasks cb,own", ["cb,own_task"]),
        ("harness preview bool", ["boolq"]),
        ("harness run quickstart --protocol acc", ["accept-2024"]),
        ("harness plan quickstart --backbones t5-l", ["t5-large"]),
        ("harness table accept-1", ["accept-1", "accept-10", "accept-11"]),
        ("harness report o", ["out/"]),
        ("harness report out/", ["out/deep/"]),
        ("harness compare .h", [".hidden/"]),
        ("harness run quickstart --results ", ["mine/", "out/"]),
        ("harness new me", ["method"]),
    ],
)
def test_a_shell_is_offered_what_there_is(folder: Path, line: str, expected: list[str]) -> None:
    found = offered(line)
    if line.startswith("harness table"):
        assert set(found) >= {"accept-1"}
        assert all(name.startswith("accept-1") for name in found)
    else:
        assert found == expected


def test_completing_imports_nothing_heavy(folder: Path) -> None:
    code = (
        "import json, os, sys\n"
        "from typer.testing import CliRunner\n"
        "from harness.cli.commands import app\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    env = {'_HARNESS_COMPLETE': 'complete_bash', 'COMP_WORDS': line, 'COMP_CWORD': str(line.count(' '))}\n"
        "    print(CliRunner().invoke(app, [], env=env, prog_name='harness').output)\n"
        f"print('heavy:', [module for module in {HEAVY} if module in sys.modules])\n"
    )
    lines = ["harness run q", "harness run quickstart --methods d", "harness run quickstart --tasks cb,m",
             "harness run quickstart --protocol a", "harness table a", "harness report o"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(lines)], cwd=folder, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)},
    )  # fmt: skip
    assert done.stdout.endswith("heavy: []\n"), done.stdout
    assert "quickstart" in done.stdout
    assert "cb,mnli" in done.stdout


def test_as_a_module_the_program_has_its_own_name_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under another name `python -m harness --show-completion` would complete a command that nobody types."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/harness/__main__.py", "new", "--nonsense"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith("Usage: harness new ")


@pytest.mark.parametrize("option", ["--install-completion", "--show-completion"])
def test_a_shell_that_is_named_is_not_taken_for_the_calling_one(
    option: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From bash, `--install-completion zsh` wrote completion of bash and said so."""
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr(sys, "argv", ["harness", option, "zsh"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"{option}: takes no value, got 'zsh'" in capsys.readouterr().err
    assert not (folder / ".bashrc").exists()
