"""Attention as transformers computes it with PyTorch's SDPA, without reading masks on the host."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_no_host_sync"


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """As `sdpa_mask`; where nothing is padded a mask is made all the same."""
    made: Tensor | None = sdpa_mask(*args, **{**kwargs, "allow_is_bidirectional_skip": False})
    return made


AttentionInterface.register(NAME, sdpa_attention_forward)
AttentionMaskInterface.register(NAME, _mask)


def avoid_host_sync(model: Any) -> None:
    """Let an encoder-decoder that uses SDPA go on with it, but never ask whether anything is padded.

    transformers asks once a stack, on the host, to do without a mask where nothing is. The host then waits for the
    encoder before it launches the decoder, and the device idles meanwhile. T5's attention has a bias for every pair of
    positions anyway, so that a mask more costs nothing. A decoder-only network, where the question comes before the
    first layer and a mask is more than a bias, is left as it is.
    """
    if model.config.is_encoder_decoder and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
