"""Starting prompts, from the vocabulary or from noise, by the rules found in the field's code."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.backbone import Backbone
from harness.errors import require_choice

VOCABULARY_RULES = (
    "top5000",
    "first_m",
    "text_repeat",
    "sample_vocab",
    "ids_100_to_599",
    "ids_100_to_999",
    "uniform",
    "normal",
)

# ids from which a rule draws without repetition, [first, last + 1)
POOLS = {"top5000": (0, 5_000), "ids_100_to_599": (100, 600), "ids_100_to_999": (100, 1_000)}

# DePT's released checkpoints all start from this sentence; the misspelling is theirs.
DEPT_SENTENCE = "Classify this text is postive or not:"


def vocabulary_rows(backbone: Backbone, length: int, rule: str) -> Tensor:
    """Return a starting prompt, [length, H]: what the backbone reads for some tokens, or noise.

    `top5000`: a random choice without repetition among the first 5,000 ids (ATTEMPT's code; EPT);
    `first_m`: rows 0..length-1 (Compacter's code); `text_repeat`: the tokens of one fixed sentence
    with its end mark, repeated (DePT's code); `sample_vocab`: uniform over the embedding (PEFT, Residual PT);
    `ids_100_to_599`, `ids_100_to_999`: a random choice without repetition (TPT's prompt and bank);
    `uniform`: U(-0.5, 0.5) (the default of Compacter, ATTEMPT, DPT); `normal`: N(0, 1) (PEFT's RANDOM).
    Raises UserError on another rule, ValueError where the vocabulary has no id of the rule.
    """
    require_choice(rule, VOCABULARY_RULES, kind="initialisation")
    weight = backbone.embedding.weight
    if weight.is_meta:
        return torch.empty(length, weight.shape[1], device="meta")
    if rule in ("uniform", "normal"):
        noise = torch.rand(length, weight.shape[1]) - 0.5 if rule == "uniform" else torch.randn(length, weight.shape[1])
        return noise.to(weight)
    return backbone.token_vectors(_ids(backbone, length, rule))


def _ids(backbone: Backbone, length: int, rule: str) -> Tensor:
    num_rows = len(backbone.embedding.weight)
    if rule in POOLS:
        first, stop = POOLS[rule]
        pool = min(stop, num_rows) - first
        if pool < 1:
            raise ValueError(f"init {rule} needs more than the {num_rows} tokens of this vocabulary")
        # a vocabulary smaller than the prompt is gone through again, so every length is possible
        rounds = [torch.randperm(pool) for _ in range(-(-length // pool))]
        return first + torch.cat(rounds)[:length]
    if rule == "first_m":
        return torch.arange(length) % num_rows
    if rule == "sample_vocab":
        return torch.randint(num_rows, (length,))
    sentence = torch.tensor(backbone.tokenizer(DEPT_SENTENCE)["input_ids"])
    return sentence.repeat(-(-length // len(sentence)))[:length]
