"""Prompt and low-rank pair taken over from other cells and from files, and what is refused instead of dropped."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.backbone.network import Backbone
from harness.errors import UserError
from harness.method.method import Method
from harness.method.registry import discover
from harness.method.source_tensors import read_prompt_file, tensors_for_others
from harness.runner.plan import make_plan
from harness.runner.preflight import find_misfits
from harness.runner.run_suite import run
from harness.suite.make_groups import Overrides
from harness.train.tiny_backbones import tiny_backbone

Write = Callable[[str], Path]

REGISTRY = discover()
P, S, R, L = 4, 12, 3, 8
SIZES: dict[str, dict[str, Any]] = {
    "dept": {"prompt_length": P, "budget_length": L, "rank": R, "source_length": S},
    "ept": {"prompt_length": P, "budget_length": L, "rank": R, "source_length": S, "spaces": 2, "bottleneck": 5},
    "accept": {"prompt_length": P, "budget_length": 20, "source_length": S, "prompt_width": 8},
    "spot": {"prompt_length": P},
    "dpt": {"prompt_length": P, "rank": 2},
    "prompt_tuning": {"prompt_length": P},
}
PAIR = ("prompt_encoder.lora_embedding_A", "prompt_encoder.lora_embedding_B")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone(precision="float64")


def build(name: str, backbone: Backbone, **hp: Any) -> Any:
    cls = REGISTRY[name].cls
    assert cls is not None
    assert issubclass(cls, Method)
    torch.manual_seed(0)
    return cls(cls.HP(**SIZES[name] | hp), backbone)


def learnt(name: str, backbone: Backbone, **hp: Any) -> Any:
    """A method whose tensors are as if it had been trained."""
    method = build(name, backbone, **hp)
    with torch.no_grad():
        for seed, tensor in enumerate(method.parameters()):
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)).to(tensor))
    return method


def adapter(width: int, length: int = P) -> dict[str, Tensor]:
    """What the authors' code writes: prompt and pair, by its names."""
    torch.manual_seed(3)
    return {"prompt_embeddings": torch.randn(length, width), PAIR[0]: torch.randn(S, R), PAIR[1]: torch.randn(R, width)}


@pytest.mark.parametrize("scale", ["code", "none"])
@pytest.mark.parametrize(("source", "target"), [("dept", "dept"), ("ept", "ept"), ("ept", "dept"), ("dept", "ept")])
def test_a_decomposed_prompt_goes_over_whole(backbone: Backbone, source: str, target: str, scale: str) -> None:
    giver = learnt(source, backbone)
    taker = build(target, backbone, **({"scale": scale} if target == "dept" else {}))
    taker.start_from([tensors_for_others(giver)])
    # the table is that of the source, whatever either multiplies A B by
    torch.testing.assert_close(taker.added(), giver.added())
    prompt = taker.short if (source, target) == ("dept", "ept") else taker.prompt()  # new networks change it at once
    torch.testing.assert_close(prompt, giver.prompt())


def test_of_a_prompt_alone_the_pair_keeps_its_own_start(backbone: Backbone) -> None:
    for name in ("prompt_tuning", "dpt"):  # the factors of DPT's prompt, a and b too, are no pair
        giver, taker = learnt(name, backbone), build("dept", backbone)
        before = taker.a.clone()
        taker.start_from([tensors_for_others(giver)])
        torch.testing.assert_close(taker.prompt(), giver.prompt())
        assert torch.equal(taker.a, before)
        assert not taker.added().any()


def test_ept_decomposes_a_prompt_of_the_whole_budget(backbone: Backbone) -> None:
    giver, taker = learnt("prompt_tuning", backbone, prompt_length=L), build("ept", backbone)
    taker.start_from([tensors_for_others(giver)])
    prompt = giver.prompt()
    assert torch.equal(taker.short, prompt[:P])
    u, s, v = torch.linalg.svd(torch.cat([prompt, prompt])[:S])
    torch.testing.assert_close(taker.added(), u[:, :R] @ torch.diag(s[:R]) @ v[:R])


def test_ept_takes_the_prompt_of_a_run_whose_networks_were_discarded(backbone: Backbone) -> None:
    giver, taker = learnt("ept", backbone, discard_at=0.5), build("ept", backbone)
    giver.is_discarded.fill_(True)
    taker.start_from([tensors_for_others(giver)])
    torch.testing.assert_close(taker.short, giver.collapsed)
    torch.testing.assert_close(taker.added(), giver.added())


@pytest.mark.parametrize(
    ("source", "target", "hp", "message"),
    [
        ("dept", "spot", {}, "takes a prompt alone and would drop it"),
        ("ept", "spot", {}, "takes a prompt alone and would drop it"),
        ("accept", "spot", {}, "takes a prompt alone and would drop it"),
        ("accept", "dept", {}, "not its factors a \\[S, R\\] and b"),
        ("accept", "ept", {}, "not its factors a \\[S, R\\] and b"),
        ("dept", "dept", {"rank": 2}, "the pair's a is \\[12, 3\\] in the source, wanted is \\[12, 2\\]"),
        ("dept", "dept", {"source_length": 9}, "wanted is \\[9, 3\\]"),
        ("dept", "dept", {"prompt_length": 5}, "prompt is \\[4, 8\\], wanted is \\[5, 8\\]"),
        ("ept", "ept", {"spaces": 0}, "do not have the same parts: experts.0.0.bias"),
        ("dept", "ept", {"rank": 0}, "leaves no place for one of them"),
        ("prompt_tuning", "ept", {}, "prompt is \\[4, 8\\], wanted is \\[8, 8\\]"),
    ],
)
def test_what_would_be_lost_or_does_not_fit_is_refused(
    backbone: Backbone, source: str, target: str, hp: dict[str, Any], message: str
) -> None:
    taker = build(target, backbone, **hp)
    with pytest.raises(ValueError, match=message.replace(", 8\\]", f", {backbone.hidden}\\]")):
        taker.start_from([tensors_for_others(learnt(source, backbone))])


