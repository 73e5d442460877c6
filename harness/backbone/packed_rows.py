"""The rows of a micro-batch one behind the other, so that a decoder computes nothing for padding but in its attention.

Texts of one batch differ in length: 16 rows of SST-2 fill 74 % of the positions of a padded batch. Here the N rows are
one sequence of M positions, [1, M, H], for everything in a decoder that treats each position by itself: norms, linear
modules, activations, experts. Only attention, where positions of one row meet, sees padded rows, [N, L], and no weight
of the network is multiplied there. Padding stands behind each row, so what a decoder reads never sees it.

transformers' own way for such sequences is one mask of [M, M], which costs M / L times as much in the attention.

Shapes: N rows, L positions of the longest text or, inside attention, of the longest text with its answer, T target
tokens, M positions of all rows without padding, H width of embeddings, W width of the last states, V vocabulary,
A heads, D size of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from harness.backbone.network_kinds import DecoderOnly, Network, Pooling

ATTENTION_NAME = "sdpa_packed_rows"


def takes_packed_rows(model: Any) -> bool:
    """Whether all attention of a decoder goes through transformers' interface, with PyTorch's SDPA behind it.

    That the layers have no other memory, such as a state or a convolution, is asked by `keeps_keys_and_values`.
    """
    return bool(model._supports_attention_backend) and model.config._attn_implementation == "sdpa"


class Packing:
    """Where rows stand in one sequence, and in the padded rows of attention."""

    def __init__(self, counts: Tensor, needs_mask: bool, num_kept: int = 0) -> None:
        """`counts` [N, K] is True for the positions of each row that count; they keep their order.

        `needs_mask` asks for a mask where PyTorch's SDPA needs none: dropout in attention is faster with one here.
        `num_kept` is how many positions of each row the output head computes; 0 where it does not run.
        """
        self.needs_mask = needs_mask
        self.lengths = counts.sum(1)  # [N]
        self.total = int(self.lengths.sum())
        longest = int(self.lengths.max())
        self.starts = self.lengths.cumsum(0) - self.lengths
        """[N]: at which position of the sequence each row begins."""
        self.taken = counts.flatten().nonzero()[:, 0]
        """[M]: which of the N * K positions stand in the sequence."""
        place = torch.arange(longest, device=counts.device)[None]  # [1, L]
        is_real = place < self.lengths[:, None]
        self.shape = is_real.shape
        """N and L of the padded rows."""
        self.positions = place.expand(self.shape)[is_real]
        """[M]: the position of each within its row."""
        self.sources = torch.where(is_real, self.starts[:, None] + place, 0).flatten()
        """[N * L]: which position of the sequence stands here; padding takes the first, which nothing sees."""
        self.targets = is_real.flatten().nonzero()[:, 0]
        """[M]: where each position of the sequence stands in the padded rows."""
        self.gaps = (~is_real).flatten().nonzero()[:, 0]
        """Where the padding stands in the padded rows."""
        self.num_kept = num_kept
        self.num_calls = 0
        """How often attention has been computed with it."""

    def pack(self, padded: Tensor) -> Tensor:
        """[N, K, ...] -> [1, M, ...]."""
        return padded.flatten(0, 1).index_select(0, self.taken)[None]

    @contextmanager
    def active(self, model: Any) -> Iterator[None]:
        """Within this context the model's attention takes sequences, [1, A, M, D], of rows that stand so."""
        global _active
        config, before = model.config.get_text_config(), _active
        name = config._attn_implementation
        config._attn_implementation, _active = ATTENTION_NAME, self
        try:
            yield
        finally:
            config._attn_implementation, _active = name, before

    def attention(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Attention within rows: queries, keys and values [1, A, M, D] -> [1, M, A, D]."""
        self.num_calls += 1
        padded = (self._padded(states) for states in (query, key, value))
        output, _ = sdpa_attention_forward(module, *padded, mask, **kwargs)  # [N, L, A, D]
        packed: Tensor = _Pack.apply(output.flatten(0, 1), self)  # type: ignore[no-untyped-call]
        return packed[None], None

    def _padded(self, states: Tensor) -> Tensor:
        """[1, A, M, D] -> [N, A, L, D]."""
        rows: Tensor = _Pad.apply(states[0].transpose(0, 1), self)  # type: ignore[no-untyped-call]
        return rows.view(*self.shape, *rows.shape[1:]).transpose(1, 2)


_active: Packing | None = None
"""How the rows stand that the network reads at present."""


def present_packing() -> Packing | None:
    """Return how the rows stand that the network reads at present; None where they are not packed."""
    return _active


class _Pad(torch.autograd.Function):
    """[M, ...] -> [N * L, ...]. A look-up in both directions, where autograd's own way back adds row after row.

    The way back leaves the padding out: no row sees its keys and values, and `_Pack` gives its queries no gradient.
    """

    @staticmethod
    def forward(ctx: Any, sequence: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return sequence.index_select(0, packing.sources)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].index_select(0, ctx.packing.targets), None


class _Pack(torch.autograd.Function):
    """[N * L, ...] -> [M, ...]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return rows.index_select(0, packing.targets)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        packing: Packing = ctx.packing
        return gradients[0].index_select(0, packing.sources).index_fill_(0, packing.gaps, 0.0), None


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    assert _active is not None
    return _active.attention(module, query, key, value, attention_mask, **kwargs)


def _mask(*, batch_size: int, q_length: int, kv_length: int, attention_mask: Any, **kwargs: Any) -> Tensor | None:
    """Return the mask of one padded row, [1, 1, L, L], or None where each position sees all before it.

    A window counts places, and within a row they are positions.
    """
    assert _active is not None
    longest = _active.shape[1]
    sizes = {"batch_size": 1, "q_length": longest, "kv_length": longest}
    skips = kwargs.pop("allow_is_causal_skip", True) and not _active.needs_mask
    made: Tensor | None = sdpa_mask(**sizes, attention_mask=None, allow_is_causal_skip=skips, **kwargs)
    return made


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)


