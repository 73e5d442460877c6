"""PEFT put into a view of a network: what it changes there, what trains, and what else it needs to answer.

`harness.method.network_view` makes the view, so nothing here touches the network that cells share.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn

from harness.backbone import Backbone
from harness.method.network_view import NetworkView
from harness.method.peft_config import first_sentence
from harness.method.peft_targets import set_targets

# what holds by default, but said aloud: else PyTorch prints four lines where a type trains sparse tensors (FRoD)
torch.sparse.check_sparse_tensor_invariants.disable()

ADAPTER = "default"  # PEFT's own choice where there is one adapter only

SHARED_INITS = ("gaussian", "orthogonal")
"""Starts of LoRA, given as a text, that leave the weights alone. The others move a part of them into A and B."""


UNUSED = ("did not match", "no module was matched", "no parameter was matched", "no modules were excluded")
"""Words by which PEFT's warnings tell of names that exist nowhere."""


class PeftNetwork:
    """One adapter of PEFT in a view of a backbone's network."""

    def __init__(self, config: PeftConfig, backbone: Backbone) -> None:
        """Raises ValueError where PEFT cannot put this into this network."""
        self.config = config
        if hasattr(config, "progressbar"):  # FRoD's bar would stand between the lines of a run, once a cell and plan
            config.progressbar = False
        self.view = NetworkView(backbone.model, private=moves_weights(config))
        set_targets(config, self.view.model)
        try:
            with warnings.catch_warnings(record=True) as heard, _on_shapes(config, backbone):
                warnings.simplefilter("always")
                self.model: Any = get_peft_model(self.view.model, config, ADAPTER)
        except (ValueError, TypeError, AttributeError, AssertionError, KeyError) as error:
            kind = getattr(config.peft_type, "value", config.peft_type)
            raise ValueError(
                f"PEFT cannot put {kind} into {type(backbone.model).__name__}: {first_sentence(error)}"
            ) from error
        _refuse_unused(str(warning.message) for warning in heard)
        self.view.settle()
        dtype = backbone.embedding.weight.dtype
        self.trained: dict[str, nn.Parameter] = {}
        """What PEFT trains, by name, in the type of the embedding: PEFT takes that of the weight beside it."""
        self.frozen: dict[str, Tensor] = {}
        """What PEFT draws or computes once and answers with; it is stored, since another start would give another."""
        self._stored: dict[int, Tensor] = {}
        """By the id of a frozen tensor of PEFT, the one that is stored for it."""
        for name, tensor in self._by_name().items():
            key = name.replace(".", "/")  # nn.ParameterDict allows no dots
            if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                tensor.data = tensor.data.to(dtype)
                self.trained[key] = tensor
            else:
                # a buffer of the method may be no parameter; it shares the memory, which loading fills
                self.frozen[key] = tensor.detach() if isinstance(tensor, nn.Parameter) else tensor
                self._stored[id(tensor)] = self.frozen[key]
        if not self.trained:
            raise ValueError("nothing of it trains")

    @property
    def tuner(self) -> Any:
        """PEFT's model of the adapter, which may hold tensors that several layers share."""
        return self.model.base_model

    def _by_name(self) -> dict[str, Tensor]:
        """Return the added tensors, those inside the network by their path in it, the others by that in PEFT's model.

        A tensor that several modules share has one name.
        """
        inside = dict(self.view.added_tensors(self.view.model))
        seen = {id(tensor) for tensor in inside.values()}
        around = self.view.added_tensors(self.model)
        return inside | {name: tensor for name, tensor in around if id(tensor) not in seen}

    def exchanged(self) -> list[tuple[str, Tensor]]:
        """Return tensors that stand now where others are stored, by the name of these in `frozen`."""
        now = {name.replace(".", "/"): tensor for name, tensor in self._by_name().items()}
        return [(name, now[name]) for name, tensor in self.frozen.items() if name in now and now[name] is not tensor]

    def changed(self) -> list[tuple[str, nn.Module, nn.Module]]:
        """Return path, module of the backbone and module that stands for it, wherever they differ."""
        return self.view.changed()

    def exchange(self, tensors: Mapping[int, Tensor | None]) -> None:
        """Put other tensors in the places of some, by the id of the old ones, wherever PEFT's modules hold these."""
        for module in self.model.modules() if tensors else ():
            for name, old in module._parameters.items():
                new = tensors.get(id(self._stored.get(id(old), old)))
                if new is not None:
                    module._parameters[name] = new if isinstance(new, nn.Parameter) else nn.Parameter(new, False)
            for name, buffer in module._buffers.items():
                module._buffers[name] = tensors.get(id(buffer), buffer)

    def train(self, mode: bool) -> None:
        """Switch what PEFT has put in between training and evaluation, and none of the network's own modules."""
        for module in self.model.modules():
            if self.view.is_new(module):
                module.training = mode


def moves_weights(config: Any) -> bool:
    """Whether PEFT's start for a configuration moves a part of the network's weights into the adapter."""
    start = getattr(config, "init_lora_weights", True)
    return isinstance(start, str) and start not in SHARED_INITS


def _on_shapes(config: PeftConfig, backbone: Backbone) -> AbstractContextManager[Any]:
    """Where the network has shapes without numbers, a start that reads weights needs tensors of that kind around it.

    PiSSA decomposes the weights and puts the result into A and B, which PEFT makes on the processor otherwise.
    """
    device = backbone.embedding.weight.device
    return device if device.type == "meta" and moves_weights(config) else nullcontext()


def _refuse_unused(messages: Iterable[str]) -> None:
    """Raise ValueError where PEFT only warns that a setting had no effect."""
    for message in messages:
        if any(sign in message for sign in UNUSED):
            raise ValueError(f"a setting has no effect: {first_sentence(message)}")


class FrozenTensors(nn.Module):
    """Tensors that a method stores and does not train."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for key, tensor in tensors.items():
            self.register_buffer(key, tensor)  # the memory that PEFT's layer reads: loading copies into it
