"""The frozen pretrained network. Encoder-decoders, decoder-only networks and encoders have the same interface here.

Shapes: N rows, L positions of prompt and text, H width of embeddings, W width of the last states, T target tokens,
V vocabulary. A mask is 1 where a position counts, 0 where it is padding.

Inputs are embeddings with the padding behind the text. What the kinds of network do differently is in
`harness.backbone.network_kinds`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.backbone import continuations, packed_rows, shared_prefix
from harness.backbone.continuations import Contexts
from harness.backbone.fast_functions import avoid_host_sync, fast_dropout
from harness.backbone.network_kinds import NetworkKind, Pooling, kind_of
from harness.backbone.quantization import Scheme, num_weights
from harness.backbone.record import BackboneRecord
from harness.backbone.shared_prefix import Prefixes, RowPrefixes
from harness.backbone.writing import Follow, Reader, Writing, greedy
from harness.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}
"""Type of the weights by precision. Under `bfloat16` they stay in float32, and autocast computes products in bfloat16.
What a method trains takes the embedding's type, and 8 bits would lose most steps of size 1e-4 on values near 1."""


TRIAL_LENGTHS = (9, 6)
"""Tokens of two rows that are tried in both ways before rows are packed. With answers they are 18 positions, and 15
without: no multiple of 8, as numbers of heads mostly are."""


class CannotWrite(ValueError):
    """The network reads texts but cannot write an answer token by token."""


