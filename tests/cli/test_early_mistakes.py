"""A user's mistake is told before torch is imported, by the same judgement and in the same words as after it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from conftest import SMALL_SUITE
from paths import ROOT

from harness.errors import UserError
from harness.method.method import Method
from harness.method.method_source import UNREADABLE, read_spec, read_specs
from harness.method.registry import discover, load_file
from harness.runner.plan import make_plan
from harness.runner.resolve_suite import judge_suite, resolve_suite
from harness.shipped import shipped_methods
from harness.suite.make_groups import Overrides

HEAVY = ("torch", "transformers", "pandas", "scipy", "peft")

MISTAKES: dict[str, tuple[list[str], str]] = {
    "a key of the suite": (["plan", "misspelt.yaml"], "did you mean tasks?"),
    "a suite": (["run", "quickstrt"], "did you mean quickstart?"),
    "a task": (["run", "suite.yaml", "--tasks", "micro_sentimen"], "did you mean micro_sentiment?"),
    "a method": (["run", "suite.yaml", "--methods", "detp"], "did you mean dept?"),
    "a backbone": (["plan", "suite.yaml", "--backbones", "t5-bas"], "did you mean t5-base?"),
    "a protocol": (["plan", "suite.yaml", "--protocol", "acept-2024"], "did you mean accept-2024?"),
    "a key of the recipe": (["run", "suite.yaml", "--set", "recipe.step=3"], "did you mean steps?"),
    "an hp": (["run", "suite.yaml", "--set", "methods.dept.rnk=3"], "did you mean rank?"),
    "the value of an hp": (["plan", "suite.yaml", "--set", "methods.dept.rank=[1]"], "methods.dept.rank"),
    "a choice of an hp": (["plan", "suite.yaml", "--set", "methods.dept.scale=cod"], "did you mean code?"),
    "a source for a method that takes none": (
        ["plan", "suite.yaml", "--set", "methods.majority.init_from=none"],
        "this method has no settings",
    ),
    "a seed": (["run", "suite.yaml", "--seeds", "one"], "expected whole numbers"),
    "a data folder": (["run", "suite.yaml", "--data", "nowhere"], "no such data folder"),
    "a folder of methods": (["methods", "--methods-dir", "nowhere"], "no such folder"),
    "a suite to check": (["check", "misspelt.yaml"], "did you mean tasks?"),
    "a method to check": (["check", "nowhere.py"], "no such file"),
    "a method to count": (["params", "--methods", "detp"], "did you mean dept?"),
    "an hp to count": (["params", "--methods", "dept", "--set", "dept.ranks=3"], "did you mean rank?"),
    "a task to preview": (["preview", "boolqq"], "did you mean boolq?"),
    "a backbone to fit": (["devices", "h200", "--backbones", "t5-bas"], "did you mean t5-base?"),
    "a word of an option": (
        ["report", "--format", "markdwn"],
        "--format: unknown value 'markdwn'; did you mean markdown?",
    ),
    "a word of an argument": (["new", "suit", "mine"], "kind: unknown value 'suit'; did you mean suite?"),
    "a folder to compare": (["compare", "nowhere", "elsewhere"], "no such results folder"),
    "folders to merge": (["merge", "nowhere", "elsewhere", "out"], "no such results folder"),
    "a suite of a submission": (["verify", ".", "--submission", "--suite", "quickstrt"], "did you mean quickstart?"),
    "a name that is taken": (["new", "method", "dept"], "comes with the program is called 'dept' already"),
    "a result to export": (["export", "nowhere.json", "out.safetensors"], "no such file"),
}


def test_help_and_mistakes_import_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SMALL_SUITE)
    (tmp_path / "misspelt.yaml").write_text(SMALL_SUITE.replace("tasks:", "taks:"))
    code = (
        "import json, sys\n"
        "from typer import testing\n"
        "from typer.testing import CliRunner\n"
        "from harness.cli.commands import app\n"
        "tree = testing._get_command(app)\n"  # as in conftest: it is made once, and not for each mistake
        "testing._get_command = lambda _: tree\n"
        "told = {}\n"
        "for name, arguments in {'help': ['--help'], 'suites': ['suites'], **json.loads(sys.argv[1])}.items():\n"
        "    done = CliRunner().invoke(app, arguments)\n"
        f"    heavy = [module for module in {HEAVY} if module in sys.modules]\n"
        "    told[name] = [type(done.exception).__name__, str(done.exception), heavy]\n"
        "print(json.dumps(told))\n"
    )
    asked = json.dumps({name: arguments for name, (arguments, _) in MISTAKES.items()})
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, asked], cwd=tmp_path, capture_output=True, text=True, env=environment, check=True
    )
    told = json.loads(done.stdout)
    assert {name: heavy for name, (_, _, heavy) in told.items() if heavy} == {}
    for name, (_, words) in MISTAKES.items():
        kind, message, _ = told[name]
        assert kind == "UserError", (name, message)
        assert words in message, (name, message)


@pytest.mark.parametrize(
    "overrides",
    [
        Overrides(methods=["detp"]),
        Overrides(tasks=["micro_sentimen"]),
        Overrides(backbones=["t5-bas"]),
        Overrides(protocol="acept-2024"),
        Overrides(settings={"methods.dept.rnk": 3}),
        Overrides(settings={"methods.dept.rank": "many"}),
        Overrides(settings={"methods.dept.scale": "cod"}),
        Overrides(settings={"methods.prompt_tuning.init_from": {"method": "dept"}}),
        Overrides(settings={"methods.dept.added_lr": {"sweep": []}}),
        Overrides(settings={"recipe.lr": -1}),
    ],
)
def test_the_early_words_are_those_of_the_full_judgement(overrides: Overrides, tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(SMALL_SUITE)
    with pytest.raises(UserError) as early:
        judge_suite(path, overrides)
    with pytest.raises(UserError) as full:
        make_plan(path, overrides, tmp_path / "results", None)
    assert str(early.value) == str(full.value)


def test_the_source_of_every_shipped_method_says_what_its_class_says() -> None:
    read, imported = read_specs(), {name: registered.spec for name, registered in discover().items()}
    assert list(read) == list(imported)
    for name, spec in imported.items():
        assert read[name].error is None, name
        assert read[name].takes_sources in (spec.takes_sources, (0, None)), "never stricter than the class"
        same: dict[str, Any] = {"hp_type": spec.hp_type, "takes_sources": spec.takes_sources}
        assert dataclasses.replace(read[name], **same) == spec
        if not spec.is_rule:
            fields = [(item.name, item.default) for item in dataclasses.fields(spec.hp_type)]
            assert [(item.name, item.default) for item in dataclasses.fields(read[name].hp_type)] == fields
            module = vars(sys.modules[spec.hp_type.__module__])
            assert get_type_hints(read[name].hp_type) == get_type_hints(spec.hp_type, module), name


def test_a_shipped_suite_has_the_same_cells_by_source_and_by_class() -> None:
    path = ROOT / "suites" / "quickstart.yaml"
    by_class = {name: registered.spec for name, registered in discover().items()}
    cells = [
        [cell.key for group in resolve_suite(path, Overrides(), specs).groups for cell in group.cells.values()]
        for specs in (read_specs(), by_class)
    ]
    assert cells[0] == cells[1]


BASE = "class Base(Method):\n    takes_sources = (0, 1)\n\n\n"
METHOD = """\
from dataclasses import dataclass, field
from harness.method import Defaults, Method, Paper, sweep

