"""Arithmetic that training through a frozen backbone asks for, and what a device could do at best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from harness.backbone import Backbone

# dense peaks of NVIDIA's data sheets in FLOP/s: bfloat16 tensor cores, float32 without TF32; the longest name counts
PEAKS = {
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
}


@dataclass(frozen=True)
class MatmulParams:
    """Weights that take part in a matrix product, by how often they do."""

    per_source: int
    """For every position of prompt and text."""
    per_target: int
    """For every token of the target that the network reads."""
    head: int
    """For every token of the target that it predicts."""
    reads_start: bool
    """Whether a start token stands before the target; else the last token of the text does, and counts there."""

    def step_flops(self, rows: int, source_positions: int, target_positions: int) -> float:
        """FLOPs of training on these rows and positions, padding left out: 4 for each weight and position.

        A forward pass takes 2 FLOPs a weight and token, the gradient towards activations another 2 (Kaplan et al.
        2020, "Scaling Laws for Neural Language Models", section 2.1). The third 2 of their 6·N, the gradient of the
        weights, does not arise, since the weights are frozen. Scores of attention, norms and what a method itself
        computes are left out, and all layers are taken to pass a gradient on, which the first of a T5's decoder
        does not need. For full fine-tuning the figure is 2/3 of the truth.
        """
        read = target_positions if self.reads_start else target_positions - rows
        weights = self.per_source * source_positions + self.per_target * read + self.head * target_positions
        return 4.0 * weights


def matmul_params(backbone: Backbone) -> MatmulParams:
    """Count a backbone's matrices; count before a method changes its layers.

    Embedding tables are looked up, not multiplied; the output head is multiplied at the target's positions only,
    tied or not. In an encoder-decoder the keys and values of cross-attention are computed from the source.
    """
    model = backbone.model
    head = model.get_output_embeddings()
    head_size = int(head.weight.numel()) if head is not None else 0
    if not backbone.is_encoder_decoder:
        body = _matrices(model) - head_size
        return MatmulParams(body, body, head_size, reads_start=False)
    encoder, decoder = _matrices(model.get_encoder()), _matrices(model.get_decoder())
    crossing = sum(
        module.weight.numel()
        for name, module in model.get_decoder().named_modules()
        if isinstance(module, nn.Linear) and name.endswith(("EncDecAttention.k", "EncDecAttention.v"))
    )
    return MatmulParams(encoder + crossing, decoder - crossing, head_size, reads_start=True)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak of a device in FLOP/s at a precision; None where it is not known (any CPU)."""
    known = [name for name in PEAKS if all(word in device_name.replace("-", " ").split() for word in name.split())]
    if not known or precision == "float64":
        return None
    tensor_cores, plain = PEAKS[max(known, key=len)]
    if precision == "bfloat16":
        return tensor_cores
    return None if torch.backends.cuda.matmul.allow_tf32 else plain


def _matrices(module: nn.Module) -> int:
    """Weights of all linear modules."""
    return sum(item.weight.numel() for item in module.modules() if isinstance(item, nn.Linear))
