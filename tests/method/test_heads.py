"""Heads over the last token: exact in a bundle, for every method, counted and stored apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_fused import LENGTH, SPECS, Spec, make_cell, make_method
from torch import Tensor

from harness.backbone.load import load_backbone
from harness.backbone.names import SHIPPED
from harness.backbone.network import Backbone
from harness.data.examples import Example, TaskData
from harness.data.record import DataRecord
from harness.data.tasks import all_tasks
from harness.method.export import export_result, load_export
from harness.method.linear_head import HeadReader, LinearHead, head_targets
from harness.method.method import Method
from harness.method.registry import discover
from harness.results.store import load_results
from harness.runner.plan import make_plan
from harness.runner.run_suite import run
from harness.suite.blocks import ProtocolReference
from harness.suite.cell import Cell
from harness.suite.make_groups import Overrides
from harness.suite.protocol import Scope, resolve_protocol
from harness.train.batch_input import BatchInput, Rows
from harness.train.cell_state import checked_groups
from harness.train.evaluate import answer_split
from harness.train.loop import BundleTrainer
from harness.train.tiny_backbones import tiny_backbone, tiny_rows

pytestmark = pytest.mark.usefixtures("few_rows")

Write = Callable[[str], Path]
TASK = all_tasks()["micro_sentiment"]
REGISTRY = discover()
NUM_ROWS = 12


def headed(cell: Cell, backbone: Backbone) -> Method:
    method = make_method(cell, backbone)
    method.linear_head = LinearHead(len(TASK.targets), backbone, cell.recipe.head == "hidden")
    return method


def trainer(specs: list[Spec], backbone: Backbone, head: str, steps: int = 6) -> BundleTrainer:
    cells = [make_cell(*spec, steps=steps) for spec in specs]
    cells = [
        c.model_copy(update={"recipe": c.recipe.model_copy(update={"head": head, "head_lr": 0.05})}) for c in cells
    ]
    rows = [Example("x", TASK.targets[i % 2], (TASK.targets[i % 2],)) for i in range(NUM_ROWS)]
    count: dict[str, Any] = dict.fromkeys(("num_train", "num_dev", "num_test"), NUM_ROWS)
    data = TaskData(TASK, rows, rows, rows, DataRecord(source="", revision="", split_rule="", fingerprint="", **count))
    lengths = np.random.default_rng(1).integers(2, LENGTH, NUM_ROWS).tolist()
    encoded = head_targets(tiny_rows(lengths, backbone), rows, TASK)
    splits = dict.fromkeys(("train", "dev", "test"), encoded)
    return BundleTrainer(cells, [headed(cell, backbone) for cell in cells], data, splits, backbone, 100)


def tensors(made: BundleTrainer, index: int) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in made.states[index].outcome.method.state_dict().items()}


@pytest.mark.parametrize("head", ["linear", "hidden"])
def test_each_cell_of_a_bundle_trains_its_own_head_as_if_alone(head: str) -> None:
    specs = [*SPECS[:4], ("by_text", {}, 0.1, 5, 4)]
    together = trainer(specs, tiny_backbone("decoder", "float64"), head)
    together.run(lambda *_: None, lambda _: None)
    weights = []
    for index, spec in enumerate(specs):
        alone = trainer([spec], tiny_backbone("decoder", "float64"), head)
        alone.run(lambda *_: None, lambda _: None)
        for name, tensor in tensors(alone, 0).items():
            torch.testing.assert_close(tensors(together, index)[name], tensor, rtol=1e-9, atol=1e-9)
        ours, theirs = together.states[index].outcome, alone.states[0].outcome
        assert ours.answers == theirs.answers
        assert [item.train_loss for item in ours.history] == pytest.approx([i.train_loss for i in theirs.history])
        weights.append(tensors(together, index)["linear_head.weight"])
        assert ("linear_head.hidden.weight" in tensors(together, index)) == (head == "hidden")
    assert all(not torch.equal(weights[0], weight) for weight in weights[1:])


def test_the_head_reads_the_last_token_wherever_the_padding_is() -> None:
    backbone = tiny_backbone("decoder", "float64")
    head = LinearHead(3, backbone)
    ids = torch.tensor([[5, 9, 7, 0, 0], [8, 4, 11, 6, 3]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = HeadReader(backbone, [head], np.zeros(2, np.int64)).outputs(backbone.embedding(ids), mask)
    for row, length in enumerate((3, 5)):
        states = backbone.model.model(input_ids=ids[row : row + 1, :length]).last_hidden_state
        torch.testing.assert_close(found[row], states[0, -1] @ head.weight.T, rtol=1e-12, atol=1e-12)


def test_every_method_trains_a_head_and_itself() -> None:
    tried = 0
    for name, registered in REGISTRY.items():
        cls, backbone = registered.cls, tiny_backbone("decoder", "float64")
        if cls is None or not issubclass(cls, Method):
            continue
        hp = {"source_length": LENGTH} if "source_length" in cls.HP.__dataclass_fields__ else {}
        torch.manual_seed(0)
        try:
            method = cls(cls.HP(**hp), backbone)
        except ValueError:
            continue  # not for decoders at all
        own, kept = method.num_trained, method.num_kept
        if not own:
            continue  # head_only has nothing beside the head
        method.linear_head = LinearHead(2, backbone)
        assert (method.num_trained, method.num_head) == (own, 128), name
        assert method.num_kept == kept, name
        first, last = losses_of_training(method, backbone)
        assert last < first, f"{name}: {first} to {last}"
        moved = [
            p for p in method.parameters() if p is not method.linear_head.weight and p.grad is not None and p.grad.any()
        ]
        assert moved, f"{name} itself does not train"
        assert method.linear_head.weight.grad is not None
        tried += 1
    assert tried > 10


def losses_of_training(method: Method, backbone: Backbone) -> tuple[float, float]:
    """Loss before and after a few steps on a fixed batch, dropout off."""
    assert isinstance(method.linear_head, LinearHead)
    encoded, numbers = tiny_rows([5, 9, 13], backbone), np.arange(3)
    labels = torch.tensor([[0], [1], [0]])
    optimizer = torch.optim.AdamW(checked_groups(method, 0.005, 0.02), weight_decay=0.0)
    fused, found = BatchInput([method], backbone, LENGTH), []
    if method.is_layer_side():
        method.attach(backbone)
    try:
        for _ in range(4):
            optimizer.zero_grad()
            fused.refresh(grad=True, cells=[0])
            embeds, mask, _ = fused.build(encoded, Rows(np.zeros(3, np.int64), numbers))
            reader = HeadReader(backbone, fused.heads, np.zeros(3, np.int64))
            loss = method.eval().token_losses(reader, embeds, mask, labels).mean()
            loss.backward()
            fused.backward()
            optimizer.step()
            found.append(float(loss.detach()))
    finally:
        if method.is_layer_side():
            method.detach(backbone)
    return found[0], found[-1]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny random Llama and a tokenizer whose ids it has."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("backbones") / "tiny-llama"
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED["micro-t5"])
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
                         eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


SUITE = """\
suite: heads
backbones: [{llama}]
tasks: [micro_sentiment]
seeds: [1]
recipe: {{steps: 4, batch_size: 4, eval_every: 2, warmup_steps: 0, max_source_length: 40, backbone_dropout: false}}
sources:
  start: {{method: prompt_tuning, prompt_length: 4, recipe: {{lr: 0.05, head: linear}}}}
