"""How prompts start: from vectors of the vocabulary or from noise, by the rules found in published code.

Shapes: P prompt vectors, H hidden width.
"""

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

POOLS = {"top5000": (0, 5_000), "ids_100_to_599": (100, 600), "ids_100_to_999": (100, 1_000)}
"""Ids from which a rule draws without repetition: the first, and the one behind the last. T5's SentencePiece vocabulary
is ordered by frequency, so the first 5,000 ids are frequent tokens."""

DEPT_SENTENCE = "Classify this text is postive or not:"
"""All released checkpoints of DePT start from this sentence; the misspelling is theirs."""


def vocabulary_rows(backbone: Backbone, length: int, rule: str) -> Tensor:
    """Return the vectors that a prompt starts from, [P, H] with P = `length`: those of some tokens, or noise.

    - `top5000`: a random choice without repetition among the first 5,000 ids (the code of Lester et al.; EPT);
    - `first_m`: ids 0 to P - 1 (what Compacter's code means);
    - `text_repeat`: the tokens of one fixed sentence with its end token, repeated (DePT's code);
    - `sample_vocab`: uniform over all ids, with repetition (PEFT, Residual PT);
    - `ids_100_to_599`, `ids_100_to_999`: a random choice without repetition (TPT's prompt and bank);
    - `uniform`: U(-0.5, 0.5) (the default of Compacter, ATTEMPT, DPT);
    - `normal`: N(0, 1) (PEFT's RANDOM; what Compacter's and ATTEMPT's code gets where it means rows of the vocabulary,
      since it copies them before the checkpoint is loaded).

    Raises UserError for another rule, ValueError where the vocabulary has no id of the rule.
    """
    require_choice(rule, VOCABULARY_RULES, kind="initialisation")
    weight = backbone.embedding.weight
    if weight.is_meta:  # parameters are only counted; there may be no tokenizer either
        return torch.empty(length, weight.shape[1], device="meta")
    if rule in ("uniform", "normal"):
        # drawn on the CPU, so that a seed gives the same prompt on every device
        noise = torch.rand(length, weight.shape[1]) - 0.5 if rule == "uniform" else torch.randn(length, weight.shape[1])
        return noise.to(weight)
    return backbone.token_vectors(_ids(backbone, length, rule))


def _ids(backbone: Backbone, length: int, rule: str) -> Tensor:
    """Return the token ids of a rule, [P]."""
    num_rows = len(backbone.embedding.weight)
    if rule in POOLS:
        first, stop = POOLS[rule]
        pool = min(stop, num_rows) - first
        if pool < 1:
            raise ValueError(f"init {rule} needs more than the {num_rows} tokens of this vocabulary")
        # a prompt longer than the pool goes through the pool again, so that every length is possible
        rounds = [torch.randperm(pool) for _ in range(-(-length // pool))]
        return first + torch.cat(rounds)[:length]
    if rule == "first_m":
        return torch.arange(length) % num_rows
    if rule == "sample_vocab":
        return torch.randint(num_rows, (length,))
    sentence = torch.tensor(backbone.tokenizer(DEPT_SENTENCE)["input_ids"])
    return sentence.repeat(-(-length // len(sentence)))[:length]
