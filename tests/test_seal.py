"""Whatever a method does to the backbone, the rows beside it score as if it had never been there."""

from __future__ import annotations

from pathlib import Path

import pytest

import harness
from harness.caches import cached_backbone, drop_backbone
from harness.results import ResultStore
from harness.schema import Result
from harness.seal import Seal

METHOD = """
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from harness.method import Method, Paper


def halved(embedding, ids):
    return nn.functional.embedding(ids, embedding.weight) * 0.5


class Poison(Method):
    name = "poison"
    paper = Paper("nobody-2026", "https://example.org")

    @dataclass(frozen=True, kw_only=True)
    class HP:
        pass

    def __init__(self, hp, backbone):
        super().__init__(hp, backbone)
        self.vectors = nn.Parameter(torch.zeros(1, backbone.hidden))
        self.network = [backbone]  # in a list, so that it is no part of the method
        INIT

    @property
    def weight(self):
        return self.network[0].embedding.weight

    def prompt(self):
        PROMPT
        return self.vectors

    def on_step(self, step, num_steps):
        ON_STEP
"""
SUITE = """\
suite: seal
backbones: [micro-t5]
tasks: [small]
define_tasks:
  small: {files: rows.csv, fields: {text: text}, label: verdict, labels: [bad, good], dev_share: 12, test_share: 12}
seeds: [1]
recipe: {lr: 0.3, steps: 2, batch_size: 4, eval_every: 1, warmup_steps: 0, backbone_dropout: false}
methods: METHODS
"""
WAYS = {
    "init": ("INIT", "self.weight.data.mul_(0.5)"),
    "in place": ("PROMPT", "with torch.no_grad(): self.weight.mul_(0.5)"),
    "through data": ("PROMPT", "self.weight.data.mul_(0.5)"),
    "other data": ("ON_STEP", "self.weight.data = self.weight.data * 0.5"),
    "late": ("ON_STEP", "if step == 1: self.weight.data[:7] = 0"),
    "moved rows": ("PROMPT", "self.weight.data.copy_(self.weight.data.flip(0))"),
    "hook": ("INIT", "backbone.embedding.register_forward_hook(lambda m, a, out: out * 0.5)"),
    "forward": ("PROMPT", "e = self.network[0].embedding; e.forward = partial(halved, e)"),
    "config": ("ON_STEP", "self.network[0].config.decoder_start_token_id = 7"),
    "mode": ("ON_STEP", "self.network[0].model.train()"),
    "gradients": ("ON_STEP", "self.weight.requires_grad_(True)"),
    "face": ("ON_STEP", "self.network[0].decode = lambda embeds, mask, most: mask[:, :1]"),
    "class": ("ON_STEP", "type(self.network[0].embedding).forward = halved"),
    "and raises": ("ON_STEP", "self.weight.data.mul_(0.5); raise RuntimeError('then it raised')"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh() -> None:
    drop_backbone()


def run(folder: Path, methods: str, way: str = "in place", **options: object) -> dict[str, Result]:
    folder.mkdir()
    code = METHOD
    for place in ("INIT", "PROMPT", "ON_STEP"):
        code = code.replace(place, WAYS[way][1] if WAYS[way][0] == place else "pass")
    (folder / "poison.py").write_text(code)
    rows = [f"number {i} was {'fine' if i % 3 else 'no use'},{'good' if i % 3 else 'bad'}" for i in range(60)]
    (folder / "rows.csv").write_text("\n".join(["text,verdict", *rows]) + "\n")
    (folder / "suite.yaml").write_text(SUITE.replace("METHODS", methods))
    harness.run(folder / "suite.yaml", results=folder / "out", quiet=True, method_dirs=[str(folder)], **options)  # type: ignore[arg-type]
    return {result.cell.label: result for _, result in ResultStore(folder / "out").scan()}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    drop_backbone()
    return run(tmp_path_factory.mktemp("clean") / "a", "{prompt_tuning: {prompt_length: 3}, bitfit: }")


@pytest.mark.parametrize("way", WAYS)
def test_a_poisoner_fails_by_name_and_poisons_nobody(way: str, clean: dict[str, Result], tmp_path: Path) -> None:
    mixed = run(tmp_path / "mixed", "{poison: , prompt_tuning: {prompt_length: 3}, bitfit: }", way)
    failure = mixed["poison"].failure
    assert failure is not None
    assert (mixed["poison"].status, failure.type) == ("failed", "BackboneChanged"), failure.traceback
    assert "the backbone is no longer what it was" in failure.message
    for label, result in clean.items():
        assert (mixed[label].status, mixed[label].failure) == ("done", None)
        assert (mixed[label].dev_history, mixed[label].test) == (result.dev_history, result.test)
    assert Seal(cached_backbone("micro-t5", "float32")).difference() is None