class Backbone:
    """A pretrained network whose own weights never change while methods train on it.

    Raises UserError for one that cannot read vectors in the place of tokens.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        record: BackboneRecord | None,
        precision: str,
        quantization: Scheme = "none",
    ) -> None:
        if getattr(model.config.get_text_config(), "hidden_size_per_layer_input", 0):
            # a prompt's vectors stand for no token, and transformers looks ids up by comparing whole embedding tables
            raise UserError(f"'{name}' reads token ids in every layer (embeddings per layer); here it is given vectors")
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.record = record
        self.precision = precision
        self.quantization = quantization
        self.kind: NetworkKind = kind_of(model.config)
        """What is particular to this kind of network."""
        self.recomputes = False
        """Whether layers are computed a second time in the backward pass. A method may switch this off for a while."""
        self._packs = False
        """Whether rows are packed in training at present; see `packed`."""
        self._layers: list[Any] = []
        """The layers that can be recomputed."""
        # a method creates its tensors after this, so they alone take gradients
        self.model.requires_grad_(False)
        avoid_host_sync(self.model)
        self._forward = model
        self._selection = _Selection()
        self._selection_handle: Any = None

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.model.config

    @property
    def embedding(self) -> nn.Embedding:
        """Token embedding, weight [V, H]."""
        embedding = self.model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        return embedding

    @property
    def hidden(self) -> int:
        """Width H of the embeddings."""
        return int(self.embedding.weight.shape[1])

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the network reads with an encoder and writes with a decoder."""
        return self.kind.name == "encoder-decoder"

    @property
    def writes_text(self) -> bool:
        """Whether the network can write an answer; an encoder cannot."""
        return self.kind.writes_text

    @property
    def state_width(self) -> int:
        """Width W of the states that layers pass on, and of `text_states`. ELECTRA-small embeds in fewer numbers."""
        return self.hidden if self.writes_text else int(self.config.hidden_size)

    @property
    def cache_keyword(self) -> str:
        """Name under which the network takes, and returns, the keys and values that it has computed."""
        return _cache_keyword()

    @property
    def device(self) -> torch.device:
        """Where inputs belong: the device of the embedding. Layers may be spread over several."""
        return self.embedding.weight.device

    @torch.no_grad()
    def token_vectors(self, ids: Tensor) -> Tensor:
        """Return what the network reads for token ids: [...] -> [..., H], a copy without gradient.

        These are not always rows of the embedding's weight: Gemma multiplies those by sqrt(H), BART by a factor of its
        configuration.
        """
        vectors: Tensor = self.embedding(ids.to(self.device))
        return vectors.detach().clone()

    @property
    def num_params(self) -> int:
        """Number of weights, also where several share a byte."""
        return sum(num_weights(p) for p in self.model.parameters())

    @property
    def pad_id(self) -> int:
        """Id that fills unused positions. These are masked, so any id that has an embedding will do.

        The end token's id is taken where there is no padding token, or one that was added to the tokenizer only.
        """
        pad = getattr(self.tokenizer, "pad_token_id", None)
        return int(pad) if pad is not None and pad < self.embedding.num_embeddings else self.eos_id

    @property
    def eos_id(self) -> int:
        """Id that ends a target, or a text of an encoder. Raises UserError where the tokenizer has none."""
        eos = self.tokenizer.eos_token_id if self.tokenizer is not None else self.config.eos_token_id
        if eos is None and not self.writes_text:  # BERT's tokenizer ends a text with its separator
            # without a tokenizer only parameters are counted, and any id of the configuration will do
            eos = self.config.pad_token_id if self.tokenizer is None else self.tokenizer.sep_token_id
        if isinstance(eos, list):  # a configuration may name several
            eos = eos[0] if eos else None
        if eos is None:
            raise UserError(f"the tokenizer of '{self.name}' has no end token, so an answer could never end")
        return int(eos)

    def token_losses(self, embeds: Tensor, mask: Tensor, labels: Tensor, prefixes: RowPrefixes | None = None) -> Tensor:
        """Return the cross-entropy per target token: embeddings [N, L, H], mask [N, L], target ids [N, T] -> [N, T].

        Labels are -100 behind the end of a target; the loss there is 0. `prefixes` stand in front of a decoder's rows.
        """
        return self.cross_entropy(self.target_logits(embeds, mask, labels, prefixes), labels)

    @staticmethod
    def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return cross-entropy per token: logits [N, T, V], labels [N, T] -> [N, T], 0 where a label is -100.

        `label_smoothing` is the share of a target's weight that is spread evenly over all V tokens.
        """
        # at least in float32: in bfloat16, with 8 bits, a loss between 1 and 2 would move in steps of 1/128
        flat = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(
            flat, labels.flatten(), ignore_index=-100, reduction="none", label_smoothing=label_smoothing
        )
        return losses.view(labels.shape)

    @torch.no_grad()
    def decode(self, embeds: Tensor, mask: Tensor, max_new_tokens: int, prefixes: RowPrefixes | None = None) -> Tensor:
        """Write answers greedily: [N, L, H], [N, L] -> ids [N, at most max_new_tokens].

        It stops when every row has written its end token; behind that a row holds padding.
        """
        return self.write(embeds, mask, Writing(max_new_tokens, (self.eos_id,)), prefixes)

    @torch.no_grad()
    def write(
        self,
        embeds: Tensor,
        mask: Tensor,
        writing: Writing,
        prefixes: RowPrefixes | None = None,
        follow: Follow | None = None,
    ) -> Tensor:
        """Write answers as `writing` says: [N, L, H], [N, L] -> ids [N, at most its max_new_tokens].

        Behind its end a row holds padding. With `follow` rows may leave, or become several beams: it is told which are
        read from then on. Raises CannotFollow where beams are wanted and it says no.
        """
        with self.autocast():
            return self._kind(prefixes).decode(self, embeds, mask, writing, follow)

    def shares_contexts(self, num_positions: int) -> bool:
        """Whether a context may be read once for several texts behind it, in the present mode of the network.

        `num_positions` are the most of prompt, context and text together.
        """
        return self.is_encoder_decoder or self.shares_prompts(num_positions)

    @torch.no_grad()
    def read_contexts(self, embeds: Tensor, mask: Tensor, prefixes: RowPrefixes | None = None) -> Contexts:
        """Read N contexts, [N, L, H] and [N, L], once for all texts that `continuation_losses` puts behind them."""
        with self.autocast():
            return continuations.read(self, embeds, mask, prefixes)

    @torch.no_grad()
    def continuation_losses(self, contexts: Contexts, rows: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of each token of M texts, [M, T]: the context of each [M], ids [M, T].

        Labels are -100 behind the end of a text; the loss there is 0. It is what `token_losses` gives for whole rows.
        """
        tokens = labels.masked_fill(labels == -100, self.pad_id)
        with self.autocast():
            logits = contexts.target_logits(self, rows, tokens, labels != -100)
        return self.cross_entropy(logits, labels)

    def _kind(self, prefixes: RowPrefixes | None) -> NetworkKind:
        """How rows are laid out: as the network's kind has it, packed, or behind prompts that have been read."""
        if prefixes is not None:
            return shared_prefix.BehindPrefixes(prefixes)
        return packed_rows.PACKED[self.kind.name] if self._packs else self.kind

    @property
    def takes_packed_rows(self) -> bool:
        """Whether the network can train on rows without the padding between them, in its present state.

        Packing asks the device where rows end. A processor has the answer at once; a GPU would be waited for.
        """
        return self.device.type == "cpu" and not self.is_compiled and self._can_pack

    @functools.cached_property
    def _can_pack(self) -> bool:
        has_other_memory = self.kind.name == "decoder" and not self.takes_prefixes
        return (
            not has_other_memory
            and packed_rows.takes_packed_rows(self.model, self.kind.name)
            and self._gives_the_same_packed()
        )

    @torch.no_grad()
    def _gives_the_same_packed(self) -> bool:
        """Try two short rows in both ways: a network that mixes positions somewhere else is found out here."""
        modes = [(module, module.training) for module in self.model.modules()]
        for module, _ in modes:
            module.training = False
        embeds = self.token_vectors(torch.arange(2 * TRIAL_LENGTHS[0]).view(2, -1) % self.embedding.num_embeddings)
        mask = (torch.arange(TRIAL_LENGTHS[0])[None] < torch.tensor(TRIAL_LENGTHS)[:, None]).long()
        labels = torch.tensor([[0, 1, 0], [1, 0, -100]])
        found: list[Tensor] = []
        try:
            for wanted in (False, True):
                with self.packed(wanted):
                    if self.writes_text:
                        found.append(self.target_logits(embeds, mask, labels)[labels != -100])
                    else:
                        found.append(self.text_states(embeds, mask, "mean"))
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
        finally:
            for module, mode in modes:
                module.training = mode
        padded, packed = found
        # bfloat16 has 8 bits, and rounds sums of another order differently
        tolerance = 0.05 if torch.bfloat16 in (packed.dtype, *(p.dtype for p in self.model.parameters())) else 1e-3
        return bool((padded - packed).abs().max() <= tolerance * padded.abs().max())

    @contextlib.contextmanager
    def packed(self, wanted: bool) -> Iterator[None]:
        """Within this context losses and states come from packed rows, if that is `wanted`.

        They are the same but for rounding, and for what dropout draws.
        What methods put into the layers then gets all rows as one, [1, M, W]: it has to treat each position by itself.
        """
        before, self._packs = self._packs, wanted
        try:
            yield
        finally:
            self._packs = before

    @functools.cached_property
    def takes_prefixes(self) -> bool:
        """Whether keys and values may be put in front of rows in every layer: a decoder without other states."""
        return self.kind.name == "decoder" and shared_prefix.keeps_keys_and_values(self.model, self.cache_keyword)

    def shares_prompts(self, num_positions: int) -> bool:
        """Whether prompts may be read apart from the texts behind them, in the present mode of the network.

        `num_positions` are the most of prompt, text and answer together. Where the network drops something in training,
        each row draws its own, also in front of its text: there prompts stay with their rows.
        """
        if not self.takes_prefixes or num_positions > self._longest_rope:
            return False
        return not (self.model.training and self.has_dropout)

    @functools.cached_property
    def _longest_rope(self) -> float:
        return shared_prefix.longest_rope(self.model)

    @functools.cached_property
    def has_dropout(self) -> bool:
        """Whether the network drops anything in training mode."""
        return shared_prefix.has_dropout(self.model)

    def read_prompts(self, prompts: Tensor, mask: Tensor, grad: bool) -> Prefixes:
        """Read G prompts, [G, P, H] and [G, P] with the padding in front, for the rows that will stand behind them."""
        with self.autocast(), self._dropout(), self._recomputation():
            return shared_prefix.read_prompts(self, prompts, mask, grad)

    @contextlib.contextmanager
    def kept_positions(self, positions: Tensor) -> Iterator[None]:
        """Compute logits at these positions only, [N, T], inside the context: those of all would fill the memory."""
        head = self.model.get_output_embeddings()
        # a compiled graph would be made anew for each hook, so there it stays until compilation ends
        handle = None if self.is_compiled else head.register_forward_pre_hook(self._selection)
        self._selection.positions = positions
        try:
            yield
        finally:
            self._selection.positions = None
            if handle is not None:
                handle.remove()

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute products in bfloat16 where that is the precision."""
        if self.precision != "bfloat16":
            yield
            return
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            yield

    @property
    def is_compiled(self) -> bool:
        """Whether training goes through a compiled forward pass."""
        return self._forward is not self.model

    def compile(self, wanted: bool) -> None:
        """Switch compilation of the forward pass in training on or off. Decoding is never compiled.

        A compiled pass does not see what methods put inside the layers. Lengths stay symbolic, so that micro-batches of
        all sizes share one graph; each new size would else be compiled anew.
        """
        if wanted == self.is_compiled:
            return
        self._forward = torch.compile(self.model, dynamic=True) if wanted else self.model
        if self._selection_handle is not None:
            self._selection_handle.remove()
            self._selection_handle = None
        elif self.kind.name == "decoder":
            self._selection_handle = self.model.get_output_embeddings().register_forward_pre_hook(self._selection)

    def _dropout(self) -> AbstractContextManager[Any]:
        """Return the context in which dropout is cheap, for training on a CPU; else one that does nothing."""
        on_cpu = self.device.type == "cpu" and self.model.training and not self.is_compiled
        return fast_dropout() if on_cpu else contextlib.nullcontext()

    def target_logits(
        self, embeds: Tensor, mask: Tensor, labels: Tensor, prefixes: RowPrefixes | None = None
    ) -> Tensor:
        """Return the logits that predict each target token, [N, T, V]; arguments as for `token_losses`."""
        tokens = labels.masked_fill(labels == -100, self.pad_id)  # -100 is no id; these positions have no loss
        with self.autocast(), self._dropout(), self._recomputation():
            return self._kind(prefixes).target_logits(self, embeds, mask, tokens, labels != -100)

    def text_states(
        self,
        embeds: Tensor,
        mask: Tensor,
        pooling: Pooling = "first",
        prompts: Tensor | None = None,
        prefixes: RowPrefixes | None = None,
    ) -> Tensor:
        """Return one state for each text, behind the last norm: [N, L, H], [N, L] -> [N, W].

        A decoder-only network gives that of the last token. An encoder gives that of the first, or a mean (`pooling`)
        which leaves out the `prompts` [N] positions behind the first.
        """
        with self.autocast(), self._dropout(), self._recomputation():
            states = self._kind(prefixes).text_states(self, embeds, mask, pooling, prompts)
        # layers that are spread over several GPUs end on another one than they begin
        return states.to(embeds.device)

    def forward_pass(self, **inputs: Any) -> Any:
        """Run the model as in training: compiled, if that is switched on."""
        return self._forward(**inputs)

    def recompute_layers(self) -> None:
        """From now on keep only each layer's input for the backward pass, and compute the rest of it again there.

        No number changes: PyTorch repeats the random numbers of dropout too. It costs one more forward pass, which is
        half of a step more under frozen weights, and saves the memory of the activations inside the layers.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        self._layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        self.recomputes = True

    def _recomputed_within(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Return the contexts for a layer's first run and for its second.

        The second run comes in the backward pass, outside of what is around the forward pass: `_dropout()`, and how
        rows are packed.
        """
        packing = packed_rows.present_packing()
        layout = contextlib.nullcontext() if packing is None else packing.active(self.model)
        return contextlib.nullcontext(), _both(self._dropout(), layout)

    @contextlib.contextmanager
    def _recomputation(self) -> Iterator[None]:
        """Let the layers recompute, whether or not dropout is on.

        transformers' own way recomputes in training mode only, and takes the cache away from a layer, without which
        rows would lose the prompts in front of them. So each layer's `forward` is exchanged for the time of a pass.
        """
        if not (self.recomputes and torch.is_grad_enabled()):
            yield
            return
        before = [vars(layer).get("forward") for layer in self._layers]
        for layer in self._layers:
            forward = layer.forward
            vars(layer)["forward"] = functools.partial(
                checkpoint, forward, use_reentrant=False, context_fn=self._recomputed_within
            )
        try:
            yield
        finally:
            for layer, own in zip(self._layers, before, strict=True):
                if own is None:
                    del vars(layer)["forward"]
                else:
                    vars(layer)["forward"] = own

    def cache_of(self, out: Any) -> Any:
        """Return the keys and values in a network's output. Raises CannotWrite where it gives none."""
        cache = out.get(self.cache_keyword)
        if cache is None:
            raise CannotWrite(
                f"{type(self.model).__name__} gives no stored keys and values ({self.cache_keyword}), so it cannot "
                "write an answer token by token; networks without attention are not supported"
            )
        return cache

    def greedy(self, read: Reader, logits: Tensor, writing: Writing, follow: Follow | None) -> Tensor:
        """Take the most likely tokens, ids [N, T]; see `harness.backbone.writing.greedy`."""
        return greedy(read, logits, writing, self.tokenizer, self.pad_id, follow)


class _Selection:
    """A hook in front of the output head that takes the states at some positions: [N, L, W] -> [N, T, W]."""

    positions: Tensor | None = None
    """[N, T], or None for all."""

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.positions is None:
            return None
        states = args[0]
        index = self.positions.to(states.device)[..., None].expand(-1, -1, states.shape[-1])
        return states.gather(1, index), *args[1:]


@contextlib.contextmanager
def _both(outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> Iterator[None]:
    with outer, inner:
        yield


@functools.cache
def _cache_keyword() -> str:
    """Return `cache` or `past_key_values`, whichever this transformers uses in its outputs.

    The name is `cache` since 5.24, and 5.40 is to remove the other one.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPast

    return "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
