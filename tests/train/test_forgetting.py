"""Forgetting against straightforward loops, alone and in bundles; what changes nothing measures 0; what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import BART, byte_tokenizer, write_checkpoint, write_reviews
from float64 import in_float64
from test_shared_prompts import SPECS, Spec, made_up_rows, make_cell, make_method
from torch import Tensor
from typer.testing import CliRunner

import harness
from harness.backbone.load import load_backbone
from harness.backbone.network import Backbone
from harness.backbone.network_kinds import KindName
from harness.cli.commands import app
from harness.errors import UserError
from harness.results.schema import Forgetting
from harness.results.store import ResultStore, checksum
from harness.results.verify import verify_folder
from harness.runner.pack import pack
from harness.runner.plan import make_plan
from harness.suite.cell import Cell
from harness.suite.make_groups import Overrides
from harness.train.bundle import BundleListener, train_bundle
from harness.train.cell_result import CellResult
from harness.train.forgetting import (
    MOST_BYTES,
    SHIPPED,
    _bare_losses,
    measure_forgetting,
    read_general_text,
    window_length,
    windows_of,
)
from harness.train.loop import BundleTrainer
from harness.train.tiny_backbones import tiny_backbone
from tools.network_matrix.checkpoints import build

LAYER_SPECS: list[Spec] = [("lora", {"rank": 2, "dropout": 0.0}), ("bitfit", {}), ("adapter", {"reduction": 8})]
INPUT_SPECS = [SPECS[0], SPECS[2], SPECS[5], ("by_text", {}), ("prefix_tuning", {"prefix_length": 3})]


@pytest.fixture(scope="module", params=["Llama 3", "GPT-2"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """With a begin token and without one, with windows of 512 tokens and of 256."""
    folder = tmp_path_factory.mktemp("network")
    build(request.param, folder)
    return load_backbone(str(folder), "float64")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a text of some windows."""
    made = tmp_path_factory.mktemp("suite")
    (made / "some.txt").write_text(SHIPPED.read_text()[:1_500])
    return str(made)


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    with in_float64():
        yield


def trained(cells: list[Cell], backbone: Backbone, steps: int) -> BundleTrainer:
    data, encoded = made_up_rows(cells[0], backbone)
    splits = dict.fromkeys(("train", "dev", "test"), encoded)
    methods = [make_method(cell, backbone) for cell in cells]
    made = BundleTrainer(cells, methods, data, splits, backbone, 240)
    with made.fused.attached():
        for step in range(steps):
            made._train_step(step)
    made._set_training(False)
    return made


def measured(made: BundleTrainer, cell: int, folder: str, name: str = "some.txt") -> Forgetting:
    with made.fused.attached():
        found = measure_forgetting(made.fused, cell, name, folder, is_sharded=False)
    assert found is not None
    return found


def pieces(backbone: Backbone, folder: str, length: int) -> list[list[int]]:
    """The windows as a reader of the documents would cut them."""
    tokenizer = backbone.tokenizer
    text = (Path(folder) / "some.txt").read_text()
    begin = [tokenizer.bos_token_id] if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else []
    ids, size = tokenizer(text, add_special_tokens=False)["input_ids"], length - len(begin)
    return [begin + ids[start : start + size] for start in range(0, len(ids), size)]


