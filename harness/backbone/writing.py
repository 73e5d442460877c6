"""How an answer is written: token by token until an end token, a stop text or the limit, or by a search with beams.

Rows end at different times. One that has ended is still computed until its place in the batch is taken away, so where
answers may be long the rows that go on leave the others behind: their keys and values, their masks, and whatever a
method's layers know of them.

Shapes: N rows of a batch, n of them that are still read, T tokens of an answer, V vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, StopStringCriteria
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

SHORT_ANSWER = 32
"""Most tokens of an answer that counts as short. The rows of short answers stay together, and their tokens need no
memory of their own. The papers' answers have 20 tokens at most, so they are computed in the same batches as ever, to
the last digit."""
SHARE_TO_LEAVE = 0.125
"""Share of the rows in work that has to have ended before the others go on alone.

To move three quarters of 8 rows costs 0.04 of a token written by all of them, so an eighth has paid after one token. 8
rows of SmolLM2-135M whose answers end at drawn places up to 48 tokens were written at 27.9 tokens a second where all
stay, at 32.5, 32.6 and 35.0 where rows leave at a half, a quarter and an eighth (one thread, texts of up to 64 tokens:
`python -m benchmarks.writing`). A smaller share would copy the cache more often than it saves rows.
"""
CONTEXT = 8
"""Tokens in front of a tail that are decoded with it: tokenizers drop a blank, or half a character, at the start."""

Follow = Callable[[Tensor], bool]
"""Takes the numbers, among the rows of the last pass, of those that the next passes read, [n]; a row that is named
several times is read in several beams. It returns False, and changes nothing, where that cannot be."""

KEPT_BY_ROW = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)
"""Layers of a cache that keep all they know by row, as `reorder_cache` takes it."""


class CannotFollow(ValueError):
    """A method cannot go on with other rows than those that it has seen last."""


@dataclass(frozen=True)
class Writing:
    """How the answers of a task are written."""

    max_new_tokens: int
    """Most tokens, the end token included."""
    end_ids: tuple[int, ...]
    """Tokens at the first of which an answer ends."""
    num_beams: int = 1
    """Beams of a search for the likeliest answer; 1 is greedy."""
    stop: tuple[str, ...] = ()
    """Texts at the first of which an answer ends. They are no part of it."""

    def positions(self, length: int) -> int:
        """Positions whose keys and values a row of this length takes, its answer included where that is long."""
        answer = self.max_new_tokens if self.max_new_tokens > SHORT_ANSWER else 0
        return (length + answer) * self.num_beams


class Reader(Protocol):
    """Reads the last token of each row behind all that it has read before."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Last tokens [n, 1] -> logits of the next ones, [n, V]."""

    @property
    def can_keep(self) -> bool:
        """Whether rows can leave."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, [n] numbers among the present ones."""


class Writer(Protocol):
    """What a search uses of a backbone."""

    @property
    def model(self) -> Any:
        """The transformers model."""

    @property
    def config(self) -> Any:
        """Its configuration."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that turns ids into text."""

    @property
    def pad_id(self) -> int:
        """Id that fills a row behind its end."""


def greedy(
    read: Reader, logits: Tensor, writing: Writing, tokenizer: Any, pad_id: int, follow: Follow | None = None
) -> Tensor:
    """Take the most likely token until each row has ended, or the limit is reached: ids [N, T], padded behind the end.

    `logits` [N, V] predict the first token. Without `follow` all rows stay until the last has ended, and so they do
    where answers are short.
    """
    device, count = logits.device, len(logits)
    ids = torch.full((count, writing.max_new_tokens), pad_id, dtype=torch.long, device=device)
    present = torch.arange(count, device=device)
    """[n]: the rows that are still read."""
    finished = torch.zeros(count, dtype=torch.bool, device=device)  # [n]
    ends = torch.tensor(writing.end_ids, dtype=torch.long, device=device)
    stops = StopTexts(writing.stop, tokenizer, count) if writing.stop else None
    may_leave = follow is not None and writing.max_new_tokens > SHORT_ANSWER
    for length in range(1, writing.max_new_tokens + 1):
        token = logits.argmax(-1).masked_fill(finished, pad_id)
        ids[present, length - 1] = token
        finished |= torch.isin(token, ends)
        if stops is not None:
            finished = torch.tensor(stops.found(present.tolist(), token.tolist(), finished.tolist()), device=device)
        # here the host waits for the device, once per token; without it every answer would take the full length
        num_finished = int(finished.sum())
        if length == writing.max_new_tokens or num_finished == len(present):
            return ids[:, :length]
        if may_leave and num_finished >= SHARE_TO_LEAVE * len(present):
            rows = (~finished).nonzero().flatten()
            assert follow is not None
            may_leave = read.can_keep and follow(rows)
            if may_leave:
                read.keep(rows)
                present, token, finished = present[rows], token[rows], finished[rows]
        logits = read(token[:, None])
    return ids


