"""The kinds of network: how a text is laid out, what training predicts, how an answer comes about.

There are three. `harness.backbone.network.Backbone` has one of them, chosen from the configuration, and hands over to
it. Nothing else asks which one it is where the answer can be an attribute of the kind.

- An encoder-decoder such as T5 reads prompt and text with one stack, padding behind the text, and writes with another.
- A decoder-only network such as Llama reads prompt, text and answer as one. Inputs come with the padding behind the
  text. The answer has to follow the text at once, so padding is moved to the front. Where the prompts have been read
  before, `harness.backbone.shared_prefix` puts the answer behind each text instead.
- In an encoder such as BERT every token sees every other, and a linear head reads the answer off one state of the text.
  A text stands between two special tokens, [CLS] and [SEP] or what the tokenizer has in their place. A prompt goes
  behind the first, so that this one stays where pretraining had it. Padding stays on the right, where it needs no
  positions of its own: the network numbers positions itself, RoBERTa from the padding id + 1 on. Segment ids are left
  to the network, which takes 0: the two texts of a pair are one text here, as for the other kinds.

Shapes: N rows, L positions of prompt and text, H width of embeddings, W width of the last states, T target tokens,
V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from harness.backbone.names import is_encoder_config
from harness.backbone.writing import Follow, Reader, Writing, beam_search, keep_stored_rows, stored_by_row

KindName = Literal["encoder-decoder", "decoder", "encoder"]
Pooling = Literal["first", "mean"]
"""Where a linear head reads an encoder: at the first token, or as the mean over the tokens of the text."""


class Network(Protocol):
    """What a kind may use of a backbone."""

    @property
    def model(self) -> Any:
        """The transformers model."""

    @property
    def config(self) -> Any:
        """Its configuration."""

    @property
    def embedding(self) -> nn.Embedding:
        """Token embedding, weight [V, H]."""

    @property
    def cache_keyword(self) -> str:
        """Name of the argument that takes stored keys and values."""

    @property
    def has_dropout(self) -> bool:
        """Whether the model drops anything in training mode."""

    def cache_of(self, out: Any) -> Any:
        """Return the keys and values in the model's output."""

    def forward_pass(self, **inputs: Any) -> Any:
        """Run the model as in training, compiled if that is switched on."""

    def kept_positions(self, positions: Tensor) -> AbstractContextManager[None]:
        """Compute logits at these positions only, [N, T], inside the context."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""

    @property
    def pad_id(self) -> int:
        """Id that fills unused positions."""

    def greedy(self, read: Reader, logits: Tensor, writing: Writing, follow: Follow | None) -> Tensor:
        """Take likely tokens until all rows have ended; `logits` [N, V] predict the first, `read` gives the next."""


class NetworkKind:
    """One kind of network. A subclass says what differs; the defaults are those of a network that writes text."""

    name: ClassVar[KindName]
    auto_class: ClassVar[str]
    """The class of transformers that loads such a checkpoint."""
    writes_text: ClassVar[bool] = True
    """Whether it can write an answer; else a head has to read one off its states."""
    has_text_states: ClassVar[bool] = True
    """Whether there is a state of the whole text that a linear head can read."""
    head_has_bias: ClassVar[bool] = False
    """Whether a linear head has a bias, as in transformers' classifiers for this kind."""
    prompt_start: ClassVar[int] = 0
    """Position at which a prompt begins: that many tokens of the text stay in front of it."""
    pads_left: ClassVar[bool] = False
    """Whether padding stands in front of the text while the network runs. An added table then counts from the end."""
    text_suffix: ClassVar[str] = ""
    """Put behind the source text."""
    text_marks: ClassVar[Literal["as they are", "begin", "both"]] = "as they are"
    """Which special tokens frame a text. With `begin` and `both` a text that spells one itself loses it."""

    def target_logits(
        self, network: Network, embeds: Tensor, mask: Tensor, tokens: Tensor, is_target: Tensor
    ) -> Tensor:
        """Teacher forcing: [N, L, H], [N, L], target ids [N, T], which of them count [N, T] -> logits [N, T, V]."""
        raise TypeError(f"a network of the kind '{self.name}' writes no text, so it has no logits of tokens")

    def decode(
        self, network: Network, embeds: Tensor, mask: Tensor, writing: Writing, follow: Follow | None = None
    ) -> Tensor:
        """Write answers: [N, L, H], [N, L] -> ids [N, at most writing.max_new_tokens]. `follow` hears of rows."""
        raise TypeError(f"a network of the kind '{self.name}' writes no text")

    def text_states(
        self, network: Network, embeds: Tensor, mask: Tensor, pooling: Pooling, prompts: Tensor | None
    ) -> Tensor:
        """Return one state for each text: [N, L, H], [N, L], prompt lengths [N] or None -> [N, W]."""
        raise TypeError(f"a network of the kind '{self.name}' has no state of the whole text")