def test_an_adapter_file_of_the_authors_gives_prompt_and_scaled_table(backbone: Backbone, tmp_path: Path) -> None:
    tensors = adapter(backbone.hidden)
    torch.save(tensors, tmp_path / "adapter_model.bin")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    table = 8 / math.sqrt(R) * tensors[PAIR[0]] @ tensors[PAIR[1]]
    for ending in ("bin", "safetensors"):
        for target in ("dept", "ept"):
            taker = build(target, backbone)
            taker.start_from([read_prompt_file(tmp_path / f"adapter_model.{ending}")])
            torch.testing.assert_close(taker.added(), table.double(), rtol=1e-5, atol=1e-5)
            prompt = taker.vectors if target == "dept" else taker.short
            assert torch.equal(prompt, tensors["prompt_embeddings"].double())


class Surprise:
    """What a pickle may do when it is opened without care."""

    def __reduce__(self) -> Any:
        return (exec, ("import pathlib; pathlib.Path('opened').touch()",))


def save(path: Path, tensors: Any) -> None:
    torch.save(tensors, path)


def cut(path: Path, width: int) -> None:
    torch.save(adapter(width), path)
    path.write_bytes(path.read_bytes()[:-200])


WIDTH = 96
"""Of the bundled network."""
FILES: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "code": (lambda path: path.write_bytes(pickle.dumps({"prompt": Surprise()})), "a pickle with other things"),
    "cut": (lambda path: cut(path, WIDTH), "cannot be read as tensors of PyTorch"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read as tensors of PyTorch"),
    "list": (lambda path: save(path, [torch.zeros(P, WIDTH)]), "holds no tensors by name"),
    "nan": (lambda path: save(path, {"prompt": torch.full((P, WIDTH), math.nan)}), "no finite decimal numbers"),
    "integers": (lambda path: save(path, {"prompt": torch.ones(P, WIDTH, dtype=torch.long)}), "no finite decimal"),
    "half": (lambda path: save(path, {n: t for n, t in adapter(WIDTH).items() if n != PAIR[1]}), "no low-rank pair"),
    "narrow": (lambda path: save(path, adapter(64)), f"prompt is [4, 64], wanted is [4, {WIDTH}]"),
    "short": (lambda path: save(path, adapter(WIDTH, 3)), f"prompt is [3, {WIDTH}], wanted is [4, {WIDTH}]"),
    "missing": (lambda path: None, "start.bin: cannot be read"),
}
SUITE = f"""\
suite: files
backbones: [micro-t5]
tasks: [micro_sentiment]
seeds: [1]
recipe: {{steps: 2, batch_size: 2, eval_every: 2, backbone_dropout: false, lr: 0.3}}
methods:
  dept:
    prompt_length: {P}
    rank: {R}
    source_length: {S}
    added_lr: 0.001
    init_from: {{file: start.bin}}
    recipe: {{max_source_length: {S}}}
"""


def refusals(path: Path, results: Path) -> list[str]:
    """Why `plan` says that nothing of a suite can be trained."""
    try:
        plan = make_plan(path, Overrides(), results, None)
        return [str(error) for error in find_misfits(plan, plan.asked()).values()]
    except UserError as error:
        return [str(error)]


@pytest.mark.parametrize("kind", FILES)
def test_plan_refuses_the_files_that_run_refuses(
    write_suite: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_suite(SUITE)
    make, message = FILES[kind]
    make(path.parent / "start.bin")
    (planned,) = refusals(path, tmp_path / "out")
    with pytest.raises(UserError) as caught:
        run(path, results=tmp_path / "out", quiet=True)
    assert message in planned
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "opened").exists(), "nothing in a pickle may run"


def test_a_cell_trains_from_an_adapter_file(write_suite: Write, tmp_path: Path) -> None:
    path = write_suite(SUITE)
    torch.save(adapter(WIDTH), path.parent / "start.bin")
    assert refusals(path, tmp_path / "out") == []
    summary = run(path, results=tmp_path / "out", quiet=True)
    assert (summary.num_trained, summary.num_failed) == (1, 0)


CHAIN = f"""\
suite: chain
backbones: [micro-t5]
tasks: [micro_sentiment]
seeds: [1]
recipe: {{steps: 2, batch_size: 2, eval_every: 2, backbone_dropout: false, lr: 0.3}}
sources:
  vectors: {{method: prompt_tuning, prompt_length: {P}}}
  longer: {{method: spot, prompt_length: {P + 1}, init_from: {{method: vectors}}}}
methods:
  spot: {{prompt_length: {P + 1}, init_from: {{method: longer}}}}
"""


def test_a_source_that_cannot_start_itself_is_refused_with_its_dependents(write_suite: Write, tmp_path: Path) -> None:
    (message,) = {text.split(": ", 1)[1] for text in refusals(write_suite(CHAIN), tmp_path / "out")}
    assert "starts from longer on micro_sentiment, which cannot start from vectors" in message
