"""What AdaLoRA does beside its layers: a penalty on its factors, and ranks that are taken from some and left to others.

Zhang et al., ICLR 2023. PEFT's own allocator decides; this file keeps what it remembers in tensors that a method
stores, so that a run which was stopped goes on as it would have.

Shapes: r rank, in and out the widths of a module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from harness.method.peft_network import ADAPTER

MEMORIES = ("exp_avg_ipt", "exp_avg_unc")
"""PEFT's names for the running means of importance and of its uncertainty, one number for each of a factor's."""


class RankAllocation(nn.Module):
    """The allocator of one cell."""

    tuner: Any

    def __init__(self, tuner: Any) -> None:
        super().__init__()
        # no module of this one: the backbone's modules lie inside it
        self.__dict__["tuner"] = tuner
        self._tensors: dict[str, Tensor] = {
            name: tensor for name, tensor in tuner.model.named_parameters() if "lora_" in name and ADAPTER in name
        }
        for name, tensor in self._tensors.items():
            for memory in MEMORIES:
                self.register_buffer(_key(memory, name), torch.zeros_like(tensor, requires_grad=False))
            if "lora_E" in name:  # [r, 1]
                self.register_buffer(_key("kept", name), torch.ones_like(tensor[:, 0], dtype=torch.bool))

    def penalty(self) -> Tensor | None:
        """Return the mean over all A [r, in] and B [out, r] of ||A A^T - I|| and ||B^T B - I||, times its weight."""
        weight = self.tuner.peft_config[ADAPTER].orth_reg_weight
        distances = []
        for name, tensor in self._tensors.items():
            if "lora_E" not in name:
                product = tensor @ tensor.T if "lora_A" in name else tensor.T @ tensor
                distances.append(torch.linalg.matrix_norm(product - torch.eye(len(product)).to(product)))
        return weight * torch.stack(distances).mean() if weight and distances else None

    @torch.no_grad()
    def allocate(self, step: int) -> None:
        """Update the importance of every factor after `step` updates, and set singular values to zero where it is due.

        The gradients of the last update must still be there.
        """
        allocator, config = self.tuner.rankallocator, self.tuner.peft_config[ADAPTER]
        for memory in MEMORIES:
            setattr(allocator, memory, {name: self.get_buffer(_key(memory, name)) for name in self._tensors})
        allocator.ipt = dict.fromkeys(self._tensors)
        kept = {name: self.get_buffer(_key("kept", name)) for name in self._tensors if "lora_E" in name}
        config.rank_pattern = {name: mask.tolist() for name, mask in kept.items()}
        self.tuner.update_and_allocate(step)
        for memory in MEMORIES:
            for name, tensor in getattr(allocator, memory).items():
                self.get_buffer(_key(memory, name)).copy_(tensor)
        for name, mask in (config.rank_pattern or {}).items():
            kept[name].copy_(torch.tensor(mask))


def _key(kind: str, name: str) -> str:
    return f"{kind}/{name}".replace(".", "/")
