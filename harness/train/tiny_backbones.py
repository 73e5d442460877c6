"""Tiny random backbones and rows, for the contract of methods and for tests: no files, no download."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from harness.backbone import DTYPES, Backbone, KindName
from harness.data import Encoded

VOCABULARY = 128
WIDTH = 64


class TinyTokenizer:
    """Stands for a tokenizer where ids are made up: it only knows its special tokens and one sentence."""

    pad_token_id = 0
    eos_token_id = 1

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [3 + ord(char) % (VOCABULARY - 3) for char in text]
        return {"input_ids": [*ids, self.eos_token_id] if add_special_tokens else ids}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return " ".join(str(token) for token in ids if token > 1 or not skip_special_tokens)


def tiny_backbone(kind: KindName = "encoder-decoder", precision: str = "float32", meta: bool = False) -> Backbone:
    """Return a random T5, Llama or BERT of width 64 with two layers; the same weights each time."""
    model = copy.deepcopy(_tiny_network(kind, meta))  # 12 ms for a T5, where drawing takes 20
    if not meta:
        model = model.to(DTYPES[precision])
    return Backbone(f"tiny-{kind}", model.eval(), TinyTokenizer(), None, precision)


def expect_packing(backbone: Backbone) -> None:
    """Let a tiny backbone, which is as it was made, know of packed rows what another copy has found by trying."""
    backbone._can_pack = _can_pack(backbone.kind.name, backbone.precision)


@functools.cache
def _can_pack(kind: KindName, precision: str) -> bool:
    return tiny_backbone(kind, precision)._can_pack


@functools.cache
def _tiny_network(kind: KindName, meta: bool) -> Any:
    """Draw the network of a tiny backbone in float32. It is only copied, since methods change what they are given."""
    from transformers import (
        BertConfig,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    config: Any
    if kind == "encoder-decoder":
        config = T5Config(
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
        )
        make: Any = T5ForConditionalGeneration
    elif kind == "encoder":
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            pad_token_id=0,
        )
        make = functools.partial(BertModel, add_pooling_layer=False)
    else:
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            pad_token_id=0,
            eos_token_id=1,
        )
        make = LlamaForCausalLM
    with torch.random.fork_rng(), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(0)
        return make(config)


def tiny_rows(lengths: Sequence[int], backbone: Backbone) -> Encoded:
    """Made-up rows with these source lengths and two-token targets."""
    rng = np.random.default_rng(0)
    sources = [rng.integers(3, VOCABULARY, length) for length in lengths]
    targets = [np.array([3 + index % 7, backbone.eos_id]) for index in range(len(lengths))]
    return Encoded(np.concatenate(sources), _offsets(sources), np.concatenate(targets), _offsets(targets))


def _offsets(rows: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
