"""Where the layers of a backbone are, and trained modules that methods insert behind them or in their place.

Shapes: N rows, L positions, H hidden width, V vocabulary, R width of a bottleneck.

Layers are found in any network whose stacks list them. Sub-layers inside a layer are known by the names that T5 and
Llama give them; Mistral, Qwen, Gemma and others use Llama's. Widths are read off the modules themselves and not off
the configuration, since a norm may be as wide as one head. Nothing here edits the network: all is a LayerChange.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from harness.backbone import Backbone
from harness.layer_change import LayerChange
from harness.method import Method

Kind = Literal["attention", "cross_attention", "ffn"]
Head = Literal["tokenizer", "all", "none"]

# The linear module that ends a sub-layer. Its output goes, after dropout, into the residual stream, so a module that
# is inserted right behind it stands where Houlsby's adapters do.
OUTPUTS: dict[str, Kind] = {
    "SelfAttention.o": "attention",
    "EncDecAttention.o": "cross_attention",
    "DenseReluDense.wo": "ffn",
    "self_attn.o_proj": "attention",
    "mlp.down_proj": "ffn",
}
LAYER_LISTS = ("block", "layers", "h")
"""Attribute of a stack that lists its layers: in T5; in Llama, BART and most others; in GPT-2 and its relatives."""
T5_TOKENS = 32_100
"""Ids of T5's tokenizer. The embedding has 32,128 rows, a multiple of 128; the last 28 stand for no token."""


@dataclass(frozen=True)
class Sublayer:
    """One attention or feed-forward sub-layer, and the linear module that ends it."""

    stack: str
    """`encoder` or `decoder`."""
    layer: int
    """Counted from 0 in its stack."""
    kind: Kind
    output: nn.Module
    """[N, L, in] -> [N, L, H]."""

    @property
    def key(self) -> str:
        """The sub-layer's name among a method's tensors; no dots, which nn.ModuleDict forbids."""
        return f"{self.stack}/{self.layer}/{self.kind}"


def stacks(backbone: Backbone) -> dict[str, Any]:
    """Return the backbone's stacks of layers by name: `encoder` and `decoder`, or `decoder` alone."""
    model = backbone.model
    decoder = {"decoder": model.get_decoder()}
    return {"encoder": model.get_encoder(), **decoder} if backbone.is_encoder_decoder else decoder


def layers(stack: Any) -> nn.ModuleList:
    """Return the layers of a stack, first to last. Raises ValueError where no known attribute lists them."""
    found = next((getattr(stack, name) for name in LAYER_LISTS if hasattr(stack, name)), None)
    if not isinstance(found, nn.ModuleList):
        raise ValueError(f"the layers of {type(stack).__name__} are not known: none of {', '.join(LAYER_LISTS)}")
    return found


