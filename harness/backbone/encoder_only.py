"""Encoders such as BERT: every token sees every other, and a linear head reads the result off one state of the text.

A text stands between its two special tokens, [CLS] and [SEP] or what the tokenizer has in their place. A prompt goes
behind the first, so that this one stays where pretraining had it. Padding stays on the right, where it needs no
positions of its own: the network numbers positions itself, RoBERTa from the padding id + 1 on. Segment ids are left to
the network, which takes 0: the two texts of a pair are one text here, as for the other kinds.

Shapes: N rows, L positions of prompt and text, H width of embeddings, W width of the last states.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.backbone.network_kind import Network, NetworkKind, Pooling


class EncoderOnly(NetworkKind):
    """Reads a text and writes nothing."""

    name = "encoder"
    auto_class = "AutoModel"
    writes_text = False
    head_has_bias = True
    prompt_start = 1
    text_marks = "both"

    def text_states(
        self, network: Network, embeds: Tensor, mask: Tensor, pooling: Pooling, prompts: Tensor | None
    ) -> Tensor:
        """[N, L, H], [N, L], prompt lengths [N] or None -> [N, W].

        `first` is the state of the first token. `mean` is the mean over the text with its special tokens, without
        padding and without the `prompts` behind the first token: a long prompt would else outweigh a short text.
        """
        states: Tensor = network.forward_pass(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        if pooling == "first":
            return states[:, 0]
        counted = mask
        if prompts is not None:
            position = torch.arange(mask.shape[1], device=mask.device)[None]
            is_prompt = (position >= self.prompt_start) & (position < self.prompt_start + prompts[:, None])
            counted = mask * ~is_prompt
        weights = counted[..., None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)


def num_table_positions(model: nn.Module) -> int | None:
    """Return how many positions an encoder's table of positions holds; None where it has no such table.

    RoBERTa and its relatives leave the rows up to that of the padding id unused.
    """
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - first
    return None
