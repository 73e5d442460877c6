"""Parameter counts on full-size shapes without weights, against methods' arithmetic and the published figures."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from harness.backbone.load import backbone_config, meta_backbone
from harness.backbone.network import Backbone
from harness.cli.list_params import describe_params
from harness.errors import UserError
from harness.method.method import Method
from harness.method.registry import discover

REGISTRY = discover()
RAISING = """
from harness.method import Method, Paper


class Raising(Method):
    name = "raising"
    paper = Paper("key", "https://example.org")

    def kept(self):
        raise RuntimeError("boom")
"""


def test_all_methods_are_counted_on_a_decoder_but_those_that_it_cannot_have(tmp_path: Path) -> None:
    (tmp_path / "raising.py").write_text(RAISING)
    config = {**backbone_config("llama-3-8b"), "num_hidden_layers": 2}
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps(config))
    found = describe_params(discover(tmp_path), None, str(tmp_path / "llama"), {})
    assert {row["method"] for row in found["methods"]} >= {"accept", "lora", "prompt_tuning"}
    assert set(found["left_out"]) == {"hyperdecoder", "raising"}
    width = config["hidden_size"]  # a decoder's head has no bias on top
    assert found["heads"] == {"linear": 2 * width, "hidden": 2 * width + width * width + width}
    assert f"{found['heads']['hidden']:,} (hidden)" in found["text"]
    assert "raising, not counted: its code raises RuntimeError: boom" in found["text"]
    with pytest.raises(UserError, match="boom"):
        describe_params(discover(tmp_path), ["raising"], str(tmp_path / "llama"), {})


@functools.cache
def backbone(name: str) -> Backbone:
    return meta_backbone(name)


def counts(name: str, on: str, **hp: object) -> tuple[int, int]:
    cls = REGISTRY[name].cls
    assert cls is not None
    assert issubclass(cls, Method)
    method = cls(cls.HP(**hp), backbone(on))
    return method.num_trained, method.num_kept


@pytest.mark.parametrize(
    ("method", "hp", "trained", "kept"),
    [
        ("prompt_tuning", {}, 76_800, 76_800),
        ("dept", {}, 76_800, 76_800),
        ("dept", {"prompt_length": 40}, 76_800, 76_800),
        ("dept", {"prompt_length": 80}, 76_800, 76_800),
        ("dept", {"source_length": 512}, 76_800, 76_800),
        ("dept", {"source_length": 348, "rank": 30}, 79_560, 79_560),
        ("dept", {"source_length": 348}, 76_212, 76_212),
        ("accept", {}, 74_880, 74_880),
        ("accept", {"source_length": 348}, 73_440, 73_440),
        ("accept", {"source_length": 348, "added_rank": 24}, 79_296, 79_296),
        ("accept", {"source_length": 512, "prompt_length": 40}, 74_176, 74_176),
        ("accept", {"source_length": 512}, 74_624, 74_624),
        ("accept", {"added_side": "lowrank"}, 74_880, 74_880),
        ("accept", {"prompt_side": "free"}, 76_800, 76_800),
        ("ept", {}, 1_656_836, 76_800),
        ("ept", {"prompt_length": 40}, 1_656_836, 76_800),
        ("lora", {}, 3_538_944, 3_538_944),
        ("finetune", {}, 222_903_552, 222_903_552),
    ],
)
def test_counts_on_t5_base(method: str, hp: dict[str, object], trained: int, kept: int) -> None:
    assert counts(method, "t5-base", **hp) == (trained, kept)


def test_count_of_ept_without_the_biases_of_its_networks() -> None:
    cls = REGISTRY["ept"].cls
    assert cls is not None
    assert issubclass(cls, Method)
    named = cls(cls.HP(), backbone("t5-base")).named_parameters()
    assert sum(tensor.numel() for name, tensor in named if not name.endswith("bias")) == 1_652_736


# ACCEPT Table 12: width of a subvector, parameters with that SCPP, parameters with that SCAP
TABLE_12 = [
    (16, 74_496, 72_192), (32, 74_880, 73_728), (64, 75_360, 76_800), (96, 75_648, 74_240), (128, 75_840, 76_032),
    (192, 76_080, 76_544), (256, 76_224, 76_800), (384, 76_008, 76_800), (768, 76_260, 76_800),
]  # fmt: skip


@pytest.mark.parametrize(("width", "scpp", "scap"), TABLE_12)
def test_counts_of_accept_table_12(width: int, scpp: int, scap: int) -> None:
    assert counts("accept", "t5-base", prompt_width=width, added_side="lowrank")[0] == scpp
    assert counts("accept", "t5-base", added_width=width, prompt_side="free")[0] == scap


def test_counts_on_t5_small() -> None:
    assert counts("accept", "t5-small", prompt_length=40)[0] == 50_304
    assert counts("prompt_tuning", "t5-small")[0] == 51_200


def test_counts_on_llama_2_7b() -> None:
    assert counts("prompt_tuning", "llama-2-7b", prompt_length=102)[0] == 417_792
    assert counts("dept", "llama-2-7b", prompt_length=40, rank=60, source_length=64)[0] == 413_440
    assert counts("accept", "llama-2-7b")[0] == 396_800  # 404,992 with a bias-free 4096 x 2 head


@pytest.mark.parametrize("name", ["t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b", "llama-2-7b"])
def test_counts_follow_the_per_part_rule_at_every_width(name: str) -> None:
    width = backbone(name).hidden
    prompt_rank = 60 * width // (width + 60 * (width // 32))
    added_rank = 40 * width // (width + 256 * 2)
    accept = prompt_rank * (width + 60 * (width // 32)) + added_rank * (width + 256 * 2)
    pair = (40 * width // (width + 256)) * (width + 256)
    assert counts("prompt_tuning", name)[0] == 100 * width
    assert counts("accept", name)[0] == accept <= 100 * width
    assert counts("dept", name)[0] == 60 * width + pair <= 100 * width
    networks = 4 * (2 * width * 256 + 256 + width) + 4 * (width + 1)
    assert counts("ept", name) == (60 * width + pair + networks, 60 * width + pair)


def test_lora_counts_two_factors_per_target_projection() -> None:
    for name, inner, blocks in (("t5-small", 512, 18), ("t5-large", 1_024, 72), ("t5-3b", 4_096, 72)):
        width = backbone(name).hidden
        assert counts("lora", name)[0] == blocks * 2 * 32 * (width + inner)
    assert counts("lora", "llama-2-7b")[0] == 32 * 2 * 32 * (4_096 + 4_096)


@pytest.mark.parametrize(
    ("name", "total"),
    [("t5-small", 60_506_624), ("t5-base", 222_903_552), ("llama-2-7b", 6_738_415_616)],
)
def test_backbone_totals(name: str, total: int) -> None:
    assert backbone(name).num_params == total == counts("finetune", name)[0]
