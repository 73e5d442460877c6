"""Puts trained keys and values in front of those that self-attentions compute, by hooks that can be taken out again.

Shapes: N rows, P prefix vectors, L attentions, W width of one attention's keys (heads times head size).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, EncoderDecoderCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from harness.backbone import ATTENTION_NAME, Backbone, full_mask
from harness.method.layers import layers_of, stacks_of

WITH_PREFIX = "sdpa_with_prefix"
OWN_PREFIX = "prefix_of_harness"
"""Attribute of an attention of an encoder that returns its keys and values for a number of rows, while attached."""

PrefixFunction = Callable[[], Tensor]
"""Returns the current prefix, [P, L, 2, W]: keys and values for each of L attentions."""


def key_head_shape(backbone: Backbone) -> tuple[int, int]:
    """Return the number of heads that have keys, and the width of one, in the backbone's self-attentions.

    With grouped queries there are fewer such heads than heads of queries. Raises ValueError for an encoder-decoder
    other than T5, since those handle positions and masks in another way.
    """
    config = backbone.config
    if not backbone.writes_text and config._attn_implementation not in ("sdpa", ATTENTION_NAME):
        raise ValueError(
            f"keys and values go in front of those of SDPA, and {type(backbone.model).__name__} has its own"
        )
    if backbone.is_encoder_decoder:
        if not hasattr(backbone.model.get_decoder(), "block"):
            problem = (
                f"keys and values go in front of T5's self-attentions, not those of {type(backbone.model).__name__}"
            )
            raise ValueError(problem)
        return int(config.num_heads), int(config.d_kv)
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        heads = 1  # Falcon 7B and StarCoder; a newer Falcon repeats its keys before it stores them
    try:
        size = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    except RuntimeError:  # what transformers raises where each layer has one of its own, as in Gemma 4
        raise ValueError(f"the heads of {type(backbone.model).__name__} differ from layer to layer") from None
    return heads, int(size or config.hidden_size // config.num_attention_heads)


def num_self_attentions(backbone: Backbone, part: str) -> int:
    """Return the number of self-attentions of the "encoder" or the "decoder"; 0 for an encoder that is not there."""
    return len(_layers(backbone, part))


class PrefixAttention:
    """Gives a prefix to a backbone's self-attentions while it is attached.

    A decoder gets it as a cache of keys and values, as if P tokens had been read before, which is how PEFT does it. The
    encoder of a T5 has no cache, so each of its attentions is handed one of its own. In an encoder alone the function
    that computes attention is exchanged for one that puts the prefix in front.
    """

    def __init__(self, backbone: Backbone, decoder: PrefixFunction, encoder: PrefixFunction | None) -> None:
        self.backbone = backbone
        self.decoder = decoder
        self.encoder = encoder
        self.heads, self.size = key_head_shape(backbone)
        self._handles: list[Any] = []
        self._recomputed = False
        self._attention = backbone.config._attn_implementation

    def attach(self) -> None:
        """Start to give the prefix. Layers are not recomputed meanwhile: the second time they would lack the prefix."""
        self._recomputed, self.backbone.recomputes = self.backbone.recomputes, False
        if not self.backbone.writes_text:
            self.backbone.model.set_attn_implementation(WITH_PREFIX)
            for index, attention in enumerate(_attentions(self.backbone)):
                vars(attention)[OWN_PREFIX] = partial(self._own_prefix, index)
            return
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
        if not self.backbone.writes_text:
            self.backbone.model.set_attn_implementation(self._attention)
            for attention in _attentions(self.backbone):
                vars(attention).pop(OWN_PREFIX, None)
        self.backbone.recomputes = self._recomputed

    def keys_and_values(self, vectors: Tensor, count: int) -> Tensor:
        """Bring a prefix into the form of a cache for N = `count` rows: [P, L, 2, W] -> [L, 2, N, heads, P, size]."""
        split = vectors.reshape(*vectors.shape[:-1], self.heads, self.size)
        return split.permute(1, 2, 3, 0, 4).unsqueeze(2).expand(-1, -1, count, -1, -1, -1)

    def _own_prefix(self, index: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of one attention of an encoder, [N, heads, P, size] each, for N = `count` rows."""
        assert self.encoder is not None
        ((keys, values),) = self.keys_and_values(self.encoder()[:, index : index + 1], count)
        return keys, values

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
    if not backbone.writes_text:
        return _attentions(backbone) if part == "encoder" else []
    if not backbone.is_encoder_decoder:
        return range(int(backbone.config.num_hidden_layers)) if part == "decoder" else []
    return backbone.model.get_encoder().block if part == "encoder" else backbone.model.get_decoder().block


def _attentions(backbone: Backbone) -> list[nn.Module]:
    """Return the modules of an encoder that call the attention function, layer by layer."""
    found = []
    for layer in layers_of(stacks_of(backbone)["encoder"]):
        named = [module for module in layer.modules() if "Attention" in type(module).__name__]
        found.append(named[-1])  # the innermost: BERT's attention holds one, and the projection behind it
    return found


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
    """Compute attention with the module's prefix in front: [N, A, Q, D], [N, A, K, D] twice, [N, 1, Q, K]."""
    own = vars(module).get(OWN_PREFIX)
    if own is not None:
        keys, values = own(len(key))
        key, value = torch.cat([keys.to(key.dtype), key], 2), torch.cat([values.to(value.dtype), value], 2)
        if mask is not None:
            seen = True if mask.dtype == torch.bool else 0.0  # a mask of numbers is added to the scores
            mask = F.pad(mask, (keys.shape[2], 0), value=seen)
    return sdpa_attention_forward(module, query, key, value, mask, **options)


AttentionInterface.register(WITH_PREFIX, _attend)
AttentionMaskInterface.register(WITH_PREFIX, full_mask)
