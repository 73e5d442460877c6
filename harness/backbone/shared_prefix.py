"""A decoder reads each prompt once, and all rows of its cell use the keys and values that it leaves.

In a decoder the positions of a prompt do not see the text behind them, so they come out the same in front of every row.
`read_prompts` runs the network over the prompts alone. `BehindPrefixes`, a kind of network, then runs it over texts,
with the keys and values of the prompts in front. Gradients flow through both passes: keys and values are leaves
between them, whose gradients add up over micro-batches until `Prefixes.backward` carries them into the prompts.

A prompt stands at the right end of its [P] positions and a text at the left end of its own, with its answer at once
behind it. So the real positions of a row follow each other without a gap, and a sliding window, which counts places
and not positions, sees what it would see in one pass.

Shapes: G prompts, P positions of the longest, N rows, L positions of the longest text, T target tokens, H width of
embeddings, W width of the last states, V vocabulary, A heads that have keys, D size of one.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from harness.backbone.network_kinds import Continuation, DecoderOnly, Network, Pooling, positions_of
from harness.backbone.writing import Follow, Writing, beam_search

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Kinds of rotary positions whose frequencies change once a sequence is longer than in pretraining."""


def keeps_keys_and_values(model: Any, cache_keyword: str) -> bool:
    """Whether all layers of a decoder keep keys and values, of all positions or of a window, and nothing else.

    The architecture says so itself, by the cache that it wants: a state-space or a hybrid network wants another one.
    """
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder or getattr(model, "_is_stateful", False):
        return False
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", None):
        return False
    if cache_keyword not in inspect.signature(model.get_decoder().forward).parameters:
        return False
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        return False  # windows that begin at fixed places
    if getattr(config, "num_kv_shared_layers", None):
        return False  # layers that take the keys and values of others
    return {type(layer) for layer in DynamicCache(config=config).layers} <= {DynamicLayer, DynamicSlidingWindowLayer}


def has_dropout(model: Any) -> bool:
    """Whether a network drops anything in training. Attentions hold their share as a number, so settings count too."""
    settings = model.config.get_text_config().to_dict()
    shares = [value for key, value in settings.items() if "drop" in key and isinstance(value, (int, float))]
    return any(share > 0 for share in shares) or any(
        module.p > 0 for module in model.modules() if isinstance(module, torch.nn.Dropout)
    )


def longest_rope(model: Any) -> float:
    """Longest sequence whose rotary frequencies do not depend on its length."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # layers of two kinds have settings each
    settings = [item for item in rope.values() if isinstance(item, dict)] or [rope]
    pretrained = (
        getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings if rope else 0
    )
    limits = [
        item.get("original_max_position_embeddings") or pretrained
        for item in settings
        if item.get("rope_type", item.get("type")) in LENGTH_DEPENDENT_ROPE
    ]
    return min(limits, default=float("inf"))


@dataclass(frozen=True)
class Prefixes:
    """What G prompts leave in every layer of a decoder."""

    keys: Sequence[Tensor]
    """By layer, [G, A, P, D], in float32 at least: leaves of the graph where the prompts take a gradient."""
    values: Sequence[Tensor]
    mask: Tensor
    """[G, P]: 1 where a position counts. Prompts stand on the right."""
    made: Sequence[Tensor] = ()
    """Keys and values as they were made, with the graph that leads to the prompts; none where there is no gradient."""

    def backward(self) -> None:
        """Carry the gradients of keys and values, the sums over all micro-batches, into the prompts."""
        leaves = [*self.keys, *self.values]
        pairs = [(own, leaf.grad) for own, leaf in zip(self.made, leaves, strict=False) if leaf.grad is not None]
        if pairs:
            torch.autograd.backward([own for own, _ in pairs], [grad.to(own.dtype) for own, grad in pairs])


@dataclass(frozen=True)
class RowPrefixes:
    """The prefix of each row of a micro-batch."""

    prefixes: Prefixes
    index: Tensor
    """[N]: which prompt stands in front of each row; -1 for a row without one, or with one among its embeddings."""
    mask: Tensor = field(init=False)
    """[N, P]: which positions of the prefix a row sees."""

    def __post_init__(self) -> None:
        own = self.prefixes.mask[self.index.clamp(min=0)] * (self.index >= 0)[:, None]
        object.__setattr__(self, "mask", own)

    def cache(self, keeps: bool = False) -> Any:
        """Return a cache of transformers that holds the prefix of each row. With `keeps` it takes in what is read."""
        cache = DynamicCache()
        index = self.index.clamp(min=0)
        one = len(self.prefixes.mask) == 1  # no copy for each row, then: one prompt is looked at from all of them
        cache.layers = [
            _PrefixLayer(keys, values, None if one else index, keeps)
            for keys, values in zip(self.prefixes.keys, self.prefixes.values, strict=True)
        ]
        return cache


class _ReadLayer(DynamicLayer):  # type: ignore[misc]
    """Keeps the keys and values of one pass. A layer that is computed a second time sets the same ones again."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take [G, A, P, D] twice and return them as they are."""
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_seq_length(self, *args: Any) -> int:
        return 0  # nothing stands in front of a prompt

    def get_mask_sizes(self, query_length: Any, *args: Any) -> tuple[int, int]:
        return _length(query_length), 0


