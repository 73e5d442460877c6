"""Counts the arithmetic of training through a frozen backbone, and knows what devices could do at best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.backbone.network import Backbone


@dataclass(frozen=True)
class DeviceFigures:
    """Figures of a GPU from NVIDIA's data sheet."""

    memory_gb: int
    bfloat16: float | None
    """Peak of the tensor cores in FLOP/s without sparsity; None where they do not know bfloat16."""
    float32: float
    """Peak in FLOP/s without TF32."""


# Key: words that all stand in the driver's name of the device, such as "NVIDIA A100-SXM4-80GB". Where several keys fit,
# the longest is taken: "H100 PCIe" before "H100".
DEVICES = {
    "H200": DeviceFigures(141, 989e12, 67e12),
    "H100": DeviceFigures(80, 989e12, 67e12),
    "H100 PCIe": DeviceFigures(80, 756e12, 51e12),
    "A100 80GB": DeviceFigures(80, 312e12, 19.5e12),
    "A100": DeviceFigures(40, 312e12, 19.5e12),
    "L40S": DeviceFigures(48, 362e12, 91.6e12),
    "RTX A6000": DeviceFigures(48, 154.8e12, 38.7e12),
    "A40": DeviceFigures(48, 149.7e12, 37.4e12),
    "V100 32GB": DeviceFigures(32, None, 15.7e12),
    "V100": DeviceFigures(16, None, 15.7e12),
    "RTX 4090": DeviceFigures(24, 165.2e12, 82.6e12),
    "RTX 3090": DeviceFigures(24, 71e12, 35.6e12),
    "A10": DeviceFigures(24, 125e12, 31.2e12),
    "L4": DeviceFigures(24, 121e12, 30.3e12),
    "T4": DeviceFigures(16, None, 8.1e12),
}


@dataclass(frozen=True)
class MatmulParams:
    """Numbers of weights that take part in matrix products, by the tokens that they are multiplied with."""

    per_source: int
    """Weights used for every position of prompt and text."""
    per_target: int
    """Weights used for every target token that the network reads."""
    head: int
    """Weights used for every target token that the network predicts."""
    reads_start: bool
    """Whether the network reads a start token before the target. Else it reads one target token less than it predicts,
    since the last token of the text predicts the first."""

    def step_flops(self, rows: int, source_positions: int, target_positions: int, *, num_passes: int = 2) -> float:
        """Return the FLOPs of training on these rows and positions, padding left out: 2, 4 or 6 per weight.

        A forward pass takes 2 FLOPs per weight and token, the gradient of the activations another 2 (Kaplan et al.
        2020, "Scaling Laws for Neural Language Models", section 2.1). The third 2 of their 6·N, the gradient of the
        weights, is needed only where the weights train themselves, and the second only where something trains in front
        of the network or inside it. `num_passes` is the method's `Method.num_passes`. Not counted are the scores of
        attention, norms, and what a method itself computes. Every layer counts as passing on a gradient, although the
        first layer of a frozen T5's decoder need not.
        """
        read = target_positions if self.reads_start else target_positions - rows
        weights = self.per_source * source_positions + self.per_target * read + self.head * target_positions
        return 2.0 * num_passes * weights


def matmul_params(backbone: Backbone) -> MatmulParams:
    """Count the weights of a backbone's matrices. Call it before a method is attached, whose layers would count too.

    Embedding tables are looked up and not multiplied. The output head, tied or not, is multiplied at the target's
    positions only. In an encoder-decoder the keys and values of cross-attention are computed from the source.
    """
    model = backbone.model
    head = model.get_output_embeddings()
    head_size = _size(head) if head is not None else 0
    if not backbone.is_encoder_decoder:
        body = _matrices(model) - head_size
        # an encoder reads no target; what a head costs is put in where there is one
        return MatmulParams(body, body if backbone.writes_text else 0, head_size, reads_start=False)
    encoder, decoder = _matrices(model.get_encoder()), _matrices(model.get_decoder())
    crossing = sum(
        _size(module)
        for name, module in model.get_decoder().named_modules()
        if isinstance(module, nn.Linear) and name.endswith(("EncDecAttention.k", "EncDecAttention.v"))
    )
    return MatmulParams(encoder + crossing, decoder - crossing, head_size, reads_start=True)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return the peak of a device in FLOP/s at a precision; None where it is not known, as for every CPU."""
    known = [name for name in DEVICES if all(word in device_name.replace("-", " ").split() for word in name.split())]
    if not known or precision == "float64":
        return None
    device = DEVICES[max(known, key=len)]
    if precision == "bfloat16":
        return device.bfloat16
    return None if torch.backends.cuda.matmul.allow_tf32 else device.float32


def _matrices(module: nn.Module) -> int:
    """Return the number of weights of all linear modules inside. GPT-2 calls its own Conv1D."""
    return sum(_size(item) for item in module.modules() if isinstance(item, (nn.Linear, Conv1D)))


def _size(linear: nn.Linear | Conv1D) -> int:
    """Return the number of weights of a matrix; the shape of packed weights would not tell it."""
    if isinstance(linear, Conv1D):
        return linear.nx * linear.nf  # type: ignore[no-any-return]
    return linear.in_features * linear.out_features
