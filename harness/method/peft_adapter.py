"""What a method has learnt as PEFT holds it: a configuration, and tensors under PEFT's own names.

Shapes: P prompt vectors, H hidden width, L layers, A heads that have keys, D size of a head.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.backbone import Backbone, KindName

TASK_TYPES: Mapping[KindName, str] = {
    "encoder-decoder": "SEQ_2_SEQ_LM",
    "decoder": "CAUSAL_LM",
    "encoder": "FEATURE_EXTRACTION",
}
"""PEFT's name of what each kind of network does, which it asks for vectors in front of a text."""


@dataclass(frozen=True)
class PeftAdapter:
    """What `PeftModel.from_pretrained` reads from a folder."""

    config: Any
    """PEFT's configuration object. The harness fills in the network, the task's type and that it is for inference."""
    tensors: Mapping[str, Tensor]
    """By their names in `adapter_model.safetensors`: `base_model.model.` and a path, without the adapter's name."""
    notes: tuple[str, ...] = ()
    """Sentences for the model card on what a reader of the folder would not expect."""


def prompt_adapter(prompt: Tensor, backbone: Backbone) -> PeftAdapter:
    """Return vectors in front of every text, [P, H], as PEFT's PROMPT_TUNING. Raises ValueError for an encoder."""
    from peft import PromptTuningConfig

    if backbone.kind.prompt_start:
        raise ValueError("its vectors stand behind an encoder's first token, and PEFT puts them in front of it")
    text = backbone.config.get_text_config()
    config = PromptTuningConfig(
        num_virtual_tokens=len(prompt),
        token_dim=prompt.shape[1],
        num_transformer_submodules=1,  # PEFT's default makes a second prompt for a decoder, which nothing reads
        # without effect, but whoever reads the folder may hold them against a network, as the harness does
        num_attention_heads=getattr(text, "num_attention_heads", 1),
        num_layers=getattr(text, "num_hidden_layers", 1),
    )
    return PeftAdapter(config, {"prompt_embeddings": _plain(prompt)})


def prefix_adapter(prefix: Tensor, backbone: Backbone) -> PeftAdapter:
    """Return keys and values of a decoder's self-attentions, [L, 2, A, P, D], as PEFT's PREFIX_TUNING.

    PEFT 0.21 hands layer i of an encoder-decoder parts 4i to 4i + 3 of a tensor that it has doubled before, and throws
    the last two away. So that every layer gets its own, the tensor is written with two parts of zeros behind each
    layer's, as one of twice as many layers. Raises ValueError for an encoder.
    """
    from peft import PrefixTuningConfig

    if not backbone.writes_text:
        raise ValueError("its keys and values stand in an encoder, and PEFT's in a decoder")
    notes: tuple[str, ...] = ()
    if backbone.is_encoder_decoder:
        prefix = torch.cat([prefix, torch.zeros_like(prefix)], 1).reshape(-1, 2, *prefix.shape[2:])
        notes = ("Half of the stored numbers are zeros: PEFT would else give a layer another layer's prefix.",)
    layers, _, heads, length, size = prefix.shape
    config = PrefixTuningConfig(
        num_virtual_tokens=length,
        token_dim=heads * size,
        num_transformer_submodules=2 if backbone.is_encoder_decoder else 1,
        num_attention_heads=heads,
        num_layers=layers,
    )
    rows = prefix.permute(3, 0, 1, 2, 4).reshape(length, -1)  # [P, 2 L A D]
    return PeftAdapter(config, {"prompt_embeddings": _plain(rows)}, notes)


def network_adapter(model: Any) -> PeftAdapter:
    """Return the adapter in a `peft.PeftModel`: what `save_pretrained` writes, with what PEFT draws and stores."""
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # the network's own embeddings are not the adapter's; asking whether they have grown would ask the hub
        found = get_peft_model_state_dict(model, save_embedding_layers=False)
    (config,) = model.peft_config.values()
    return PeftAdapter(copy.deepcopy(config), {name: _plain(tensor) for name, tensor in found.items()})


def _plain(tensor: Tensor) -> Tensor:
    """Return a copy on the host that shares no memory, as safetensors wants it."""
    return tensor.detach().cpu().clone().contiguous()
