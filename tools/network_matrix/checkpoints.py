"""Tiny random checkpoints of the architectures that people use, each with a tokenizer of its family's habits.

Weights are drawn with a deviation of 0.15 where the libraries take 0.02: with two layers of width 64, smaller ones hide
what an architecture does between its input and its output.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from harness.data import text

VOCABULARY = 512
DEVIATION = 0.15
Kind = Literal["encoder-decoder", "decoder", "encoder"]

_LLAMA = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 512}  # fmt: skip
_BERT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "vocab_size": VOCABULARY, "max_position_embeddings": 256}  # fmt: skip
_T5 = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2,
       "vocab_size": VOCABULARY, "decoder_start_token_id": 0}  # fmt: skip
_WINDOW = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}


@dataclass(frozen=True)
class Tokens:
    """The special tokens of a family, and what its tokenizer puts around a text ("$A")."""

    around: str
    pad: str | None = None
    begin: str | None = None
    end: str | None = None
    separator: str | None = None
    others: tuple[str, ...] = ()


_TOKENS = {
    "t5": Tokens("$A </s>", pad="<pad>", end="</s>"),
    "bart": Tokens("<s> $A </s>", pad="<pad>", begin="<s>", end="</s>"),
    "llama": Tokens("<s> $A", begin="<s>", end="</s>"),
    "qwen": Tokens("$A", pad="<|endoftext|>", end="<|im_end|>"),
    "gemma": Tokens("<bos> $A", pad="<pad>", begin="<bos>", end="<eos>"),
    "gpt2": Tokens("$A", begin="<|endoftext|>", end="<|endoftext|>"),
    "opt": Tokens("</s> $A", pad="<pad>", begin="</s>", end="</s>"),
    "bert": Tokens("[CLS] $A [SEP]", pad="[PAD]", begin="[CLS]", separator="[SEP]", others=("[MASK]",)),
    "roberta": Tokens("<s> $A </s>", pad="<pad>", begin="<s>", end="</s>", separator="</s>", others=("<mask>",)),
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """One architecture: its name in transformers, the settings that make it tiny, and its family of tokenizers."""

    model_type: str
    kind: Kind
    tokens: str
    settings: Mapping[str, Any] = field(default_factory=dict)


ARCHITECTURES: dict[str, Architecture] = {
    "T5": Architecture("t5", "encoder-decoder", "t5", _T5),
    "T5 1.1": Architecture(
        "t5", "encoder-decoder", "t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    ),
    "mT5": Architecture("mt5", "encoder-decoder", "t5", {**_T5, "tie_word_embeddings": False}),
    "BART": Architecture(
        "bart", "encoder-decoder", "bart",
        {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "encoder_layers": 2, "decoder_layers": 2,
         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": VOCABULARY,
         "max_position_embeddings": 256, "scale_embedding": True},
    ),
    "Llama 3": Architecture(
        "llama", "decoder", "llama",
        {**_LLAMA, "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                                       "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                       "original_max_position_embeddings": 128}},
    ),
    "Mistral": Architecture("mistral", "decoder", "llama", {**_LLAMA, "sliding_window": 16}),
    "Qwen2": Architecture("qwen2", "decoder", "qwen", {**_LLAMA, "tie_word_embeddings": True}),
    "Qwen3": Architecture("qwen3", "decoder", "qwen", {**_LLAMA, "head_dim": 32, "tie_word_embeddings": True}),
    "Qwen3-MoE": Architecture(
        "qwen3_moe", "decoder", "qwen",
        {**_LLAMA, "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "Gemma 2": Architecture("gemma2", "decoder", "gemma", {**_LLAMA, **_WINDOW}),
    "Gemma 3": Architecture(
        "gemma3_text", "decoder", "gemma",
        {**_LLAMA, **_WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "Gemma 4": Architecture(
        "gemma4_text", "decoder", "gemma",
        {**_LLAMA, "head_dim": 32, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"],
         "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    ),
    "Gemma 4 E": Architecture(
        "gemma4_text", "decoder", "gemma",
        {**_LLAMA, "head_dim": 32, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"],
         "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0},
    ),
    "Phi-3": Architecture("phi3", "decoder", "llama", _LLAMA),
    "SmolLM3": Architecture("smollm3", "decoder", "qwen", _LLAMA),
    "OLMo2": Architecture("olmo2", "decoder", "gpt2", _LLAMA),
    "gpt-oss": Architecture(
        "gpt_oss", "decoder", "qwen",
        {**_LLAMA, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16,
         "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "GPT-2": Architecture(
        "gpt2", "decoder", "gpt2",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 256},
    ),
    "GPT-NeoX": Architecture("gpt_neox", "decoder", "gpt2", {k: v for k, v in _LLAMA.items() if "key_value" not in k}),
    "OPT": Architecture(
        "opt", "decoder", "opt",
        {"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "vocab_size": VOCABULARY, "max_position_embeddings": 256, "word_embed_proj_dim": 64},
    ),
    "BLOOM": Architecture(
        "bloom", "decoder", "opt", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY}
    ),
    "Falcon": Architecture(
        "falcon", "decoder", "gpt2",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY,
         "multi_query": True, "parallel_attn": True, "bias": False, "max_position_embeddings": 256},
    ),
    "BERT": Architecture("bert", "encoder", "bert", _BERT),
    "RoBERTa": Architecture("roberta", "encoder", "roberta", _BERT),
    "DeBERTa-v3": Architecture(
        "deberta-v2", "encoder", "bert",
        {**_BERT, "relative_attention": True, "position_buckets": 32, "pos_att_type": ["p2c", "c2p"],
         "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0},
    ),
    "ModernBERT": Architecture(
        "modernbert", "encoder", "bert",
        {**_BERT, "global_attn_every_n_layers": 2, "local_attention": 16},
    ),
    "ELECTRA": Architecture("electra", "encoder", "bert", {**_BERT, "embedding_size": 32}),
}  # fmt: skip


def build(name: str, folder: Path) -> None:
    """Write a tiny checkpoint of an architecture, weights and tokenizer, into `folder`; the same each time."""
    found = ARCHITECTURES[name]
    tokenizer = _tokenizer(_TOKENS[found.tokens])
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if found.model_type == "bart":  # it starts an answer with the end token
        ids |= {"decoder_start_token_id": tokenizer.eos_token_id, "forced_eos_token_id": tokenizer.eos_token_id}
    if found.model_type == "modernbert":
        ids |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    config = AutoConfig.for_model(found.model_type, **{**found.settings, **ids})
    loaders: dict[str, Any] = {
        "encoder-decoder": AutoModelForSeq2SeqLM, "decoder": AutoModelForCausalLM, "encoder": AutoModel,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = loaders[found.kind].from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=DEVIATION)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _lines(count: int) -> Iterator[str]:
    """`count` passages of the program's own sentences, the same each time."""
    rng = random.Random(0)
    return (text(rng) for _ in range(count))


@functools.cache  # 28 architectures share nine families, and learning a vocabulary takes longer than the weights
def _tokenizer(tokens: Tokens) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the program's own sentences, with the special tokens of a family; not to be changed."""
    named = {
        "pad_token": tokens.pad, "bos_token": tokens.begin, "eos_token": tokens.end, "sep_token": tokens.separator,
        "cls_token": tokens.begin if tokens.separator else None,
    }  # fmt: skip
    special = list(dict.fromkeys([*(token for token in named.values() if token), *tokens.others, "<unk>"]))
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator([f"sentence: {line} Label : 0 1" for line in _lines(300)], trainer)
    around = [(token, built.token_to_id(token)) for token in special]
    built.post_processor = processors.TemplateProcessing(single=tokens.around, special_tokens=around)
    return PreTrainedTokenizerFast(
        tokenizer_object=built, unk_token="<unk>", **{name: token for name, token in named.items() if token}
    )