class _PrefixLayer(DynamicLayer):  # type: ignore[misc]
    """Puts the prefix of each row in front of its own keys and values: [N, A, L, D] -> [N, A, P + L, D].

    Without `keeps` nothing is stored, so a layer may be computed a second time in the backward pass.
    """

    def __init__(self, keys: Tensor, values: Tensor, index: Tensor | None, keeps: bool) -> None:
        super().__init__()
        self.prefix = keys, values
        self.index = index
        self.keeps = keeps

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the prefix with these behind it."""
        keys, values = (self._behind(*pair) for pair in zip(self.prefix, (key_states, value_states), strict=True))
        if self.keeps:
            self.keys, self.values = keys, values
        return keys, values

    def _behind(self, prefix: Tensor, own: Tensor) -> Tensor:
        count = len(own)
        front = prefix.expand(count, -1, -1, -1) if self.index is None else prefix[self.index.to(prefix.device)]
        return torch.cat([front.to(own.dtype), own], 2)

    def get_seq_length(self, *args: Any) -> int:
        return self.prefix[0].shape[2]

    def get_mask_sizes(self, query_length: Any, *args: Any) -> tuple[int, int]:
        return self.prefix[0].shape[2] + _length(query_length), 0


def _length(query: Any) -> int:
    """Number of queries; older versions of transformers hand over their positions."""
    return len(query) if isinstance(query, Tensor) and query.dim() else int(query)


def read_prompts(network: Network, prompts: Tensor, mask: Tensor, grad: bool) -> Prefixes:
    """Run the network over prompts, [G, P, H] and [G, P] with the padding in front, and keep their keys and values."""
    cache = _reading(network)
    with torch.set_grad_enabled(grad):
        network.model.get_decoder()(
            inputs_embeds=prompts,
            attention_mask=mask,
            position_ids=positions_of(mask),
            use_cache=True,
            **{network.cache_keyword: cache},
        )
    return prefixes_of([layer.keys for layer in cache.layers], [layer.values for layer in cache.layers], mask)


def read_contexts(network: Network, embeds: Tensor, mask: Tensor, rows: RowPrefixes | None) -> tuple[Prefixes, Tensor]:
    """Read texts, [N, L, H] and [N, L] with the padding behind, that others will stand behind; `rows` stand in front.

    Returns their keys and values, with those of what is in front, and the logits at the last position, [N, V].
    """
    if rows is None:
        cache = _reading(network)
        inputs = {
            "inputs_embeds": embeds,
            "attention_mask": mask,
            "position_ids": positions_of(mask),
            "use_cache": True,
            network.cache_keyword: cache,
        }
    else:
        cache = rows.cache(keeps=True)
        inputs = inputs_behind(network, embeds, mask, rows, cache)
    with network.kept_positions(mask.sum(1, keepdim=True) - 1):
        out = network.model(**inputs)
    moved, counts = _without_gaps(cache, inputs["attention_mask"])
    keys, values = [layer.keys for layer in moved.layers], [layer.values for layer in moved.layers]
    return Prefixes(keys, values, counts), out.logits[:, -1]


def _reading(network: Network) -> Any:
    """Return a cache of transformers that keeps the keys and values of one pass."""
    cache = DynamicCache()
    cache.layers = [_ReadLayer() for _ in range(int(network.config.get_text_config().num_hidden_layers))]
    return cache


def joined_prefixes(read: Prefixes | None, given: Sequence[Tensor]) -> Prefixes:
    """Put keys and values that methods give, [layers, 2, A, P, D] each, behind those of G prompts that were read."""
    longest = max([own.shape[3] for own in given] + ([] if read is None else [read.mask.shape[1]]))
    # [layers, 2, G, A, P, D]
    stacked = torch.stack([F.pad(own, (0, 0, longest - own.shape[3], 0)) for own in given], 2)
    lengths = torch.tensor([own.shape[3] for own in given], device=stacked.device)
    place = torch.arange(longest, device=stacked.device)[None]
    mask = (place >= longest - lengths[:, None]).long()
    keys, values = list(stacked[:, 0]), list(stacked[:, 1])
    if read is None:
        return prefixes_of(keys, values, mask)
    count = len(keys)
    whole = read.made or [*read.keys, *read.values]
    whole = [F.pad(own, (0, 0, longest - own.shape[2], 0)) for own in whole]
    keys = [torch.cat([own, more.to(own)]) for own, more in zip(whole[:count], keys, strict=True)]
    values = [torch.cat([own, more.to(own)]) for own, more in zip(whole[count:], values, strict=True)]
    return prefixes_of(
        keys, values, torch.cat([F.pad(read.mask, (longest - read.mask.shape[1], 0)), mask.to(read.mask)])
    )


def prefixes_of(keys: Sequence[Tensor], values: Sequence[Tensor], mask: Tensor) -> Prefixes:
    """Return prefixes with keys and values [G, A, P, D] of each layer, cut off from the graph that made them."""
    made = [*keys, *values]
    # bfloat16 has 8 bits: a sum of gradients over many rows would lose most of them
    leaves = [
        tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32)).requires_grad_(tensor.requires_grad)
        for tensor in made
    ]
    has_graph = any(tensor.requires_grad for tensor in made)
    return Prefixes(leaves[: len(keys)], leaves[len(keys) :], mask, made if has_graph else ())


class BehindPrefixes(DecoderOnly):
    """A decoder whose rows stand behind prompts that it has read."""

    def __init__(self, rows: RowPrefixes) -> None:
        self.rows = rows

    def target_logits(
        self, network: Network, embeds: Tensor, mask: Tensor, tokens: Tensor, is_target: Tensor
    ) -> Tensor:
        """Teacher forcing: texts [N, L, H], [N, L], target ids [N, T], which count [N, T] -> logits [N, T, V]."""
        target = network.embedding(tokens[:, :-1]).to(embeds.dtype)  # the last target is predicted and never read
        ends = mask.sum(1, keepdim=True)  # [N, 1]
        length = embeds.shape[1]
        place = torch.arange(length + target.shape[1], device=mask.device)[None]  # [1, L + T - 1]
        # from the text, or behind its end from the target, which stands from L on in the joined row
        index = torch.where(place < ends, place, length + place - ends).clamp(max=place.shape[1] - 1)
        # behind the target the index would run out, and takes what is masked anyway
        joined = torch.cat([embeds, target], 1).gather(1, index[..., None].expand(-1, -1, embeds.shape[2]))
        counts = torch.cat([mask, is_target[:, :-1].to(mask.dtype)], 1).gather(1, index) * (
            place < ends + target.shape[1]
        )
        wanted = ends - 1 + torch.arange(tokens.shape[1], device=mask.device)[None]  # the text's end predicts the first
        with network.kept_positions(wanted):
            out = network.forward_pass(**inputs_behind(network, joined, counts, self.rows, self.rows.cache()))
        return out.logits  # type: ignore[no-any-return]

    def text_states(
        self, network: Network, embeds: Tensor, mask: Tensor, pooling: Pooling, prompts: Tensor | None
    ) -> Tensor:
        """Texts [N, L, H], [N, L] -> the state at the last token of each, [N, W]."""
        out = network.model.get_decoder()(**inputs_behind(network, embeds, mask, self.rows, self.rows.cache()))
        states: Tensor = out.last_hidden_state
        last = (mask.sum(1) - 1).to(states.device)
        return states[torch.arange(len(states), device=states.device), last]

    def decode(
        self, network: Network, embeds: Tensor, mask: Tensor, writing: Writing, follow: Follow | None = None
    ) -> Tensor:
        """Write answers behind texts [N, L, H], [N, L] -> ids [N, at most writing.max_new_tokens]."""
        cache = self.rows.cache(keeps=True)
        full_mask = torch.cat([self.rows.mask, mask], 1)
        ends = mask.sum(1, keepdim=True) - 1  # [N, 1]
        if writing.num_beams > 1:
            network.model.get_decoder()(**inputs_behind(network, embeds, mask, self.rows, cache))
            last = embeds.gather(1, ends[..., None].expand(-1, -1, embeds.shape[2]))
            return _searched(network, *_without_gaps(cache, full_mask), last, writing, follow)
        with network.kept_positions(ends):
            logits = network.model(**inputs_behind(network, embeds, mask, self.rows, cache)).logits[:, -1]
        read = _Later(network, cache, full_mask)
        del cache  # so that it does not stay beside the one without gaps
        return network.greedy(read, logits, writing, follow)


class _Later:
    """Reads tokens behind texts that stand behind prompts. It closes gaps at the first one: many answers have none."""

    def __init__(self, network: Network, cache: Any, mask: Tensor) -> None:
        self._network = network
        self._made: tuple[Any, Tensor] | None = (cache, mask)
        self._read: Continuation | None = None

    @property
    def _continuation(self) -> Continuation:
        if self._read is None:
            assert self._made is not None
            self._read = Continuation(self._network, *_without_gaps(*self._made))
            self._made = None
        return self._read

    def __call__(self, tokens: Tensor) -> Tensor:
        """[n, 1] -> logits [n, V]."""
        return self._continuation(tokens)

    @property
    def can_keep(self) -> bool:
        """Whether rows can leave."""
        return self._continuation.can_keep

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, [n]."""
        self._continuation.keep(rows)


