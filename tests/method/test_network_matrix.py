"""Every method on every architecture trains or is refused in one sentence; the page says which.

Here a few architectures that differ most; `make networks` trains all of them and writes docs/networks.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import ROOT

from harness.backbone.load import load_backbone
from tools.network_matrix.checkpoints import ARCHITECTURES, build
from tools.network_matrix.matrix import judge, trainable
from tools.network_matrix.page import read

PAGE = read((ROOT / "docs" / "networks.md").read_text())


def test_the_page_holds_every_architecture_and_every_method() -> None:
    assert set(PAGE) == {(name, method) for name in ARCHITECTURES for method in trainable()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_tiny_checkpoint_loads_as_its_kind(name: str, tmp_path: Path) -> None:
    build(name, tmp_path / "tiny")
    assert load_backbone(str(tmp_path / "tiny")).kind.name == ARCHITECTURES[name].kind


@pytest.mark.parametrize("name", ["Phi-3", "Qwen3-MoE", "DeBERTa-v3"])
def test_a_pair_trains_or_is_refused_as_the_page_says(name: str, tmp_path: Path) -> None:
    found = judge(name, tmp_path)
    assert [pair for pair in found if pair.outcome == "broken"] == []
    assert all(pair.reason for pair in found if pair.outcome == "refused")
    assert {pair.method: pair.outcome == "trains" for pair in found} == {
        method: trains for (architecture, method), trains in PAGE.items() if architecture == name
    }
