"""A method that does not take itself off again fails, and the cells behind it train on a clean backbone."""

from __future__ import annotations

from pathlib import Path

import pytest

import harness
from harness.results.schema import Result
from harness.results.store import ResultStore

pytestmark = pytest.mark.usefixtures("few_rows")

CLINGING = """
from dataclasses import dataclass

import torch
from torch import nn

from harness.method import Method, Paper


class Clinging(Method):
    name = "clinging"
    paper = Paper("nobody-2026", "https://example.org")

    @dataclass(frozen=True, kw_only=True)
    class HP:
        pass

    def __init__(self, hp, backbone):
        super().__init__(hp, backbone)
        self.shift = nn.Parameter(torch.ones(backbone.hidden))

    def attach(self, backbone):
        for block in backbone.model.encoder.block:
            block.layer[0].SelfAttention.o.register_forward_hook(lambda module, args, output: output + self.shift)
"""
SUITE = """\
suite: clinging
backbones: [micro-t5]
tasks: [micro_sentiment]
seeds: [1]
recipe: {lr: 0.01, steps: 2, batch_size: 2, eval_every: 2, backbone_dropout: false}
methods: METHODS
"""


def run(folder: Path, methods: str) -> dict[str, Result]:
    folder.mkdir()
    (folder / "clinging.py").write_text(CLINGING)
    (folder / "suite.yaml").write_text(SUITE.replace("METHODS", methods))
    harness.run(folder / "suite.yaml", results=folder / "results", quiet=True, method_dirs=[str(folder)])
    return {result.cell.method: result for _, result in ResultStore(folder / "results").scan()}


def test_what_does_not_detach_fails_and_leaves_nothing_to_those_behind_it(tmp_path: Path) -> None:
    clean = run(tmp_path / "clean", "[prefix_tuning, bitfit]")
    mixed = run(tmp_path / "mixed", "[clinging, prefix_tuning, bitfit]")
    assert mixed["clinging"].status == "failed"
    assert mixed["clinging"].failure is not None
    assert (
        "Clinging.detach() leaves a hook of the Linear 'encoder.block.0.layer.0.SelfAttention.o' changed"
        in mixed["clinging"].failure.message
    )
    for name, result in clean.items():
        assert result.status == "done"
        assert mixed[name].dev_history == result.dev_history
        assert mixed[name].test == result.test
