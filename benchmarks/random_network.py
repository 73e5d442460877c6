"""Large networks with random weights, made one matrix at a time in the form in which they are stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from harness.backbone import PACKED, Scheme, bitsandbytes_config, prepare_quantized, untrained_network

STD = 0.02


def random_network(config: dict[str, Any], storage: Scheme, device: str) -> Any:
    """A network of transformers by its configuration; no more than one matrix is ever there in full."""
    with torch.device("meta"):
        model = untrained_network(config)
    if storage in PACKED:
        # behind the import of harness, which lets bitsandbytes log errors alone
        from transformers.integrations.bitsandbytes import replace_with_bnb_linear
        from transformers.quantizers.base import HfQuantizer

        kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
        replace_with_bnb_linear(model, kept, bitsandbytes_config(storage))
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                made.setdefault(id(weight), _filled(module, weight, storage, device))
                module._parameters[key] = made[id(weight)]
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            module.__init__(model.config)  # rotary embeddings: a table that depends on the configuration alone
            module.to(device)
    prepare_quantized(model, storage)
    return model


def _filled(module: nn.Module, weight: nn.Parameter, storage: Scheme, device: str) -> nn.Parameter:
    dtype = torch.float32 if storage == "none" else torch.bfloat16
    value = torch.randn(weight.shape, device=device, dtype=dtype) * STD
    if "bitsandbytes" not in type(module).__module__:
        return nn.Parameter(value, requires_grad=False)
    start = value.cpu() if storage == "int8" else value
    made = type(weight)(start, requires_grad=False, **vars(weight)).to(device)
    assert isinstance(made, nn.Parameter), "bitsandbytes moves a parameter to a parameter"
    return made
