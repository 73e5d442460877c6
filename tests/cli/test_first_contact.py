"""What a person meets first on the command line: what to type, what is refused at once, what is said."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import SMALL_SUITE
from paths import ROOT
from typer.testing import CliRunner

from harness import hub
from harness.backbone.load import backbone_config
from harness.cli import list_suites as listings_suites
from harness.cli.commands import app
from harness.cli.listings import describe_plan
from harness.data.origins import find_origin
from harness.data.tasks import all_tasks
from harness.errors import UserError
from harness.runner.plan import make_plan
from harness.runner.progress import Progress
from harness.suite.cell import Cell
from harness.suite.make_groups import Overrides

pytestmark = pytest.mark.usefixtures("few_rows")

Write = Callable[[str], Path]


def typed(*arguments: str) -> str:
    """What a command prints."""
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_the_program_says_its_version_and_completes_commands() -> None:
    assert re.fullmatch(r"harness \d+\.\d+\.\d+\n", typed("--version"))
    assert "--install-completion" in typed("--help")


@pytest.mark.parametrize("command", ["run", "plan"])
def test_every_choice_of_a_run_is_explained(command: str) -> None:
    shown = typed(command, "--help")
    for option in ("--methods", "--tasks", "--backbones", "--seeds"):
        assert re.search(rf"^ +{option} +A,B,\.\.\. +\w+ \w+", shown, re.MULTILINE), option


def test_a_run_ends_with_what_to_type_next(write_suite: Write, tmp_path: Path) -> None:
    results = tmp_path / "my results"
    shown = typed("run", str(write_suite(SMALL_SUITE)), "--methods", "majority", "--results", str(results), "--quiet")
    assert shown.splitlines()[-1] == f"Next: harness report '{results}'"
    assert "majority" in typed("report", str(results))


@pytest.mark.parametrize("command", [("run", "quickstart"), ("plan", "quickstart"), ("preview", "cb"), ("tasks",)])
def test_a_data_folder_that_is_not_there_is_refused_at_once(command: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"^nowhere: --data: no such data folder"):
        typed(*command, "--data", "nowhere")


def test_names_are_accepted_as_tables_print_them(write_suite: Write, tmp_path: Path) -> None:
    suite = write_suite(SMALL_SUITE.replace("[micro-t5]", "[google-t5/t5-small]").replace("micro_sentiment", "sst2"))
    chosen = Overrides(methods=["majority"], tasks=["SST-2", "CoLA"], backbones=["t5-small"])
    plan = make_plan(suite, chosen, tmp_path, None)
    assert [(group.task, group.backbone) for group in plan.groups] == [("sst2", "t5-small"), ("cola", "t5-small")]
    assert plan.suite.backbone_sources == {"t5-small": "google-t5/t5-small"}
    with pytest.raises(UserError, match="--tasks: lists a task twice: sst2, sst2"):
        make_plan(suite, Overrides(tasks=["sst2", "SST-2"]), tmp_path, None)


def test_suites_are_listed_with_their_purpose_and_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    for name in ("quickstart", "gates"):
        (shipped / f"{name}.yaml").write_text((ROOT / "suites" / f"{name}.yaml").read_text())
    monkeypatch.setattr(listings_suites, "shipped_suites", lambda: shipped)  # all of them take seconds
    (tmp_path / "mine.yaml").write_text(SMALL_SUITE.replace("suite: small", "suite: small\ndescription: Mine."))
    (tmp_path / "wrong.yaml").write_text(SMALL_SUITE.replace("seeds:", "seedz:"))
    (tmp_path / "other.yaml").write_text("services: {}\n")
    found = {row["suite"]: row for row in listings_suites.describe_suites(tmp_path)["suites"]}
    assert list(found)[:2] == ["gates", "quickstart"]
    assert found["quickstart"]["cells"] == 60
    mine = found[str(tmp_path / "mine.yaml")]
    assert (mine["cells"], mine["what it is for"]) == (7, "Mine.")
    assert "BROKEN" in found[str(tmp_path / "wrong.yaml")]["what it is for"]
    assert str(tmp_path / "other.yaml") not in found


def test_a_plan_prints_the_rules_of_its_protocol_only_when_asked(write_suite: Write, tmp_path: Path) -> None:
    plan = make_plan(write_suite(SMALL_SUITE), Overrides(), tmp_path / "none", None)
    short, long = (describe_plan(plan, probe=False, rules=rules)["text"] for rules in (False, True))
    assert "metrics.f1" not in short
    assert len(long) > 2 * len(short)
    assert short.endswith("Its keys and their reasons: --rules")


def test_a_slow_step_is_shown_in_seconds(write_suite: Write, tmp_path: Path) -> None:
    cell: Cell = make_plan(write_suite(SMALL_SUITE), Overrides(), tmp_path, None).pending()[0]
    lines: list[str] = []

    class Listening(Progress):
        def _line(self, text: str) -> None:
            lines.append(text)

    shown = Listening(quiet=True)
    for seconds, expected in ((200.0, "100.0 s/step"), (0.5, "4.0 steps/s")):
        bundle = shown.start_bundle([cell])
        bundle.first_step = 0
        bundle.started, bundle.last_line = time.monotonic() - seconds, 0.0
        shown.step(2, 4, {}, bundle)
        assert expected in lines[-1]


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub is a port of this machine at which nobody listens."""
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.why_unreachable.cache_clear()
    yield
    hub.why_unreachable.cache_clear()


@pytest.mark.usefixtures("no_hub")
def test_without_a_hub_rows_and_weights_are_given_up_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(seconds: float) -> None:
        raise AssertionError(f"waits {seconds} s to ask again")

    monkeypatch.setattr(time, "sleep", wait)
    with pytest.raises(UserError, match=r"'cb' is not on this machine: .*does not answer .*--data DIR") as refused:
        find_origin(all_tasks()["cb"], None)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=r"'some/net' is not on this machine: .*does not answer .*--backbones PATH"):
        backbone_config("some/net")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_quiet_run_prints_nothing_nor_do_its_processes(write_suite: Write, tmp_path: Path, processes: int) -> None:
    """All processes of a run write to the same place; in a new one nothing has been imported yet."""
    chosen = {"methods": ["majority"] if processes == 1 else ["dept"], "seeds": [1], "quiet": True}
    script = tmp_path / "quiet.py"
    script.write_text(
        "import harness\n"
        "if __name__ == '__main__':\n"
        f"    harness.run({str(write_suite(SMALL_SUITE))!r}, results={str(tmp_path / 'out')!r}, "
        f"settings={{'execution.processes': {processes}}}, **{chosen!r})\n"
        "    import sys\n"
        "    unused = {'peft', 'bitsandbytes', 'torch._inductor.compile_fx'} & sys.modules.keys()\n"
        "    assert not unused, f'a quarter of a start for nothing: {unused}'\n"
        "    import bitsandbytes\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