methods:
  spot: {{prompt_length: 4, init_from: {{method: start, task: micro_paraphrase}}, recipe: {{lr: 0.05, head: linear}}}}
  prompt_tuning: {{prompt_length: 4, recipe: {{lr: 0.05, head: linear}}}}
  dept: {{prompt_length: 3, budget_length: 6, added_lr: 0.001, recipe: {{lr: 0.05, head: linear}}}}
  deep: {{method: prompt_tuning, prompt_length: 4, recipe: {{lr: 0.05, head: hidden}}}}
  deep_spot: {{method: spot, prompt_length: 4, init_from: {{method: start, task: micro_paraphrase}},
              recipe: {{lr: 0.05, head: hidden}}}}
  written: {{method: prompt_tuning, prompt_length: 4, recipe: {{lr: 0.05}}}}
"""


@pytest.fixture(scope="module")
def stored(llama: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with heads, one of a cell that starts from another with a head, and one whose answers are written."""
    folder = tmp_path_factory.mktemp("heads")
    (folder / "heads.yaml").write_text(SUITE.format(llama=llama))
    summary = run(folder / "heads.yaml", results=folder / "out", quiet=True)
    assert (summary.num_trained, summary.num_failed) == (7, 0)
    return folder


def test_heads_are_counted_apart_and_answer_with_labels_only(stored: Path) -> None:
    plan = make_plan(stored / "heads.yaml", Overrides(), stored / "out", None)
    found = {group.label: results[(0, 1)] for group, results in zip(plan.groups, plan.results, strict=True)}
    params = {label: result.params for label, result in found.items()}
    assert params["prompt_tuning"] is not None
    assert (params["prompt_tuning"].num_trained, params["prompt_tuning"].num_head) == (4 * 32, 2 * 32)
    assert params["deep"] is not None
    assert (params["deep"].num_trained, params["deep"].num_kept) == (4 * 32, 4 * 32)
    assert params["deep"].num_head == 2 * 32 + 32 * 32 + 32
    assert params["written"] is not None
    assert params["written"].num_head == 0
    assert found["dept"].test is not None
    assert found["dept"].test.num_unreadable == 0
    assert len({result.cell_id for result in found.values()}) == 7
    assert set(load_results(stored / "out")["method"]) == {
        *("prompt_tuning", "dept", "written", "spot", "start", "deep", "deep_spot")
    }


