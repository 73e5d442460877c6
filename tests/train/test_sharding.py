"""Full fine-tuning with shards: the result of one process, of which no process holds the whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from paths import ROOT
from safetensors.torch import load_file as load_tensors
from test_fused import make_cell, make_method, trainer
from typer.testing import CliRunner

from benchmarks.memory import _padded, evaluation, peak_bytes, random_backbone
from harness.backbone.device_memory import TokenBudget
from harness.backbone.load import backbone_config
from harness.backbone.network import Backbone
from harness.cli.commands import app
from harness.errors import UserError
from harness.method.method import Method
from harness.method.registry import load_file
from harness.results.schema import Result
from harness.results.store import ResultStore
from harness.runner.device_fit import LENGTH, full_tuning
from harness.runner.run_suite import run
from harness.suite.file_schema import Recipe
from harness.train.data_parallel import UNSHARDED, Send, Team, run_team
from harness.train.fsdp import Sharded, shard, trains_backbone
from harness.train.optimizer import JointAdamW, is_sharded, local_shard
from harness.train.tiny_backbones import tiny_backbone

# micro-batches of few tokens, so that processes have different numbers of them, and clipping that bites
SUITE = """\
suite: shards
backbones: [micro-t5]
tasks: [micro_sentiment]
seeds: [1]
recipe:
  {steps: 4, batch_size: 5, eval_every: 2, warmup_steps: 1, warmup_max_share: 1.0, backbone_dropout: false,
   precision: float64, clip_norm: 0.1}
