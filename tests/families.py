"""Small fast tokenizers with the habits of families: what stands around a text, how blanks are kept, how chats look.

The templates are of each family's kind and short; none is a family's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from harness.backbone.network import Backbone
from harness.backbone.network_kinds import KindName
from harness.train.tiny_backbones import tiny_backbone

WORDS = ("the", "and", "ing", "er", "th", "in", "an", "on", "No", "Yes", "user", "assistant")
"""Texts that are merged to one token, so that where a text begins and ends matters."""

LLAMA = (
    "{{ bos_token }}{% for message in messages %}<|head|>{{ message['role'] }}<|/head|>\n\n"
    "{{ message['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% elif message['role'] == 'user' %}"
    "[INST] {{ message['content'] }} [/INST]{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else "
    "message['role'] %}{{ '<turn>' + role + '\n' + message['content'] | trim + '</turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
QWEN = (
    "{% for message in messages %}{{ '<|im_start|>' ~ message.role ~ '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message.content ~ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
CHANNELS = (
    "{% for message in messages %}<|start|>{{ message.role }}{% if message.role == 'assistant' %}<|channel|>final"
    "{% endif %}<|message|>{{ message.content }}{{ '<|return|>' if loop.last and message.role == 'assistant' else "
    "'<|end|>' }}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' ~ message.role ~ '|>\n' ~ message.content ~ eos_token ~ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WITHOUT_END = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class Family:
    """What stands around a text ("$A"), the special tokens, and the chat template, if it has one."""

    around: str
    named: tuple[tuple[str, str], ...]
    others: tuple[str, ...] = ()
    template: str = ""
    takes_system: bool = True
    pieces: bool = False
    """Whether a word begins with "▁" and white space in front is lost, as SentencePiece has it; else bytes."""
    plain_added: tuple[str, ...] = ()
    """Added tokens that are not marked as special."""


FAMILIES: dict[str, Family] = {
    "llama": Family("<s> $A", (("bos", "<s>"), ("eos", "</s>")), ("<|head|>", "<|/head|>", "<|eot|>"), LLAMA),
    "llama pieces": Family("<s> $A", (("bos", "<s>"), ("eos", "</s>")), template=MISTRAL, takes_system=False,
                           pieces=True),
    "gemma": Family("<bos> $A", (("bos", "<bos>"), ("eos", "<eos>"), ("pad", "<pad>")), ("<turn>", "</turn>"), GEMMA,
                    takes_system=False),
    "qwen": Family("$A", (("eos", "<|im_end|>"), ("pad", "<|endoftext|>")), ("<|im_start|>",), QWEN,
                   plain_added=("<think>", "</think>")),
    "channels": Family("$A", (("eos", "<|return|>"), ("pad", "<|endoftext|>")),
                       ("<|start|>", "<|end|>", "<|channel|>", "<|message|>"), CHANNELS),
    "zephyr": Family("$A", (("eos", "</s>"), ("pad", "<pad>")), template=ZEPHYR),
    "without end": Family("$A", (("bos", "<|endoftext|>"), ("eos", "<|endoftext|>")), template=WITHOUT_END),
    "gpt2": Family("$A", (("bos", "<|endoftext|>"), ("eos", "<|endoftext|>"))),
    "t5": Family("$A </s>", (("eos", "</s>"), ("pad", "<pad>")), pieces=True),
    "bert": Family("[CLS] $A [SEP]", (("cls", "[CLS]"), ("sep", "[SEP]"), ("pad", "[PAD]"))),
}  # fmt: skip
CHATS = [name for name, family in FAMILIES.items() if family.template]
DECODERS = [name for name in FAMILIES if name not in ("t5", "bert")]


def tokenizer(name: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a family; with another chat template, if one is given."""
    family = FAMILIES[name]
    special = list(dict.fromkeys([*(token for _, token in family.named), *family.others, "<unk>"]))
    letters = _letters(family)
    merges = [pair for word in WORDS for pair in _merges(word, family)]
    tokens = list(dict.fromkeys([*special, *letters, *(left + right for left, right in merges)]))
    built = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, list(dict.fromkeys(merges)), unk_token="<unk>")
    )
    if family.pieces:
        built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        built.decoder = decoders.Sequence([decoders.Metaspace(prepend_scheme="first")])
    else:
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(token, special=True) for token in special])
    built.add_tokens([AddedToken(token, special=False) for token in family.plain_added])
    around = [(token, built.token_to_id(token)) for token in special]
    built.post_processor = processors.TemplateProcessing(single=family.around, special_tokens=around)
    names: dict[str, Any] = {f"{kind}_token": token for kind, token in family.named}
    made = PreTrainedTokenizerFast(tokenizer_object=built, unk_token="<unk>", **names)
    made.chat_template = template or family.template or None
    return made


def backbone(name: str, template: str | None = None, kind: KindName | None = None) -> Backbone:
    """A tiny network with the tokenizer of a family; `kind` is that of the family unless it is given."""
    own: dict[str, KindName] = {"t5": "encoder-decoder", "bert": "encoder"}
    made = tiny_backbone(kind or own.get(name, "decoder"))
    made.tokenizer = tokenizer(name, template)
    return made


def _letters(family: Family) -> list[str]:
    if family.pieces:
        return ["▁", "\n", *map(chr, range(33, 127))]
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _merges(word: str, family: Family) -> list[tuple[str, str]]:
    """Merges that make a word one token, alone and behind a blank."""
    found, start = [], word[0]
    for letter in word[1:]:
        found.append((start, letter))
        start += letter
    return [*found, ("▁" if family.pieces else "Ġ", word)]
