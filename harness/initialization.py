"""Starting prompts from the vocabulary, by the four rules found in the field's code."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.backbone import Backbone
from harness.errors import require_choice

VOCABULARY_RULES = ("top5000", "first_m", "text_repeat", "sample_vocab")

# DePT's released checkpoints all start from this sentence; the misspelling is theirs.
DEPT_SENTENCE = "Classify this text is postive or not:"


def vocabulary_rows(backbone: Backbone, length: int, rule: str) -> Tensor:
    """Return copies of `length` rows of the backbone's token embedding, [length, H].

    `top5000`: a random choice without repetition among the first 5,000 ids (ATTEMPT's code; EPT);
    `first_m`: rows 0..length-1 (Compacter's code); `text_repeat`: the tokens of one fixed sentence
    with its end mark, repeated (DePT's code); `sample_vocab`: uniform over the embedding (PEFT).
    Raises UserError on another rule.
    """
    require_choice(rule, VOCABULARY_RULES, kind="initialisation")
    weight = backbone.embedding.weight
    if weight.is_meta:
        return torch.empty(length, weight.shape[1], device="meta")
    return weight[_ids(backbone, length, rule).to(weight.device)].detach().clone()


def _ids(backbone: Backbone, length: int, rule: str) -> Tensor:
    num_rows = len(backbone.embedding.weight)
    if rule == "top5000":
        # a vocabulary smaller than the prompt is gone through again, so every length is possible
        pool = min(5_000, num_rows)
        rounds = [torch.randperm(pool) for _ in range(-(-length // pool))]
        return torch.cat(rounds)[:length]
    if rule == "first_m":
        return torch.arange(length) % num_rows
    if rule == "sample_vocab":
        return torch.randint(num_rows, (length,))
    sentence = torch.tensor(backbone.tokenizer(DEPT_SENTENCE)["input_ids"])
    return sentence.repeat(-(-length // len(sentence)))[:length]
