"""What comes from anybody is data: bounded, never run, never a path out of a folder, shown with its line."""

from __future__ import annotations

import ast
import gzip
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fuzz.run import run_target
from fuzz.targets import LAYOUTS, OWN_SUITE, Suites, Target, targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import ROOT
from stored_runs import answers, store
from typer.testing import CliRunner

from harness import files as durable
from harness.backbone.load import load_backbone
from harness.backbone.names import SHIPPED
from harness.cli.commands import app
from harness.data import file_formats as readers
from harness.data.metrics import get_metric
from harness.data.splits import load_task
from harness.data.tasks import all_tasks
from harness.errors import UserError
from harness.results.store import ResultStore, checksum, predictions_path, read_result
from harness.results.verify import verify_folder
from harness.yaml_lines import parse_value, read_document

SOURCES = sorted([*(ROOT / "harness").rglob("*.py"), *(ROOT / "methods").glob("*.py")])
CB = all_tasks()["cb"]
Write = Callable[[str], Path]

# each line has nine times the values of the one before
LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{y}: &{y} [{','.join([f'*{x}'] * 9)}]\n" for x, y in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_loads_what_can_run_code(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}, f"{path}:{node.lineno}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert called not in {"eval", "exec", "os.system", "yaml.load", "pd.read_pickle"}, f"{path}:{node.lineno}"
        assert called != "torch.load" or given.get("weights_only") == "True", f"{path}:{node.lineno}"
        assert called != "np.load" or given.get("allow_pickle") == "False", f"{path}:{node.lineno}"
        assert given.get("trust_remote_code", "False") == "False", f"{path}:{node.lineno}"


def test_a_checkpoint_of_pickled_weights_or_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "ran"), "w")

    folder = tmp_path / "net"
    shutil.copytree(SHIPPED["micro-t5"], folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil()}))
    with pytest.raises(UserError, match="holds pickled weights only"):
        load_backbone(str(folder))
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoModelForSeq2SeqLM": "evil.Net"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": auto}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="could not be loaded"):
        load_backbone(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_metric_that_is_code_runs_only_when_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "own.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setenv("HARNESS_TRUST", "accuracy,rouge")
    with pytest.raises(UserError, match=r"nobody has allowed it by name.*HARNESS_TRUST="):
        get_metric(f"evaluate:{script}#x*100")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: !!python/object/apply:os.system [ls]", "tags such as"),
        ("a: !!omap [b: 1]", "tags such as"),
        ("a: !own {b: 1}", "tags such as !own"),
        ("a: &a [*a]", "stands for what it is part of"),
        ("a: " + "[" * 21 + "]" * 21, "nested deeper than 20 levels"),
        ("a: " + "[" * 500, "nested deeper than 20 levels"),
        (LAUGHS, "unfolds to more than 10,000 values"),
        ("a: [" + "1," * 11_000 + "]", "holds more than 10,000 values"),
        ("a: '" + "x" * 250_000 + "'", "larger than 250,000 bytes, the limit for a suite file"),
        ("a: 2020-01-01", "dates and the like"),
        (f"a: 0x{'f' * 5_000}", "more than 63 bits"),
        (f"a: {'9' * 5_000}", "not valid YAML"),
        ('a: "\\0"', "U+0000"),
        ('a: "\\ud800"', "U+D800"),
        ('"\\e[31m": 1', "U+001B"),
        ("a: \x00", "not valid YAML"),
    ],
)  # fmt: skip
def test_a_suite_file_is_plain_and_bounded(write_suite: Write, text: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        read_document(write_suite(text))
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 2_500
    with pytest.raises(UserError):
        parse_value(text)


def test_bytes_that_are_no_utf8_and_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(UserError, match=r"x\.yaml:2: is not UTF-8"):
        read_document(tmp_path / "x.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="not a regular file"):
        read_document(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="not the name of a file"):
        read_document("a\0b")


def test_the_offending_line_stands_beneath_a_message_about_a_suite(write_suite: Write) -> None:
    suites, path = Suites(), write_suite(OWN_SUITE.replace("prompt_length: 12", "promt_length: 12"))
    with pytest.raises(UserError) as caught:
        suites.read(path, {}, path.parent)
    said = str(caught.value).splitlines()
    number = OWN_SUITE.splitlines().index("  dept: {prompt_length: 12, rank: 4}") + 1
    assert said[0].startswith(f"{path}:{number}: methods.dept.promt_length: unknown; did you mean prompt_length?")
    assert said[1:] == [f"{number:>6} |   dept: {{promt_length: 12, rank: 4}}"]


def test_a_message_cannot_steer_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"premise": "a", "hypothesis": "b", "label": "\x1b]0;x\x07"}))
    with pytest.raises(UserError) as caught:
        load_task(
            replace(CB, files={"train": str(tmp_path / "x.jsonl"), "validation": str(tmp_path / "x.jsonl")}), None
        )
    assert "\x1b" not in str(caught.value)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    store(tmp_path / "results", "one", "cb", 1, *answers(75))
    ((path, _),) = ResultStore(tmp_path / "results").scan()
    return path


