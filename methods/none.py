"""None: the network as it is, the zero-shot row. What a method adds to the network shows against this row.

Nothing trains. Each text is answered once, with the prompt's form, the choices and the decoding of the other rows.

Source: Brown et al. (NeurIPS 2020), section 2, for the name "zero-shot" of answers without examples and updates.

Choices made: recipe and seed change nothing, so one seed is enough. A linear head would be untrained here, so an
answer is written, or is the likeliest of the choices; an encoder can do neither.
"""

from dataclasses import dataclass
from typing import Any

from harness.method import Backbone, Defaults, Method, Paper


class Untouched(Method):
    """No tensors, no steps."""

    name = "none"
    paper = Paper("brown-etal-2020-gpt3", "https://arxiv.org/abs/2005.14165")
    defaults = Defaults(recipe={"lr": 1e-3})
    trains = False

    @dataclass(frozen=True, kw_only=True)
    class HP:
        """There is nothing to set."""

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        if not backbone.writes_text:
            raise ValueError("an encoder writes no answer, and nothing trains a head here")

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """None."""
        return []
