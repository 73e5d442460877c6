"""What the documents say is true: links lead somewhere, examples run, the README shows the rendered leaderboard."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from suite_reference import EXAMPLES, SECTIONS, inline_yaml, reference
from task_page import previews, records

import harness
from harness.cli.list_protocols import describe_protocols
from harness.data.tasks import all_tasks
from harness.suite.blocks import Strict
from harness.suite.file_schema import SuiteFile
from harness.suite.json_schema import models_below
from harness.train.method_contract import check_method_file
from harness.yaml_lines import parse_value

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "results").glob("*.md")])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_local_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize(
    ("page", "mark", "report"),
    [("README.md", "leaderboard", "quickstart.md"), ("docs/methods.md", "methods", "methods.md")],
)
def test_a_page_shows_the_rendered_report(page: str, mark: str, report: str) -> None:
    assert_shown(ROOT / page, mark, (ROOT / "reports" / report).read_text(), f"make, see reports/{report}")


def test_the_docs_show_the_protocols_as_they_are() -> None:
    table = f"{describe_protocols('markdown')['text']}\n"
    assert_shown(ROOT / "docs" / "protocol.md", "protocols", table, "UPDATE_GOLDEN=1 pytest tests/test_docs.py")


def test_the_docs_show_each_task_of_today_with_a_row(tmp_path: Path) -> None:
    page, hint = ROOT / "docs" / "tasks.md", "UPDATE_GOLDEN=1 pytest tests/test_docs.py"
    assert_shown(page, "records", records(), hint)
    assert_shown(page, "previews", previews(tmp_path), hint)


def test_the_docs_show_every_key_of_a_suite_file() -> None:
    """Each with type, default, meaning and an example; a new key without them raises ValueError here."""
    assert set(models_below(SuiteFile)) <= set(SECTIONS)
    page = ROOT / "docs" / "suite-reference.md"
    assert_shown(page, "reference", reference(), "UPDATE_GOLDEN=1 pytest tests/test_docs.py")


@pytest.mark.parametrize("model", EXAMPLES, ids=lambda model: model.__name__)
def test_the_examples_of_the_suite_reference_are_valid(model: type[Strict]) -> None:
    for example in EXAMPLES[model]:
        written = parse_value(inline_yaml(example))
        assert written == example
        model.model_validate(written)


def assert_shown(page: Path, mark: str, text: str, hint: str) -> None:
    """The page holds `text` between its marks; with UPDATE_GOLDEN=1 it is written there."""
    begin, end = f"<!-- {mark}:begin -->\n", f"<!-- {mark}:end -->"
    head, rest = page.read_text().split(begin)
    shown, tail = rest.split(end)
    if os.environ.get("UPDATE_GOLDEN"):
        page.write_text(f"{head}{begin}{text}{end}{tail}")
        shown = text
    assert shown == text, hint


def test_the_suite_for_own_data_of_the_docs_runs_on_a_csv(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "your-own-data.md").read_text()
    (tmp_path / "mine.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    rows = re.findall(r"```csv\n(.*?)```", text, re.DOTALL)[0].splitlines()
    more = [f"Number {i} was {'fine' if i % 2 else 'no use'}.,{'good' if i % 2 else 'bad'}" for i in range(40)]
    (tmp_path / "reviews.csv").write_text("\n".join([*rows, *more]) + "\n")
    settings: dict[str, object] = {"recipe.steps": 2, "recipe.eval_every": 1}
    summary = harness.run(tmp_path / "mine.yaml", results=tmp_path / "out", settings=settings, seeds=[1], quiet=True)
    assert summary.num_failed == 0
    frame = harness.load_results(tmp_path / "out")
    assert set(frame["task"]) == {"reviews"}


@pytest.mark.parametrize("name", ["scaled_prompt", "norm_gains"])
def test_the_example_methods_of_the_docs_meet_the_contract_and_train(name: str, tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "writing-a-method.md").read_text(), re.DOTALL)
    [code] = [example for example in examples if f'name = "{name}"' in example]
    assert len(code.strip().splitlines()) < 40
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / f"{name}.py"
    file.write_text(code)
    assert all(finding.ok for finding in check_method_file(file))
    settings: dict[str, object] = {"recipe.steps": 2, "recipe.eval_every": 1}
    if name == "scaled_prompt":
        settings["methods.scaled_prompt.prompt_length"] = 4
    summary = harness.run(
        ROOT / "suites" / "quickstart.yaml", methods=[name], tasks=["micro_sentiment"], seeds=[1],
        method_dirs=[tmp_path / "mine"], results=tmp_path / "out", settings=settings, quiet=True,
    )  # fmt: skip
    assert (summary.num_trained, summary.num_failed) == (2, 0)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_of_the_program_in_the_documents_exist(path: Path) -> None:
    entry_points = {".methods"}
    for name in sorted({*re.findall(r"(?<![\w./-])harness((?:\.[A-Za-z_]+)+)", path.read_text())} - entry_points):
        found: Any = harness
        for part in name[1:].split("."):
            try:
                found = getattr(found, part)
            except AttributeError:
                found = importlib.import_module(f"{found.__name__}.{part}")


def test_the_suite_of_the_readme_is_valid(tmp_path: Path) -> None:
    from harness.runner.plan import make_plan
    from harness.suite.make_groups import Overrides

    text = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    (tmp_path / "mine.yaml").write_text(text)
    plan = make_plan(tmp_path / "mine.yaml", Overrides(), tmp_path / "out", None)
    assert {group.label for group in plan.groups} == {"majority", "dept", "short"}


def test_commands_named_in_the_documents_exist() -> None:
    from harness.cli.commands import app

    known = {(command.name or command.callback.__name__) for command in app.registered_commands if command.callback}
    for path in DOCUMENTS:
        for name in re.findall(r"^(?:\| `)?harness ([a-z]+)\b", path.read_text(), re.MULTILINE):
            assert name in known, f"{path.name} names harness {name}"


def test_the_example_record_of_the_docs_is_the_tasks_own() -> None:
    task = all_tasks()["cb"]
    text = (ROOT / "docs" / "adding-a-task.md").read_text()
    for part in (
        f'name="{task.name}"',
        f'title="{task.title}"',
        f"sizes={task.sizes}",
        f'selection="{task.selection}"',
    ):
        assert part in text
