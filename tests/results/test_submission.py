"""`harness verify --submission`: honest results pass, and each thing that a stranger may slip in is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ALL_ROWS, micro_rows
from paths import METHODS
from typer.testing import CliRunner

from harness.backbone.fingerprint import weights_fingerprint
from harness.backbone.names import SHIPPED
from harness.cli.commands import app
from harness.data.splits import load_task
from harness.data.tasks import all_tasks
from harness.errors import UserError
from harness.provenance import sha256_file
from harness.results import known_origins
from harness.results.schema import Result
from harness.results.store import ResultStore, checksum, predictions_path, tensors_path
from harness.results.submission import Submission, check_submission
from harness.runner.submitted_suites import known_suites
from harness.suite.cell import Cell
from tools.known_fingerprints import FILE, as_text


@pytest.fixture
def results(small_results: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(small_results, tmp_path / "results"))


@pytest.fixture
def suite(small_results: Path) -> Path:
    return small_results.parent / "small.yaml"


def check(results: Path, *suites: Path, **options: Any) -> Submission:
    return check_submission(results, lambda found: known_suites(found, suites), **options)


def cells(results: Path, label: str) -> list[tuple[Path, Result]]:
    return [(path, result) for path, result in ResultStore(results).scan() if result.cell.label == label]


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a result as a forger would: ids, checksum and place follow."""
    content = json.loads(path.read_text())
    change(content)
    cell = Cell.model_validate_json(json.dumps(content["cell"]))
    content |= {"cell_id": cell.cell_id, "group_id": cell.group_id}
    target = ResultStore(path.parents[4]).path(cell)
    target.parent.mkdir(parents=True, exist_ok=True)
    for of in (predictions_path, tensors_path):
        if of(path).exists():
            of(path).rename(of(target))
    path.unlink()
    target.write_text(json.dumps(content | {"checksum": checksum(content)}))


def first(results: Path, label: str = "dept") -> Path:
    return cells(results, label)[0][0]


def drop(results: Path, label: str, seed: int, lr: float | None = None) -> None:
    for path, result in cells(results, label):
        if result.cell.seed == seed and lr in (None, result.cell.recipe.lr):
            for file in (path, predictions_path(path), tensors_path(path)):
                file.unlink(missing_ok=True)


def let_the_other_point_win(results: Path) -> None:
    """Raise the dev scores of the grid point that did not win."""
    runs = cells(results, "prompt_tuning")
    winner = next(result.cell.recipe.lr for _, result in runs if result.cell.seed == 2)
    path = next(path for path, result in runs if result.cell.recipe.lr != winner)

    def raised(data: dict[str, Any]) -> None:
        for item in data["dev_history"]:
            item["selection"] += 100

    rewrite(path, raised)


def link_out(results: Path) -> None:
    (results.parent / "secret.json").write_text("{}")
    (results / "small" / "x.json").symlink_to(results.parent / "secret.json")


def other_text(results: Path, old: str, new: str) -> None:
    path = first(results)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def sets(place: str, value: Any) -> Callable[[Path], None]:
    """Damage: another value at a place of the first result of dept, forged to be consistent otherwise."""
    *above, key = place.split(".")

    def damage(results: Path) -> None:
        def change(data: dict[str, Any]) -> None:
            for name in above:
                data = data[name]
            data[key] = value

        rewrite(first(results), change)

    return damage


def adds(name: str, text: str = "") -> Callable[[Path], object]:
    return lambda results: (results / name).write_text(text)


