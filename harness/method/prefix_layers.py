"""Puts trained keys and values in front of those that self-attentions compute, by hooks that can be taken out again.

Shapes: N rows, P prefix vectors, L attentions, W width of one attention's keys (heads times head size).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from harness.backbone import Backbone

PrefixFunction = Callable[[], Tensor]
"""Returns the current prefix, [P, L, 2, W]: keys and values for each of L attentions."""


def key_head_shape(backbone: Backbone) -> tuple[int, int]:
    """Return the number of heads that have keys, and the width of one, in the backbone's self-attentions.

    With grouped queries there are fewer such heads than heads of queries. Raises ValueError for an encoder-decoder
    other than T5, since those handle positions and masks in another way.
    """
    config = backbone.config
    if backbone.is_encoder_decoder:
        if not hasattr(backbone.model.get_decoder(), "block"):
            problem = (
                f"keys and values go in front of T5's self-attentions, not those of {type(backbone.model).__name__}"
            )
            raise ValueError(problem)
        return int(config.num_heads), int(config.d_kv)
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return heads, int(size)


def num_self_attentions(backbone: Backbone, part: str) -> int:
    """Return the number of self-attentions of the "encoder" or the "decoder"; 0 for an encoder that is not there."""
    return len(_layers(backbone, part))


class PrefixAttention:
    """Gives a prefix to a backbone's self-attentions while it is attached.

    A decoder gets it as a cache of keys and values, as if P tokens had been read before, which is how PEFT does it. An
    encoder has no cache, so each of its attentions is handed one of its own.
    """

    def __init__(self, backbone: Backbone, decoder: PrefixFunction, encoder: PrefixFunction | None) -> None:
        self.backbone = backbone
        self.decoder = decoder
        self.encoder = encoder
        self.heads, self.size = key_head_shape(backbone)
        self._handles: list[Any] = []
        self._recomputed = False

    def attach(self) -> None:
        """Start to give the prefix. Layers are not recomputed meanwhile: the second time they would lack the prefix."""
        self._recomputed, self.backbone.recomputes = self.backbone.recomputes, False
        decoder = self.backbone.model.get_decoder()
        self._handles = [decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True)]
        if self.encoder is not None:
            for index, layer in enumerate(_layers(self.backbone, "encoder")):
                attention = layer.layer[0].SelfAttention
                hook = _EncoderHook(self, index)
                self._handles.append(attention.register_forward_pre_hook(hook, with_kwargs=True))

    def detach(self) -> None:
        """Leave the backbone as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.backbone.recomputes = self._recomputed

    def keys_and_values(self, vectors: Tensor, count: int) -> Tensor:
        """Bring a prefix into the form of a cache for N = `count` rows: [P, L, 2, W] -> [L, 2, N, heads, P, size]."""
        split = vectors.reshape(*vectors.shape[:-1], self.heads, self.size)
        return split.permute(1, 2, 3, 0, 4).unsqueeze(2).expand(-1, -1, count, -1, -1, -1)

    def _before_decoder(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Change the decoder's arguments: cache, mask and positions then count the prefix."""
        # some networks call their decoder by position, most by keyword
        kwargs = {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
        ids = kwargs.get("input_ids")
        count = len(kwargs["inputs_embeds"] if ids is None else ids)
        vectors = self.decoder()
        keyword = self.backbone.cache_keyword
        cache = kwargs.get(keyword)
        if cache is None or cache.get_seq_length() == 0:  # later tokens of an answer find the prefix in the cache
            kwargs[keyword] = self._filled_cache(vectors, count)
        if not self.backbone.is_encoder_decoder:  # a T5 decoder derives mask and positions from the cache
            mask = kwargs["attention_mask"]
            kwargs["attention_mask"] = F.pad(mask, (len(vectors), 0), value=1)
            if kwargs.get("position_ids") is not None:  # BLOOM has none; it counts positions off the mask
                kwargs["position_ids"] = kwargs["position_ids"] + len(vectors)
        return (), kwargs

    def _filled_cache(self, vectors: Tensor, count: int) -> Any:
        """Return a cache that holds a prefix [P, L, 2, W] for `count` rows."""
        cache = DynamicCache()
        for index, (keys, values) in enumerate(self.keys_and_values(vectors, count)):
            cache.update(keys, values, index)
        return EncoderDecoderCache(cache, DynamicCache()) if self.backbone.is_encoder_decoder else cache


class _EncoderHook:
    """A hook that hands one attention of a T5 encoder its own part of the prefix."""

    def __init__(self, owner: PrefixAttention, index: int) -> None:
        self.owner = owner
        self.index = index

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        assert self.owner.encoder is not None
        vectors = self.owner.encoder()[:, self.index : self.index + 1]
        ((keys, values),) = self.owner.keys_and_values(vectors, len(args[0]))
        cache = DynamicCache()
        cache.update(keys, values, module.layer_idx)
        kwargs[self.owner.backbone.cache_keyword] = cache
        mask = kwargs.get("mask")
        if mask is not None:
            seen = True if mask.dtype == torch.bool else 0.0  # a mask of numbers is added to the scores
            kwargs["mask"] = F.pad(mask, (len(vectors), 0), value=seen)
        return args, kwargs


def _layers(backbone: Backbone, part: str) -> Any:
    """Return the layers of a T5's encoder or decoder; for a decoder-only network, whose names vary, their numbers."""
    if not backbone.is_encoder_decoder:
        return range(int(backbone.config.num_hidden_layers)) if part == "decoder" else []
    return backbone.model.get_encoder().block if part == "encoder" else backbone.model.get_decoder().block
