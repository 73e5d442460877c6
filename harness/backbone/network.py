"""The frozen pretrained network. Encoder-decoders and decoder-only networks have the same interface here.

Shapes: N rows, L positions of prompt and text, H hidden width, T target tokens, V vocabulary. A mask is 1 where a
position counts, 0 where it is padding.

Inputs are embeddings with the padding behind the text. A decoder-only network needs it in front, so that the answer
follows the text at once; this file moves it there.
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

from harness.backbone.fast_functions import avoid_host_sync, fast_dropout
from harness.backbone.quantization import Scheme, num_weights
from harness.backbone.record import BackboneRecord
from harness.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}
"""Type of the weights by precision. Under `bfloat16` they stay in float32, and autocast computes products in bfloat16.
What a method trains takes the embedding's type, and 8 bits would lose most steps of size 1e-4 on values near 1."""


class Backbone:
    """A pretrained network whose own weights never change while methods train on it."""

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        record: BackboneRecord | None,
        precision: str,
        quantization: Scheme = "none",
    ) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.record = record
        self.precision = precision
        self.quantization = quantization
        self.recomputes = False
        """Whether layers are computed a second time in the backward pass. A method may switch this off for a while."""
        self._layers: list[Any] = []
        """The layers that can be recomputed."""
        # a method creates its tensors after this, so they alone take gradients
        self.model.requires_grad_(False)
        avoid_host_sync(self.model)
        self._forward = model

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
        """Whether the network has an encoder; else it is decoder-only."""
        return bool(self.config.is_encoder_decoder)

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
        """Id that ends a target. Raises UserError where the tokenizer has none."""
        eos = self.tokenizer.eos_token_id if self.tokenizer is not None else self.config.eos_token_id
        if isinstance(eos, list):  # a configuration may name several
            eos = eos[0] if eos else None
        if eos is None:
            raise UserError(f"the tokenizer of '{self.name}' has no end token, so an answer could never end")
        return int(eos)

    def token_losses(self, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy per target token: embeddings [N, L, H], mask [N, L], target ids [N, T] -> [N, T].

        Labels are -100 behind the end of a target; the loss there is 0.
        """
        return self.cross_entropy(self.target_logits(embeds, mask, labels), labels)

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
    def decode(self, embeds: Tensor, mask: Tensor, max_new_tokens: int) -> Tensor:
        """Write answers greedily: [N, L, H], [N, L] -> ids [N, at most max_new_tokens].

        It stops when every row has written its end token; behind that a row holds padding.
        """
        with self._autocast():
            decode = self._decode_with_encoder if self.is_encoder_decoder else self._decode_alone
            return decode(embeds, mask, max_new_tokens)

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
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
        if wanted != self.is_compiled:
            self._forward = torch.compile(self.model, dynamic=True) if wanted else self.model

    def _dropout(self) -> AbstractContextManager[Any]:
        """Return the context in which dropout is cheap, for training on a CPU; else one that does nothing."""
        on_cpu = self.device.type == "cpu" and self.model.training and not self.is_compiled
        return fast_dropout() if on_cpu else contextlib.nullcontext()

    def target_logits(self, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Return the logits that predict each target token, [N, T, V]; arguments as for `token_losses`."""
        tokens = labels.masked_fill(labels == -100, self.pad_id)  # -100 is no id; these positions have no loss
        teach = self._teach_with_encoder if self.is_encoder_decoder else self._teach_alone
        with self._autocast(), self._dropout(), self._recomputation():
            return teach(embeds, mask, tokens, labels != -100)

    def last_states(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """Return each text's hidden state at its last token, behind the last norm: [N, L, H], [N, L] -> [N, H].

        For decoder-only networks.
        """
        embeds, mask = _pad_left(embeds, mask)
        with self._autocast(), self._dropout(), self._recomputation():
            out = self.model.get_decoder()(
                inputs_embeds=embeds, attention_mask=mask, position_ids=_positions(mask), use_cache=False
            )
        # layers that are spread over several GPUs end on another one than they begin
        return out.last_hidden_state[:, -1].to(embeds.device)  # type: ignore[no-any-return]

    def recompute_layers(self) -> None:
        """From now on keep only each layer's input for the backward pass, and compute the rest of it again there.

        No number changes: PyTorch repeats the random numbers of dropout too. It costs one more forward pass, which is
        half of a step more under frozen weights, and saves the memory of the activations inside the layers.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        self._layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        recompute = functools.partial(checkpoint, use_reentrant=False, context_fn=self._recomputed_within)
        for layer in self._layers:
            layer._gradient_checkpointing_func = recompute
        self.recomputes = True

    def _recomputed_within(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Return the contexts for a layer's first run and for its second.

        The second run comes in the backward pass, outside of the `_dropout()` around the forward pass.
        """
        return contextlib.nullcontext(), self._dropout()

    @contextlib.contextmanager
    def _recomputation(self) -> Iterator[None]:
        """Let the layers recompute, whether or not dropout is on.

        transformers recomputes a layer only in training mode. A layer's own `training` flag decides nothing else, since
        dropout asks that of its own module, so it can be set here and put back.
        """
        if not (self.recomputes and torch.is_grad_enabled()):
            yield
            return
        before = [layer.training for layer in self._layers]
        for layer in self._layers:
            layer.training = layer.gradient_checkpointing = True
        try:
            yield
        finally:
            for layer, training in zip(self._layers, before, strict=True):
                layer.training, layer.gradient_checkpointing = training, False

    def _teach_with_encoder(self, embeds: Tensor, mask: Tensor, tokens: Tensor, is_target: Tensor) -> Tensor:
        """Teacher forcing in an encoder-decoder: [N, L, H], [N, L], ids [N, T], [N, T] -> logits [N, T, V].

        The decoder reads a start token and all targets but the last. Padding stands behind what each position sees, so
        its own mask is not needed.
        """
        start = tokens.new_full((len(tokens), 1), self.config.decoder_start_token_id)
        out = self._forward(
            inputs_embeds=embeds,
            attention_mask=mask,
            decoder_input_ids=torch.cat([start, tokens[:, :-1]], 1),
            use_cache=False,  # every position is computed once, so keys and values would be kept for nothing
        )
        return out.logits  # type: ignore[no-any-return]

    def _teach_alone(self, embeds: Tensor, mask: Tensor, tokens: Tensor, is_target: Tensor) -> Tensor:
        """Teacher forcing in a decoder-only network, which reads text and target as one: shapes as with an encoder."""
        embeds, mask = _pad_left(embeds, mask)
        target = self.embedding(tokens[:, :-1]).to(embeds.dtype)  # the last target is predicted and never read
        full_mask = torch.cat([mask, is_target[:, :-1].to(mask.dtype)], 1)
        out = self._forward(
            inputs_embeds=torch.cat([embeds, target], 1),
            attention_mask=full_mask,
            position_ids=_positions(full_mask),
            use_cache=False,
            logits_to_keep=tokens.shape[1],  # the last token of the text predicts the first target
        )
        return out.logits  # type: ignore[no-any-return]

    def _decode_with_encoder(self, embeds: Tensor, mask: Tensor, max_new_tokens: int) -> Tensor:
        """Decode with an encoder-decoder: [N, L, H], [N, L] -> [N, at most max_new_tokens]."""
        encoded = self.model.get_encoder()(inputs_embeds=embeds, attention_mask=mask)
        last = torch.full((len(embeds), 1), self.config.decoder_start_token_id, device=embeds.device)
        cache = None

        def step(tokens: Tensor) -> Tensor:
            nonlocal cache
            out = self.model(
                encoder_outputs=encoded,
                attention_mask=mask,
                decoder_input_ids=tokens,
                use_cache=True,
                **{self.cache_keyword: cache},
            )
            cache = out[self.cache_keyword]
            return out.logits[:, -1]  # type: ignore[no-any-return]

        return self._greedy(step, step(last), max_new_tokens)

    def _decode_alone(self, embeds: Tensor, mask: Tensor, max_new_tokens: int) -> Tensor:
        """Decode with a decoder-only network: [N, L, H], [N, L] -> [N, at most max_new_tokens]."""
        embeds, mask = _pad_left(embeds, mask)
        # logits of the last position only: those of all would be 4 GB for 32 texts of 256 tokens and V = 128,256
        out = self.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=_positions(mask), use_cache=True, logits_to_keep=1
        )
        cache = out[self.cache_keyword]
        full_mask = mask

        def step(tokens: Tensor) -> Tensor:
            nonlocal full_mask
            full_mask = torch.cat([full_mask, full_mask.new_ones(len(tokens), 1)], 1)
            out = self.model(
                input_ids=tokens,
                attention_mask=full_mask,
                position_ids=_positions(full_mask)[:, -1:],
                use_cache=True,
                **{self.cache_keyword: cache},
            )
            return out.logits[:, -1]  # type: ignore[no-any-return]

        return self._greedy(step, out.logits[:, -1], max_new_tokens)

    def _greedy(self, step: Any, logits: Tensor, max_new_tokens: int) -> Tensor:
        """Take the most likely token until each row has written its end or the limit is reached.

        `logits` [N, V] predict the first token; `step` reads the last tokens [N, 1] and returns the next logits [N, V].
        """
        finished = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        written: list[Tensor] = []
        while True:
            token = logits.argmax(-1).masked_fill(finished, self.pad_id)
            written.append(token)
            finished |= token == self.eos_id
            # here the host waits for the device, once per token; without it every answer would take the full length
            if len(written) == max_new_tokens or bool(finished.all()):
                return torch.stack(written, 1)
            logits = step(token[:, None])


@functools.cache
def _cache_keyword() -> str:
    """Return `cache` or `past_key_values`, whichever this transformers uses in its outputs.

    The name is `cache` since 5.24, and 5.40 is to remove the other one.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPast

    return "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"


def _pad_left(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of rows from behind the text to the front: [N, L, H], [N, L] -> [N, L, H], [N, L]."""
    length = mask.shape[1]
    # each row is rotated by the number of its padding positions, which keeps the order of its tokens
    shift = length - mask.sum(1, keepdim=True)
    index = (torch.arange(length, device=mask.device)[None] - shift) % length
    return embeds.gather(1, index[..., None].expand_as(embeds)), mask.gather(1, index)


def _positions(mask: Tensor) -> Tensor:
    """Return each token's position, counted without padding in front: mask [N, L] -> [N, L]."""
    return (mask.cumsum(1) - 1).clamp(min=0)