def sublayers(backbone: Backbone) -> list[Sublayer]:
    """Return every sub-layer in order of computation. Raises ValueError for a network whose names are not known."""
    found = [
        Sublayer(name, index, OUTPUTS[ending], module)
        for name, stack in stacks(backbone).items()
        for index, layer in enumerate(layers(stack))
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


class TrainedNorms(nn.Module):
    """Trained copies of the scales, and shifts, of all norms, [H] each; those behind the last layers are included."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.copies = nn.ParameterDict()
        self._norms: list[tuple[nn.Module, dict[str, str]]] = []
        """Each norm, and for each of its parameters the name of the copy."""
        for name, module in backbone.model.named_modules():
            weights = dict(module.named_parameters(recurse=False)) if is_norm(module) else {}
            keys = {key: f"{name}.{key}".replace(".", "/") for key in weights}
            self.copies.update({keys[key]: nn.Parameter(weight.detach().clone()) for key, weight in weights.items()})
            if keys:
                self._norms.append((module, keys))

    def changes(self) -> list[LayerChange]:
        """Return the changes that let every norm compute with its copies."""
        return [LayerChange(module, instead=partial(self._normed, module, keys)) for module, keys in self._norms]

    def _normed(self, module: nn.Module, keys: Mapping[str, str], states: Tensor) -> Tensor:
        """Run the norm with the copies in place of its own parameters: [..., H] -> [..., H]."""
        # the norm's own code runs, so that RMSNorm, LayerNorm and Gemma's (1 + weight) need no formula here
        originals = dict(module._parameters)
        module._parameters.update({key: self.copies[copy] for key, copy in keys.items()})
        try:
            normed: Tensor = module.forward(states)
            return normed
        finally:
            module._parameters.update(originals)


class TrainedPositions(nn.Module):
    """Trained copies of T5's tables of relative positions, [buckets, heads], one per stack; none in other networks."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        found = [(name, m) for name, m in backbone.model.named_modules() if hasattr(m, "relative_attention_bias")]
        self._attentions = {name.replace(".", "/"): attention for name, attention in found}
        dtype = backbone.embedding.weight.dtype
        self.tables = nn.ParameterDict(
            {
                key: nn.Parameter(attention.relative_attention_bias.weight.detach().to(dtype, copy=True))
                for key, attention in self._attentions.items()
            }
        )

    def changes(self) -> list[LayerChange]:
        """Return the changes that let every attention with a table of its own use the copy."""
        return [LayerChange(module, position_bias=self.tables[key]) for key, module in self._attentions.items()]


class InsertMethod(Method):
    """A method that inserts one trained module behind each chosen sub-layer, before its dropout and residual sum.

    `make` creates a module [..., H] -> [..., H]. `first_layer` is the first layer of each stack that gets one, counted
    from 0. With `train_norms` all norms of the backbone train too.
    """

    def __init__(
        self,
        hp: Any,
        backbone: Backbone,
        make: Callable[[], nn.Module],
        kinds: Iterable[Kind] = ("attention", "ffn"),
        first_layer: int = 0,
        train_norms: bool = True,
    ) -> None:
        super().__init__(hp, backbone)
        self.chosen = [s for s in sublayers(backbone) if s.kind in set(kinds) and s.layer >= first_layer]
        self.inserted = nn.ModuleDict({sublayer.key: make() for sublayer in self.chosen})
        self.norms = TrainedNorms(backbone) if train_norms else None

    def change(self, sublayer: Sublayer, states: Tensor) -> Tensor:
        """What the sub-layer gives instead of `states`, [..., H]."""
        changed: Tensor = self.inserted[sublayer.key](states)
        return changed

    def layer_changes(self) -> Sequence[LayerChange]:
        changes = [LayerChange(sublayer.output, after=partial(self.change, sublayer)) for sublayer in self.chosen]
        return [*changes, *(self.norms.changes() if self.norms is not None else ())]


class Bottleneck(nn.Module):
    """y = x + W_u gelu(W_d x + b_d) + b_u (Houlsby et al., ICML 2019, section 2), with T5's tanh form of gelu.

    W_d [R, H] and W_u [H, R] start N(0, `std`), biases zero: almost, not exactly, the identity.
    """

    def __init__(self, width: int, like: Tensor, std: float) -> None:
        super().__init__()
        hidden = like.shape[1]
        self.down = nn.Linear(hidden, width, dtype=like.dtype, device=like.device)
        self.up = nn.Linear(width, hidden, dtype=like.dtype, device=like.device)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        changed: Tensor = states + self.up(F.gelu(self.down(states), approximate="tanh"))
        return changed


class AddedBiases(nn.Module):
    """Trained vectors, zero at first, added to the output of every linear module and norm in the layers, and to logits.

    Where a module has a bias of its own, the vector is the difference that training makes to it. `head` says which
    logits get one: `tokenizer` those of T5's 32,100 tokens (all V for other backbones), `all`, or `none`. With
    `final_norms` the norm behind the last layer of each stack gets one too.
    """

    def __init__(self, backbone: Backbone, head: Head = "tokenizer", final_norms: bool = False) -> None:
        super().__init__()
        self.vectors = nn.ParameterDict()
        self._modules_with_bias = list(self._create(backbone, head, final_norms))

    def changes(self) -> list[LayerChange]:
        """Return the changes that add each vector to its module's output."""
        return [LayerChange(module, after=partial(self._add, key)) for module, key in self._modules_with_bias]

    def _create(self, backbone: Backbone, head: Head, final_norms: bool) -> Iterator[tuple[nn.Module, str]]:
        """Create the vectors; yield each module with the name of its vector. Raises ValueError for other matrices."""
        inside = {id(m) for stack in stacks(backbone).values() for m in layers(stack).modules()}
        for name, module in backbone.model.named_modules():
            if id(module) in inside and isinstance(module, (nn.Linear, Conv1D)):
                yield module, self._zeros(backbone, name, _num_outputs(module))
            elif is_norm(module) and (final_norms or id(module) in inside):
                yield module, self._zeros(backbone, name, norm_width(name, module))
            elif id(module) in inside:
                _refuse_matrices(name, module)
        logits = backbone.model.get_output_embeddings()
        if head != "none":
            total = len(logits.weight)
            is_t5 = head == "tokenizer" and backbone.config.model_type == "t5"
            yield logits, self._zeros(backbone, "logits", min(total, T5_TOKENS) if is_t5 else total)

    def _zeros(self, backbone: Backbone, name: str, size: int) -> str:
        """Create the vector of a module, [size]; return its name among the tensors."""
        key, like = name.replace(".", "/"), backbone.embedding.weight  # nn.ParameterDict allows no dots
        self.vectors[key] = nn.Parameter(torch.zeros(size, dtype=like.dtype, device=like.device))
        return key

    def _add(self, key: str, states: Tensor) -> Tensor:
        """[..., size] -> [..., size]. Logits may be wider than the vector; those beyond it get nothing added."""
        vector = self.vectors[key]
        missing = states.shape[-1] - len(vector)
        if missing < 0:
            raise ValueError(f"{key.replace('/', '.')} gives {states.shape[-1]} numbers, its bias has {len(vector)}")
        return states + (F.pad(vector, (0, missing)) if missing else vector)


def _num_outputs(linear: nn.Linear | Conv1D) -> int:
    """Width of the output; GPT-2's Conv1D is a linear module that stores its matrix transposed."""
    return linear.out_features if isinstance(linear, nn.Linear) else int(linear.nf)


def _refuse_matrices(name: str, module: nn.Module) -> None:
    """Raise ValueError where a module multiplies by a matrix of its own, as fused experts do.

    It would train without a bias, and nothing in the scores would show it.
    """
    if isinstance(module, nn.Embedding):  # the table of relative positions, which is looked up
        return
    for key, weight in module.named_parameters(recurse=False):
        if weight.dim() > 1:
            raise ValueError(f"{name} computes with {key} by itself; a bias goes behind linear modules and norms only")
