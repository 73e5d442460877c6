"""Which of the three kinds of network a configuration describes."""

from __future__ import annotations

from typing import Any

from harness.backbone.decoder_only import DecoderOnly
from harness.backbone.encoder_decoder import EncoderDecoder
from harness.backbone.encoder_only import EncoderOnly
from harness.backbone.names import is_encoder_config
from harness.backbone.network_kind import NetworkKind

ENCODER_DECODER, DECODER, ENCODER = EncoderDecoder(), DecoderOnly(), EncoderOnly()


def kind_of(config: Any) -> NetworkKind:
    """Return the kind of a network by its transformers configuration."""
    if config.is_encoder_decoder:
        return ENCODER_DECODER
    is_decoder = bool(getattr(config, "is_decoder", False))
    return ENCODER if is_encoder_config({"model_type": config.model_type, "is_decoder": is_decoder}) else DECODER
