"""The rows of a micro-batch one behind the other, so that nothing is computed for padding but in attention.

Texts of one batch differ in length: 16 rows of SST-2 fill 74 % of the positions of a padded batch. Here the N rows are
one sequence of M positions, [1, M, H], for everything in a network that treats each position by itself: norms, linear
modules, activations, experts. Only attention, where positions of one row meet, sees padded rows, those of like lengths
together, and no weight of the network is multiplied there. Padding stands behind each row. What a decoder reads never
sees it; an encoder gets a mask. Of an encoder-decoder the texts are packed, in the encoder and as what the decoder
looks at. Answers are short and much of one length, and stay rows.

The field calls this padding-free training, or sequence packing without a fixed length. transformers' own way for it is
one mask of [M, M], which costs M / L times as much in the attention.

Shapes: N rows, L positions of the longest text or, inside attention, of the longest text with its answer, T target
tokens, M positions of all rows without padding, H width of embeddings, W width of the last states, V vocabulary,
A heads, D size of one.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import BaseModelOutput

from harness.backbone.fast_functions import ATTENTION_NAME as UNASKED
from harness.backbone.network_kinds import (
    DecoderOnly,
    EncoderDecoder,
    EncoderOnly,
    KindName,
    Network,
    NetworkKind,
    Pooling,
    first_table_position,
)

ATTENTION_NAME = "sdpa_packed_rows"

GROUP_PAIRS = 4_000
"""Pairs of positions that one more call of attention has to save, about what takes the time of a call. At the width of
SmolLM2-135M a pair is 4 x 576 FLOPs forward and twice that back, and a call with its way back costs some 0.1 ms."""


def takes_packed_rows(model: Any, kind: KindName) -> bool:
    """Whether all attention goes through transformers' interface, with PyTorch's SDPA behind it, and positions fit.

    A network has to take each position's number, or to know no more than distances, as T5's encoder does. That the
    layers of a decoder have no other memory, such as a state or a convolution, is asked by `keeps_keys_and_values`.
    """
    if model.config._attn_implementation not in ("sdpa", UNASKED):
        return False
    if kind == "encoder-decoder":
        has_interface = hasattr(sys.modules[type(model).__module__], "ALL_ATTENTION_FUNCTIONS")
        return has_interface and bool(_distance_tables(model.get_encoder()))
    return bool(model._supports_attention_backend) and "position_ids" in inspect.signature(model.forward).parameters


def _distance_tables(network: nn.Module) -> list[Any]:
    """Return the attentions over texts that turn distances into biases: the first one of T5's encoder."""
    found: list[Any] = [m for m in network.modules() if getattr(m, "has_relative_attention_bias", False)]
    return [module for module in found if not module.is_decoder]