def loop(backbone: Backbone, windows: list[list[int]], prompt: Tensor | None = None) -> float:
    """The mean loss per token by transformers' own `labels=`, window after window."""
    total, count = 0.0, 0
    for ids in (torch.tensor([window]) for window in windows if len(window) > 1):
        labels, embeds = ids.clone(), backbone.embedding(ids)
        if prompt is not None:
            labels = torch.cat([torch.full((1, len(prompt)), -100), labels], 1)
            labels[:, len(prompt)] = -100  # the first token of a window is given, also behind a prompt
            embeds = torch.cat([prompt[None], embeds], 1)
        with torch.no_grad():
            out = backbone.model(inputs_embeds=embeds, labels=labels)
        total += float(out.loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


def test_the_shipped_text_has_its_length_and_is_cut_into_windows_without_a_gap(network: Backbone) -> None:
    text = read_general_text("shipped", "")
    assert 1_500 <= len(text.text.split()) <= 2_500
    length = window_length(network, 0)
    assert length == (256 if network.config.model_type == "gpt2" else 512)
    assert window_length(network, 40) == (472 if length == 512 else 216)
    windows = windows_of(text, network, length)
    begin = network.tokenizer("a")["input_ids"][0] == network.tokenizer.bos_token_id
    rows = [[int(windows.source_ids[i]), *windows.targets(torch.tensor([i]).numpy())[0]] for i in range(len(windows))]
    assert [token for row in rows for token in row[begin:]] == network.tokenizer(text.text, add_special_tokens=False)[
        "input_ids"
    ]
    assert {len(row) for row in rows[:-1]} == {length}


def test_both_losses_are_those_of_a_plain_loop(network: Backbone, folder: str) -> None:
    made = trained([make_cell("prompt_tuning", {"prompt_length": 7}, 1, 4)], network, 3)
    found = measured(made, 0, folder)
    windows = pieces(network, folder, window_length(network, 7))
    assert found.before == pytest.approx(loop(network, windows), abs=1e-9)
    prompt = made.fused.methods[0].prompt()
    assert prompt is not None
    assert found.after == pytest.approx(loop(network, windows, prompt.detach()), abs=1e-9)
    assert found.before is not None
    assert found.after is not None
    assert found.rise == found.after - found.before
    assert abs(found.rise) > 1e-3
    assert found.num_tokens == sum(len(window) - 1 for window in windows)
    assert found.window == window_length(network, 7)


@pytest.mark.parametrize("spec", [("lora", {"rank": 2}), ("bitfit", {}), ("finetune", {})], ids=lambda s: str(s[0]))
def test_changes_inside_the_network_are_measured_as_it_stands_with_them(
    network: Backbone, folder: str, spec: Spec
) -> None:
    made = trained([make_cell(*spec, 1, 4)], network, 3)
    found = measured(made, 0, folder)
    windows = pieces(network, folder, window_length(network, 0))
    assert found.before == pytest.approx(loop(network, windows), abs=1e-9)
    with made.fused.attached():
        assert found.after == pytest.approx(loop(network, windows), abs=1e-9)
    assert found.rise != 0


@pytest.mark.parametrize(
    ("specs", "recipe"),
    [(INPUT_SPECS, {}), (LAYER_SPECS, {}), ([SPECS[0], SPECS[2]], {"head": "linear"})],
    ids=["prompts", "layers", "heads"],
)
def test_a_cell_in_a_bundle_measures_what_it_measures_alone(
    network: Backbone, folder: str, specs: list[Spec], recipe: dict[str, Any]
) -> None:
    cells = [make_cell(*spec, seed, 4, **recipe) for seed, spec in enumerate(specs)]
    together = trained(cells, network, 2)
    for index, cell in enumerate(cells):
        alone = measured(trained([cell], network, 2), 0, folder)
        found = measured(together, index, folder)
        assert alone.rise is not None
        assert found.rise == pytest.approx(alone.rise, abs=1e-8), cell.label
        assert found.model_copy(update={"after": alone.after}) == alone


def test_a_method_that_changes_nothing_measures_exactly_zero(network: Backbone, folder: str) -> None:
    heads = [make_cell(*spec, 1, 4, head="linear") for spec in (SPECS[0], ("head_only", {}))]
    for made, cell in ((trained(heads, network, 1), 1), (untouched(network, "lora", "bitfit"), 0),
                       (untouched(network, "lora", "bitfit"), 1), (untouched(network, "lora"), 0),
                       (untouched(network, "finetune"), 0)):  # fmt: skip
        assert measured(made, cell, folder).rise == 0.0


def untouched(backbone: Backbone, *names: str) -> BundleTrainer:
    """Methods whose tensors are those of their start, where they change nothing."""
    cells = [make_cell(name, {}, 1, 4) for name in names]
    made = trained(cells, backbone, 0)
    for i, state in enumerate(made.states):
        cls = type(state.outcome.method)
        state.outcome.method.load_state_dict(cls(cls.HP(), backbone).state_dict())
        made.fused.methods[i].eval()
    return made


def test_a_cell_that_is_not_finite_touches_no_other(network: Backbone, folder: str) -> None:
    for specs in (INPUT_SPECS[:3], LAYER_SPECS[:3]):
        made = trained([make_cell(*spec, seed, 4) for seed, spec in enumerate(specs)], network, 2)
        before = [measured(made, cell, folder) for cell in range(3)]
        with torch.no_grad():
            for tensor in made.fused.methods[1].parameters():
                tensor.fill_(math.nan)
        after = [measured(made, cell, folder) for cell in range(3)]
        assert after[0] == before[0]
        assert after[2] == before[2]
        assert after[1].after is None
        assert str(after[1].problem).endswith("and nan after it")


def test_the_bare_network_reads_the_text_once_for_all_cells(folder: str) -> None:
    backbone = tiny_backbone("decoder", "float64")
    made = trained([make_cell(*spec, seed, 4) for seed, spec in enumerate(LAYER_SPECS)], backbone, 1)
    calls: list[int] = []
    handle = backbone.model.register_forward_hook(lambda *_: calls.append(1))
    for cell in range(len(LAYER_SPECS)):
        measured(made, cell, folder)
    handle.remove()
    num_windows = len(windows_of(read_general_text("some.txt", folder), backbone, 512))
    assert len(calls) == num_windows * (1 + len(LAYER_SPECS))
    assert len(_bare_losses[backbone]) == 1


def test_other_kinds_of_network_say_why_not(tmp_path: Path) -> None:
    kinds: tuple[KindName, ...] = ("encoder-decoder", "encoder")
    for kind in kinds:
        backbone = tiny_backbone(kind, "float64")
        recipe = {"head": "linear"} if kind == "encoder" else {}
        made = trained([make_cell("prompt_tuning", {"prompt_length": 7}, 1, 4, **recipe)], backbone, 0)
        found = measured(made, 0, str(tmp_path), "shipped")
        assert found.rise is None
        assert found.problem == f"measured on decoders alone; 'tiny-{kind}' is an {kind}"
    decoder = trained([make_cell("lora", {"rank": 2}, 1, 4)], tiny_backbone("decoder", "float64"), 0)
    with decoder.fused.attached():
        sharded = measure_forgetting(decoder.fused, 0, "shipped", "", is_sharded=True)
    assert sharded is not None
    assert "divided among processes" in str(sharded.problem)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\xff\xfe a b", "is not UTF-8 (byte 0)"),
        (b" \n", "holds less than two words"),
        (b"a b " * (MOST_BYTES // 4 + 1), "is larger than 1,000,000 bytes, the limit for a general text"),
    ],
)
def test_a_text_that_cannot_be_read_stops_a_run_before_it_trains(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = small(tmp_path, "my own.txt")
    if content is not None:
        (tmp_path / "my own.txt").write_bytes(content)
    with pytest.raises(UserError) as caught:
        harness.run(path, results=tmp_path / "out", quiet=True)
    assert str(caught.value).startswith(f"{tmp_path / 'my own.txt'}: ")
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_text_that_a_worker_lacks_fails_its_cell_before_the_first_step(tmp_path: Path) -> None:
    path = small(tmp_path, "my own.txt")
    plan = make_plan(path, Overrides(), tmp_path / "out", None)
    (bundle,) = pack(plan, plan.pending())
    steps: list[int] = []
    made: list[CellResult] = []
    train_bundle(bundle, BundleListener(lambda step, *_: steps.append(step), made.append))
    failures = [product.result.failure for product in made]
    assert [failure.message for failure in failures if failure] == [
        f"{tmp_path / 'my own.txt'}: forgetting.text: cannot be read: No such file or directory"
    ]
    assert not steps


@pytest.mark.parametrize("key", ["protocol", "recipe"])
def test_a_text_that_is_misspelt_is_named_with_the_nearest(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError) as caught:
        harness.run(small(tmp_path, "shiped", key), results=tmp_path / "out", quiet=True)
    said = "expected none, shipped or the path of a .txt file beside the suite, got 'shiped'; did you mean shipped?"
    assert said in str(caught.value)


def small(folder: Path, text: str, key: str = "protocol") -> Path:
    """A suite on the shipped network that asks for forgetting in its protocol or its recipe."""
    path = write_reviews(folder, [Path("micro-t5")])
    lines = path.read_text()
    if key == "recipe":
        path.write_text(lines.replace("recipe: {", f"recipe: {{forgetting_text: {text}, "))
    else:
        path.write_text(lines + f"protocol: {{forgetting.text: {text}}}\n")
    return path


def asking(folder: Path, text: str) -> Path:
    """A decoder and an encoder-decoder, two seeds, methods of three kinds."""
    build("Llama 3", folder / "llama")
    write_checkpoint(folder / "bart", BART, byte_tokenizer("<s> $A </s>"))
    path = write_reviews(folder, [folder / "llama", folder / "bart"])
    lines = path.read_text() + f"protocol: {{forgetting.text: {text}}}\n"
    lines = lines.replace("seeds: [1]", "seeds: [1, 2]")
    path.write_text(lines.replace("4}}", "4}, lora: {rank: 2}, majority: }"))
    return path


@pytest.fixture(scope="module")
def measured_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of such a suite on a text of the user's own."""
    folder = tmp_path_factory.mktemp("run")
    path = asking(folder, "mine/own.txt")
    (folder / "mine").mkdir()
    (folder / "mine" / "own.txt").write_text("A plain text of some words. " * 20)
    assert harness.run(path, results=folder / "out", quiet=True).num_failed == 0
    return folder / "out"


def test_a_run_stores_shows_and_verifies_what_was_forgotten(measured_run: Path, tmp_path: Path) -> None:
    results = {(r.cell.backbone, r.cell.label, r.cell.seed): r for _, r in ResultStore(measured_run).scan()}
    rises = []
    for seed in (1, 2):
        made = results["llama", "prompt_tuning", seed].forgetting
        assert made is not None
        assert made.rise is not None
        assert made.text == "mine/own.txt"
        rises.append(made.rise)
        assert results["bart", "lora", seed].forgetting is not None
        assert results["llama", "majority", seed].forgetting is None
    assert said("verify", measured_run).exit_code == 0
    shown = said("report", measured_run, "--costs", "--format", "markdown").stdout
    columns = [line.split("|")[-2].strip() for line in shown.splitlines() if line.startswith("| prompt_tuning")]
    assert sorted(column.partition(" ")[0] for column in columns) == sorted([f"{sum(rises) / 2:.3f}", "–"])
    assert shown.count("forgetting: measured on decoders alone; 'bart' is an encoder-decoder") == 1
    (board,) = (board for board in json.loads(said("report", measured_run, "--format", "json").stdout)
                if board["backbone"] == "llama")  # fmt: skip
    (row,) = (row for row in board["rows"] if row["label"] == "prompt_tuning")
    assert row["forgetting"] == pytest.approx(sum(rises) / 2)
    assert " forgetting |" in shown
    assert " forgetting |" not in said("report", measured_run, "--format", "markdown").stdout
    assert said("site", measured_run, "--out", str(tmp_path / "site")).exit_code == 0
    pages = [page.read_text() for page in (tmp_path / "site").rglob("*.html")]
    assert any("<h2>Forgetting" in page for page in pages)
    assert any(">forgetting<" in page for page in pages)


def said(command: str, results: Path, *options: str) -> Any:
    return CliRunner().invoke(app, [command, str(results), *options])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"before": -1.0}, "below 0"),
        ({"num_tokens": 0}, "of no tokens"),
        ({"sha256": "x"}, "has no SHA-256"),
        ({"after": None}, "says neither"),
        ({"text": "other.txt"}, "that nobody asked for"),
        (None, "lacks its loss on the general text 'mine/own.txt'"),
    ],
)
def test_verify_finds_a_record_that_cannot_be(
    measured_run: Path, tmp_path: Path, change: dict[str, Any] | None, problem: str
) -> None:
    shutil.copytree(measured_run, tmp_path / "out")
    where = next(path for path, result in ResultStore(tmp_path / "out").scan()
                 if result.forgetting and result.forgetting.rise is not None)  # fmt: skip
    content = json.loads(where.read_text())
    content["forgetting"] = None if change is None else content["forgetting"] | change
    where.write_text(json.dumps(content | {"checksum": checksum(content)}))
    found = verify_folder(tmp_path / "out").findings
    assert [(finding.kind, finding.path) for finding in found] == [
        ("incomplete", where.relative_to(tmp_path / "out").as_posix())
    ]
    assert problem in found[0].problem


def test_it_is_no_part_of_an_identity_unless_it_is_asked_for() -> None:
    cell = make_cell("lora", {"rank": 2}, 1, 4)
    asked = cell.model_copy(update={"recipe": cell.recipe.model_copy(update={"forgetting_text": "shipped"})})
    assert "forgetting_text" not in cell._identity()["recipe"]
    assert cell.cell_id != asked.cell_id
