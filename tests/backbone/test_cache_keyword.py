"""The keyword of stored keys and values is that of the installed transformers, whatever it is called there."""

from __future__ import annotations

import inspect
from dataclasses import make_dataclass
from typing import Any

import pytest
from paths import METHODS, ROOT
from transformers import LlamaForCausalLM, T5ForConditionalGeneration

from harness.backbone.network import _cache_keyword
from harness.train.tiny_backbones import tiny_backbone


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_keyword_follows_the_outputs_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_dataclass("BaseModelOutputWithPast", [("last_hidden_state", object), (name, object)])
    monkeypatch.setattr("transformers.modeling_outputs.BaseModelOutputWithPast", made)
    _cache_keyword.cache_clear()
    try:
        assert _cache_keyword() == name
    finally:
        _cache_keyword.cache_clear()


def test_no_other_place_spells_it() -> None:
    """What passes it under one name works with one release and fails, or warns, with the next."""
    for path in [*(ROOT / "harness").rglob("*.py"), *METHODS.glob("*.py")]:
        words = (path.read_text(encoding="utf-8")).split("def _cache_keyword")[0]
        assert "past_key_values" not in words, f"{path.name}: take Backbone.cache_keyword"


@pytest.mark.parametrize("network", [LlamaForCausalLM, T5ForConditionalGeneration])
def test_the_installed_networks_take_the_keyword(network: Any) -> None:
    assert tiny_backbone("decoder").cache_keyword in inspect.signature(network.forward).parameters
