"""Arithmetic that training through a frozen backbone asks for, and what a device could do at best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from harness.backbone import Backbone


@dataclass(frozen=True)
class Device:
    """What NVIDIA's data sheet says of a device."""

    memory_gb: int
    bfloat16: float | None
    """Dense peak of the tensor cores in FLOP/s; None where they know no bfloat16."""
    float32: float
    """Peak in FLOP/s without TF32."""


# by the words that the driver's name for a device must hold; the longest name counts
DEVICES = {
    "H200": Device(141, 989e12, 67e12),
    "H100": Device(80, 989e12, 67e12),
    "H100 PCIe": Device(80, 756e12, 51e12),
    "A100 80GB": Device(80, 312e12, 19.5e12),
    "A100": Device(40, 312e12, 19.5e12),
    "L40S": Device(48, 362e12, 91.6e12),
    "RTX A6000": Device(48, 154.8e12, 38.7e12),
    "A40": Device(48, 149.7e12, 37.4e12),
    "V100 32GB": Device(32, None, 15.7e12),
    "V100": Device(16, None, 15.7e12),
    "RTX 4090": Device(24, 165.2e12, 82.6e12),
    "RTX 3090": Device(24, 71e12, 35.6e12),
    "A10": Device(24, 125e12, 31.2e12),
    "L4": Device(24, 121e12, 30.3e12),
    "T4": Device(16, None, 8.1e12),
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

    def step_flops(
        self, rows: int, source_positions: int, target_positions: int, *, weights_train: bool = False
    ) -> float:
        """FLOPs of training on these rows and positions, padding left out: 4 or 6 for each weight and position.

        A forward pass takes 2 FLOPs a weight and token, the gradient towards activations another 2 (Kaplan et al.
        2020, "Scaling Laws for Neural Language Models", section 2.1). The third 2 of their 6·N, the gradient of the
        weights, arises only where the weights train themselves. Scores of attention, norms and what a method itself
        computes are left out, and all layers are taken to pass a gradient on, which under frozen weights the first
        of a T5's decoder does not need.
        """
        read = target_positions if self.reads_start else target_positions - rows
        weights = self.per_source * source_positions + self.per_target * read + self.head * target_positions
        return (6.0 if weights_train else 4.0) * weights


def matmul_params(backbone: Backbone) -> MatmulParams:
    """Count a backbone's matrices; count before a method changes its layers.

    Embedding tables are looked up, not multiplied; the output head is multiplied at the target's positions only,
    tied or not. In an encoder-decoder the keys and values of cross-attention are computed from the source.
    """
    model = backbone.model
    head = model.get_output_embeddings()
    head_size = _size(head) if head is not None else 0
    if not backbone.is_encoder_decoder:
        body = _matrices(model) - head_size
        return MatmulParams(body, body, head_size, reads_start=False)
    encoder, decoder = _matrices(model.get_encoder()), _matrices(model.get_decoder())
    crossing = sum(
        _size(module)
        for name, module in model.get_decoder().named_modules()
        if isinstance(module, nn.Linear) and name.endswith(("EncDecAttention.k", "EncDecAttention.v"))
    )
    return MatmulParams(encoder + crossing, decoder - crossing, head_size, reads_start=True)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak of a device in FLOP/s at a precision; None where it is not known (any CPU)."""
    known = [name for name in DEVICES if all(word in device_name.replace("-", " ").split() for word in name.split())]
    if not known or precision == "float64":
        return None
    device = DEVICES[max(known, key=len)]
    if precision == "bfloat16":
        return device.bfloat16
    return None if torch.backends.cuda.matmul.allow_tf32 else device.float32


def _matrices(module: nn.Module) -> int:
    """Weights of all linear modules."""
    return sum(_size(item) for item in module.modules() if isinstance(item, nn.Linear))


def _size(linear: nn.Linear) -> int:
    """Weights of a matrix, however many of them share a byte."""
    return linear.in_features * linear.out_features
