"""Methods that PEFT already has. PEFT makes the layers; the method owns them and puts them in as layer changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from harness.backbone import Backbone
from harness.method.layer_change import LayerChange
from harness.method.method import Method


class PeftMethod(Method):
    """A layer-side method whose layers come from PEFT. A subclass gives PEFT's configuration."""

    def peft_config(self, hp: Any, backbone: Backbone) -> PeftConfig:
        """Return PEFT's configuration for these settings and backbone."""
        raise NotImplementedError(f"{type(self).__name__} must define peft_config()")

    def inject(self, config: PeftConfig, model: Any) -> None:
        """Let PEFT replace modules of the model, in place."""
        inject_adapter_in_model(config, model)

    def __init__(self, hp: Any, backbone: Backbone) -> None:
        """PEFT replaces modules of the backbone; its layers are collected and the originals put back at once."""
        super().__init__(hp, backbone)
        model = backbone.model
        config = self.peft_config(hp, backbone)
        _require_targets(config, model)
        try:
            self.inject(config, model)
        finally:  # an injection that fails half-way has replaced modules too, and the backbone is shared
            self._tuners = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
            self._originals = {name: tuner.get_base_layer() for name, tuner in self._tuners.items()}
            for name, original in self._originals.items():
                model.set_submodule(name, original)
            vars(model).pop("peft_config", None)  # PEFT's note on the model, which the next injection would find
        self._train_in(backbone.embedding.weight.dtype)
        self.tensors = nn.ParameterDict(
            {
                f"{name}.{key}".replace(".", "/"): parameter
                for name, tuner in self._tuners.items()
                for key, parameter in tuner.named_parameters()
                if parameter.requires_grad
            }
        )

    def _train_in(self, dtype: torch.dtype) -> None:
        """Convert trained tensors to `dtype`. PEFT gives them the type of the weights beside them, maybe bfloat16."""
        for tuner in self._tuners.values():
            for parameter in tuner.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)

    def tuners(self) -> Iterator[tuple[nn.Module, Any]]:
        """Return pairs of a module of the backbone, [N, ..., in] -> [N, ..., out], and PEFT's layer for it."""
        return ((self._originals[name], tuner) for name, tuner in self._tuners.items())

    def layer_changes(self) -> Sequence[LayerChange]:
        """Put PEFT's layers in the modules' places."""
        return [LayerChange(original, instead=tuner) for original, tuner in self.tuners()]

    def train(self, mode: bool = True) -> PeftMethod:
        """Switch PEFT's layers too. They stand in a plain dict, since they hold the backbone's modules inside them."""
        for tuner in self._tuners.values():
            tuner.train(mode)
        return super().train(mode)


def _require_targets(config: PeftConfig, model: nn.Module) -> None:
    """Raise ValueError for a target name that no module has.

    PEFT itself goes on as long as one of the names matches, and would train half of what was asked for.
    """
    targets = getattr(config, "target_modules", None)
    if not targets or isinstance(targets, str):  # left to PEFT, or a pattern
        return
    names = [f".{name}" for name, _ in model.named_modules()]
    missing = sorted(target for target in targets if not any(name.endswith(f".{target}") for name in names))
    if missing:
        raise ValueError(f"no module of {type(model).__name__} is called {' or '.join(missing)}")