class EncoderDecoder(NetworkKind):
    """Reads with one stack and writes with another."""

    name = "encoder-decoder"
    auto_class = "AutoModelForSeq2SeqLM"
    has_text_states = False

    def target_logits(
        self, network: Network, embeds: Tensor, mask: Tensor, tokens: Tensor, is_target: Tensor
    ) -> Tensor:
        """[N, L, H], [N, L], ids [N, T], [N, T] -> logits [N, T, V].

        The decoder reads a start token and all targets but the last. Padding stands behind what each position sees, so
        its own mask is not needed.
        """
        start = tokens.new_full((len(tokens), 1), network.config.decoder_start_token_id)
        out = network.forward_pass(
            inputs_embeds=embeds,
            attention_mask=mask,
            decoder_input_ids=torch.cat([start, tokens[:, :-1]], 1),
            use_cache=False,  # every position is computed once, so keys and values would be kept for nothing
        )
        return out.logits  # type: ignore[no-any-return]

    def decode(
        self, network: Network, embeds: Tensor, mask: Tensor, writing: Writing, follow: Follow | None = None
    ) -> Tensor:
        """[N, L, H], [N, L] -> ids [N, at most writing.max_new_tokens]."""
        encoded = network.model.get_encoder()(inputs_embeds=embeds, attention_mask=mask)
        if writing.num_beams > 1:
            inputs = {"encoder_outputs": encoded, "attention_mask": mask}
            return beam_search(network, writing, follow, len(embeds), **inputs)[:, 1:]  # the first is the start token
        last = torch.full((len(embeds), 1), network.config.decoder_start_token_id, device=embeds.device)
        read = Answering(network, encoded, mask)
        return network.greedy(read, read(last), writing, follow)


class DecoderOnly(NetworkKind):
    """Reads a text and goes on writing."""

    name = "decoder"
    auto_class = "AutoModelForCausalLM"
    pads_left = True
    text_suffix = " Label : "  # as in DePT's code
    text_marks = "begin"

    def target_logits(
        self, network: Network, embeds: Tensor, mask: Tensor, tokens: Tensor, is_target: Tensor
    ) -> Tensor:
        """[N, L, H], [N, L], ids [N, T], [N, T] -> logits [N, T, V]."""
        embeds, mask = _pad_left(embeds, mask)
        target = network.embedding(tokens[:, :-1]).to(embeds.dtype)  # the last target is predicted and never read
        full_mask = torch.cat([mask, is_target[:, :-1].to(mask.dtype)], 1)
        out = network.forward_pass(
            inputs_embeds=torch.cat([embeds, target], 1),
            attention_mask=full_mask,
            position_ids=positions_of(full_mask),
            use_cache=False,
            logits_to_keep=tokens.shape[1],  # the last token of the text predicts the first target
        )
        return out.logits  # type: ignore[no-any-return]

    def decode(
        self, network: Network, embeds: Tensor, mask: Tensor, writing: Writing, follow: Follow | None = None
    ) -> Tensor:
        """[N, L, H], [N, L] -> ids [N, at most writing.max_new_tokens]."""
        embeds, mask = _pad_left(embeds, mask)
        if writing.num_beams > 1:
            return beam_search(network, writing, follow, len(embeds), inputs_embeds=embeds, attention_mask=mask)
        # logits of the last position only: those of all would be 4 GB for 32 texts of 256 tokens and V = 128,256
        out = network.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions_of(mask), use_cache=True, logits_to_keep=1
        )
        return network.greedy(Continuation(network, network.cache_of(out), mask), out.logits[:, -1], writing, follow)

    def text_states(
        self, network: Network, embeds: Tensor, mask: Tensor, pooling: Pooling, prompts: Tensor | None
    ) -> Tensor:
        """[N, L, H], [N, L] -> [N, H]: the state at the last token, the only one that has seen the whole text."""
        embeds, mask = _pad_left(embeds, mask)
        out = network.model.get_decoder()(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions_of(mask), use_cache=False
        )
        return out.last_hidden_state[:, -1]  # type: ignore[no-any-return]