def forge(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content | {"checksum": checksum(content)}))


@pytest.mark.parametrize("field", ["suite", "task", "label", "backbone"])
@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "a/b", "a\0b", "", "a\n"])
def test_a_name_in_a_result_is_never_a_path(result: Path, field: str, name: str) -> None:
    content = json.loads(result.read_text())
    content["cell"][field] = name
    forge(result, content)
    with pytest.raises(UserError, match=f"cell.{field}"):
        read_result(result)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"format":' * 50_000, '{"format": ' + "9" * 5_000 + "}", '{"format": true}', '{"format": 0}',
     '{"format": NaN}', '{"format": "\\ud800"}', "\x00", "\ufeff{}"],
)  # fmt: skip
def test_a_result_that_is_none_is_refused(result: Path, text: str) -> None:
    result.write_text(text)
    with pytest.raises(UserError):
        read_result(result)


def test_a_result_of_absurd_size_is_refused_and_the_limit_named(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.results.store.MAX_BYTES", 1_000)
    with pytest.raises(UserError, match="larger than 1,000 bytes, the limit for a result"):
        read_result(result)
    with pytest.raises(UserError, match="larger than 5 bytes, the limit for a thing"):
        durable.read_bounded(result, 5, "a thing")


def test_links_in_a_results_folder_are_not_followed(result: Path, tmp_path: Path) -> None:
    (result.parent / "loop").symlink_to(tmp_path)
    (result.parent / "self.json").symlink_to("self.json")
    assert len(list(ResultStore(tmp_path / "results").scan())) == 1
    assert {"link", "unreadable"} <= {item.kind for item in verify_folder(tmp_path / "results").findings}


def test_the_html_page_escapes_what_results_say(result: Path) -> None:
    content = json.loads(result.read_text())
    content["cell"]["protocol"]["overrides"] = {"<script>alert(1)</script>": "<img src=x onerror=alert(1)>"}
    content["metrics"]["reported"] = ["<b>"]
    forge(result, content)
    done = CliRunner().invoke(app, ["report", str(result.parents[4]), "--format", "html"])
    assert done.exit_code == 0, done.output
    assert not {"<script>", "<img", "<b></"} & {mark for mark in ("<script>", "<img", "<b></") if mark in done.output}


@pytest.mark.parametrize(
    ("name", "limit", "expected"),
    [
        ("MAX_LINE", 20, ":1: is longer than 20 characters, the limit for a line"),
        ("MAX_TEXT", 60, "holds more than 60 characters, the limit for a file"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_lines_and_files_of_absurd_length_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, name: str, limit: int, expected: str
) -> None:
    rows = "".join(json.dumps({"premise": "a", "hypothesis": "b", "label": 1}) + "\n" for _ in range(5)).encode()
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(gzip.compress(rows) if suffix.endswith("gz") else rows)
    monkeypatch.setattr(readers, name, limit)
    with pytest.raises(UserError) as caught:
        list(readers.read_file(path))
    assert expected in str(caught.value)


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize("value", ["\\ud800", "\\udfff x", "a\\uDC00"])
def test_half_a_character_is_refused_where_it_stands(tmp_path: Path, suffix: str, value: str) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_text('[{"text": "%s"}]' % value if suffix == "json" else '{"text": "%s"}' % value)  # noqa: UP031
    with pytest.raises(UserError, match="half of a surrogate pair"):
        list(readers.read_file(path))
    path.write_text('{"text": "\\ud83d\\ude00"}')
    assert [row for _, row in readers.read_file(path)] == [{"text": "😀"}]


def test_predictions_from_elsewhere_are_read_as_texts_or_not_at_all(result: Path) -> None:
    import hashlib

    import pyarrow as pa
    import pyarrow.parquet as pq

    file, content = predictions_path(result), json.loads(result.read_text())
    pq.write_table(pa.table({"split": ["test"], "row": [0], "references": [[]], "prediction": ["x"]}), file)
    content["files"]["predictions"] = hashlib.sha256(file.read_bytes()).hexdigest()
    forge(result, content)
    for command in (["score"], ["verify"], ["report", "--statistics"]):
        done = CliRunner().invoke(app, [command[0], str(result.parents[4]), *command[1:]])
        assert done.exception is None or isinstance(done.exception, (SystemExit, UserError)), done.exception


def test_a_forged_grid_is_refused(result: Path) -> None:
    content = json.loads(result.read_text())
    content["cell"]["grid"] = {"2026": 0.1}
    forge(result, content)
    with pytest.raises(UserError, match=r"cell\.grid"):
        read_result(result)


def test_two_groups_that_claim_one_entry_end_in_a_message(result: Path, tmp_path: Path) -> None:
    store(tmp_path / "results", "one", "cb", 2, *answers(70))
    content = json.loads(result.read_text())
    forge(result, content | {"group_id": "0" * 16})
    done = CliRunner().invoke(app, ["report", str(tmp_path / "results")])
    assert isinstance(done.exception, UserError)
    assert "harness verify names" in str(done.exception)


def test_a_packed_file_damaged_in_text_and_checksum_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n\xad\n')[:-8] + bytes(8))
    with pytest.raises(UserError, match=r"x\.jsonl\.gz"):
        list(readers.read_file(path))


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Target]]:
    folder = tmp_path_factory.mktemp("fuzz")
    return folder, {target.name: target for target in targets(folder)}


def test_the_examples_that_the_fuzzer_damages_are_valid(tmp_path: Path) -> None:
    suites = Suites()
    for index, text in enumerate(suites.texts):
        path = tmp_path / f"{index}.yaml"
        path.write_text(text)
        suites.read(path, {}, tmp_path)
    assert set(LAYOUTS) <= set(all_tasks())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["suite files", "results", "jsonl", "json lines, packed", "csv", "tsv", "parquet", "official layouts"],
)
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_no_input_breaks_a_reader(fuzzed: tuple[Path, dict[str, Target]], name: str, seed: int) -> None:
    """The short form of `python -m tests.fuzz`: ten inputs from each seed."""
    folder, found = fuzzed
    figures = run_target(found[name], range(10), seed, folder)
    assert figures.broken == []
    assert figures.accepted + figures.refused == 10


def test_the_fuzzer_notices_writes_elsewhere_tracebacks_and_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fuzz import sandbox

    (tmp_path / "inside").mkdir()

    def broken(act: Callable[[], object]) -> list[str]:
        figures = sandbox.Figures()
        sandbox.try_one(lambda: (act(), None)[1], tmp_path / "inside", figures)
        return figures.broken

    assert broken(lambda: (tmp_path / "inside" / "x").write_text("x")) == []
    assert "writes" in broken(lambda: (tmp_path / "x").write_text("x"))[0]
    assert "writes" in broken(lambda: (tmp_path / "folder").mkdir())[0]
    assert "ZeroDivisionError" in broken(lambda: 1 / 0)[0]
    assert "subprocess.Popen" in broken(lambda: os.popen("true").close())[0]
    monkeypatch.setattr(sandbox, "DEADLINE_S", 1)
    assert "took longer" in broken(lambda: iter(int, 1) and sum(iter(lambda: 1, 0)))[0]