class Packing:
    """Where rows stand in one sequence, and in the padded rows of attention."""

    def __init__(self, counts: Tensor, is_causal: bool, needs_mask: bool = False, num_kept: int = 0) -> None:
        """`counts` [N, K] is True for the positions of each row that count; they keep their order.

        With `is_causal` no position sees those behind it. `needs_mask` asks for a mask where PyTorch's SDPA needs none
        then: dropout in attention is faster with one here.
        `num_kept` is how many positions of each row the output head computes; 0 where it does not run.
        """
        self.is_causal = is_causal
        self.needs_mask = needs_mask
        self.lengths = counts.sum(1)  # [N]
        self.total = int(self.lengths.sum())
        longest = int(self.lengths.max())
        self.starts = self.lengths.cumsum(0) - self.lengths
        """[N]: at which position of the sequence each row begins."""
        self.taken = counts.flatten().nonzero()[:, 0]
        """[M]: which of the N * K positions stand in the sequence."""
        place = torch.arange(longest, device=counts.device)[None]  # [1, L]
        self.is_real = place < self.lengths[:, None]
        """[N, L]: which positions of the padded rows are no padding."""
        self.positions = place.expand(self.is_real.shape)[self.is_real]
        """[M]: the position of each within its row."""
        order = self.lengths.argsort(descending=True, stable=True)
        self.groups = torch.split(order, _group_sizes(self.lengths[order].tolist()))
        """Rows that are padded together in attention, those of like lengths."""
        self.layout = _Layout(self, self.groups)
        self.num_kept = num_kept
        self.num_calls = 0
        """How often attention has been computed with it."""

    def pack(self, padded: Tensor) -> Tensor:
        """[N, K, ...] -> [1, M, ...]."""
        return padded.flatten(0, 1).index_select(0, self.taken)[None]

    @cached_property
    def whole(self) -> _Layout:
        """All rows padded to one length, in their order."""
        return _Layout(self, [torch.arange(len(self.lengths), device=self.lengths.device)])

    def unpack(self, sequence: Tensor) -> Tensor:
        """[1, M, ...] -> [N, L, ...]. Padding gets no gradient back: nothing may depend on it."""
        (rows,) = self.whole.pad(sequence[0])
        return rows

    @contextmanager
    def active(self, network: nn.Module) -> Iterator[None]:
        """Within this context attention in the network takes sequences, [1, A, M, D], of rows that stand so."""
        global _active
        before = _active
        names = [(config, config._attn_implementation) for config in _configs(network)]
        tables = [
            (module, vars(module).get("compute_bias"), module.compute_bias) for module in _distance_tables(network)
        ]
        try:
            _active = self
            for config, _ in names:
                config._attn_implementation = ATTENTION_NAME
            for module, _, compute in tables:
                vars(module)["compute_bias"] = partial(self._bias, compute)
            yield
        finally:
            _active = before
            for config, name in names:
                config._attn_implementation = name
            for module, own, _ in tables:
                vars(module).pop("compute_bias", None)
                if own is not None:
                    vars(module)["compute_bias"] = own

    def _bias(self, compute: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the biases of distances within a row, [1 or N, A, L, L], in place of those within the sequence."""
        longest = self.is_real.shape[1]
        return compute(longest, longest, *args[2:], **kwargs)

    def attention(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Attention within rows: queries, keys and values [1, A, M, D] -> [1, M, A, D].

        In the decoder of an encoder-decoder queries are rows, [N, A, T, D], and so are its own keys and values; the
        output then is [N, T, A, D].
        """
        if len(key) > 1:
            return sdpa_attention_forward(module, query, key, value, mask, **kwargs)  # type: ignore[no-any-return]
        self.num_calls += 1
        bias = kwargs.pop("position_bias", None)
        if len(query) > 1:
            # [1, A, M, D] -> [N, A, L, D]
            keys, values = (self.unpack(states.transpose(1, 2)).transpose(1, 2) for states in (key, value))
            if bias is not None:  # T5 adds zeros here, as many as there are keys
                kwargs["position_bias"] = bias[..., : keys.shape[2]]
            return sdpa_attention_forward(module, query, keys, values, mask, **kwargs)  # type: ignore[no-any-return]
        outputs = []
        padded = (self.layout.pad(states[0].transpose(0, 1)) for states in (query, key, value))
        for rows, *states in zip(self.groups, *padded, strict=True):  # [n, l, A, D] each
            if bias is not None:
                kwargs["position_bias"] = _part(bias, rows, states[0].shape[1])
            own = [part.transpose(1, 2) for part in states]
            output, _ = sdpa_attention_forward(module, *own, _part(mask, rows, states[0].shape[1]), **kwargs)
            outputs.append(output.flatten(0, 1))
        packed: Tensor = _Pack.apply(torch.cat(outputs), self.layout)  # type: ignore[no-untyped-call]
        return packed[None], None


class _Layout:
    """Where the positions of a sequence stand in rows that are padded group by group."""

    def __init__(self, packing: Packing, groups: Sequence[Tensor]) -> None:
        """`groups` holds the numbers of the rows of each."""
        sources, targets, gaps = [], torch.empty(packing.total, dtype=torch.long), []
        self.shapes: list[tuple[int, int]] = []
        """By group, its n rows and the l positions of the longest."""
        offset = 0
        for rows in groups:
            lengths = packing.lengths[rows]
            place = torch.arange(int(lengths.max()))[None]  # [1, l]
            is_real = (place < lengths[:, None]).flatten()
            source = (packing.starts[rows][:, None] + place).flatten()
            sources.append(torch.where(is_real, source, 0))
            stands = offset + torch.arange(len(source))
            targets[source[is_real]] = stands[is_real]
            gaps.append(stands[~is_real])
            self.shapes.append((len(rows), place.shape[1]))
            offset += len(source)
        self.sources = torch.cat(sources)
        """[S], S the positions of all padded rows: which position of the sequence stands there; for padding any."""
        self.targets = targets
        """[M]: where each position of the sequence stands among the S."""
        self.gaps = torch.cat(gaps)
        """Which of the S are padding."""

    def pad(self, sequence: Tensor) -> list[Tensor]:
        """[M, ...] -> for each group [n, l, ...]."""
        rows: Tensor = _Pad.apply(sequence, self)  # type: ignore[no-untyped-call]
        parts = torch.split(rows, [count * longest for count, longest in self.shapes])
        return [part.view(*shape, *part.shape[1:]) for part, shape in zip(parts, self.shapes, strict=True)]


def _group_sizes(lengths: Sequence[int]) -> list[int]:
    """Return how many rows to pad together in attention, by their lengths, [N], which fall."""
    starts = [0]
    for row, length in enumerate(lengths):
        longest = lengths[starts[-1]]
        saved = (len(lengths) - row) * (longest**2 - length**2)
        if 4 * length <= 3 * longest and saved > GROUP_PAIRS:
            starts.append(row)
    return [end - start for start, end in itertools.pairwise([*starts, len(lengths)])]


def _part(table: Tensor | None, rows: Tensor, length: int) -> Tensor | None:
    """Cut a mask or a bias, [1 or N, 1 or A, L, L], to some rows and to their length l: [1 or n, 1 or A, l, l]."""
    if table is None:
        return None
    return (table if len(table) == 1 else table[rows])[..., :length, :length]


def _configs(network: nn.Module) -> list[Any]:
    """Return the configurations that the modules of a network read; a stack of an encoder-decoder has its own."""
    found = {id(module.config): module.config for module in network.modules() if hasattr(module, "config")}
    return list(found.values())


_active: Packing | None = None
"""How the rows stand that the network reads at present."""


def present_packing() -> Packing | None:
    """Return how the rows stand that the network reads at present; None where they are not packed."""
    return _active


class _Pad(torch.autograd.Function):
    """[M, ...] -> [S, ...], rows that are padded.

    It is a look-up in both directions, where autograd's own way back adds row after row. The way back leaves the
    padding
    out: no row sees its keys and values, and `_Pack` gives its queries no gradient.
    """

    @staticmethod
    def forward(ctx: Any, sequence: Tensor, layout: _Layout) -> Tensor:
        ctx.layout = layout
        # zeros, since a weight of 0 on the NaN of another cell's row would be NaN
        return sequence.index_select(0, layout.sources).index_fill_(0, layout.gaps, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].index_select(0, ctx.layout.targets), None


class _Pack(torch.autograd.Function):
    """[S, ...] -> [M, ...]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layout: _Layout) -> Tensor:
        ctx.layout = layout
        return rows.index_select(0, layout.targets)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layout: _Layout = ctx.layout
        return gradients[0].index_select(0, layout.sources).index_fill_(0, layout.gaps, 0.0), None


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    assert _active is not None
    return _active.attention(module, query, key, value, attention_mask, **kwargs)


def _mask(*, batch_size: int, q_length: int, kv_length: int, attention_mask: Any, **kwargs: Any) -> Tensor | None:
    """Return the mask of the padded rows, [1 or N, 1, L, L], or None where each position sees all before it.

    A window counts places, and within a row they are positions.
    """
    assert _active is not None
    if batch_size > 1:  # the answers of an encoder-decoder
        sizes = {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length}
        return sdpa_mask(attention_mask=attention_mask, **sizes, **kwargs)  # type: ignore[no-any-return]
    count, longest = _active.is_real.shape
    sizes = {"q_length": longest, "kv_length": longest, **kwargs}
    if not _active.is_causal:
        whole: Tensor = sdpa_mask(
            batch_size=count, attention_mask=_active.is_real, **{**sizes, "allow_is_bidirectional_skip": False}
        )
        return whole
    skips = kwargs.get("allow_is_causal_skip", True) and not _active.needs_mask
    made: Tensor | None = sdpa_mask(batch_size=1, attention_mask=None, **{**sizes, "allow_is_causal_skip": skips})
    return made


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)


class PackedDecoder(DecoderOnly):
    """A decoder that trains on rows without padding."""

    def target_logits(
        self, network: Network, embeds: Tensor, mask: Tensor, tokens: Tensor, is_target: Tensor
    ) -> Tensor:
        """[N, L, H], [N, L], target ids [N, T], which of them count [N, T] -> logits [N, T, V]."""
        target = network.embedding(tokens[:, :-1]).to(embeds.dtype)  # the last target is predicted and never read
        # a target is read where another one follows it
        packing = _packing(network, torch.cat([mask.bool(), is_target[:, 1:]], 1), True, tokens.shape[1])
        if packing is None:
            return super().target_logits(network, embeds, mask, tokens, is_target)
        ends = packing.starts + mask.sum(1)  # [N]
        # a text's end predicts the first target; places behind the last target count for nothing, and stay in their row
        wanted = ends[:, None] - 1 + torch.arange(tokens.shape[1], device=mask.device)[None]
        wanted = torch.minimum(wanted, (packing.starts + packing.lengths - 1)[:, None])
        with network.kept_positions(wanted.view(1, -1)):
            out = _read_decoder(network, network.forward_pass, packing, torch.cat([embeds, target], 1))
        return out.logits.view(*tokens.shape, -1)  # type: ignore[no-any-return]

    def text_states(
        self, network: Network, embeds: Tensor, mask: Tensor, pooling: Pooling, prompts: Tensor | None
    ) -> Tensor:
        """[N, L, H], [N, L] -> the state at the last token of each, [N, W]."""
        packing = _packing(network, mask.bool(), True)
        if packing is None:
            return super().text_states(network, embeds, mask, pooling, prompts)
        states = _read_decoder(network, network.model.get_decoder(), packing, embeds).last_hidden_state
        last = packing.starts + packing.lengths - 1
        return states[0, last.to(states.device)]  # type: ignore[no-any-return]


class PackedEncoderDecoder(EncoderDecoder):
    """An encoder-decoder that trains on texts without padding."""

    def target_logits(
        self, network: Network, embeds: Tensor, mask: Tensor, tokens: Tensor, is_target: Tensor
    ) -> Tensor:
        """[N, L, H], [N, L], target ids [N, T], [N, T] -> logits [N, T, V]."""
        packing = _packing(network, mask.bool(), False)
        if packing is None:
            return super().target_logits(network, embeds, mask, tokens, is_target)
        packed = packing.pack(embeds)
        encoder = network.model.get_encoder()
        start = tokens.new_full((len(tokens), 1), network.config.decoder_start_token_id)
        layers = int(encoder.config.num_hidden_layers) + int(network.model.get_decoder().config.num_hidden_layers)
        with _counted(packing, network.model, layers):
            states = encoder(inputs_embeds=packed, attention_mask=packed.new_ones(1, packing.total)).last_hidden_state
            out = network.forward_pass(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=packing.is_real[:, None, None].expand(-1, 1, tokens.shape[1], -1),  # as SDPA takes it
                decoder_input_ids=torch.cat([start, tokens[:, :-1]], 1),
                use_cache=False,
            )
        return out.logits  # type: ignore[no-any-return]


class PackedEncoder(EncoderOnly):
    """An encoder that trains on texts without padding."""

    def text_states(
        self, network: Network, embeds: Tensor, mask: Tensor, pooling: Pooling, prompts: Tensor | None
    ) -> Tensor:
        """[N, L, H], [N, L], prompt lengths [N] or None -> [N, W]."""
        packing = _packing(network, mask.bool(), False)
        if packing is None:
            return super().text_states(network, embeds, mask, pooling, prompts)
        packed = packing.pack(embeds)
        with _counted(packing, network.model, int(network.config.num_hidden_layers)):
            out = network.forward_pass(
                inputs_embeds=packed,
                attention_mask=packed.new_ones(1, packing.total, dtype=torch.long),
                position_ids=packing.positions[None] + first_table_position(network.model),
            )
        states = packing.unpack(out.last_hidden_state)
        return self.pooled(states, packing.is_real.to(mask.dtype), pooling, prompts)


PACKED: Mapping[KindName, NetworkKind] = {
    kind.name: kind for kind in (PackedDecoder(), PackedEncoderDecoder(), PackedEncoder())
}
"""By kind of network, the kind that trains on packed rows."""


def _packing(network: Network, counts: Tensor, is_causal: bool, num_kept: int = 0) -> Packing | None:
    """Return how rows stand whose positions count where `counts` [N, K] is True.

    None for one row, which has no padding, and for numbers of positions that leave a shape open: as many as there are
    heads, [1, heads, M, size], or as many as an output head computes.
    """
    if len(counts) == 1:
        return None
    packing = Packing(counts, is_causal, network.model.training and network.has_dropout, num_kept)
    settings = network.config.get_text_config().to_dict()
    heads = {value for key, value in settings.items() if key.endswith("heads")}
    return None if packing.total in heads | {num_kept * len(counts)} else packing


@contextmanager
def _counted(packing: Packing, network: nn.Module, num_layers: int) -> Iterator[None]:
    """Keep a packing active. Raises RuntimeError where the attention of some layer took another way."""
    with packing.active(network):
        yield
    if packing.num_calls < num_layers:
        raise RuntimeError(f"{packing.num_calls} of {num_layers} attentions kept the rows apart")


def _read_decoder(network: Network, run: Callable[..., Any], packing: Packing, embeds: Tensor) -> Any:
    """Run a decoder over packed embeddings, [N, K, H]."""
    packed = packing.pack(embeds)
    with _counted(packing, network.model, int(network.config.get_text_config().num_hidden_layers)):
        return run(
            inputs_embeds=packed,
            # all ones: without a mask transformers would look for packed rows itself
            attention_mask=packed.new_ones(1, packing.total, dtype=torch.long),
            position_ids=packing.positions[None],
            use_cache=False,
        )
