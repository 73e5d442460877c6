"""A method that answers with what was trained elsewhere: an adapter of PEFT, a prompt, or a prompt and an added table.

Shapes: P prompt vectors, S source length, H hidden width.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.backbone import Backbone
from harness.method.method import Method
from harness.method.peft_configured import ConfiguredPeft
from harness.method.transfer import copy_into


class AnsweringAdapter(ConfiguredPeft):
    """Of the kind that its configuration asks for; without one it is vectors alone. Nothing trains."""

    trains = False

    @classmethod
    def for_settings(cls, hp: Any) -> type[ConfiguredPeft]:
        """Return the class of cells with these settings."""
        own: Any = cls
        return super().for_settings(hp) if hp.config else _of_vectors(own)

    def __init__(self, hp: Any, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """None."""
        return []


class _Vectors(Method):
    """The kind of vectors alone: a prompt [P, H], a table [S, H] that is added to the token embeddings, or both."""

    vectors: nn.Parameter | None
    table: nn.Parameter | None
    layer_changes = Method.layer_changes
    penalty = Method.penalty
    on_update = Method.on_update

    def __init__(self, hp: Any, backbone: Backbone) -> None:
        Method.__init__(self, hp, backbone)
        like = backbone.embedding.weight
        self._like: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        self._width, self._length = backbone.hidden, hp.source_length
        for name in ("vectors", "table", "a", "b"):
            self.register_parameter(name, None)

    def start_from(self, sources: Sequence[Mapping[str, Tensor]]) -> None:
        """Take over `prompt` and `added`; the pair behind a table is kept, since it is fewer numbers."""
        (source,) = sources
        if not {"prompt", "added"} & set(source):
            raise ValueError(f"the file holds {', '.join(list(source)[:3])}, and neither a prompt nor a table")
        for name, key in (("vectors", "prompt"), ("table", "added"), ("a", "a"), ("b", "b")):
            if key in source:
                self._put(name, source[key])
        for name in ("vectors", "table"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape[-1] != self._width:
                raise ValueError(f"its {name} are {list(tensor.shape)}, and the backbone is {self._width} wide")
        if self.table is not None and self._length is not None and len(self.table) < self._length:
            raise ValueError(f"its table has {len(self.table)} rows, and a text may have {self._length} tokens; lower "
                             "recipe.max_source_length")  # fmt: skip

    def _put(self, name: str, tensor: Tensor) -> None:
        made = torch.empty(tensor.shape, **self._like)
        copy_into(made, tensor, name)
        setattr(self, name, nn.Parameter(made, requires_grad=False))

    def prompt(self) -> Tensor | None:
        """[P, H]."""
        return self.vectors

    def added(self) -> Tensor | None:
        """[S, H]."""
        return self.table

    def kept(self) -> dict[str, Tensor]:
        """Prompt, and the pair of a table where it has one."""
        named = dict(self.named_parameters())
        return {name: tensor for name, tensor in named.items() if name != "table" or "a" not in named}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load tensors, of any shapes: they are not known before a source is read."""
        for name in ("vectors", "table", "a", "b"):
            if name in state_dict and getattr(self, name) is None:
                self._put(name, state_dict[name])
        return Method.load_state_dict(self, state_dict, strict, assign)

    def train(self, mode: bool = True) -> _Vectors:
        Method.train(self, mode)
        return self


@functools.cache
def _of_vectors(cls: type[AnsweringAdapter]) -> type[AnsweringAdapter]:
    """Return a class that is both the method's own, for name and settings, and of vectors alone."""
    if issubclass(cls, _Vectors):
        return cls
    return type(cls.__name__, (_Vectors, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
