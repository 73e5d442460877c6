"""Every method on every architecture trains or is refused in one sentence; the page says which.

Here a few architectures that differ most; `make networks` trains all of them and writes docs/networks.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from paths import ROOT
from typer.testing import CliRunner

from harness.backbone.load import load_backbone
from harness.cli.commands import app
from harness.errors import UserError
from tools.network_matrix.checkpoints import ARCHITECTURES, build
from tools.network_matrix.matrix import judge, trainable
from tools.network_matrix.page import read

PAGE = read((ROOT / "docs" / "networks.md").read_text())


def test_the_page_holds_every_architecture_and_every_method() -> None:
    assert set(PAGE) == {(name, method) for name in ARCHITECTURES for method in trainable()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_tiny_checkpoint_loads_as_its_kind(name: str, tmp_path: Path) -> None:
    build(name, tmp_path / "tiny")
    if name == "Gemma 4 E":
        with pytest.raises(UserError, match="'tiny' reads token ids in every layer"):
            load_backbone(str(tmp_path / "tiny"))
    else:
        assert load_backbone(str(tmp_path / "tiny")).kind.name == ARCHITECTURES[name].kind


@pytest.mark.parametrize("name", ["Phi-3", "DeBERTa-v3"])
def test_a_pair_trains_or_is_refused_as_the_page_says(name: str, tmp_path: Path) -> None:
    # where 24 steps lower a loss on always the same rows, so do 10
    found = judge(name, tmp_path, steps=10)
    assert [pair for pair in found if pair.outcome == "broken"] == []
    assert all(pair.reason for pair in found if pair.outcome == "refused")
    assert {pair.method: pair.outcome == "trains" for pair in found} == {
        method: trains for (architecture, method), trains in PAGE.items() if architecture == name
    }


def test_a_list_of_methods_says_of_each_whether_it_fits_a_network_and_why_not(tmp_path: Path) -> None:
    t5, bert = str(tmp_path / "t5"), str(tmp_path / "bert")
    build("T5", Path(t5))
    build("BERT", Path(bert))
    found = json.loads(CliRunner().invoke(app, ["methods", "--backbone", t5, "--format", "json"]).output)
    reasons = {row["name"]: row["misfit"] for row in found["methods"] if row["misfit"]}
    assert reasons == {"head_only": "it trains a linear head alone, which needs an encoder or a decoder-only network"}
    told = CliRunner().invoke(app, ["methods", "--backbone", bert]).output
    assert re.search(r"^hyperdecoder +layers +no: HyperDecoder reads the output of an encoder", told, re.MULTILINE)
    assert re.search(r"^lora +layers +yes$", told, re.MULTILINE)
