"""Trained modules that methods insert behind the layers of a backbone or in their place.

Shapes: N rows, L positions, H hidden width, V vocabulary, R width of a bottleneck.

`harness.method.layers` finds layers and sub-layers. Widths are read off the modules themselves and not off the
configuration, since a norm may be as wide as one head. Nothing here edits the network: all is a LayerChange.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from harness.backbone import Backbone
from harness.method.layer_change import LayerChange
from harness.method.layers import (
    Sublayer,
    SublayerKind,
    is_norm,
    layers_of,
    norm_width,
    require_one_width,
    stacks_of,
    sublayers_of,
)
from harness.method.method import Method

BiasedLogits = Literal["tokenizer", "all", "none"]

T5_TOKENS = 32_100
"""Ids of T5's tokenizer. The embedding has 32,128 rows, a multiple of 128; the last 28 stand for no token."""


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


class AdapterMethod(Method):
    """A method that inserts one trained module behind each chosen sub-layer, before its dropout and residual sum.

    `make` creates a module [..., H] -> [..., H]. `first_layer` is the first layer of each stack that gets one, counted
    from 0. With `train_norms` all norms of the backbone train too.
    """

    def __init__(
        self,
        hp: Any,
        backbone: Backbone,
        make: Callable[[], nn.Module],
        kinds: Iterable[SublayerKind] = ("attention", "ffn"),
        first_layer: int = 0,
        train_norms: bool = True,
    ) -> None:
        super().__init__(hp, backbone)
        require_one_width(backbone)
        self.chosen = [s for s in sublayers_of(backbone) if s.kind in set(kinds) and s.layer >= first_layer]
        self.inserted = nn.ModuleDict({sublayer.key: make() for sublayer in self.chosen})
        self.norms = TrainedNorms(backbone) if train_norms else None

    def change(self, sublayer: Sublayer, states: Tensor) -> Tensor:
        """What the sub-layer gives instead of `states`, [..., H]."""
        changed: Tensor = self.inserted[sublayer.key](states)
        return changed

    def layer_changes(self) -> Sequence[LayerChange]:
        changes = [LayerChange(sublayer.output, after=partial(self.change, sublayer)) for sublayer in self.chosen]
        return [*changes, *(self.norms.changes() if self.norms is not None else ())]


class BottleneckAdapter(nn.Module):
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

    Where a module has a bias of its own, the vector is the difference that training makes to it. Modules outside the
    layers get one if they have a bias, as BERT's norm of the embeddings and GPT-2's last norm: BitFit trains every bias
    of a network. `head` says which logits get one: `tokenizer` those of T5's 32,100 tokens (all V for other backbones),
    `all`, or `none`. With `final_norms` the norm behind the last layer of each stack gets one too where it has none.
    """

    def __init__(self, backbone: Backbone, head: BiasedLogits = "tokenizer", final_norms: bool = False) -> None:
        super().__init__()
        self.vectors = nn.ParameterDict()
        self._modules_with_bias = list(self._create(backbone, head, final_norms))

    def changes(self) -> list[LayerChange]:
        """Return the changes that add each vector to its module's output."""
        return [LayerChange(module, after=partial(self._add, key)) for module, key in self._modules_with_bias]

    def _create(self, backbone: Backbone, head: BiasedLogits, final_norms: bool) -> Iterator[tuple[nn.Module, str]]:
        """Create the vectors; yield each module with the name of its vector. Raises ValueError for other matrices."""
        inside = {id(m) for stack in stacks_of(backbone).values() for m in layers_of(stack).modules()}
        logits = backbone.model.get_output_embeddings()
        for name, module in backbone.model.named_modules():
            chosen = id(module) in inside or getattr(module, "bias", None) is not None
            if chosen and module is not logits and isinstance(module, (nn.Linear, Conv1D)):
                yield module, self._zeros(backbone, name, _num_outputs(module))
            elif is_norm(module) and (chosen or final_norms):
                yield module, self._zeros(backbone, name, norm_width(name, module))
            elif id(module) in inside:
                _refuse_matrices(name, module)
        if head != "none" and logits is not None:  # an encoder has none
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