class EncoderOnly(NetworkKind):
    """Reads a text and writes nothing."""

    name = "encoder"
    auto_class = "AutoModel"
    writes_text = False
    head_has_bias = True
    prompt_start = 1
    text_marks = "both"

    def text_states(
        self, network: Network, embeds: Tensor, mask: Tensor, pooling: Pooling, prompts: Tensor | None
    ) -> Tensor:
        """[N, L, H], [N, L], prompt lengths [N] or None -> [N, W].

        `first` is the state of the first token. `mean` is the mean over the text with its special tokens, without
        padding and without the `prompts` behind the first token: a long prompt would else outweigh a short text.
        """
        states: Tensor = network.forward_pass(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        return self.pooled(states, mask, pooling, prompts)

    def pooled(self, states: Tensor, mask: Tensor, pooling: Pooling, prompts: Tensor | None) -> Tensor:
        """Return one state of each text, [N, W], from those of all its positions, [N, L, W]; the rest as above."""
        if pooling == "first":
            return states[:, 0]
        counted = mask
        if prompts is not None:
            position = torch.arange(mask.shape[1], device=mask.device)[None]
            is_prompt = (position >= self.prompt_start) & (position < self.prompt_start + prompts[:, None])
            counted = mask * ~is_prompt
        weights = counted[..., None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)


ENCODER_DECODER, DECODER, ENCODER = EncoderDecoder(), DecoderOnly(), EncoderOnly()


def kind_of(config: Any) -> NetworkKind:
    """Return the kind of a network by its transformers configuration."""
    if config.is_encoder_decoder:
        return ENCODER_DECODER
    is_decoder = bool(getattr(config, "is_decoder", False))
    return ENCODER if is_encoder_config({"model_type": config.model_type, "is_decoder": is_decoder}) else DECODER


def num_table_positions(model: nn.Module) -> int | None:
    """Return how many positions an encoder's table of positions holds; None where it has no such table.

    RoBERTa and its relatives leave the rows up to that of the padding id unused.
    """
    table = _position_table(model)
    return None if table is None else table.num_embeddings - first_table_position(model)


def first_table_position(model: nn.Module) -> int:
    """Return the row of an encoder's table of positions that its first token takes; 0 where it has no such table."""
    table = _position_table(model)
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def _position_table(model: nn.Module) -> nn.Embedding | None:
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding):
            return module
    return None


def _pad_left(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of rows from behind the text to the front: [N, L, H], [N, L] -> [N, L, H], [N, L]."""
    length = mask.shape[1]
    # each row is rotated by the number of its padding positions, which keeps the order of its tokens
    shift = length - mask.sum(1, keepdim=True)
    index = (torch.arange(length, device=mask.device)[None] - shift) % length
    return embeds.gather(1, index[..., None].expand_as(embeds)), mask.gather(1, index)


class _CachedReader:
    """What both readers keep of each row: its place in the cache, and its line of the mask."""

    def __init__(self, network: Network, cache: Any, mask: Tensor) -> None:
        self.network = network
        self.cache = cache
        self.mask = mask

    @property
    def can_keep(self) -> bool:
        """Whether rows can be picked from the cache."""
        return stored_by_row(self.cache) is not None

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, [n]."""
        keep_stored_rows(self.cache, rows)
        self.mask = self.mask[rows.to(self.mask.device)]  # logits may lie on another of several GPUs


class Continuation(_CachedReader):
    """Reads tokens behind what a decoder has read; a `Reader`.

    `cache` holds keys and values, `mask` [N, K] says which of them count; padding stands in front.
    """

    def __call__(self, tokens: Tensor) -> Tensor:
        """[n, 1] -> logits [n, V]."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        out = self.network.model(
            input_ids=tokens,
            attention_mask=self.mask,
            position_ids=positions_of(self.mask)[:, -1:],
            use_cache=True,
            **{self.network.cache_keyword: self.cache},
        )
        return out.logits[:, -1]  # type: ignore[no-any-return]


class Answering(_CachedReader):
    """Reads an answer with the decoder of an encoder-decoder, behind what the encoder has read; a `Reader`."""

    def __init__(self, network: Network, encoded: Any, mask: Tensor) -> None:
        """`encoded` is the output of the encoder, `mask` [N, L] that of its texts."""
        super().__init__(network, None, mask)
        self.encoded = encoded

    def __call__(self, tokens: Tensor) -> Tensor:
        """[n, 1] -> logits [n, V]."""
        out = self.network.model(
            encoder_outputs=self.encoded,
            attention_mask=self.mask,
            decoder_input_ids=tokens,
            use_cache=True,
            **{self.network.cache_keyword: self.cache},
        )
        self.cache = self.network.cache_of(out)
        return out.logits[:, -1]  # type: ignore[no-any-return]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, [n]."""
        super().keep(rows)
        states = self.encoded.last_hidden_state
        self.encoded = type(self.encoded)(last_hidden_state=states[rows.to(states.device)])


def positions_of(mask: Tensor) -> Tensor:
    """Return each token's position, counted without padding: mask [N, L] -> [N, L]."""
    return (mask.cumsum(1) - 1).clamp(min=0)
