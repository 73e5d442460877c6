"""Encoder-decoders such as T5: the encoder reads prompt and text, the decoder writes the answer.

Shapes: N rows, L positions of prompt and text, H hidden width, T target tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.backbone.network_kind import Network, NetworkKind


class EncoderDecoder(NetworkKind):
    """Reads with one stack and writes with another."""

    name = "encoder-decoder"
    auto_class = "AutoModelForSeq2SeqLM"
    has_text_states = False

    def target_logits(
        self, network: Network, embeds: Tensor, mask: Tensor, tokens: Tensor, is_target: Tensor
    ) -> Tensor:
        """[N, L, H], [N, L], ids [N, T], [N, T] -> logits [N, T, V].

        The decoder reads a start token and all targets but the last. Padding stands behind what each position sees, so
        its own mask is not needed.
        """
        start = tokens.new_full((len(tokens), 1), network.config.decoder_start_token_id)
        out = network.forward_pass(
            inputs_embeds=embeds,
            attention_mask=mask,
            decoder_input_ids=torch.cat([start, tokens[:, :-1]], 1),
            use_cache=False,  # every position is computed once, so keys and values would be kept for nothing
        )
        return out.logits  # type: ignore[no-any-return]

    def decode(self, network: Network, embeds: Tensor, mask: Tensor, max_new_tokens: int) -> Tensor:
        """[N, L, H], [N, L] -> ids [N, at most max_new_tokens]."""
        encoded = network.model.get_encoder()(inputs_embeds=embeds, attention_mask=mask)
        last = torch.full((len(embeds), 1), network.config.decoder_start_token_id, device=embeds.device)
        cache = None

        def step(tokens: Tensor) -> Tensor:
            nonlocal cache
            out = network.model(
                encoder_outputs=encoded,
                attention_mask=mask,
                decoder_input_ids=tokens,
                use_cache=True,
                **{network.cache_keyword: cache},
            )
            cache = out[network.cache_keyword]
            return out.logits[:, -1]  # type: ignore[no-any-return]

        return network.greedy(step, step(last), max_new_tokens)
