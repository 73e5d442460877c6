"""How likely texts are behind contexts that the network reads once, however many texts stand behind each.

A decoder keeps the keys and values of each context, and a text stands behind those of its own, as rows stand behind
prompts (`harness.backbone.shared_prefix`). An encoder-decoder keeps what its encoder gives.

Shapes: N contexts, L positions of the longest, H width of embeddings, W width of the last states, M texts behind them,
T tokens of the longest text, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from harness.backbone.network_kinds import Network
from harness.backbone.shared_prefix import Prefixes, RowPrefixes, inputs_behind, read_contexts


@dataclass(frozen=True)
class DecoderContexts:
    """Contexts of a decoder."""

    prefixes: Prefixes
    """Keys and values of each, with those of what stands in front of it."""
    logits: Tensor
    """[N, V], at the last position of each: these predict the first token of every text."""

    def target_logits(self, network: Network, rows: Tensor, tokens: Tensor, is_target: Tensor) -> Tensor:
        """Texts by the number of their context [M], ids [M, T], which of them count [M, T] -> logits [M, T, V]."""
        first = self.logits[rows][:, None]
        if tokens.shape[1] == 1:
            return first
        # the last token is predicted and never read
        embeds = network.embedding(tokens[:, :-1])
        behind = RowPrefixes(self.prefixes, rows)
        mask = is_target[:, 1:].to(self.prefixes.mask.dtype)
        out = network.model(**inputs_behind(network, embeds, mask, behind, behind.cache()))
        return torch.cat([first.to(out.logits.dtype), out.logits], 1)


@dataclass(frozen=True)
class EncoderContexts:
    """Contexts of an encoder-decoder."""

    states: Tensor
    """[N, L, W]"""
    mask: Tensor
    """[N, L]"""

    def target_logits(self, network: Network, rows: Tensor, tokens: Tensor, is_target: Tensor) -> Tensor:
        """Texts by the number of their context [M], ids [M, T], which of them count [M, T] -> logits [M, T, V]."""
        start = tokens.new_full((len(tokens), 1), network.config.decoder_start_token_id)
        out = network.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.states[rows]),
            attention_mask=self.mask[rows],
            decoder_input_ids=torch.cat([start, tokens[:, :-1]], 1),
            use_cache=False,  # every position is computed once
        )
        return out.logits  # type: ignore[no-any-return]


Contexts = DecoderContexts | EncoderContexts


def read(network: Network, embeds: Tensor, mask: Tensor, prefixes: RowPrefixes | None) -> Contexts:
    """Read contexts, [N, L, H] and [N, L] with the padding behind them, in one pass; a decoder's behind `prefixes`."""
    if network.config.is_encoder_decoder:
        out = network.model.get_encoder()(inputs_embeds=embeds, attention_mask=mask)
        return EncoderContexts(out.last_hidden_state, mask)
    return DecoderContexts(*read_contexts(network, embeds, mask, prefixes))
