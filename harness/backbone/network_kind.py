"""What sets the kinds of network apart: how a text is laid out, what training predicts, how an answer comes about.

There are three: encoder-decoders, decoder-only networks and encoders. `harness.backbone.network.Backbone` has one of
them, chosen from the configuration, and hands over to it. Nothing else asks which one it is where the answer can be an
attribute of the kind.

Shapes: N rows, L positions of prompt and text, H width of embeddings, W width of the last states, T target tokens,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

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

    def forward_pass(self, **inputs: Any) -> Any:
        """Run the model as in training, compiled if that is switched on."""

    def greedy(self, step: Callable[[Tensor], Tensor], logits: Tensor, max_new_tokens: int) -> Tensor:
        """Take likely tokens until all rows have ended; `step` [N, 1] -> [N, V] gives the next logits."""


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

    def decode(self, network: Network, embeds: Tensor, mask: Tensor, max_new_tokens: int) -> Tensor:
        """Write answers greedily: [N, L, H], [N, L] -> ids [N, at most max_new_tokens]."""
        raise TypeError(f"a network of the kind '{self.name}' writes no text")

    def text_states(
        self, network: Network, embeds: Tensor, mask: Tensor, pooling: Pooling, prompts: Tensor | None
    ) -> Tensor:
        """Return one state for each text: [N, L, H], [N, L], prompt lengths [N] or None -> [N, W]."""
        raise TypeError(f"a network of the kind '{self.name}' has no state of the whole text")