@pytest.mark.parametrize(
    ("label", "shapes"),
    [
        ("prompt_tuning", {"weight": [2, 32]}),
        ("deep", {"weight": [2, 32], "hidden.weight": [32, 32], "hidden.bias": [32]}),
    ],
)
def test_a_head_is_exported_and_answers_as_it_did(
    stored: Path, llama: str, label: str, shapes: dict[str, list[int]]
) -> None:
    (path,) = (stored / "out").glob(f"**/{label}/**/*.json")
    done = export_result(path, stored / "head.safetensors", llama)
    assert {name: shape for name, shape in done.shapes.items() if name.startswith("linear_head.")} == {
        f"linear_head.{name}": shape for name, shape in shapes.items()
    }
    backbone = load_backbone(llama, device="cpu")
    method = load_export(stored / "head.safetensors", backbone)
    assert method.linear_head is not None
    kept = load_file(path.with_suffix(".safetensors"))
    for name, tensor in method.linear_head.state_dict().items():
        torch.testing.assert_close(tensor, kept[f"linear_head.{name}"], rtol=0, atol=0)
    encoded = tiny_rows([4, 6], backbone)
    answers = answer_split(BatchInput([method], backbone, 40), [0], encoded, TASK, 1_000)
    assert set(answers[0]) <= set(TASK.targets)


@pytest.mark.parametrize(
    ("backbone", "task", "problem"),
    [
        ("micro-t5", "micro_sentiment", "{head} needs an encoder or a decoder-only backbone; 'micro-t5' is both"),
        ("", "micro_qa", "{head} needs classes or numbers; task 'micro_qa' has neither"),
    ],
)
def test_a_head_without_a_last_token_or_classes_does_not_fit(
    write_suite: Write, llama: str, backbone: str, task: str, problem: str
) -> None:
    path = write_suite(SUITE.format(llama=backbone or llama).replace("micro_sentiment", task))
    summary = run(path, results=path.parent / "out", quiet=True)
    assert summary.unfit
    told = {head: problem.format(head=head) for head in ("linear", "hidden")}
    assert all(any(words in line for words in told.values()) for line in summary.unfit)
    assert any(told["hidden"] in line for line in summary.unfit)


def test_the_protocols_differ_in_how_llama_answers() -> None:
    place = Scope("sst2", "GLUE", "lora", "llama-2-7b")
    assert resolve_protocol(ProtocolReference()).recipe(place, 60_000)["head"] == "linear"
    assert resolve_protocol(ProtocolReference(name="ept-2025")).recipe(place, 60_000)["head"] == "label"
    assert "head" not in resolve_protocol(ProtocolReference()).recipe(
        Scope("stsb", "GLUE", "lora", "llama-2-7b"), 5_000
    )