class StopTexts:
    """Looks for stop texts in what rows have written. They may span tokens, and begin inside one."""

    def __init__(self, texts: Sequence[str], tokenizer: Any, count: int) -> None:
        self.texts = texts
        self.tokenizer = tokenizer
        # every token that is seen stands for a byte at least
        self.tail = max(len(text.encode()) for text in texts) + CONTEXT
        self.special = set(getattr(tokenizer, "all_special_ids", ()))
        self.written: list[list[int]] = [[] for _ in range(count)]
        """By row, its tokens so far, without those that are not seen."""

    def found(self, rows: Sequence[int], tokens: Sequence[int], finished: Sequence[bool]) -> list[bool]:
        """Take the next token of each of these rows, all [n]; return which rows have ended, now or before."""
        return [done or self._ends(row, token) for row, token, done in zip(rows, tokens, finished, strict=True)]

    def _ends(self, row: int, token: int) -> bool:
        if token in self.special:
            return False
        self.written[row].append(token)
        # to decode an answer of 256 tokens anew for each of them costs a hundred times as much as its tail
        return self._holds(self.written[row][-self.tail :]) and self._holds(self.written[row])

    def _holds(self, ids: list[int]) -> bool:
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return any(stop in text for stop in self.texts)


def answer_text(tokenizer: Any, ids: Sequence[int], writing: Writing) -> str:
    """Return what token ids say up to the first end token or stop text, without special tokens and outer blanks."""
    end = next((place for place, token in enumerate(ids) if token in writing.end_ids), len(ids))
    text = str(tokenizer.decode(list(ids[:end]), skip_special_tokens=True))
    places = [place for stop in writing.stop if (place := text.find(stop)) >= 0]
    return text[: min(places, default=len(text))].strip()


def stored_by_row(cache: Any) -> list[Any] | None:
    """Return the layers of a cache of keys and values, and of other states, if rows can be picked from all of them."""
    if type(cache) is EncoderDecoderCache:
        parts = [stored_by_row(cache.self_attention_cache), stored_by_row(cache.cross_attention_cache)]
        return None if None in parts else [layer for part in parts for layer in part or ()]
    if type(cache) is not DynamicCache or any(type(layer) not in KEPT_BY_ROW for layer in cache.layers):
        return None
    return list(cache.layers)


def keep_stored_rows(cache: Any, rows: Tensor) -> None:
    """Leave these rows alone in a cache, [n] numbers among the present ones. It must be one of `stored_by_row`."""
    for layer in stored_by_row(cache) or ():
        layer.reorder_cache(rows)


def beam_search(network: Writer, writing: Writing, follow: Follow | None, count: int, **inputs: Any) -> Tensor:
    """Search the likeliest answers of N = `count` rows by transformers' own `generate`, [N, T].

    Behind its end a row holds padding or an end token.

    `inputs` are what it reads: the embeddings of a decoder's rows or an encoder's output, with their mask. The length
    penalty is 1, so log-likelihoods are means over the tokens. A row ends when no beam can get better.

    Raises CannotFollow for a method that remembers rows, since beams are rows that change places.
    """
    rows = torch.arange(count, device=network.model.device).repeat_interleave(writing.num_beams)
    if follow is not None and not follow(rows):
        raise CannotFollow("the method remembers what it has seen of each row, which beams do not keep; take 1 beam")
    config = GenerationConfig(
        max_new_tokens=writing.max_new_tokens,
        num_beams=writing.num_beams,
        do_sample=False,
        early_stopping=False,
        length_penalty=1.0,
        pad_token_id=network.pad_id,
        eos_token_id=list(writing.end_ids) or None,
        decoder_start_token_id=getattr(network.config, "decoder_start_token_id", None),
    )
    criteria = [_stop_criterion(network.tokenizer, writing.stop)] if writing.stop else None
    with _without_defaults(network.model):
        found: Tensor = network.model.generate(generation_config=config, stopping_criteria=criteria, **inputs)
    return found.masked_fill(found < 0, network.pad_id)  # its own filling where there is no end token


@functools.lru_cache(maxsize=8)  # it looks through the whole vocabulary: 4 s that `generate` took for every batch
def _stop_criterion(tokenizer: Any, stop: tuple[str, ...]) -> StopStringCriteria:
    return StopStringCriteria(tokenizer, list(stop))


@contextlib.contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """Keep what a checkpoint says of generation out of it: some forbid repeated words, some sample."""
    before, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before
