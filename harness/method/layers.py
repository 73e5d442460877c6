"""Where the parts of a network stand: stacks, layers, attention and feed-forward sublayers, norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from harness.backbone import Backbone

SublayerKind = Literal["attention", "cross_attention", "ffn"]


# The linear module that ends a sub-layer. Its output goes, after dropout, into the residual stream, so a module that
# is inserted right behind it stands where Houlsby's adapters do.
OUTPUTS: dict[str, SublayerKind] = {
    "SelfAttention.o": "attention",
    "EncDecAttention.o": "cross_attention",
    "DenseReluDense.wo": "ffn",
    "self_attn.o_proj": "attention",
    "mlp.down_proj": "ffn",
}


LAYER_LISTS = ("block", "layers", "h")
"""Attribute of a stack that lists its layers: in T5; in Llama, BART and most others; in GPT-2 and its relatives."""


@dataclass(frozen=True)
class Sublayer:
    """One attention or feed-forward sub-layer, and the linear module that ends it."""

    stack: str
    """`encoder` or `decoder`."""
    layer: int
    """Counted from 0 in its stack."""
    kind: SublayerKind
    output: nn.Module
    """[N, L, in] -> [N, L, H]."""

    @property
    def key(self) -> str:
        """The sub-layer's name among a method's tensors; no dots, which nn.ModuleDict forbids."""
        return f"{self.stack}/{self.layer}/{self.kind}"


def stacks_of(backbone: Backbone) -> dict[str, Any]:
    """Return the backbone's stacks of layers by name: `encoder` and `decoder`, or `decoder` alone."""
    model = backbone.model
    decoder = {"decoder": model.get_decoder()}
    return {"encoder": model.get_encoder(), **decoder} if backbone.is_encoder_decoder else decoder


def layers_of(stack: Any) -> nn.ModuleList:
    """Return the layers of a stack, first to last. Raises ValueError where no known attribute lists them."""
    found = next((getattr(stack, name) for name in LAYER_LISTS if hasattr(stack, name)), None)
    if not isinstance(found, nn.ModuleList):
        raise ValueError(f"the layers of {type(stack).__name__} are not known: none of {', '.join(LAYER_LISTS)}")
    return found


def sublayers_of(backbone: Backbone) -> list[Sublayer]:
    """Return every sub-layer in order of computation. Raises ValueError for a network whose names are not known."""
    found = [
        Sublayer(name, index, OUTPUTS[ending], module)
        for name, stack in stacks_of(backbone).items()
        for index, layer in enumerate(layers_of(stack))
        for path, module in layer.named_modules()
        if (ending := ".".join(path.split(".")[-2:])) in OUTPUTS
    ]
    # a network may match in one name by chance; half of the sub-layers would then silently stay without a module
    if not {"attention", "ffn"} <= {sublayer.kind for sublayer in found}:
        raise ValueError(f"the sub-layers of {type(backbone.model).__name__} are not known; T5's and Llama's are")
    return found


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a LayerNorm, an RMSNorm or a relative of these."""
    # by the name of its class: nearly every network of transformers defines an RMSNorm of its own
    return "Norm" in type(module).__name__


def norm_width(name: str, norm: nn.Module) -> int:
    """Return the width that a norm works on: H, or that of one head. Raises ValueError for a norm without a weight."""
    weight = next(norm.parameters(recurse=False), None)
    if weight is None:
        raise ValueError(f"the width of the norm {name} is not known: it has no weight")
    return weight.shape[-1]
