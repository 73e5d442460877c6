"""How the frozen weights are stored: as they came, in bfloat16, or in 8 or 4 bits through bitsandbytes.

Every scheme but `none` computes in bfloat16. Embeddings and norms stay in float32, since what a method trains takes
the embedding's type; matrices that transformers never quantises (the output head; T5's `wo`) are kept in bfloat16.
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
"""Schemes whose weights are no floating-point numbers any more."""

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits per weight: 4, an 8-bit scale per block of 64, a 32-bit scale per 256 of those (Dettmers et al. 2023, QLoRA,
section 3, double quantisation)."""


def load_options(scheme: Scheme, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `from_pretrained`. Raises UserError where bitsandbytes is needed and missing."""
    if scheme == "none":
        return {"dtype": dtype}
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    if scheme in PACKED:
        options["quantization_config"] = bitsandbytes_config(scheme)
    return options


def bitsandbytes_config(scheme: Scheme) -> Any:
    """transformers' configuration of 8-bit weights, or of NF4 with double quantisation and bfloat16 products."""
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


def settle(model: nn.Module, scheme: Scheme) -> None:
    """Bring a model that was loaded under a scheme into the form in which methods are trained."""
    if scheme == "none":
        return
    for module in model.modules():
        if not isinstance(module, nn.Linear):
            for parameter in module.parameters(recurse=False):
                # in place, so that an output head tied to the embedding stays tied
                parameter.data = parameter.data.float()
        elif hasattr(module, "support_avx512bf16_for_cpu"):
            # in evaluation bitsandbytes would repack the weights for such CPUs, and pass no gradient from then on
            vars(module)["support_avx512bf16_for_cpu"] = False


def num_weights(parameter: Tensor) -> int:
    """Weights that a parameter stands for: two in each byte of a 4-bit one."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else torch.Size(state.shape).numel())


def packed_matrices(model: Any) -> set[int]:
    """Ids of the linear modules of a network without weights that bitsandbytes would store."""
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    return {
        id(module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and should_convert_module(name, kept)
    }


def weight_bytes(model: Any, scheme: Scheme) -> int:
    """Bytes of all weights of a network, which may be without any, under a scheme."""
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
            sizes[id(weight)] = max(size, sizes.get(id(weight), 0.0))  # tied: as the embedding is stored
    return round(sum(sizes.values()))