IMAGE = "<img src=x onerror=alert(1)>"
STATUS = '"status": "done"'
DAMAGE: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "a forged score": ("scores", "stored 99.0", sets("test.score", 99.0)),
    "another method file": ("method", "the file of method dept was another", sets("method_sha256", "0" * 64)),
    "other rows": ("rows", "the rows of micro_sentiment are 00", sets("data.fingerprint", "00")),
    "other weights": ("weights", "the weights of micro-t5 are files:0", sets("backbone.fingerprint", "files:0")),
    "a key of the protocol": (
        "protocol",
        "was made under accept-2024 with stsb.round=fifth",
        sets("cell.protocol.overrides", {"stsb.round": "fifth"}),
    ),
    "a protocol that is none": ("protocol", "unknown protocol 'own'", sets("cell.protocol.name", "own")),
    "a key said to be another": ("protocol", "batch_size is said to be 4", sets("protocol.batch_size", 4)),
    "a seed left out": (
        "seeds",
        "lacks 1 cells that the suite asks for, of seeds 2",
        lambda results: drop(results, "dept", 2),
    ),
    "a grid point left out": ("seeds", "of seeds 1", lambda results: drop(results, "prompt_tuning", 1, 0.1)),
    "the winner of another split": ("selection", "dev on seed 1 chooses recipe.lr=", let_the_other_point_win),
    "more steps": ("settings", "recipe.steps is 9, not 4", sets("cell.recipe.steps", 9)),
    "an entry that the suite has not": ("settings", "suite small has no such entry", sets("cell.task", "cb")),
    "a link out of the folder": ("link", "leads out of the folder", link_out),
    "a link to a folder": ("link", "is a link", lambda results: (results / "small" / "loop").symlink_to(results)),
    "a pipe": ("link", "neither a file nor a folder", lambda results: os.mkfifo(results / "small" / "x.json")),
    "markup in a label": (
        "content",
        "metrics.labels.1: holds what looks like markup",
        sets("metrics.labels", ["0", IMAGE]),
    ),
    "markup in a key": ("content", "protocol: holds what looks like markup", sets("protocol.</td><b>", 1)),
    "a text that runs backwards": (
        "content",
        "data.source: holds characters that nobody sees",
        sets("data.source", "a\u202eb"),
    ),
    "no number": ("content", "holds NaN", sets("usage.train_s", float("nan"))),
    "a key twice": (
        "content",
        "holds the key 'status' twice",
        lambda results: other_text(results, STATUS, f'"status": "failed", {STATUS}'),
    ),
    "a program": ("name", "is no file that results have", adds("small/run.sh")),
    "a hidden file": ("name", "is no file that results have", adds(".env")),
    "a name for a shell": ("name", "is no name of a suite", lambda results: (results / "a;rm").mkdir()),
    "two names in one": ("name", "where names have no case", lambda results: (results / "Small").mkdir()),
    "no JSON": ("unreadable", "is not a result file", adds("small/x.json", "[" * 100_000)),
}


def test_honest_results_of_a_known_suite_pass(results: Path, suite: Path) -> None:
    (results / "README.md").write_text("By whom, and how: <b>us</b>.")
    checked = check(results, suite)
    assert checked.findings == []
    assert [item for item in checked.unknown if item.kind != "program"] == []
    assert checked.num_results == 7


@pytest.mark.parametrize("name", DAMAGE)
def test_each_thing_that_a_stranger_may_slip_in_is_named(results: Path, suite: Path, name: str) -> None:
    kind, words, damage = DAMAGE[name]
    damage(results)
    found = check(results, suite).findings
    assert any(item.kind == kind and words in item.problem for item in found), found


def test_behind_a_link_nothing_is_read(results: Path, suite: Path) -> None:
    first(results).write_text("{")
    link_out(results)
    checked = check(results, suite)
    assert [item.problem for item in checked.findings if item.path == "."] == ["nothing was read any further"]
    assert {item.kind for item in checked.findings} == {"link"}


def test_large_files_are_named_by_the_limit_that_is_given(results: Path, suite: Path) -> None:
    sizes = [path.stat().st_size for path in results.rglob("*") if path.is_file()]
    limit = max(sizes) - 1
    findings = check(results, suite, max_bytes=limit).findings
    problem = f"has {max(sizes):,} bytes, more than the {limit:,} that are taken"
    assert [(item.kind, item.problem) for item in findings] == [("size", problem)] * sizes.count(max(sizes))


def test_a_task_that_a_row_lacks_is_named(results: Path, suite: Path, tmp_path: Path) -> None:
    larger = tmp_path / "larger.yaml"
    larger.write_text(suite.read_text().replace("tasks: [micro_sentiment]", "tasks: [micro_sentiment, micro_qa]"))
    shutil.rmtree(results / "small" / "micro_sentiment" / "majority")
    found = check(results, larger).findings
    assert [(item.path, item.kind) for item in found] == [
        ("small/micro_qa/dept/micro-t5", "seeds"), ("small/micro_qa/prompt_tuning/micro-t5", "seeds"),
    ]  # fmt: skip


def test_without_a_suite_the_protocol_decides_and_the_suite_is_said_to_be_unknown(results: Path) -> None:
    checked = check(results)
    places = {item.path for item in checked.unknown if item.kind == "settings"}
    assert places == {f"small/micro_sentiment/{name}/micro-t5" for name in ("dept", "majority", "prompt_tuning")}
    dept = {item.problem for item in checked.findings if "/dept/" in item.path and item.kind == "protocol"}
    assert "recipe.steps is 4, protocol accept-2024 sets 30000" in dept
    assert "recipe.lr is 0.1, protocol accept-2024 sets 0.3 or 0.4 or 0.5" in dept
    kinds = {(item.path.split("/")[2], item.kind) for item in checked.findings}
    # a rule trains nothing, so no recipe is held against it; nobody ran the seeds of the protocol
    assert kinds == {("dept", "protocol"), ("prompt_tuning", "protocol"), *((row, "seeds") for row in
                     ("dept", "majority", "prompt_tuning"))}  # fmt: skip


