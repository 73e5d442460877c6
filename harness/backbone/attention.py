"""The SDPA attention of transformers, changed in one thing: no mask is read on the host."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from harness.backbone.kind_of import kind_of

NO_SYNC = "sdpa_no_host_sync"


def full_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Do as `sdpa_mask` does, but make a mask even where nothing is padded: [N, 1, queries, keys]."""
    made: Tensor | None = sdpa_mask(*args, **{**kwargs, "allow_is_bidirectional_skip": False})
    return made


AttentionInterface.register(NO_SYNC, sdpa_attention_forward)
AttentionMaskInterface.register(NO_SYNC, full_mask)


def avoid_host_sync(model: Any) -> None:
    """Keep a network with an encoder that uses SDPA from asking, on the host, whether anything is padded.

    transformers asks that once per stack, to leave the mask out where nothing is padded. The host then waits for the
    encoder before it launches the decoder, and a GPU stands idle meanwhile. T5's attention adds a bias for every pair
    of positions in any case, so a mask costs nothing more. An encoder alone would wait for the micro-batch before.
    Decoder-only networks stay as they are: there the question comes before the first layer, and without a mask SDPA can
    choose a faster causal kernel.
    """
    has_encoder = kind_of(model.config).name != "decoder"
    if has_encoder and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NO_SYNC)
