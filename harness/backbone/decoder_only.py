"""Decoder-only networks such as Llama: they read prompt, text and answer as one.

Inputs come with the padding behind the text. The answer has to follow the text at once, so it is moved to the front.

Shapes: N rows, L positions of prompt and text, H hidden width, T target tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.backbone.network_kind import Network, NetworkKind, Pooling


class DecoderOnly(NetworkKind):
    """Reads a text and goes on writing."""

    name = "decoder"
    auto_class = "AutoModelForCausalLM"
    pads_left = True
    text_suffix = " Label : "  # as in DePT's code
    text_marks = "begin"

    def target_logits(
        self, network: Network, embeds: Tensor, mask: Tensor, tokens: Tensor, is_target: Tensor
    ) -> Tensor:
        """[N, L, H], [N, L], ids [N, T], [N, T] -> logits [N, T, V]."""
        embeds, mask = _pad_left(embeds, mask)
        target = network.embedding(tokens[:, :-1]).to(embeds.dtype)  # the last target is predicted and never read
        full_mask = torch.cat([mask, is_target[:, :-1].to(mask.dtype)], 1)
        out = network.forward_pass(
            inputs_embeds=torch.cat([embeds, target], 1),
            attention_mask=full_mask,
            position_ids=_positions(full_mask),
            use_cache=False,
            logits_to_keep=tokens.shape[1],  # the last token of the text predicts the first target
        )
        return out.logits  # type: ignore[no-any-return]

    def decode(self, network: Network, embeds: Tensor, mask: Tensor, max_new_tokens: int) -> Tensor:
        """[N, L, H], [N, L] -> ids [N, at most max_new_tokens]."""
        embeds, mask = _pad_left(embeds, mask)
        # logits of the last position only: those of all would be 4 GB for 32 texts of 256 tokens and V = 128,256
        out = network.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=_positions(mask), use_cache=True, logits_to_keep=1
        )
        cache = out[network.cache_keyword]
        full_mask = mask

        def step(tokens: Tensor) -> Tensor:
            nonlocal full_mask
            full_mask = torch.cat([full_mask, full_mask.new_ones(len(tokens), 1)], 1)
            out = network.model(
                input_ids=tokens,
                attention_mask=full_mask,
                position_ids=_positions(full_mask)[:, -1:],
                use_cache=True,
                **{network.cache_keyword: cache},
            )
            return out.logits[:, -1]  # type: ignore[no-any-return]

        return network.greedy(step, out.logits[:, -1], max_new_tokens)

    def text_states(
        self, network: Network, embeds: Tensor, mask: Tensor, pooling: Pooling, prompts: Tensor | None
    ) -> Tensor:
        """[N, L, H], [N, L] -> [N, H]: the state at the last token, the only one that has seen the whole text."""
        embeds, mask = _pad_left(embeds, mask)
        out = network.model.get_decoder()(
            inputs_embeds=embeds, attention_mask=mask, position_ids=_positions(mask), use_cache=False
        )
        return out.last_hidden_state[:, -1]  # type: ignore[no-any-return]


def _pad_left(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of rows from behind the text to the front: [N, L, H], [N, L] -> [N, L, H], [N, L]."""
    length = mask.shape[1]
    # each row is rotated by the number of its padding positions, which keeps the order of its tokens
    shift = length - mask.sum(1, keepdim=True)
    index = (torch.arange(length, device=mask.device)[None] - shift) % length
    return embeds.gather(1, index[..., None].expand_as(embeds)), mask.gather(1, index)


def _positions(mask: Tensor) -> Tensor:
    """Return each token's position, counted without padding in front: mask [N, L] -> [N, L]."""
    return (mask.cumsum(1) - 1).clamp(min=0)
