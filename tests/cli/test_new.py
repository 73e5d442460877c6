"""What `harness new` writes runs as it is; names that are taken or impossible are refused and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from paths import SUITES
from typer.testing import CliRunner

import harness as program
from harness.cli.commands import app
from harness.cli.new import class_name
from harness.errors import UserError
from harness.results.store import ResultStore
from harness.results.verify import verify_folder
from harness.train.method_contract import check_method_file
from harness.yaml_lines import read_document

pytestmark = pytest.mark.usefixtures("few_rows")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def harness(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("kind", "name", "rows"),
    [
        ("suite", "first", {"majority", "prompt_tuning", "small_lora"}),
        ("task", "2026", {"majority", "prompt_tuning"}),  # a number to YAML
    ],
)
def test_a_new_suite_and_a_new_task_run_as_they_are(here: Path, kind: str, name: str, rows: set[str]) -> None:
    assert harness("new", kind, name).endswith(f"Next: harness run {name}.yaml\n")
    assert names(here) == [*([f"{name}.csv"] if kind == "task" else []), f"{name}.yaml", "suite.schema.json"]
    validator = Draft202012Validator(json.loads((here / "suite.schema.json").read_text()))
    assert list(validator.iter_errors(read_document(f"{name}.yaml").data)) == []
    harness("run", f"{name}.yaml", "--quiet")
    results = [result for _, result in ResultStore("results").scan()]
    assert {result.cell.label for result in results} == rows
    assert {result.cell.suite for result in results} == {name}
    assert all(result.status == "done" for result in results)
    assert verify_folder(Path("results")).findings == []


@pytest.mark.parametrize("kind", ["prompt", "layer"])
def test_a_new_method_meets_the_contract_and_trains(here: Path, kind: str) -> None:
    made = harness("new", "method", f"my_{kind}", "--kind", kind)
    assert made == f"written: my_methods/my_{kind}.py\nNext: harness check my_methods/my_{kind}.py\n"
    findings = check_method_file(Path("my_methods") / f"my_{kind}.py")
    assert [finding for finding in findings if not finding.ok] == []
    text = (here / "my_methods" / f"my_{kind}.py").read_text()
    assert "@" not in text.replace("@dataclass", "")
    settings: dict[str, object] = {"recipe.steps": 2, "recipe.eval_every": 1, "recipe.lr": 0.01}
    summary = program.run(
        SUITES / "quickstart.yaml", methods=[f"my_{kind}"], tasks=["micro_sentiment"], seeds=[1], results="out",
        method_dirs=["my_methods"], settings=settings, quiet=True,
    )  # fmt: skip
    assert (summary.num_trained, summary.num_failed) == (1, 0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["suite", "quickstart"], "comes with the program is called 'quickstart' already"),
        (["suite", "../x"], "letters, digits and _ . + - only"),
        (["method", "Dept"], "comes with the program is called 'Dept' already"),
        (["suite", "CON"], "'CON' cannot name a suite: Windows keeps the name for itself"),
        (["task", "aux.rows"], "Windows keeps the name for itself"),
        (["method", "com1"], "Windows keeps the name for itself"),
        (["suite", "first."], "Windows keeps the name for itself"),
        (["method", "my-prompt"], "letters, digits and _ only, a letter first"),
        (["method", "2nd"], "letters, digits and _ only, a letter first"),
        (["method", "class"], "letters, digits and _ only, a letter first"),
        (["task", "boolq"], "comes with the program is called 'boolq' already"),
        (["task", "a b"], "letters, digits and _ . + - only"),
        (["task", "taken"], "is there already"),
        (["suite", "fine", "--folder", "nowhere"], "no such folder"),
        (["suite", "fine", "--folder", "taken.csv"], "is a file, not a folder"),
    ],
)
def test_names_that_are_taken_or_impossible_are_refused(here: Path, arguments: list[str], expected: str) -> None:
    (here / "taken.csv").write_text("kept")
    done = CliRunner().invoke(app, ["new", *arguments])
    assert isinstance(done.exception, UserError)
    assert expected in str(done.exception)
    assert names(here) == ["taken.csv"]
    assert (here / "taken.csv").read_text() == "kept"


def test_the_schema_beside_a_suite_is_left_as_it_is(here: Path) -> None:
    (here / "suite.schema.json").write_text("{}")
    harness("new", "suite", "second")
    assert (here / "suite.schema.json").read_text() == "{}"


@pytest.mark.parametrize(("name", "made"), [("my_prompt", "MyPrompt"), ("x", "X"), ("_2", "Method2")])
def test_a_method_has_a_class_of_its_name(name: str, made: str) -> None:
    assert class_name(name) == made
