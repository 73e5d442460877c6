"""Answers by likelihood: of some texts the one that the network finds likeliest behind a row's context.

The context of a row is read once, and all its texts behind that (`harness.backbone.continuations`). Where a network
keeps something else than keys and values, or a method looks at rows in its own way, each text is read with its whole
row: the answers are the same.

Shapes: N rows of a micro-batch, M texts behind them, T tokens of the longest text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from harness import stop
from harness.backbone import on_device
from harness.data import Encoded, EncodedChoices
from harness.train.batch_input import BatchInput, Index, Rows, micro_batches

CONTEXT_SHARE = 4
"""Positions of a shared context that cost a text as much room as one of its own. A layer at work holds a copy of its
keys and values for each text, 2 H numbers a position at most; a position that is read takes 8 H and more."""
MOST_LOGITS = {"cpu": 2**26, "cuda": 2**30}
"""Logits of one pass: 256 MB in float32 on a CPU. A budget of 2,048 positions would make 2 GB at V = 262,144. On a GPU
small passes cost more, and running out of memory halves the budget."""

Scores = np.ndarray[Any, np.dtype[np.float64]]


def choice_scores(
    fused: BatchInput, encoded: Encoded, rows: Rows, max_tokens: int
) -> Iterator[tuple[int, int, Scores]]:
    """Yield (cell, row, score of each of its choices) for `rows`, all of which have choices, in any order.

    A score is a log-likelihood, over what the task divides it by. `max_tokens` is the token budget of a micro-batch;
    `refresh` and `read_prompts` were called for the cells. Raises Stopped after a request to stop.
    """
    choices = encoded.choices
    if not len(rows):
        return
    assert choices is not None
    lengths, longest = fused.lengths(encoded, rows), int(np.diff(choices.offsets).max())
    # a prompt counts once more where it is in the row: too long is read with whole rows, which is right too
    shares = fused.shares_contexts(int(lengths.max() + fused.prompt_lengths.max()) + longest)
    for batch in micro_batches(lengths, max_tokens):
        built, scores = _scores(fused, encoded, rows.take(batch), max_tokens, shares)
        ends = np.cumsum(choices.counts(built.rows))
        for cell, row, own in zip(built.cells, built.rows, np.split(scores, ends[:-1]), strict=True):
            yield int(cell), int(row), own


def likeliest(choices: EncodedChoices, row: int, scores: Scores) -> str:
    """Return the answer of the choice with the highest score, of equal ones the first.

    It is empty where a score is no number: then no choice is the likeliest. Texts of the same tokens are equal,
    whatever the last digits of their scores.
    """
    if np.isnan(scores).any():
        return ""
    index = choices.of(np.array([row]))[0]
    best = int(index[scores.argmax()])
    first = int(next(choice for choice in index if choices.are_equal(int(choice), best)))
    return choices.answers[first]


def _scores(fused: BatchInput, encoded: Encoded, rows: Rows, max_tokens: int, shares: bool) -> tuple[Rows, Scores]:
    """Return the rows of a micro-batch in the order of `build`, and the score of every choice of them, [M].

    With `shares` each context is read once.
    """
    choices, backbone = encoded.choices, fused.backbone
    assert choices is not None
    stop.raise_if_stopped()
    embeds, mask, built = fused.build(encoded, rows)  # [N, L, H], [N, L]
    contexts = backbone.read_contexts(embeds, mask, fused.row_prefixes(encoded, built)) if shares else None
    index, place = choices.of(built.rows)  # [M], [M]
    texts = choices.num_tokens(index)
    context = mask.shape[1] // CONTEXT_SHARE if shares else mask.shape[1]
    losses = []
    for piece in _pieces(texts, context, max_tokens, _most_texts(fused)):
        stop.raise_if_stopped()  # an evaluation may take minutes, and nothing is half done in it
        labels = on_device(choices.tokens(index[piece]), backbone.device)  # [M, T]
        whole = built.take(place[piece])
        if contexts is not None:
            fused.announce(encoded, whole)
            token_losses = backbone.continuation_losses(contexts, on_device(place[piece], backbone.device), labels)
        else:
            embeds, mask, again = fused.build(encoded, whole)
            assert np.array_equal(again.rows, whole.rows), "rows that are in the order of build keep it"
            token_losses = backbone.token_losses(embeds, mask, labels, fused.row_prefixes(encoded, again))
        losses.append(token_losses.sum(1))
    likelihoods = -torch.cat(losses).to("cpu", torch.float64).numpy()
    return built, likelihoods / choices.lengths[index]


def _most_texts(fused: BatchInput) -> int:
    """Positions whose logits fit into one pass."""
    device = fused.backbone.device.type
    return MOST_LOGITS.get(device, MOST_LOGITS["cuda"]) // fused.backbone.embedding.num_embeddings


def _pieces(texts: Index, context: int, max_tokens: int, most_targets: int) -> Iterator[slice]:
    """Cut M texts of these lengths, [M], into passes, in their order: padded, with `context` positions beside each.

    A pass keeps within `max_tokens` positions and `most_targets` targets, or is one text.
    """
    start, longest = 0, 0
    for end, length in enumerate(texts.tolist()):
        count, longest = end - start + 1, max(longest, length)
        if count > 1 and (count * (longest + context) > max_tokens or count * longest > most_targets):
            yield slice(start, end)
            start, longest = end, length
    yield slice(start, len(texts))