def test_without_a_suite_the_choice_of_the_grid_point_is_made_again(results: Path) -> None:
    assert not any("does not choose" in item.problem for item in check(results).findings)
    let_the_other_point_win(results)
    assert any("which dev on seed 1 does not choose" in item.problem for item in check(results).findings)
    drop(results, "prompt_tuning", 1, 0.1)
    assert any("lacks points of its grid" in item.problem for item in check(results).findings)


def test_what_is_lacking_for_a_file_that_was_dropped_names_the_file(results: Path, suite: Path) -> None:
    """An edited result counts as missing, and its row was said to lack a cell that lay in the folder."""
    path = first(results)
    path.write_text(path.read_text().replace('"score": ', '"score": 1', 1))
    problems = {item.kind: item.problem for item in check(results, suite).findings}
    assert set(problems) == {"edited", "seeds"}
    assert problems["seeds"].endswith(f"; without what cannot be used: {path.name}")


def test_repeats_are_cells_of_the_suite_and_choose_nothing(results: Path, suite: Path, tmp_path: Path) -> None:
    repeated = tmp_path / "repeated.yaml"
    repeated.write_text(suite.read_text().replace("seeds: [1, 2]", "seeds: [1, 2]\nrepeats: 2"))
    lacks = [item.problem for item in check(results, repeated).findings]
    assert lacks == ["lacks 2 cells that the suite asks for, of seeds 1, 2"] * 2, "a rule has no repeats"
    winner = next(result.cell.recipe.lr for _, result in cells(results, "prompt_tuning") if result.cell.seed == 2)
    for path, result in [*cells(results, "dept"), *cells(results, "prompt_tuning")]:
        if result.cell.label == "dept" or result.cell.recipe.lr == winner:
            for file in (path, predictions_path(path), tensors_path(path)):
                shutil.copy(file, file.with_name(file.name.replace(path.stem, "again")))
            rewrite(path.with_name("again.json"), lambda data: data["cell"].update(repeat=2))
    assert check(results, repeated).findings == []
    path = next(path for path, result in cells(results, "prompt_tuning")
                if (result.cell.seed, result.cell.repeat) == (1, 2))  # fmt: skip
    rewrite(path, lambda data: [item.update(selection=-1.0) for item in data["dev_history"]])
    assert not any("does not choose" in item.problem for item in check(results).findings)


def test_later_trials_of_a_search_may_have_any_point_of_its_space(results: Path, suite: Path, tmp_path: Path) -> None:
    searched, known = tmp_path / "searched.yaml", [result for _, result in ResultStore(results).scan()]
    for seed in range(20):
        tuning = f"seeds: [1, 2]\ntuning: {{strategy: tpe, trials: 2, startup: 1, batch: 1, seed: {seed}}}"
        text = suite.read_text().replace("seeds: [1, 2]", tuning).replace("[0.1, 0.3]", "[0.1, 0.3, 0.7]")
        searched.write_text(text)
        groups = known_suites(known, [searched])["small"].groups
        (group,) = [group for group in groups if group.label == "prompt_tuning"]
        if group.points[0]["recipe.lr"] != 0.7:
            break
    assert group.search is not None
    name, drawn = group.search.name, group.points[0]["recipe.lr"]

    def kinds() -> set[str]:
        return {item.kind for item in check(results, searched).findings if "/prompt_tuning/" in item.path}

    assert "settings" in kinds(), "a point that no search asked for"
    for path, result in cells(results, "prompt_tuning"):
        number = int(result.cell.recipe.lr != drawn)
        rewrite(path, lambda data, number=number: data["cell"].update(study=name, grid_index=number))  # type: ignore[misc]
    assert kinds() <= {"selection"}, "of equal dev scores the point of the lower number wins, which is another now"
    told = [item.problem for item in check(results, searched).unknown if item.kind == "selection"]
    assert told == ["points of a search by tpe are taken as they are: nobody asked for them again"]
    drop(results, "prompt_tuning", 1, next(lr for lr in (0.1, 0.3) if lr != drawn))
    assert any("lacks 1 trials" in item.problem for item in check(results, searched).findings)


def test_no_recipe_and_no_seeds_are_asked_of_an_adapter_from_elsewhere(results: Path) -> None:
    start = {"title": "mine", "file": "mine/x.safetensors", "adapter": "mine", "identity": "i", "family": "i"}
    for path, result in cells(results, "dept"):
        if result.cell.seed == 1:
            rewrite(path, lambda data: (data["cell"].update(init_from=[start]), data["usage"].update(num_steps=0)))
    drop(results, "dept", 2)
    found = [item for item in check(results).findings if "/dept/" in item.path]
    assert not [item for item in found if item.kind == "seeds" or "recipe." in item.problem], found


