"""Checkpoint folders of tiny random networks with tokenizers of bytes, and a suite on a dozen rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from harness.backbone.load import untrained_network

SPECIAL = ["<pad>", "</s>", "<s>", "<unk>"]
NUM_BYTES = 256
SIZE = len(SPECIAL) + NUM_BYTES

GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
BART = {"model_type": "bart", "d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_layers": 1,
        "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "scale_embedding": True,
        "max_position_embeddings": 64, "decoder_start_token_id": 1, "forced_eos_token_id": None}  # fmt: skip

SUITE = """\
suite: reviews
backbones: [{backbones}]
tasks: [reviews]
seeds: [1]
recipe: {{steps: 2, eval_every: 2, batch_size: 2, lr: 0.01}}
define_tasks:
  reviews:
    {{files: reviews.csv, fields: {{text: text}}, {answer}, max_source_length: {source}, dev_share: 3, test_share: 3}}
methods: {{prompt_tuning: {{prompt_length: 4}}}}
"""


def byte_tokenizer(frame: str = "$A", added: Sequence[str] = (), **names: str) -> PreTrainedTokenizerFast:
    """A token for each byte, behind the special ones; `frame` says what stands around a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIAL, *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token) for token in added])
    ids = [(token, SPECIAL.index(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=ids)
    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", **names}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def write_checkpoint(folder: Path, config: dict[str, Any], tokenizer: Any = None, vocab_size: int = SIZE) -> Path:
    """A random network of this configuration, and its tokenizer beside it if one is given."""
    ids = {"vocab_size": vocab_size, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained_network({**ids, **config}).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def write_reviews(
    folder: Path, backbones: Sequence[Path], source: int = 32, text: str = "good", answer: str | None = None
) -> Path:
    """A suite of two-word labels on twelve rows that hold `text`; the path of its file."""
    rows = [f"{text} {index},{('good', 'bad')[index % 2]}" for index in range(12)]
    (folder / "reviews.csv").write_text("text,verdict\n" + "\n".join(rows) + "\n")
    answer = answer or "label: verdict, labels: [bad, good]"
    path = folder / "reviews.yaml"
    path.write_text(SUITE.format(backbones=", ".join(map(str, backbones)), source=source, answer=answer))
    return path
