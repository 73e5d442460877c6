"""A method that is whatever PEFT's configuration in its settings says: layers, vectors in front, keys and values.

One class stands for all types of PEFT. Which of the kinds below a cell is depends on its settings; `for_settings` says
it without a network, so that a plan knows which cells can share a pass.

Shapes: N rows, P prompt vectors, K tasks of a mixture, H hidden width, L attentions, W width of an attention's keys.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.poly.layer import Linear as PolyLinear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from harness.backbone import Backbone
from harness.method.adapter_tensors import given_head
from harness.method.layer_change import LayerChange
from harness.method.layers import is_norm, stacks_of
from harness.method.low_rank import LowRank
from harness.method.method import Method
from harness.method.peft_adapter import PeftAdapter, network_adapter
from harness.method.peft_config import POSITIONWISE_TYPES, TOKENS, make_peft_config, peft_type
from harness.method.peft_network import ADAPTER, FrozenTensors, PeftNetwork
from harness.method.peft_start import fill_network, refuse_collapsed
from harness.method.prefix_layers import PrefixAttention, key_head_shape
from harness.method.rank_allocation import RankAllocation

PROMPTS = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")
PREFIXES = ("PREFIX_TUNING", "CARTRIDGE")
WHOLE = ("ADAPTION_PROMPT",)
"""Types that change more than modules which take one tensor and give one."""

WHOLE_SETTINGS = ("modules_to_save", "target_parameters", "trainable_token_indices")
"""Settings with which a type does that. A module that is saved may be of any kind, an attention for one."""


class ConfiguredPeft(Method):
    """The kind that changes single modules: its cells share their passes with those of all layer-side methods."""

    def __new__(cls, hp: Any = None, backbone: Backbone | None = None) -> ConfiguredPeft:
        """Return an object of the kind that the settings ask for."""
        return super().__new__(cls if hp is None else cls.for_settings(hp))

    @classmethod
    def for_settings(cls, hp: Any) -> type[ConfiguredPeft]:
        """Return the class of cells with these settings."""
        own: Any = cls  # a class can be hashed, whatever its objects can
        kind: Any = _kind(hp.config)
        return _of_kind(own, kind)

    def __init__(self, hp: Any, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        config = make_peft_config(hp.config, backbone.kind.name, hp.num_steps)
        self.num_tasks = _num_tasks(config, hp.num_tasks)
        _check_tokens(config, backbone)
        if hasattr(config, "num_virtual_tokens"):
            _check_widths(config, backbone)
            if config.token_dim is None and peft_type(hp.config) in PROMPTS:
                config.token_dim = backbone.hidden  # PEFT takes the layers' width, which OPT-350m does not embed in
        self.network = PeftNetwork(config, backbone)
        self.tensors = nn.ParameterDict(self.network.trained)
        self.frozen = FrozenTensors(self.network.frozen)
        takes_means = hp.config.get("velora_config") is not None  # over all positions of a batch
        is_known = peft_type(hp.config) in POSITIONWISE_TYPES and not takes_means
        self.is_positionwise = is_known and not self.runs_alone()
        self.allocation = RankAllocation(self.network.tuner) if peft_type(hp.config) == "ADALORA" else None

    def start_from(self, sources: Sequence[Mapping[str, Tensor]]) -> None:
        """Take over the tensors of an adapter that PEFT has saved. Raises ValueError where they are not this one's."""
        refuse_collapsed(peft_type({"peft_type": self.network.config.peft_type.value}), vars(self.network.config))
        fill_network(self.network, sources[0])
        self.given_head = given_head(sources[0])

    def layer_changes(self) -> Sequence[LayerChange]:
        """Put PEFT's layers in the modules' places. Raises ValueError for a module that takes more than one tensor."""
        return [self._change(path, original, now) for path, original, now in self.network.changed()]

    def _change(self, path: str, original: nn.Module, now: Any) -> LayerChange:
        if not (isinstance(original, (nn.Linear, Conv1D, nn.Embedding)) or is_norm(original)):
            raise ValueError(f"{path} is a {type(original).__name__}; name linear modules in it")
        if _is_plain_lora(now) and not self.network.view.has_own_weights(now.get_base_layer()):
            return LayerChange(original, low_rank=_low_rank(now))
        if isinstance(now, PolyLinear):
            return LayerChange(original, instead=partial(self._routed, now))
        return LayerChange(original, instead=now)

    def _routed(self, layer: nn.Module, states: Tensor) -> Tensor:
        """Run a layer that mixes its parts by task: [N, ..., in] -> [N, ..., out]."""
        routed: Tensor = layer(states, task_ids=self.tasks_of(states))
        return routed

    def penalty(self) -> Tensor | None:
        return None if self.allocation is None else self.allocation.penalty()

    def on_update(self, step: int, num_steps: int) -> None:
        if self.allocation is not None:
            self.allocation.allocate(step + 1)

    def peft_adapter(self, backbone: Backbone) -> PeftAdapter:
        """Return PEFT's own adapter. Raises ValueError for vectors in an encoder, which stand elsewhere in PEFT."""
        if self.num_prompt_tokens and backbone.kind.prompt_start:
            raise ValueError("its vectors stand behind an encoder's first token, and PEFT puts them in front of it")
        return network_adapter(self.network.model)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load tensors; those that are exchanged and not filled are exchanged in PEFT's modules too."""
        held: list[Any] = [self.tensors._parameters, self.frozen._buffers]
        before = [(table, name, tensor) for table in held for name, tensor in table.items()]
        loaded = super().load_state_dict(state_dict, strict, assign)
        exchanged = {id(old): table[name] for table, name, old in before if table[name] is not old}
        self.network.exchange(exchanged)
        return loaded

    def train(self, mode: bool = True) -> ConfiguredPeft:
        """Switch PEFT's layers too. They are no modules of the method, since the backbone's lie inside them."""
        self.network.train(mode)
        return super().train(mode)


