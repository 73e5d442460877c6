"""How the frozen weights are stored: as they are in the checkpoint, in bfloat16, or in 8 or 4 bits by bitsandbytes.

Every scheme but `none` computes in bfloat16. Embeddings and norms stay in float32, since what a method trains takes
the embedding's type. Matrices that transformers never quantises (the output head, T5's `wo`) are kept in bfloat16.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.errors import UserError

Scheme = Literal["none", "bf16", "int8", "nf4"]
PACKED: tuple[Scheme, ...] = ("int8", "nf4")
"""Schemes that store weights as packed integers, which cannot be read or trained as numbers."""

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits per weight, 4.127: 4, an 8-bit scale per block of 64 weights, a 32-bit scale per 256 such blocks (Dettmers et
al. 2023, QLoRA, section 3, double quantisation)."""


def load_options(scheme: Scheme, dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for a scheme; `dtype` is the type under `none`.

    Raises UserError where bitsandbytes is needed and not installed.
    """
    if scheme == "none":
        return {"dtype": dtype}
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    if scheme in PACKED:
        options["quantization_config"] = bitsandbytes_config(scheme)
    return options


def bitsandbytes_config(scheme: Scheme) -> Any:
    """Return transformers' configuration of 8-bit weights, or of NF4 with double quantisation and bfloat16 products.

    Raises UserError where bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        hint = "pip install 'peft-harness[quantization]'"
        raise UserError("needs bitsandbytes, which is not installed", field=f"recipe.quantization: {scheme}", hint=hint)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # 8-bit products would report each cast of their input
    if scheme == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def prepare_quantized(model: nn.Module, scheme: Scheme) -> None:
    """Change a model that was loaded under a scheme, in place, into the form in which methods train on it."""
    if scheme == "none":
        return
    for module in model.modules():
        if not isinstance(module, nn.Linear):
            for parameter in module.parameters(recurse=False):
                # in place, so that an output head tied to the embedding stays tied
                parameter.data = parameter.data.float()
        elif hasattr(module, "support_avx512bf16_for_cpu"):
            # on such CPUs bitsandbytes repacks the weights in the first evaluation, and passes no gradient from then on
            vars(module)["support_avx512bf16_for_cpu"] = False


def num_weights(parameter: Tensor) -> int:
    """Return how many weights a parameter stands for. A 4-bit one holds two in each byte."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else torch.Size(state.shape).numel())


def packed_matrices(model: Any) -> set[int]:
    """Return the ids of the linear modules that bitsandbytes would pack. The network may be on the meta device."""
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    return {
        id(module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and should_convert_module(name, kept)
    }


def weight_bytes(model: Any, scheme: Scheme) -> int:
    """Return the bytes that all weights of a network take under a scheme. The network may be on the meta device."""
    packed = packed_matrices(model) if scheme in PACKED else set()
    sizes: dict[int, float] = {}
    for module in model.modules():
        is_matrix = isinstance(module, nn.Linear)
        for weight in module.parameters(recurse=False):
            if scheme == "none" or not is_matrix:
                size = 4.0 * weight.numel()
            elif id(module) not in packed:
                size = 2.0 * weight.numel()
            else:  # 8-bit weights have a 32-bit scale per row
                size = weight.numel() * NF4_BITS / 8 if scheme == "nf4" else weight.numel() + 4 * len(weight)
            # a head that is tied to the embedding is stored once, as the embedding is
            sizes[id(weight)] = max(size, sizes.get(id(weight), 0.0))
    return round(sum(sizes.values()))
