"""The whole way on the shipped backbone: run, continue, fail in one place, drop a method in."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL_SUITE
from typing_help import present

import harness
from harness import stop
from harness.backbone.names import SHIPPED
from harness.errors import UserError
from harness.method.registry import discover
from harness.results.schema import Result
from harness.results.store import ResultStore
from harness.runner.plan import make_plan
from harness.runner.preflight import find_misfits, lines_of
from harness.suite.make_groups import Overrides
from harness.train.checkpoint import CheckpointWriter
from harness.train.method_contract import check_method_file

pytestmark = pytest.mark.usefixtures("fewest_rows")

NEW_METHOD = '''\
"""Shift: one vector added to every token embedding."""
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.method import Backbone, Defaults, Method, Paper, sweep


class Shift(Method):
    name = "shift"
    paper = Paper("nobody-2026-shift", "https://example.org/shift")
    defaults = Defaults(recipe={"lr": sweep(0.01, 0.1)})

    @dataclass(frozen=True, kw_only=True)
    class HP:
        scale: float = 1.0

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        self.scale = hp.scale
        self.vector = nn.Parameter(torch.zeros(backbone.hidden))

    def forward(self, embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return embeds + self.scale * self.vector, mask
'''

ONE_TASK = SMALL_SUITE.split("methods:")[0] + "methods:\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "suite.yaml").write_text(SMALL_SUITE)
    return tmp_path


def results_of(folder: Path) -> list[Result]:
    return [result for _, result in ResultStore(folder / "results").scan()]


def run(folder: Path, **options: Any) -> harness.runner.RunSummary:
    return harness.run(folder / "suite.yaml", results=folder / "results", quiet=True, **options)


def test_the_grid_is_searched_on_the_first_seed_and_its_winner_runs_the_others(small_results: Path) -> None:
    cells = [result.cell for _, result in ResultStore(small_results).scan() if result.cell.label == "prompt_tuning"]
    assert sorted(cell.seed for cell in cells) == [1, 1, 2]
    by_seed = {cell.seed: cell.recipe.lr for cell in cells if cell.seed == 2}
    first = {r.cell.recipe.lr: max(d.selection for d in r.dev_history) for _, r in ResultStore(small_results).scan()
             if r.cell.label == "prompt_tuning" and r.cell.seed == 1}  # fmt: skip
    assert by_seed[2] == max(sorted(first), key=lambda lr: first[lr])


@pytest.mark.usefixtures("all_rows")
def test_the_same_command_again_trains_nothing(small_results: Path, tmp_path: Path) -> None:
    shutil.copytree(small_results, tmp_path / "results")
    (tmp_path / "suite.yaml").write_text(SMALL_SUITE)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.*")}
    summary = run(tmp_path)
    assert (summary.num_trained, summary.num_kept) == (0, 7)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.*")} == before


@pytest.mark.usefixtures("all_rows")
def test_only_what_is_missing_is_trained(small_results: Path, tmp_path: Path) -> None:
    shutil.copytree(small_results, tmp_path / "results")
    (tmp_path / "suite.yaml").write_text(SMALL_SUITE)
    victim = next(path for path, result in ResultStore(tmp_path / "results").scan() if result.cell.label == "dept")
    old = victim.read_text()
    victim.unlink()
    assert run(tmp_path).num_trained == 1
    new, before = (Result.model_validate_json(text) for text in (victim.read_text(), old))
    assert new.test == before.test, "the same cell alone gives the same scores as in its bundle"


def test_a_method_is_one_dropped_file(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "shift.py").write_text(NEW_METHOD)
    summary = run(folder, methods=["shift"], method_dirs=[folder / "mine"])
    assert (summary.num_trained, summary.num_failed) == (3, 0)
    assert {result.cell.grid["recipe.lr"] for result in results_of(folder)} == {0.01, 0.1}


def test_a_broken_method_file_is_a_failed_row_and_the_others_run(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "broken.py").write_text("import nothing_of_this_name\n")
    summary = run(folder, methods=["broken", "majority"], method_dirs=[folder / "mine"])
    assert (summary.num_trained, summary.num_failed) == (4, 2)
    failed = [result for result in results_of(folder) if result.status == "failed"]
    assert {result.cell.label for result in failed} == {"broken"}
    assert "nothing_of_this_name" in present(failed[0].failure).message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    def forward(self", "    def prompt(self):\n        return self.vectorz\n\n    def forward(self"),
        ("        super().__init__(hp, backbone)\n", ""),
    ],
    ids=["prompt", "init"],
)
def test_a_method_whose_code_raises_before_training_is_a_failed_row_too(folder: Path, old: str, new: str) -> None:
    (folder / "mine").mkdir()
    assert old in NEW_METHOD
    (folder / "mine" / "shift.py").write_text(NEW_METHOD.replace(old, new))
    summary = run(folder, methods=["shift", "majority"], method_dirs=[folder / "mine"], seeds=[1])
    assert {r.cell.label: r.status for r in results_of(folder)} == {"shift": "failed", "majority": "done"}
    assert summary.num_failed


def test_a_method_that_cannot_name_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="'has space' cannot name a method"):
        run(folder, methods=["has space", "majority"])


def test_a_cell_that_raises_does_not_take_its_bundle_along(folder: Path) -> None:
    (folder / "mine").mkdir()
    raising = NEW_METHOD.replace("shift", "raises").replace(
        "return embeds +", "raise RuntimeError('on purpose')\n        return embeds +"
    )
    (folder / "mine" / "raises.py").write_text(raising)
    summary = run(folder, methods=["raises", "dept"], method_dirs=[folder / "mine"], seeds=[1])
    by_label = {result.cell.label: result for result in results_of(folder)}
    assert summary.num_failed == 2
    assert by_label["dept"].status == "done"
    assert present(by_label["raises"].failure).type == "RuntimeError"
    assert "on purpose" in present(by_label["raises"].failure).traceback
    assert run(folder, methods=["raises", "dept"], method_dirs=[folder / "mine"], seeds=[1]).num_trained == 0
    again = run(folder, methods=["raises", "dept"], method_dirs=[folder / "mine"], seeds=[1], rerun="failed")
    assert again.num_trained == 2


def test_an_exploding_cell_is_recorded_as_failed(folder: Path) -> None:
    (folder / "mine").mkdir()
    exploding = NEW_METHOD.replace("shift", "explodes").replace("self.scale *", "float('nan') *")
    (folder / "mine" / "explodes.py").write_text(exploding)
    summary = run(folder, methods=["explodes", "dept"], method_dirs=[folder / "mine"], seeds=[1])
    assert summary.num_failed == 2
    failed = next(r for r in results_of(folder) if r.status == "failed")
    assert "loss was nan at step 1, before any update" in present(failed.failure).message
    assert present(failed.failure).step == 2
    assert present(failed.usage).num_steps == 2
    assert present(failed.usage).total_s > 0


def test_a_changed_method_makes_its_results_stale_until_asked(folder: Path) -> None:
    (folder / "mine").mkdir()
    file = folder / "mine" / "shift.py"
    file.write_text(NEW_METHOD)
    options = {"methods": ["shift"], "method_dirs": [folder / "mine"], "seeds": [1]}
    run(folder, **options)
    file.write_text(NEW_METHOD.replace("torch.zeros", "torch.ones"))
    summary = run(folder, **options)
    assert (summary.num_trained, summary.num_stale) == (0, 2)
    assert run(folder, **options, rerun="stale").num_trained == 2
    assert run(folder, **options).num_stale == 0


def test_each_seed_may_search_its_own_grid(folder: Path) -> None:
    summary = run(folder, methods=["prompt_tuning"], settings={"tuning.seeds": "each"})
    assert summary.num_trained == 4


def test_layer_side_methods_run_on_the_same_loop(folder: Path) -> None:
    summary = run(
        folder, methods=["lora", "finetune"], seeds=[1], settings={"recipe.lr": 0.001, "methods.lora.rank": 2}
    )
    assert (summary.num_trained, summary.num_failed) == (2, 0)


def test_every_kind_of_task_is_trained_and_scored(folder: Path) -> None:
    kinds = ["micro_similarity", "micro_qa", "micro_acceptability"]
    run(folder, methods=["dept", "majority"], tasks=kinds, seeds=[1])
    done = {(result.cell.task, result.cell.label): result for result in results_of(folder)}
    assert len(done) == 6
    assert present(done[("micro_similarity", "majority")].test).metrics["pearson"] == 0.0
    assert present(done[("micro_acceptability", "majority")].test).metrics["matthews"] == 0.0
    assert {"token_f1", "exact_match"} <= set(present(done[("micro_qa", "dept")].test).metrics)


def test_the_seed_alone_decides_a_result(folder: Path, tmp_path: Path) -> None:
    options = {"methods": ["dept"], "seeds": [5]}
    run(folder, **options)
    first = results_of(folder)
    shutil.rmtree(folder / "results")
    run(folder, **options)
    assert [r.test for r in results_of(folder)] == [r.test for r in first]
    assert [r.files.tensors for r in results_of(folder)] == [r.files.tensors for r in first]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"backbones": ["t5-bse"]}, "did you mean t5-base?"),
        ({"backbones": ["./nowhere"]}, "no such folder './nowhere'"),
        ({"method_dirs": ["nowhere"]}, "no such folder"),
        ({"methods": ["dept"], "settings": {"methods.dept.budget_length": 2}}, "budget_length leaves no rank"),
        ({"methods": ["majority"], "tasks": ["cb"], "data": "."}, "no files of task 'cb'"),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(folder: Path, options: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError, match=expected.replace("?", r"\?")):
        run(folder, **options)
    assert not (folder / "results").exists()


def test_two_files_may_not_claim_one_name(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "dept.py").write_text(NEW_METHOD.replace('"shift"', '"dept"'))
    with pytest.raises(UserError, match="the name 'dept' is taken by"):
        run(folder, method_dirs=[folder / "mine"])


def test_a_text_too_long_for_the_backbone_is_refused(folder: Path, real_models: Path) -> None:
    options = {"methods": ["prompt_tuning"], "backbones": [str(real_models / "stories260k")]}
    settings = {"methods.prompt_tuning.prompt_length": 460}
    with pytest.raises(UserError, match=r"needs 527 positions \(460 prompt \+ 64 source \+ 3 target\).*has 512"):
        run(folder, **options, settings=settings)


def test_a_text_too_long_for_one_backbone_of_two_leaves_that_row_out(folder: Path, real_models: Path) -> None:
    """A network may run on past its positions, so nothing would fail by itself."""
    backbones, settings = ["micro-t5", str(real_models / "stories260k")], {"methods.prompt_tuning.prompt_length": 460}
    overrides = Overrides(["prompt_tuning"], None, backbones, [1], settings)
    plan = make_plan(folder / "suite.yaml", overrides, folder / "results", None)
    [line] = lines_of(find_misfits(plan, plan.asked()))
    assert "needs 527 positions" in line
    assert "'stories260k' has 512" in line


def test_a_results_folder_of_a_newer_format_is_refused(small_results: Path, tmp_path: Path) -> None:
    shutil.copytree(small_results, tmp_path / "results")
    (tmp_path / "suite.yaml").write_text(SMALL_SUITE)
    path = next(path for path, _ in ResultStore(tmp_path / "results").scan())
    path.write_text(path.read_text().replace('"format": 3', '"format": 4', 1))
    with pytest.raises(UserError, match="was written in format 4"):
        run(tmp_path)


def test_a_results_folder_that_is_a_file_is_refused(folder: Path) -> None:
    (folder / "results").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        run(folder)


def test_a_decoder_only_backbone_trains(folder: Path, real_models: Path) -> None:
    backbone = str(real_models / "stories260k")
    settings = {
        "methods.prompt_tuning.prompt_length": 5,
        "methods.dept.prompt_length": 3,
        "methods.dept.budget_length": 9,
    }
    summary = run(folder, methods=["prompt_tuning", "dept", "lora"], backbones=[backbone], seeds=[1],
                  settings={**settings, "recipe.lr": 0.01})  # fmt: skip
    assert (summary.num_trained, summary.num_failed) == (3, 0)
    assert {result.cell.backbone for result in results_of(folder)} == {"stories260k"}


def test_real_superglue_runs_on_a_real_backbone(folder: Path, real_data: Path, real_models: Path) -> None:
    options = {"methods": ["prompt_tuning", "majority"], "tasks": ["cb"], "backbones": [str(real_models / "mini-t5")]}
    summary = run(folder, **options, data=real_data, seeds=[1], settings={"recipe.lr": 0.3})
    assert (summary.num_trained, summary.num_failed) == (2, 0)
    result = results_of(folder)[0]
    assert (present(result.data).num_train, present(result.data).num_dev, present(result.data).num_test) == (
        250,
        28,
        28,
    )


@pytest.mark.usefixtures("all_rows")
def test_a_plan_knows_what_is_done_and_what_is_missing(small_results: Path, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SMALL_SUITE)
    plan = make_plan(tmp_path / "suite.yaml", Overrides(), small_results, None)
    assert plan.pending() == []
    wider = make_plan(tmp_path / "suite.yaml", Overrides(seeds=[1, 2, 3]), small_results, None)
    assert {cell.seed for cell in wider.pending()} == {3}
    assert len(wider.pending()) == 3


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('paper = Paper("nobody-2026-shift", "https://example.org/shift")', "pass", "must state its `paper`"),
        ("    @dataclass(frozen=True, kw_only=True)\n", "", "HP must be a dataclass"),
        ('name = "shift"', 'name = "shifted"', "name and file must agree"),
        ("import torch\n", "import torch\nraise SystemExit(3)\n", "SystemExit: 3"),
    ],
)
def test_an_unsound_method_file_is_a_broken_row(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in NEW_METHOD
    (tmp_path / "shift.py").write_text(NEW_METHOD.replace(old, new))
    broken = discover(tmp_path)["shift"]
    assert broken.cls is None
    assert expected in present(broken.spec.error)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("[]", "must hold every trainable tensor once"),
        ("[{'params': [self.vector], 'lr': -1.0}]", "a learning rate must be positive"),
        ("[{'params': [self.vector], 'lr': 1.0, 'weight_decay': -1.0}]", "a weight decay must be 0 or positive"),
    ],
)
def test_unsound_parameter_groups_are_refused(folder: Path, groups: str, expected: str) -> None:
    (folder / "mine").mkdir()
    extra = f"\n    def param_groups(self, lr):\n        return {groups}\n"
    (folder / "mine" / "shift.py").write_text(NEW_METHOD + extra)
    with pytest.raises(UserError, match=expected):
        run(folder, methods=["shift"], method_dirs=[folder / "mine"])


def test_groups_given_as_a_generator_are_trained(tmp_path: Path) -> None:
    extra = "\n    def param_groups(self, lr):\n        return [{'params': self.parameters(), 'lr': lr}]\n"
    (tmp_path / "shift.py").write_text(NEW_METHOD + extra)
    assert all(finding.ok for finding in check_method_file(tmp_path / "shift.py"))


def test_a_table_shorter_than_the_texts_is_a_failure_not_a_neighbours_vector(folder: Path) -> None:
    (folder / "mine").mkdir()
    forward = "def forward(self, embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:"
    short = NEW_METHOD.replace("shift", "short").replace(forward, "def added(self):")
    short = short.replace("return embeds + self.scale * self.vector, mask", "return self.vector.expand(3, -1)")
    (folder / "mine" / "short.py").write_text(short)
    run(folder, methods=["short", "dept"], method_dirs=[folder / "mine"], seeds=[1])
    by_label = {result.cell.label: result for result in results_of(folder)}
    message = present(by_label["short"].failure).message
    assert message == "Shift.added() must return [64, 96] (tokens of the longest text, H), not [3, 96]"
    assert by_label["dept"].status == "done"


def test_a_full_disk_stops_the_run_and_keeps_what_is_stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., Result] = ResultStore.write
    calls: list[tuple[object, ...]] = []

    def write(self: ResultStore, *args: object) -> Result:
        calls.append(args)
        if len(calls) >= 2:
            raise OSError(28, "No space left on device")
        return original(self, *args)

    monkeypatch.setattr(ResultStore, "write", write)
    with pytest.raises(UserError, match="could not be stored: No space left on device"):
        run(folder, methods=["prompt_tuning"], seeds=[1])
    monkeypatch.undo()
    assert len(results_of(folder)) == 1
    assert run(folder, methods=["prompt_tuning"], seeds=[1]).num_trained == 1


def test_weights_that_cannot_be_read_are_found_before_anything_is_written(folder: Path) -> None:
    broken = folder / "micro-broken"
    shutil.copytree(SHIPPED["micro-t5"], broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"backbone .* could not be loaded"):
        run(folder, methods=["dept"], backbones=[str(broken)])
    assert not (folder / "results").exists()


def test_a_folder_among_the_method_files_is_no_method(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    assert {"folder", "gone"}.isdisjoint(discover(tmp_path))


def test_a_method_that_fits_one_backbone_of_two_is_left_out_on_the_other(folder: Path) -> None:
    other = folder / "other"
    shutil.copytree(SHIPPED["micro-t5"], other)
    (folder / "mine").mkdir()
    check = "        if backbone.name == 'other':\n            raise ValueError('no such layer')\n"
    text = NEW_METHOD.replace("        self.scale = hp.scale\n", check + "        self.scale = hp.scale\n")
    (folder / "mine" / "shift.py").write_text(text)
    options = {"methods": ["shift"], "method_dirs": [folder / "mine"], "seeds": [1]}
    summary = run(folder, **options, backbones=["micro-t5", str(other)])
    assert (summary.num_trained, summary.num_failed) == (2, 0)
    assert summary.unfit == ("shift does not fit backbone 'other': no such layer",)
    assert [r.status for r in results_of(folder) if r.cell.backbone == "other"] == ["unfit", "unfit"]
    with pytest.raises(UserError, match="does not fit backbone 'other': no such layer"):
        run(folder, **options, backbones=[str(other)])
    (folder / "mine" / "shift.py").write_text(NEW_METHOD)
    assert run(folder, **options, backbones=[str(other)]).num_trained == 2


def test_a_checkpoint_that_is_passed_over_is_mentioned_once(
    write_suite: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Hours of training may be in it, and they would be lost without a word."""
    suite, results = write_suite(SMALL_SUITE), tmp_path / "results"
    settings: dict[str, Any] = {"execution.checkpoint_every": "1 steps"}
    save = CheckpointWriter.save

    def save_and_stop(writer: CheckpointWriter, *args: Any) -> None:
        save(writer, *args)
        stop.request_stop(signal.SIGINT)

    monkeypatch.setattr(CheckpointWriter, "save", save_and_stop)
    with pytest.raises(stop.Stopped):
        harness.run(suite, results=results, settings=settings)
    monkeypatch.setattr(CheckpointWriter, "save", save)
    assert "passed over" not in capsys.readouterr().err
    other = {**settings, "execution.micro_batch_tokens": 512}
    assert harness.run(suite, results=results, settings=other).num_failed == 0
    said = capsys.readouterr().err
    assert (
        said.count("micro_sentiment: the checkpoint of prompt_tuning, dept at step 1 is passed over: other bundles")
        == 1
    )
    assert "continued from" not in said