execution: {micro_batch_tokens: 64}
methods: {finetune: {recipe: {lr: 0.001}}}
"""


def stored(folder: Path, **settings: object) -> tuple[Result, dict[str, torch.Tensor]]:
    """What full fine-tuning leaves behind."""
    folder.mkdir()
    (folder / "shards.yaml").write_text(SUITE)
    changed = {f"execution.{name}": value for name, value in settings.items()}
    assert run(folder / "shards.yaml", results=folder / "out", settings=changed, quiet=True).num_failed == 0
    ((path, result),) = ResultStore(folder / "out").scan()
    return result, load_tensors(path.with_suffix(".safetensors"))


@pytest.mark.usefixtures("forked_team")
def test_two_processes_with_shards_store_what_one_process_does(tmp_path: Path) -> None:
    alone, tensors = stored(tmp_path / "alone")
    together, gathered = stored(tmp_path / "together", processes=2, sharding="fsdp")
    assert gathered.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(gathered[name], tensor, rtol=1e-9, atol=1e-10)
    same = {"cell_id", "selected_step", "dev", "test", "params", "method_sha256", "backbone"}
    assert together.model_dump(include=same) == alone.model_dump(include=same)
    assert len(alone.dev_history) == 2
    for mine, other in zip(together.dev_history, alone.dev_history, strict=True):
        assert mine.metrics == other.metrics
        assert mine.train_loss == pytest.approx(other.train_loss, rel=1e-10)


def finetune() -> Method:
    return make_method(make_cell("finetune", {}, 1e-3, 1, 4, 5), tiny_backbone(precision="float64"))


def hold(team: Team, send: Send) -> None:
    """Take a step, and say what each process holds before it and behind it."""
    made = trainer([make_cell("finetune", {}, 1e-3, 1, 4, 5)], max_tokens=100)
    backbone, method = made.backbone, made.states[0].outcome.method
    frozen = list(backbone.model.parameters())
    sharding = shard(backbone, method, team)
    made.__init__(  # type: ignore[misc]
        [made.states[0].outcome.cell], [method], made.data, made.encoded, backbone, 100, (), team, sharding
    )
    own = {"weights": sum(local_shard(p).numel() for p in method.parameters())}
    own["modules"] = sum(local_shard(p).numel() for p in backbone.model.parameters())
    made._accumulate(made._draw())
    own["gradients"] = sum(local_shard(p.grad).numel() for p in method.parameters() if p.grad is not None)
    slots = made.optimizer.slots_of(0)
    own["moments"] = sum(slot.first.numel() + slot.second.numel() for slot in slots)
    own["best"] = sum(local_shard(t).numel() for t in method.state_dict().values())
    own["originals"] = sum(p.numel() for p in frozen)
    with sharding.gathered():
        own["gathered"] = sum(p.numel() for p in backbone.model.parameters() if not hasattr(p, "to_local"))
    own["behind"] = sum(local_shard(p).numel() for p in backbone.model.parameters())
    held: list[Any] = [None] * team.size
    dist.all_gather_object(held, own)
    send((method.num_trained, held, gradient_error(team)))


def gradient_error(team: Team) -> float:
    """In float32, where gloo reduces otherwise than in float64: largest difference to the gradients of one process."""
    torch.manual_seed(0)
    ids, labels = torch.randint(5, 40, (4, 6)), torch.randint(5, 40, (4, 2))
    found: list[dict[str, Any]] = []
    for rows in (slice(None), team.share):
        backbone = tiny_backbone()
        method = make_method(make_cell("finetune", {}, 1e-3, 1, 4, 5), backbone)
        sharding = shard(backbone, method, team) if found else UNSHARDED
        method.attach(backbone) if not found else None

        def loss(network: Backbone = backbone, rows: Any = rows) -> torch.Tensor:
            mask = torch.ones_like(ids[rows])
            return network.token_losses(network.embedding(ids[rows]), mask, labels[rows]).sum()

        sharding.forward(loss).backward()
        gradients: dict[str, Any] = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
        found.append({name: g.full_tensor() if is_sharded(g) else g for name, g in gradients.items()})
    assert found[0].keys() == found[1].keys()
    return max(float((found[0][name] - found[1][name]).abs().max()) for name in found[0])


@pytest.mark.usefixtures("forked_team")
def test_each_process_holds_its_part_of_weights_gradients_and_moments() -> None:
    said: list[tuple[int, list[dict[str, int]], float]] = []
    run_team(2, hold, (), said.append)
    ((whole, held, error),) = said
    assert error < 1e-4
    assert whole == finetune().num_trained
    for kind in ("weights", "modules", "gradients", "best", "behind"):
        assert sum(own[kind] for own in held) == whole, kind
        assert all(own[kind] == pytest.approx(whole / 2, rel=0.05) for own in held), kind
    assert sum(own["moments"] for own in held) == 2 * whole
    assert [own["originals"] for own in held] == [0, 0]
    assert [own["gathered"] for own in held] == [whole, whole]


def test_a_step_without_memory_is_not_repeated_by_one_process_alone() -> None:
    def step(tokens: int) -> None:
        raise torch.OutOfMemoryError

    sharded = Sharded.__new__(Sharded)
    with pytest.raises(RuntimeError, match=r"micro-batches of 512 tokens.*lower execution\.micro_batch_tokens"):
        sharded.within_memory(step, TokenBudget(512), 10, lambda: None)


@pytest.mark.parametrize(("method", "expected"), [("finetune", True), ("lora", False), ("prompt_tuning", False)])
def test_only_what_trains_the_whole_backbone_is_sharded(method: str, expected: bool) -> None:
    backbone = tiny_backbone(precision="float64")
    before = [id(parameter) for parameter in backbone.model.parameters()]
    built = make_method(make_cell(method, {}, 1e-3, 1, 4, 5), backbone)
    assert trains_backbone(built, backbone) is expected
    assert [id(parameter) for parameter in backbone.model.parameters()] == before


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["execution.sharding=fsdp"], "sharding fsdp needs execution.processes of 2 or more, got 1"),
        (
            ["execution.processes=2", "measure.answering=true"],
            "measure.answering times one process, and execution.processes has 2",
        ),
        (["execution.sharding=fsdp", "execution.processes=2", "execution.device_map=auto"], "device_map auto"),
        (["execution.sharding=fdsp", "execution.processes=2"], "execution.sharding"),
    ],
)
def test_shards_that_cannot_be_are_refused_by_name(tmp_path: Path, settings: list[str], expected: str) -> None:
    (tmp_path / "shards.yaml").write_text(SUITE)
    options = [part for setting in settings for part in ("--set", setting)]
    command = ["run", str(tmp_path / "shards.yaml"), "--results", str(tmp_path / "out"), *options]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, UserError)
    assert expected in str(done.exception)
    assert "execution" in str(done.exception)
    assert not (tmp_path / "out").exists()


SHAPES = {
    "t5": {**backbone_config("t5-small"), "num_layers": 4, "num_decoder_layers": 4, "dropout_rate": 0.0},
    "llama": {**backbone_config("llama-2-7b"), "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8,
              "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 2_000},
}  # fmt: skip
ROWS = 4


def measure(team: Team, send: Send, kind: str) -> None:
    """Send the profiler's peaks beside weights, moments and best step: of a step with its update, of an evaluation."""
    backbone = random_backbone(SHAPES[kind], "none", "cpu")
    cls = load_file(ROOT / "methods" / "finetune.py").cls
    assert cls is not None
    assert issubclass(cls, Method)
    method = cls(cls.HP(), backbone)
    sharding = shard(backbone, method, team)
    optimizer = JointAdamW([[{"params": list(method.parameters()), "lr": 1e-3}]], [Recipe()])

    def step() -> None:
        backbone.model.train()
        ids, labels = torch.zeros(ROWS, LENGTH, dtype=torch.long), torch.full((ROWS, 3), 5)
        sharding.forward(lambda: backbone.token_losses(backbone.embedding(ids), _padded(ids), labels).sum()).backward()

    def step_and_update() -> None:
        step()
        optimizer.step({0: 1.0})
        optimizer.clear()

    def answer() -> None:
        with sharding.gathered():
            evaluation(backbone, 2 * ROWS, prompts=0)

    step_and_update()  # the first one sets up the gathering
    send((peak_bytes(step_and_update, "cpu"), peak_bytes(answer, "cpu")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(SHAPES))
def test_the_plan_knows_what_each_process_takes(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPES[kind]))
    estimate = full_tuning(str(tmp_path), ROWS * LENGTH)
    said: list[tuple[int, int]] = []
    run_team(2, measure, (kind,), said.append)
    kept = 4 * 4 * estimate.num_params / 2
    assert estimate.peak(2) == pytest.approx(kept + max(said[0]), rel=0.15)
