"""Where the parts of a network stand: stacks, layers, attention and feed-forward sublayers, norms.

They are found by structure where that is possible. A layer is a member of its stack's list; an attention is a module
whose class is called so; what else a layer computes with is its feed-forward part. Only the module that ends a
sub-layer is told by its name, since queries and outputs have the same shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.backbone import Backbone

SublayerKind = Literal["attention", "cross_attention", "ffn"]

OUTPUT_NAMES = frozenset(
    {"o", "o_proj", "out_proj", "out_lin", "c_proj", "dense", "dense_4h_to_h", "down_proj", "fc2", "lin2", "wo", "Wo"}
)
"""Names of the linear modules that end sub-layers: T5, Llama, BART and OPT, DistilBERT, GPT-2, BERT and BLOOM, ...

The output goes, after dropout, into the residual stream, so a module that is inserted right behind it stands where
Houlsby's adapters do.
"""
CROSSING = ("cross", "encdec", "encoder_attn")
"""Parts of the names of attentions to the encoder's output, in small letters."""


@dataclass(frozen=True)
class Sublayer:
    """One attention or feed-forward sub-layer, and the linear module that ends it."""

    stack: str
    """`encoder` or `decoder`."""
    layer: int
    """Counted from 0 in its stack."""
    kind: SublayerKind
    output: nn.Module
    """[N, L, in] -> [N, L, W]."""

    @property
    def key(self) -> str:
        """The sub-layer's name among a method's tensors; no dots, which nn.ModuleDict forbids."""
        return f"{self.stack}/{self.layer}/{self.kind}"


def stacks_of(backbone: Backbone) -> dict[str, Any]:
    """Return the backbone's stacks of layers by name: `encoder` and `decoder`, or one of these alone."""
    model = backbone.model
    if not backbone.writes_text:
        return {"encoder": model}
    decoder = {"decoder": model.get_decoder()}
    return {"encoder": model.get_encoder(), **decoder} if backbone.is_encoder_decoder else decoder


def layers_of(stack: Any) -> nn.ModuleList:
    """Return the layers of a stack, first to last: its longest list. Raises ValueError for a stack without a list."""
    found = list(_outermost_lists(stack))
    if not found:
        raise ValueError(f"the layers of {type(stack).__name__} are not known: it holds no list of modules")
    return max(found, key=len)  # the first of equals


def sublayers_of(backbone: Backbone) -> list[Sublayer]:
    """Return every sub-layer in order of computation. Raises ValueError for a network whose parts are not known."""
    found = [
        Sublayer(name, index, kind, module)
        for name, stack in stacks_of(backbone).items()
        for index, layer in enumerate(layers_of(stack))
        for kind, module in _outputs_of(layer).items()
    ]
    # a network may match in one name by chance; half of the sub-layers would then silently stay without a module
    if not {"attention", "ffn"} <= {sublayer.kind for sublayer in found}:
        raise ValueError(f"the sub-layers of {type(backbone.model).__name__} are not known")
    return found


def require_one_width(backbone: Backbone) -> None:
    """Raise ValueError where layers are not as wide as the embeddings, for methods that insert modules of width H."""
    width = int(getattr(backbone.config.get_text_config(), "hidden_size", backbone.hidden))
    if width != backbone.hidden:
        widths = f"{width} wide, its embeddings {backbone.hidden}"
        raise ValueError(f"modules of one width are inserted, and the layers of '{backbone.name}' are {widths}")


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)


def _outputs_of(layer: nn.Module) -> dict[SublayerKind, nn.Module]:
    """Return the module that ends each sub-layer of a layer, in order of definition."""
    found: dict[SublayerKind, nn.Module] = {}
    attentions: dict[str, SublayerKind] = {}
    for path, module in layer.named_modules():
        inside = next((kind for prefix, kind in attentions.items() if path.startswith(f"{prefix}.")), None)
        if inside is None and "Attention" in type(module).__name__ and path:
            names = f"{path} {type(module).__name__}".lower()
            attentions[path] = "cross_attention" if any(word in names for word in CROSSING) else "attention"
        elif "Expert" in type(module).__name__ or "Moe" in type(module).__name__:
            return {kind: output for kind, output in found.items() if kind != "ffn"}  # one output would be one of many
        elif isinstance(module, (nn.Linear, Conv1D)) and path.rpartition(".")[2] in OUTPUT_NAMES:
            found[inside or "ffn"] = module  # BERT has two modules called dense there, of which the last ends the part
    return found


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a LayerNorm, an RMSNorm or a relative of these."""
    # by the name of its class: nearly every network of transformers defines an RMSNorm of its own
    return "Norm" in type(module).__name__


def norm_width(name: str, norm: nn.Module) -> int:
    """Return the width that a norm works on: W, or that of one head. Raises ValueError for a norm without a weight."""
    weight = next(norm.parameters(recurse=False), None)
    if weight is None:
        raise ValueError(f"the width of the norm {name} is not known: it has no weight")
    return weight.shape[-1]
