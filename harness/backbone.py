"""The frozen pretrained network: encoder-decoder and decoder-only behind one face.

Shapes: N rows, L positions, H hidden width, T target tokens, V vocabulary.
Inputs are right-padded embeddings; where a decoder needs left padding, it is made here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.attention import avoid_host_sync
from harness.dropout import fast_dropout
from harness.errors import UserError
from harness.quantization import Scheme, num_weights
from harness.schema import BackboneRecord

DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}
"""Weights are held in float32 under bfloat16, which is autocast around the forward pass."""


class Backbone:
    """A pretrained network whose own weights never change while a method is trained."""

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
        """Whether layers are computed anew in the backward pass; may be switched off for a while."""
        self._layers: list[Any] = []
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
        return bool(self.config.is_encoder_decoder)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @torch.no_grad()
    def token_vectors(self, ids: Tensor) -> Tensor:
        """Token ids of any shape [...] -> what the network reads for them, [..., H], detached and of its own memory.

        Not rows of the embedding's weight: some networks scale those (Gemma by sqrt(H), BART by its configuration).
        """
        vectors: Tensor = self.embedding(ids.to(self.device))
        return vectors.detach().clone()

    @property
    def num_params(self) -> int:
        return sum(num_weights(p) for p in self.model.parameters())

    @property
    def pad_id(self) -> int:
        """Id that fills unused positions; any id with an embedding serves, since they are masked.

        A padding token that was added to the tokenizer alone has none.
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
        """[N, L, H], [N, L], [N, T] with -100 behind the end -> cross-entropy per target token, [N, T]."""
        return self.cross_entropy(self.target_logits(embeds, mask, labels), labels)

    @staticmethod
    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        """[N, T, V], [N, T] -> [N, T], 0 where the label is -100."""
        flat = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(flat, labels.flatten(), ignore_index=-100, reduction="none").view(labels.shape)

    @torch.no_grad()
    def decode(self, embeds: Tensor, mask: Tensor, max_new_tokens: int) -> Tensor:
        """Greedy decoding, [N, L, H], [N, L] -> [N, <=max_new_tokens]; stops when every row has ended."""
        with self._autocast():
            steps = self._decode_with_encoder if self.is_encoder_decoder else self._decode_alone
            return steps(embeds, mask, max_new_tokens)

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        if self.precision != "bfloat16":
            yield
            return
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            yield

    @property
    def is_compiled(self) -> bool:
        return self._forward is not self.model

    def compile(self, wanted: bool) -> None:
        """Train through a compiled forward pass from now on, or not; what stands inside the layers is not seen by it.

        Lengths stay symbolic: micro-batches of all sizes share one graph. Decoding is left as it is.
        """
        if wanted != self.is_compiled:
            self._forward = torch.compile(self.model, dynamic=True) if wanted else self.model

    def _dropout(self) -> AbstractContextManager[Any]:
        """On a CPU in training, the context in which dropout is cheap."""
        on_cpu = self.device.type == "cpu" and self.model.training and not self.is_compiled
        return fast_dropout() if on_cpu else contextlib.nullcontext()

    def target_logits(self, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Logits [N, T, V] that predict each target token; arguments as for `token_losses`."""
        tokens = labels.masked_fill(labels == -100, self.pad_id)
        teach = self._teach_with_encoder if self.is_encoder_decoder else self._teach_alone
        with self._autocast(), self._dropout(), self._recomputation():
            return teach(embeds, mask, tokens, labels != -100)

    def last_states(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """Hidden state of each text's last token behind the last norm, [N, L, H], [N, L] -> [N, H]; decoders only."""
        embeds, mask = _pad_left(embeds, mask)
        with self._autocast(), self._dropout(), self._recomputation():
            out = self.model.get_decoder()(
                inputs_embeds=embeds, attention_mask=mask, position_ids=_positions(mask), use_cache=False
            )
        return out.last_hidden_state[:, -1].to(embeds.device)  # type: ignore[no-any-return]

    def recompute_layers(self) -> None:
        """From now on keep only each layer's input for the backward pass; no number changes, dropout included."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        self._layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        recompute = partial(checkpoint, use_reentrant=False, context_fn=self._recomputed_within)
        for layer in self._layers:
            layer._gradient_checkpointing_func = recompute
        self.recomputes = True

    def _recomputed_within(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """What a layer runs in at first, beside what is around it, and when it is recomputed."""
        return contextlib.nullcontext(), self._dropout()

    @contextlib.contextmanager
    def _recomputation(self) -> Iterator[None]:
        """Recompute the layers, with or without dropout: they ask their own `training` for nothing else."""
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
        start = tokens.new_full((len(tokens), 1), self.config.decoder_start_token_id)
        out = self._forward(
            inputs_embeds=embeds,
            attention_mask=mask,
            decoder_input_ids=torch.cat([start, tokens[:, :-1]], 1),
            use_cache=False,
        )
        return out.logits  # type: ignore[no-any-return]

    def _teach_alone(self, embeds: Tensor, mask: Tensor, tokens: Tensor, is_target: Tensor) -> Tensor:
        embeds, mask = _pad_left(embeds, mask)
        target = self.embedding(tokens[:, :-1]).to(embeds.dtype)
        full_mask = torch.cat([mask, is_target[:, :-1].to(mask.dtype)], 1)
        out = self._forward(
            inputs_embeds=torch.cat([embeds, target], 1),
            attention_mask=full_mask,
            position_ids=_positions(full_mask),
            use_cache=False,
            logits_to_keep=tokens.shape[1],
        )
        return out.logits  # type: ignore[no-any-return]

    def _decode_with_encoder(self, embeds: Tensor, mask: Tensor, max_new_tokens: int) -> Tensor:
        encoded = self.model.get_encoder()(inputs_embeds=embeds, attention_mask=mask)
        last = torch.full((len(embeds), 1), self.config.decoder_start_token_id, device=embeds.device)
        cache = None

        def step(tokens: Tensor) -> Tensor:
            nonlocal cache
            out = self.model(
                encoder_outputs=encoded,
                attention_mask=mask,
                decoder_input_ids=tokens,
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
            return out.logits[:, -1]  # type: ignore[no-any-return]

        return self._greedy(step, step(last), max_new_tokens)

    def _decode_alone(self, embeds: Tensor, mask: Tensor, max_new_tokens: int) -> Tensor:
        embeds, mask = _pad_left(embeds, mask)
        out = self.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=_positions(mask), use_cache=True, logits_to_keep=1
        )
        cache = out.past_key_values
        full_mask = mask

        def step(tokens: Tensor) -> Tensor:
            nonlocal full_mask
            full_mask = torch.cat([full_mask, full_mask.new_ones(len(tokens), 1)], 1)
            out = self.model(
                input_ids=tokens,
                attention_mask=full_mask,
                position_ids=_positions(full_mask)[:, -1:],
                past_key_values=cache,
                use_cache=True,
            )
            return out.logits[:, -1]  # type: ignore[no-any-return]

        return self._greedy(step, out.logits[:, -1], max_new_tokens)

    def _greedy(self, step: Any, logits: Tensor, max_new_tokens: int) -> Tensor:
        """Extend by the most likely token until each row has written its end or the limit is reached."""
        finished = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        written: list[Tensor] = []
        while True:
            token = logits.argmax(-1).masked_fill(finished, self.pad_id)
            written.append(token)
            finished |= token == self.eos_id
            if len(written) == max_new_tokens or bool(finished.all()):
                return torch.stack(written, 1)
            logits = step(token[:, None])


def _pad_left(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of right-padded rows to the front."""
    length = mask.shape[1]
    shift = length - mask.sum(1, keepdim=True)
    index = (torch.arange(length, device=mask.device)[None] - shift) % length
    return embeds.gather(1, index[..., None].expand_as(embeds)), mask.gather(1, index)


def _positions(mask: Tensor) -> Tensor:
    """Position of each token counted without padding, [N, L]."""
    return (mask.cumsum(1) - 1).clamp(min=0)