RANK = 4


BASEclass Mine(PARENT):
    name = "mine"
    paper = Paper("mine", "https://example.org")
    BODY

    @dataclass(frozen=True, kw_only=True)
    class HP:
        rank: int = RANK
        LINE
"""


@pytest.mark.parametrize(
    ("body", "line", "is_read"),
    [
        ("pass", 'kind: "int | str" = 3', True),
        ("pass", "ranks: tuple[int, ...] = field(default_factory=tuple)", True),
        ("defaults = Defaults(recipe={'lr': sweep(*[0.1, 0.2])})", "x: int = 1", False),
        ("defaults = dict", "x: int = 1", False),
        ("takes_sources = (0, RANK)", "x: int = 1", False),
    ],
)
@pytest.mark.parametrize("parent", ["Method", "Base"])
def test_what_only_an_import_can_tell_is_let_through(
    body: str, line: str, is_read: bool, parent: str, tmp_path: Path
) -> None:
    base = BASE if parent == "Base" else ""
    text = METHOD.replace("BASE", base).replace("PARENT", parent).replace("BODY", body).replace("LINE", line)
    (tmp_path / "mine.py").write_text(text)
    registered = load_file(tmp_path / "mine.py")
    assert registered.cls is None or issubclass(registered.cls, Method)
    spec = read_spec(tmp_path / "mine.py")
    assert (spec.error is None) == is_read
    assert spec.error in (None, UNREADABLE)
    if is_read:
        assert [item.name for item in dataclasses.fields(spec.hp_type)] == ["rank", line.split(":")[0]]
        assert spec.takes_sources == ((0, None) if parent == "Base" else (0, 0))


def test_a_method_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path, source = tmp_path / "dept.py", (shipped_methods() / "dept.py").read_text()
    path.write_text(source)
    before = read_spec(path)
    path.write_text(source + "# another\n")
    after = read_spec(path)
    assert before == dataclasses.replace(after, source_sha256=before.source_sha256, hp_type=before.hp_type)
    assert before.source_sha256 != after.source_sha256
    path.write_text("raise ValueError")
    assert read_spec(path).error == UNREADABLE
    path.unlink()
    assert read_spec(path).error == UNREADABLE