def test_what_is_not_known_is_told_apart_and_counts_only_when_asked(results: Path, suite: Path, tmp_path: Path) -> None:
    shutil.rmtree(results / "small" / "micro_sentiment" / "prompt_tuning")
    for path, _ in cells(results, "dept"):
        rewrite(path, lambda data: data["cell"].update(method="own", label="own"))
    for path, _ in cells(results, "majority"):
        rewrite(path, lambda data: data["cell"].update(backbone="other"))
    checked = check(results, suite)
    told = {(item.path.split("/")[2], item.kind): item.problem for item in checked.unknown}
    assert "method own is none that is known here" in told["own", "method"]
    assert "the method of row own is not known" in told["own", "settings"]
    arguments = ["verify", str(results), "--submission", "--suite", str(suite)]
    before = CliRunner().invoke(app, arguments)
    assert "unknown: small/micro_sentiment/own/micro-t5: method: method own is none" in before.output
    # with the file at hand, which is read and not run, the method is a known one
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "own.py"
    ran = tmp_path / "ran"
    file.write_text((METHODS / "dept.py").read_text().replace('"dept"', '"own"') + f"open({str(ran)!r}, 'w')\n")
    told_of = CliRunner().invoke(app, [*arguments, "--methods-dir", str(file.parent)]).output
    assert "method: the file of method own was another" in told_of
    for path, _ in cells(results, "own"):
        rewrite(path, lambda data: data.update(method_sha256=sha256_file(file)))
    told_of = CliRunner().invoke(app, [*arguments, "--methods-dir", str(file.parent)]).output
    assert ": method: " not in told_of
    assert "settings: a cell is none of the suite's: hp." in told_of
    assert not ran.exists()


def test_unknown_rows_and_weights_are_no_findings(results: Path, suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_origins, "known_fingerprints", lambda: {"rows": [], "weights": {}})
    checked = check(results, suite)
    assert checked.findings == []
    told = {item.kind: item.problem for item in checked.unknown}
    assert "no fingerprint of the rows of micro_sentiment is recorded" in told["rows"]
    assert "no fingerprint of the weights of micro-t5 is recorded" in told["weights"]
    # published sizes are known for every shipped task
    path = cells(results, "majority")[0][0]
    rewrite(path, lambda data: data["data"].update(num_train=7))
    assert any(item.kind == "rows" and "published are 2,000/200/400" in item.problem
               for item in check(results, suite).findings)  # fmt: skip


def test_the_command_has_a_line_for_each_finding(results: Path, suite: Path) -> None:
    arguments = ["verify", str(results), "--submission", "--suite", str(suite)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "7 results in 19 files: nothing is wrong" in done.output
    drop(results, "dept", 2)
    rewrite(first(results), lambda data: data.update(method_sha256="0" * 64))
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    lines = [line for line in done.output.splitlines() if not line.startswith("unknown: ")]
    assert [line.split(": ")[:2] for line in lines[:-1]] == [
        ["small/micro_sentiment/dept/micro-t5", "seeds"],
        [first(results).relative_to(results).as_posix(), "method"],
    ]
    told = json.loads(CliRunner().invoke(app, [*arguments, "--format", "json"]).output)
    assert (told["ok"], len(told["findings"])) == (False, 2)


def test_strict_counts_what_is_not_known(results: Path, suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_origins, "known_fingerprints", lambda: {"rows": [], "weights": {}})
    arguments = ["verify", str(results), "--submission", "--suite", str(suite)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert CliRunner().invoke(app, [*arguments, "--strict"]).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere", "--submission"], "no such results folder"),
        (["--strict"], "is about a submission"),
        (["--suite", "quickstart"], "is about a submission"),
        (["--submission", "--suite", "quickstrt"], "did you mean quickstart?"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], expected: str) -> None:
    done = CliRunner().invoke(app, ["verify", *arguments])
    assert isinstance(done.exception, UserError)
    assert expected in str(done.exception)


def test_the_record_knows_the_generated_rows_and_the_shipped_weights() -> None:
    """`python -m tools.known_fingerprints --write` makes it anew."""
    record = json.loads(FILE.read_text())
    assert as_text(record) == FILE.read_text()
    known = {entry["task"]: entry for entry in record["rows"] if not entry["rules"]}
    generated = [task for task in all_tasks().values() if task.generate]
    assert set(known) == {task.name for task in generated}
    with micro_rows(ALL_ROWS):
        for task in generated:
            assert (task.version, load_task(task, None).record.fingerprint) == (
                known[task.name]["version"], known[task.name]["fingerprint"],
            )  # fmt: skip
    assert record["weights"] == {name: [weights_fingerprint(name)] for name in SHIPPED}
    assert {entry["task"] for entry in record["rows"]} >= {"cb", "boolq", "copa", "multirc", "wic", "cola", "rte"}
