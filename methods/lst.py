"""LST: a small network beside the frozen one, fed by its layers (Ladder Side-Tuning, Sung et al., NeurIPS 2022).

Beside each stack stands one of the same architecture, all widths divided by 8 (H' = H / 8), with layers beside three
of four backbone layers. s = D_0(dropout(E)); beside layer i with output h_i: s <- g_i s + (1 - g_i) D_i(h_i),
g_i = sigmoid(a_i / 0.1), then s <- SideLayer_i(s). In the end norm, dropout, Up [H', H], and the frozen output
embedding. The decoder's side layers attend to the side encoder's output. D_i [H, H'] with bias; a_i = 0 at first.
The gradient never enters the backbone. 3,878,712 parameters on T5-base; lr 3e-3.

Source: ylsung/Ladder-Side-Tuning, seq2seq/third_party/models/t5/modeling_side_t5.py and
scripts/ladder_side_tuning_base.sh. `_init_weights` there redraws every D and Up from N(0, 0.01) with zero biases.

Choices made: as in the code, layers 0, 4, 8, ... of a stack have no side layer and a gate is allocated for every
layer. Side layers start as the backbone's, structurally pruned. The authors rank rows by the Fisher information of
the task's loss, which needs rows of the task; here the weights' own magnitude ranks them (L1, as their ranking does),
with one choice of hidden dimensions for the whole network and one of head dimensions for all heads of a layer. The
code chooses the outputs of each part apart, so that its side layers add other dimensions to the stream than they read.
`init: random` is what the code makes without pruned weights: all linear modules N(0, 0.01), tables N(0, 1), norms ones.
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.method import (
    Backbone,
    Defaults,
    Method,
    Paper,
    is_norm,
    layers_of,
    norm_width,
    require_positive,
    stacks_of,
    sweep,
)

# attributes of T5's and Llama's configurations: widths are divided, depths set to the number of layers kept
WIDTHS = ("d_model", "d_ff", "d_kv", "hidden_size", "intermediate_size", "head_dim")
DEPTHS = ("num_layers", "num_hidden_layers")
# linear modules that write the residual stream; all others in a layer read it
OUTPUTS = ("o", "o_proj", "wo", "down_proj")


def small_config(config: Any, reduction: int, kept: list[int]) -> Any:
    """Make the configuration of a side stack with the `kept` layers. Raises ValueError for a width it cannot divide."""
    small, depth = copy.deepcopy(config), config.num_hidden_layers
    for name in WIDTHS:
        if name in vars(small):
            try:
                width = getattr(small, name)
            except RuntimeError:  # what transformers raises where each layer has one of its own, as in Gemma 4
                raise ValueError(f"{name} of {type(config).__name__} differs from layer to layer") from None
            if width % reduction:
                raise ValueError(f"reduction must divide the backbone's {name} {width}, got {reduction}")
            setattr(small, name, width // reduction)
    if small.hidden_size * reduction != config.hidden_size:
        raise ValueError(f"the widths of {type(config).__name__} are not known; T5's and Llama's are")
    for name, value in list(vars(small).items()):
        if name in DEPTHS:
            setattr(small, name, len(kept))
        elif isinstance(value, list) and len(value) == depth:  # a value for each layer, such as its kind of attention
            setattr(small, name, [value[index] for index in kept])
    return small


class Ladder(nn.Module):
    """The side network of one stack: embeddings E [N, T, H] and the kept layers' outputs [N, T, H] -> [N, T, H']."""

    def __init__(self, stack: Any, kept: list[int], hp: "LST.HP", like: Tensor) -> None:
        super().__init__()
        if not hasattr(stack, "embed_tokens"):
            raise ValueError(f"a side stack is built as T5's and Llama's are, and {type(stack).__name__} is not")
        config = small_config(stack.config, hp.reduction, kept)
        with torch.device(like.device):
            self.side: Any = type(stack)(config).to(like.dtype)
        del self.side.embed_tokens
        width = like.shape[1] // hp.reduction
        self.down = nn.ModuleList(_projection(like.shape[1], width, like) for _ in range(len(kept) + 1))
        self.gates = nn.Parameter(torch.zeros(len(layers_of(stack)), dtype=like.dtype, device=like.device))
        self.dropout = nn.Dropout(getattr(config, "dropout_rate", 0.0))
        self.kept, self.temperature = kept, hp.temperature
        self.hidden: list[Tensor] = []
        """h_i of the kept layers, [N, T, H] each, while a forward pass runs."""
        self._state: Tensor | None = None
        """D_0(dropout(E)), [N, T, H'], until the first side layer has taken it."""
        for index, layer in enumerate(layers_of(self.side)):
            layer.register_forward_pre_hook(partial(self._mix, index))

    def _mix(self, index: int, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hook: give a side layer g_i s + (1 - g_i) D_i(h_i), [N, T, H'], in place of its input s."""
        # the stack has put a dropout of its own on its input, which the definition does not have there
        state = args[0] if self._state is None else self._state
        self._state = None
        gate = torch.sigmoid(self.gates[self.kept[index]] / self.temperature)
        return (gate * state + (1 - gate) * self.down[index + 1](self.hidden[index]), *args[1:])

    def forward(self, embeds: Tensor, hidden: list[Tensor], **options: Any) -> Tensor:
        """[N, T, H], kept layers' outputs [N, T, H] -> [N, T, H']. `options` are the stack's: masks, positions, ..."""
        self._state, self.hidden = self.down[0](self.dropout(embeds)).to(embeds.dtype), hidden
        out: Tensor = self.side(inputs_embeds=self._state, use_cache=False, **options).last_hidden_state
        self.hidden = []
        return out


class LST(Method):
    """One side network per stack, and the projection back up to the backbone's width."""

    name = "lst"
    paper = Paper(
        "sung-etal-2022-lst",
        "https://arxiv.org/abs/2206.06522",
        params={"t5-base": 3_800_000},
        params_note="3,878,712 is 3.9M rounded; 3.8M is its 1.74 % taken of 220M.",
    )
    defaults = Defaults(recipe={"lr": sweep(1e-3, 3e-3, 1e-2)})

    @dataclass(frozen=True, kw_only=True)
    class HP:
        reduction: int = 8  # H / H'
        skip_every: int = 4  # layers 0, 4, 8, ... have no side layer
        temperature: float = 0.1
        init: Literal["pruned", "random"] = "pruned"

        def __post_init__(self) -> None:
            require_positive(self, "reduction", "skip_every")
            if self.skip_every == 1:
                raise ValueError("skip_every must be at least 2, or no layer is left")
            if not self.temperature > 0:
                raise ValueError(f"temperature must be positive, got {self.temperature}")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        if not backbone.writes_text:
            name = type(backbone.model).__name__
            raise ValueError(
                f"a side network stands beside a stack of layers, and {name} adds positions in front of its"
            )
        if hp.init == "pruned" and backbone.quantization in ("int8", "nf4"):
            raise ValueError(
                f"init pruned cuts rows out of the weights, which {backbone.quantization} hides; use random"
            )
        like = backbone.embedding.weight
        self.ladders = nn.ModuleDict()
        for name, stack in stacks_of(backbone).items():
            kept = [index for index in range(len(layers_of(stack))) if index % hp.skip_every]
            if not kept:
                raise ValueError(f"the {name} has too few layers for skip_every={hp.skip_every}")
            self.ladders[name] = Ladder(stack, kept, hp, like)
        self.up = _projection(like.shape[1] // hp.reduction, like.shape[1], like)
        if hp.init == "pruned":
            prune_into(self.ladders, backbone)
        else:
            draw_sides(self.ladders)
        self._handles: list[Any] = []
        self._outputs: dict[str, dict[str, Tensor]] = {name: {} for name in self.ladders}
        """By stack and layer: what the layers of the pass at hand have given, [N, T, H] each."""
        self._encoded: Tensor | None = None
        """What the encoder's side network ended with, [N, T, H']."""
        self._prefix: dict[str, Tensor] = {}
        """While an answer is written: the decoder's inputs and layer outputs at all positions so far."""
        self._cache_keyword = backbone.cache_keyword

    def attach(self, backbone: Backbone) -> None:
        """Hook the collecting of outputs to the kept layers, and the side networks to the ends of the stacks."""
        for name, stack in stacks_of(backbone).items():
            for index in self.ladders[name].kept:  # type: ignore[union-attr]
                self._handles.append(layers_of(stack)[index].register_forward_hook(partial(self._collect, name, index)))
            self._handles.append(stack.register_forward_hook(partial(self._climb, name), with_kwargs=True))

    def detach(self, backbone: Backbone) -> None:
        """Take all hooks out, and forget the last texts."""
        while self._handles:
            self._handles.pop().remove()
        self._encoded, self._prefix = None, {}

    def keep_rows(self, rows: Tensor) -> bool:
        """Keep what was read and written in these rows. Beams change places with every token, so they are refused."""
        if rows.unique().numel() < len(rows):
            return False
        self._encoded = None if self._encoded is None else self._encoded[rows]
        self._prefix = {key: value[rows] for key, value in self._prefix.items()}
        return True

    def _collect(self, name: str, index: int, layer: nn.Module, args: Any, output: Any) -> None:
        """Hook: keep a layer's output, [N, T, H], without its gradient, which must not enter the backbone."""
        states = output[0] if isinstance(output, tuple) else output
        self._outputs[name][f"layer {index}"] = states.detach()

    def _climb(self, name: str, stack: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """Hook: run the side network when its stack is done. The decoder's replaces the stack's output, [N, T, H]."""
        embeds = kwargs.get("inputs_embeds")
        inputs = {"embeds": stack.embed_tokens(kwargs["input_ids"]) if embeds is None else embeds}
        inputs |= self._outputs[name]
        self._outputs[name] = {}
        if name == "encoder":
            self._encoded = self._state(name, inputs, attention_mask=kwargs["attention_mask"])
            return output
        options = {"attention_mask": kwargs.get("attention_mask")}
        if self._encoded is not None:
            options["encoder_hidden_states"] = self._encoded
            options["encoder_attention_mask"] = kwargs["encoder_attention_mask"]
        if kwargs.get("position_ids") is not None:
            inputs["positions"] = kwargs["position_ids"]
        state = self._state(name, self._with_prefix(inputs, kwargs), **options)
        output.last_hidden_state = self.up(state[:, -inputs["embeds"].shape[1] :]).to(output.last_hidden_state.dtype)
        return output

    def _state(self, name: str, inputs: dict[str, Tensor], **options: Tensor | None) -> Tensor:
        """Return what a side network ends with, [N, T, H']."""
        ladder = self.ladders[name]
        assert isinstance(ladder, Ladder)
        if "positions" in inputs:
            options["position_ids"] = inputs["positions"]
        state: Tensor = ladder(inputs["embeds"], [inputs[f"layer {index}"] for index in ladder.kept], **options)
        return state

    def _with_prefix(self, inputs: dict[str, Tensor], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Return inputs and layer outputs at all positions so far, [N, T, H] each, where an answer is being written.

        The side network has no cache of keys and values: at an eighth of the width, computing all again is cheap.
        """
        if kwargs.get(self._cache_keyword) is not None:
            inputs = {key: torch.cat([self._prefix[key], value], 1) for key, value in inputs.items()}
        self._prefix = inputs if kwargs.get("use_cache") else {}
        return inputs


def _projection(inputs: int, outputs: int, like: Tensor) -> nn.Linear:
    """Return a D_i or Up, [N, T, in] -> [N, T, out], that starts N(0, 0.01) with a zero bias."""
    linear = nn.Linear(inputs, outputs, dtype=like.dtype, device=like.device)
    _draw(linear)
    return linear


def _draw(linear: nn.Linear) -> None:
    nn.init.normal_(linear.weight, std=0.01)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def draw_sides(ladders: nn.ModuleDict) -> None:
    """Start all side layers anew: linear modules N(0, 0.01), tables of relative positions N(0, 1), norms as they are.

    The library calls `_init_weights` for each module that the checkpoint lacks, and not for the attention around it,
    so the authors' rule for a linear module, meant for adapters, takes q, k, v, o and the feed-forward part too.
    """
    for ladder in ladders.values():
        assert isinstance(ladder, Ladder)
        for module in ladder.side.modules():
            if isinstance(module, nn.Linear):
                _draw(module)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)


@torch.no_grad()
def prune_into(ladders: nn.ModuleDict, backbone: Backbone) -> None:
    """Start every side layer as its backbone layer without the rows and columns of smallest magnitude.

    Raises ValueError for a network with parts that are not known.
    """
    hidden = _residual_dims(backbone, next(iter(ladders.values())).down[0].out_features)  # type: ignore
    for name, stack in stacks_of(backbone).items():
        ladder = ladders[name]
        assert isinstance(ladder, Ladder)
        for small_layer, index in zip(layers_of(ladder.side), ladder.kept, strict=True):
            pruned: set[int] = set()
            for path, small in small_layer.named_modules():
                # the first layer alone has a table of relative positions, the same in size as the backbone's
                if isinstance(small, nn.Embedding):
                    small.weight.copy_(layers_of(stack)[0].get_parameter(f"{path}.weight"))
                elif id(small) not in pruned:
                    pruned |= _prune_part(small, layers_of(stack)[index].get_submodule(path), hidden)
                if isinstance(small, nn.Linear) and id(small) not in pruned:
                    problem = "init pruned needs q, k, v, o and feed-forward as matrices of their own"
                    raise ValueError(f"{problem}, and {path} is none that it knows; init: random takes any")
        for path, small in ladder.side.named_children():
            _prune_part(small, stack.get_submodule(path), hidden)


def _prune_part(small: Any, full: Any, hidden: Tensor) -> set[int]:
    """Prune a norm, an attention or a feed-forward part; return the ids of all modules that are done with that."""
    if is_norm(small):
        _copy_norm(small, full, hidden)
        return {id(small)}
    if {"q", "q_proj"} & {*small._modules}:
        _prune_attention(small, full, hidden)
        return {id(module) for module in small.modules()}
    if {"wo", "down_proj"} & {*small._modules}:
        _prune_feed_forward(small, full, hidden)
        return {id(module) for module in small.modules()}
    return set()


def _prune_feed_forward(small: Any, full: Any, hidden: Tensor) -> None:
    """Prune a feed-forward part: its two or three matrices share one choice of inner dimensions."""
    linears = _linears(full)
    out = next(name for name in linears if name in OUTPUTS)
    widths = {linear.in_features if name == out else linear.out_features for name, linear in linears.items()}
    if len(widths) > 1:
        raise ValueError(f"init pruned does not know a feed-forward part of {', '.join(linears)}")
    scores = [linear.weight.abs().sum(0 if name == out else 1) for name, linear in linears.items()]
    inner = _largest(torch.stack(scores).sum(0), _linears(small)[out].in_features)
    for name, linear in linears.items():
        rows, columns = (hidden, inner) if name == out else (inner, hidden)
        _copy(getattr(small, name), linear, rows, columns)


def _copy_norm(small: Any, full: Any, dims: Tensor) -> None:
    """Copy the dimensions `dims` [H'] of a norm's scale and shift."""
    for own, weight in zip(small.parameters(), full.parameters(), strict=True):
        own.copy_(weight[dims])


def _prune_attention(small: Any, full: Any, hidden: Tensor) -> None:
    """Prune an attention with one choice of dimensions for all heads.

    Queries and keys share a choice, since they are multiplied with each other; so do values and the output. Norms of
    queries and keys, over one head (Qwen3) or all of them (OLMo2), follow the choice of these.
    """
    linears = _linears(full)
    if len(linears) != 4:
        raise ValueError(f"init pruned knows attention by q, k, v and o, not by {', '.join(linears)}")
    q, k, v, o = linears
    is_rotary = q == "q_proj"
    size = getattr(full, "key_value_proj_dim", None) or full.head_dim
    kept = size * _linears(small)[q].out_features // linears[q].out_features
    query_key = _head_dims([linears[q].weight, linears[k].weight], size, kept, is_rotary)
    value_out = _head_dims([linears[v].weight, linears[o].weight.T], size, kept, False)
    for name, linear in linears.items():
        dims = query_key if name in (q, k) else value_out
        heads = torch.arange(0, linear.in_features if name == o else linear.out_features, size, device=dims.device)
        inner = (heads[:, None] + dims).flatten()
        _copy(getattr(small, name), linear, *((hidden, inner) if name == o else (inner, hidden)))
    for name, norm in full.named_children():
        if is_norm(norm):
            heads = torch.arange(0, norm_width(name, norm), size, device=query_key.device)
            _copy_norm(getattr(small, name), norm, (heads[:, None] + query_key).flatten())


def _head_dims(weights: list[Tensor], size: int, kept: int, is_rotary: bool) -> Tensor:
    """Return the `kept` largest of the `size` dimensions of a head, [kept], over weights [heads * size, H].

    A rotary embedding turns dimensions in pairs that lie half a head apart, so pairs stay together.
    """
    scores = torch.stack([weight.abs().sum(1).view(-1, size).sum(0) for weight in weights]).sum(0)
    if not is_rotary:
        return _largest(scores, kept)
    pairs = _largest(scores.view(2, -1).sum(0), kept // 2)
    return torch.cat([pairs, pairs + size // 2])


def _residual_dims(backbone: Backbone, kept: int) -> Tensor:
    """Return the hidden dimensions that the layers read and write with the largest weights, [H']."""
    scores = torch.zeros_like(backbone.embedding.weight[0])
    for stack in stacks_of(backbone).values():
        for path, module in layers_of(stack).named_modules():
            if isinstance(module, nn.Linear):
                found = module.weight.abs().sum(1 if path.rpartition(".")[2] in OUTPUTS else 0)
                if found.shape != scores.shape:
                    raise ValueError(
                        f"init pruned does not know which of its two sides {path} has in common with others"
                    )
                scores += found
    return _largest(scores, kept)


def _linears(module: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear modules right inside a module, by name."""
    return {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}


def _largest(scores: Tensor, count: int) -> Tensor:
    """Return the positions of the `count` largest scores in ascending order, [count]."""
    return scores.topk(count).indices.sort().values


def _copy(small: nn.Linear, full: nn.Linear, rows: Tensor, columns: Tensor) -> None:
    """Copy the chosen rows (outputs) and columns (inputs) of a matrix [out, in], and of its bias."""
    small.weight.copy_(full.weight[rows][:, columns])
    if full.bias is not None:
        small.bias.copy_(full.bias[rows])
