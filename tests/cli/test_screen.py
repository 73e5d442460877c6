"""What commands print on screens that lack the characters: every command, in four encodings, no traceback."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from stored_runs import answers, store

from harness.cli.commands import main
from harness.errors import UserError
from harness.runner.progress import Progress
from harness.screen import on_screen, replace_missing_characters, say

ENCODINGS = ("utf-8", "latin-1", "cp1252", "ascii")
TEXT = "naïve – 日本 ✓ ±2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results, and a suite with a task whose rows and labels are far from ASCII."""
    made = tmp_path_factory.mktemp("folder")
    for label, right in (("lora", 60), ("ept", 58)):
        for seed in (1, 2):
            store(made / "results", label, "cb", seed, *answers(right + seed))
    rows = "".join(f'{{"text": "{TEXT} {i}", "y": {i % 2}}}\n' for i in range(20))
    (made / "rows.jsonl").write_text(rows, encoding="utf-8")
    (made / "own.yaml").write_text(
        "suite: own\nbackbones: [micro-t5]\ntasks: [mood]\nseeds: [1]\nmethods: {majority: {}}\n"
        "define_tasks:\n  mood:\n    files: rows.jsonl\n"
        '    fields: {text: text}\n    label: y\n    labels: ["0", "1"]\n',
        encoding="utf-8",
    )
    return made


class Screen:
    """Both streams, strict in one encoding, as Python opens them for a terminal."""

    def __init__(self, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encoding, self._bytes = encoding, (io.BytesIO(), io.BytesIO())
        self._streams = [io.TextIOWrapper(item, encoding=encoding, write_through=True) for item in self._bytes]
        self.use(monkeypatch)

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the program print here."""
        monkeypatch.setattr(sys, "stdout", self._streams[0])
        monkeypatch.setattr(sys, "stderr", self._streams[1])

    def texts(self) -> list[str]:
        """Standard output and standard error; raises where bytes of another encoding were written."""
        return [item.getvalue().decode(self.encoding) for item in self._bytes]


def called(arguments: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Exit code and what stands on both streams."""
    screen = Screen(encoding, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["harness", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = screen.texts()
    return int(stop.value.code or 0), out, err


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("tuning results", "demo on tiny"),
        ("report results --format markdown", "lora"),
        ("report results --format latex", "lora"),
        ("report results --format csv", "lora"),
        ("table list", "accept-1"),
        ("methods", "majority"),
        ("tasks", "boolq"),
        ("protocols", "acts on"),
        ("preview mood --suite own.yaml", "naïve"),
        ("plan own.yaml --no-probe", "mood"),
        ("check own.yaml", "fits"),
        ("score results", "recomputed"),
        ("--help", "report"),
    ],
)
def test_every_command_prints_on_every_screen(
    arguments: str, part: str, encoding: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    code, out, err = called(arguments.split(), encoding, monkeypatch)
    assert code == 0, err
    assert part.encode(encoding, "backslashreplace").decode(encoding) in out


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_columns_stay_aligned(encoding: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    _, out, _ = called(["report", "results", "--statistics"], encoding, monkeypatch)
    first = "┌─" if encoding == "utf-8" else "+--"
    table = out[out.index(first) :].partition("\n\n")[0].splitlines()
    assert len({len(line) for line in table}) == 1
    assert ("≈" if encoding == "utf-8" else "~") in table[-2]
    assert ("+-" in "".join(line for line in table if "(" in line)) == (encoding == "ascii")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_mistake_is_told_whatever_its_path_holds(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = called(["report", f"nowhere/{TEXT}\udcff"], encoding, monkeypatch)
    assert code == 2
    assert "no such" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_page_on_standard_output_is_what_it_says(
    encoding: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its head says UTF-8, so no byte may mean another character there."""
    monkeypatch.chdir(folder)
    _, out, _ = called(["report", "results", "--format", "html"], encoding, monkeypatch)
    assert out.encode(encoding).decode("utf-8") == out
    assert ("±" if encoding == "utf-8" else "&#177;") in out


@given(st.text(st.characters(codec=None)), st.sampled_from(ENCODINGS))
def test_any_text_can_be_shown_and_what_the_screen_has_stays(text: str, encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    shown = on_screen(text, stream)
    stream.write(shown)
    kept = "".join(char for char in text if char.encode(encoding, "ignore"))
    assert (shown == text) == (kept == text)


def test_nothing_else_prints() -> None:
    """`typer.echo` writes UTF-8 to a screen that says it is ASCII, and `print` ends in a traceback there."""
    paths = sorted((ROOT / "harness").rglob("*.py"))
    assert len(paths) > 100
    for path in paths:
        found = re.search(
            r"^\s*(print)\(|\b(echo|secho|rich\.print|sys\.std\w+\.write)\b", path.read_text("utf-8"), re.M
        )
        assert not found or path.name == "screen.py", f"{path.name} calls {found[0].strip()}: use harness.screen.say"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_screen_is_spared_by_what_the_program_says_and_by_what_libraries_print(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict, lenient = Screen(encoding, monkeypatch), Screen(encoding, monkeypatch)
    strict.use(monkeypatch)
    say(TEXT)
    say(TEXT, is_error=True)
    lenient.use(monkeypatch)
    replace_missing_characters()
    print(TEXT)
    print(TEXT, file=sys.stderr)
    shown = on_screen(TEXT) + "\n"
    assert strict.texts() == lenient.texts() == [shown, shown]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_run_from_python_is_shown_on_every_screen(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has prepared the streams there; notes hold labels, and messages hold texts of the rows."""
    screen = Screen(encoding, monkeypatch)
    with Progress() as shown:
        shown.say(TEXT)
    assert screen.texts() == ["", on_screen(TEXT, sys.stderr) + "\n"]


def test_a_cell_is_shown_with_the_metric_that_chose_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CB read "best dev 47.0" while it trained and "dev 64.3" when it was done: macro F1, then accuracy."""
    result = store(tmp_path, "lora", "cb", 1, ["0", "0", "0", "1"], [["0"], ["0"], ["0"], ["0"]])
    chosen = result.metrics.model_copy(update={"selection": "macro_f1"}) if result.metrics else None
    dev = result.dev.model_copy(update={"metrics": {"accuracy": 75.0, "macro_f1": 42.9}}) if result.dev else None
    with Progress() as shown:
        shown.cell_done(result)
        shown.cell_done(result.model_copy(update={"metrics": chosen, "dev": dev}))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("dev 75.0 at step 10")
    assert lines[1].endswith("dev 75.0, macro_f1 42.9 at step 10")


def test_what_is_said_without_streams_is_lost_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    say("a program without a window has no streams")


def test_a_message_and_its_hint_are_two_sentences() -> None:
    said = [
        str(UserError("no such row", value="lara", choices=["lora"], hint="See the page.")),
        str(UserError("nothing answers (no network)", hint="Name a folder.")),
        str(UserError("is it there?", hint="Look.")),
    ]
    assert said == [
        "no such row; did you mean lora? (allowed: lora). See the page.",
        "nothing answers (no network). Name a folder.",
        "is it there? Look.",
    ]
