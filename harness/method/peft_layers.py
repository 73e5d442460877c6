"""Methods that PEFT already has. PEFT makes the layers; the method owns them and puts them in as layer changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from peft import PeftConfig
from torch import nn

from harness.backbone import Backbone
from harness.method.layer_change import LayerChange
from harness.method.method import Method
from harness.method.peft_adapter import PeftAdapter, network_adapter
from harness.method.peft_network import FrozenTensors, PeftNetwork


class PeftMethod(Method):
    """A layer-side method whose layers come from PEFT. A subclass gives PEFT's configuration."""

    def peft_config(self, hp: Any, backbone: Backbone) -> PeftConfig:
        """Return PEFT's configuration for these settings and backbone.

        Where it leaves `target_modules` out, PEFT's own choice for the network is taken.
        """
        raise NotImplementedError(f"{type(self).__name__} must define peft_config()")

    def __init__(self, hp: Any, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        self.network = PeftNetwork(self.peft_config(hp, backbone), backbone)
        self.tensors = nn.ParameterDict(self.network.trained)
        if self.stores_frozen():
            self.frozen = FrozenTensors(self.network.frozen)

    def stores_frozen(self) -> bool:
        """Whether what PEFT has drawn and does not train is stored too; not needed where a seed of its own draws it."""
        return True

    def tuners(self) -> Iterator[tuple[nn.Module, Any]]:
        """Return pairs of a module of the backbone, [N, ..., in] -> [N, ..., out], and PEFT's layer for it."""
        return ((original, tuner) for _, original, tuner in self.network.changed())

    def layer_changes(self) -> Sequence[LayerChange]:
        """Put PEFT's layers in the modules' places."""
        return [LayerChange(original, instead=tuner) for original, tuner in self.tuners()]

    def peft_adapter(self, backbone: Backbone) -> PeftAdapter:
        """Return PEFT's own adapter. Raises ValueError for a method that trains more than PEFT's layers."""
        known = {id(tensor) for tensor in self.tensors.values()}
        head = () if self.linear_head is None else self.linear_head.parameters()
        known |= {id(tensor) for tensor in head}
        others = [name for name, tensor in self.named_parameters() if id(tensor) not in known]
        if others:
            raise ValueError(f"it trains {len(others)} tensors beside PEFT's layers ({others[0]} is the first)")
        return network_adapter(self.network.model)

    def train(self, mode: bool = True) -> PeftMethod:
        """Switch PEFT's layers too. They are no modules of the method, since the backbone's lie inside them."""
        self.network.train(mode)
        return super().train(mode)