def _searched(
    network: Network, cache: Any, mask: Tensor, last: Tensor, writing: Writing, follow: Follow | None
) -> Tensor:
    """Search with beams behind a cache of K positions, mask [N, K], which end with the vectors `last`, [N, 1, H]."""
    cache.crop(-1)  # the last position is read once more, by each beam, since its logits are needed
    cache.batch_repeat_interleave(writing.num_beams)
    # transformers wants all positions, and reads those that the cache does not hold
    embeds = torch.cat([last.new_zeros(len(last), mask.shape[1] - 1, last.shape[2]), last], 1)
    inputs = {"inputs_embeds": embeds, "attention_mask": mask, network.cache_keyword: cache}
    return beam_search(network, writing, follow, len(last), **inputs)


def inputs_behind(network: Network, embeds: Tensor, mask: Tensor, rows: RowPrefixes, cache: Any) -> dict[str, Any]:
    """Arguments of a pass over texts [N, L, H], [N, L] behind their prefixes."""
    full_mask = torch.cat([rows.mask, mask], 1)
    return {
        "inputs_embeds": embeds,
        "attention_mask": full_mask,
        "position_ids": positions_of(full_mask)[:, rows.mask.shape[1] :],
        "use_cache": True,
        network.cache_keyword: cache,
    }


def _without_gaps(cache: Any, mask: Tensor) -> tuple[Any, Tensor]:
    """Move what counts to the right end, so that an answer follows its text at once: a new cache, and its mask [N, K].

    Keys carry their positions in them already, so only their places change.
    """
    order = mask.argsort(dim=1, stable=True)  # padding first
    moved = DynamicCache()
    for number, layer in enumerate(cache.layers):
        if layer.keys is None:  # takes those of another layer
            continue
        index = order.to(layer.keys.device)[:, None, :, None]
        pair = (
            part.gather(2, index.expand(-1, part.shape[1], -1, part.shape[3])) for part in (layer.keys, layer.values)
        )
        moved.update(*pair, number)
    return moved, mask.gather(1, order)