class _WholeNetwork(ConfiguredPeft):
    """The kind that changes more than single modules: while attached, the view runs in the place of the network."""

    def attach(self, backbone: Backbone) -> None:
        """Let the network, its stacks and its embedding run as the view's."""
        names = {id(module): name for name, module in backbone.model.named_modules()}
        # callers run these, each by itself
        modules = {id(m): m for m in (backbone.model, *stacks_of(backbone).values(), backbone.embedding)}
        self._replaced = [(module, vars(module).get("forward")) for module in modules.values()]
        for module in modules.values():
            now = self.network.view.model.get_submodule(names[id(module)])
            module.__dict__["forward"] = partial(self._run, now)

    def _run(self, now: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.network.view.follow_modes()
        return now(*args, **kwargs)

    def detach(self, backbone: Backbone) -> None:
        """Let them run as they did."""
        for module, own in self._replaced:
            module.__dict__.pop("forward", None)
            if own is not None:
                module.__dict__["forward"] = own

    def layer_changes(self) -> Sequence[LayerChange]:
        return ()


class _Prompt(ConfiguredPeft):
    """The kind that puts vectors in front of the text: its cells share their passes with all input-side methods."""

    layer_changes = Method.layer_changes

    def prompt(self) -> Tensor:
        """PEFT's vectors, [P, H], or [K, P, H] where PEFT has them for each task.

        On an encoder-decoder PEFT makes a second P for the decoder, which nothing reads; it is cut off here.
        """
        encoder, count = self.network.model.prompt_encoder[ADAPTER], self.network.config.num_virtual_tokens
        ids = self.network.model.prompt_tokens[ADAPTER].to(next(iter(self.parameters())).device)
        if peft_type({"peft_type": self.network.config.peft_type.value}) != "MULTITASK_PROMPT_TUNING":
            vectors: Tensor = encoder(ids[None])[0]
            return vectors[:count]
        tasks = torch.arange(self.num_tasks, device=ids.device)
        by_task: Tensor = encoder(ids.expand(self.num_tasks, -1), tasks)[:, :count]
        return by_task if self.num_tasks > 1 else by_task[0]


class _Prefix(ConfiguredPeft):
    """The kind that puts keys and values in front of those of the decoder's self-attentions."""

    layer_changes = Method.layer_changes

    def __init__(self, hp: Any, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        in_encoder = None if backbone.writes_text else self._by_layer
        self._layers = PrefixAttention(backbone, self._by_layer, in_encoder)
        heads, size = key_head_shape(backbone)
        self._width, self._is_paired = heads * size, backbone.is_encoder_decoder
        found = self.network.config.token_dim
        if found != self._width:
            raise ValueError(f"PEFT makes keys {found} wide, this network's have {self._width}: set token_dim and "
                             "num_attention_heads")  # fmt: skip

    def _by_layer(self) -> Tensor:
        """Return the prefix as [P, L, 2, W]."""
        model, config = self.network.model, self.network.config
        ids = model.prompt_tokens[ADAPTER][: config.num_virtual_tokens].to(next(iter(self.parameters())).device)
        vectors: Tensor = model.prompt_encoder[ADAPTER](ids[None])[0]
        parts = vectors.reshape(len(vectors), -1, self._width)  # [P, 2 L, W]
        if self._is_paired:
            # PEFT 0.21 doubles the prefix of an encoder-decoder and hands each layer four parts, of which
            # self-attention takes the first two: layer i gets parts 4i and 4i + 1, modulo 2 L
            count = parts.shape[1]
            order = [(4 * layer + part) % count for layer in range(count // 2) for part in range(2)]
            parts = parts[:, order]
        by_layer: Tensor = parts.unflatten(1, (-1, 2))
        return by_layer

    def keys_and_values(self) -> Tensor:
        """Return the prefix as a decoder takes it, [layers, 2, heads, P, size]."""
        return self._layers.keys_and_values(self._by_layer(), 1)[:, :, 0]

    def attach(self, backbone: Backbone) -> None:
        """Start to give the prefix to the self-attentions, where these are not a decoder's alone."""
        self._layers.attach()

    def detach(self, backbone: Backbone) -> None:
        """Stop it."""
        self._layers.detach()


def _kind(config: Any) -> type[ConfiguredPeft]:
    name = peft_type(config)
    if name in PROMPTS:
        return _Prompt
    if name in PREFIXES:
        return _Prefix
    is_whole = name in WHOLE or any(config.get(key) for key in WHOLE_SETTINGS)
    return _WholeNetwork if is_whole else ConfiguredPeft


@functools.cache
def _of_kind(cls: type[ConfiguredPeft], kind: type[ConfiguredPeft]) -> type[ConfiguredPeft]:
    """Return a class that is both the method's own, for name and settings, and of a kind."""
    if issubclass(cls, kind) or any(issubclass(cls, other) for other in (_WholeNetwork, _Prompt, _Prefix)):
        return cls
    return type(cls.__name__, (kind, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})


def _is_plain_lora(layer: Any) -> bool:
    """Whether a layer is LoRA as defined, with nothing else in it, so that `LowRank` computes the same."""
    if type(layer) is not LoraLinear or layer.lora_variant or layer.lora_bias[ADAPTER]:
        return False
    return isinstance(layer.get_base_layer(), (nn.Linear, Conv1D))


def _low_rank(layer: Any) -> LowRank:
    down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    return LowRank(down, up, layer.scaling[ADAPTER], layer.lora_dropout[ADAPTER])


def _num_tasks(config: Any, number: int) -> int:
    """Set the number of tasks where PEFT has tensors for each. Raises ValueError for another than the suite's."""
    name = next((name for name in ("num_tasks", "n_tasks") if hasattr(config, name)), None)
    if name is None:
        return 1
    if getattr(config, name) not in (1, number):
        raise ValueError(f"config.{name} is {getattr(config, name)}, but a cell trains on {number}; leave it out")
    setattr(config, name, number)
    return number


def _check_tokens(config: Any, backbone: Backbone) -> None:
    """Raise ValueError for the id of a token that the backbone has no vector for."""
    rows = backbone.embedding.num_embeddings
    indices = getattr(config, "trainable_token_indices", None)
    lists = list(indices.values()) if isinstance(indices, dict) else [indices or []]
    found = [*(getattr(config, name, None) or [] for name in TOKENS), *lists]
    largest = max((token for tokens in found for token in tokens), default=0)
    if largest >= rows:
        raise ValueError(f"names token {largest}, the backbone has {rows} embeddings")


def _check_widths(config: Any, backbone: Backbone) -> None:
    """Raise ValueError for numbers of another network in a configuration of vectors in front."""
    given = getattr(config, "token_dim", None)
    if given is not None and peft_type({"peft_type": config.peft_type.value}) in PROMPTS and given != backbone.hidden:
        raise ValueError(f"config.token_dim is {given}, the width of the backbone is {backbone.hidden}: this "
                         "configuration is for another network")  # fmt: skip
    text = backbone.config.get_text_config()
    layers, own = getattr(config, "num_layers", None), getattr(text, "num_hidden_layers", None)
    # an exported prefix of an encoder-decoder is written as one of twice as many decoder layers: `prefix_adapter`
    twice = (
        2 * getattr(text, "num_decoder_layers", 0)
        if peft_type({"peft_type": config.peft_type.value}) in PREFIXES
        else own
    )
    if layers is not None and own is not None and layers not in (own, twice):
        raise ValueError(f"config.num_layers is {layers}, the backbone has {own}: this configuration is for another "
                         "network")  # fmt: skip
    given = getattr(config, "num_attention_heads", None)
    counts = (getattr(text, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    heads = {count for count in counts if count is not None}
    if given is not None and heads and given not in heads:
        own = " or ".join(map(str, sorted(heads)))
        raise ValueError(f"config.num_attention_heads is {given}, the backbone has {own}: this configuration is for "
                         "another network")  # fmt: skip