class PackedRows(DecoderOnly):
    """A decoder that trains on rows without padding."""

    def target_logits(
        self, network: Network, embeds: Tensor, mask: Tensor, tokens: Tensor, is_target: Tensor
    ) -> Tensor:
        """[N, L, H], [N, L], target ids [N, T], which of them count [N, T] -> logits [N, T, V]."""
        target = network.embedding(tokens[:, :-1]).to(embeds.dtype)  # the last target is predicted and never read
        # a target is read where another one follows it
        packing = _packing(network, torch.cat([mask.bool(), is_target[:, 1:]], 1), tokens.shape[1])
        if packing is None:
            return super().target_logits(network, embeds, mask, tokens, is_target)
        ends = packing.starts + mask.sum(1)  # [N]
        # a text's end predicts the first target; places behind the last target count for nothing
        wanted = ends[:, None] - 1 + torch.arange(tokens.shape[1], device=mask.device)[None]
        with network.kept_positions(wanted.clamp(max=packing.total - 1).view(1, -1)):
            out = _read(network, network.forward_pass, packing, torch.cat([embeds, target], 1))
        return out.logits.view(*tokens.shape, -1)  # type: ignore[no-any-return]

    def text_states(
        self, network: Network, embeds: Tensor, mask: Tensor, pooling: Pooling, prompts: Tensor | None
    ) -> Tensor:
        """[N, L, H], [N, L] -> the state at the last token of each, [N, W]."""
        packing = _packing(network, mask.bool())
        if packing is None:
            return super().text_states(network, embeds, mask, pooling, prompts)
        states = _read(network, network.model.get_decoder(), packing, embeds).last_hidden_state
        last = packing.starts + packing.lengths - 1
        return states[0, last.to(states.device)]  # type: ignore[no-any-return]


def _packing(network: Network, counts: Tensor, num_kept: int = 0) -> Packing | None:
    """Return how rows stand whose positions count where `counts` [N, K] is True.

    None for as many positions as there are heads: in [1, heads, M, size] nobody could tell which axis is which.
    """
    packing = Packing(counts, network.model.training and network.has_dropout, num_kept)
    config = network.config.get_text_config()
    heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    return None if packing.total in heads else packing


def _read(network: Network, run: Any, packing: Packing, embeds: Tensor) -> Any:
    """Run the network over packed embeddings [N, K, H]. Raises RuntimeError where some attention took another way."""
    packed = packing.pack(embeds)
    with packing.active(network.model):
        out = run(
            inputs_embeds=packed,
            # all ones: without a mask transformers would look for packed rows itself
            attention_mask=packed.new_ones(1, packing.total, dtype=torch.long),
            position_ids=packing.positions[None],
            use_cache=False,
        )
    layers = int(network.config.get_text_config().num_hidden_layers)
    if packing.num_calls < layers:
        raise RuntimeError(f"{packing.num_calls} of {layers} attentions kept the rows apart")
    return out
