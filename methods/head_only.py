"""Head only: the frozen network with a trained linear head, the baseline of every table with heads.

logits = W s + b, s the state of the text that the head reads; W and b train, at `recipe.head_lr`. Nothing of the
network changes, and nothing is put in front of a text: whatever a method adds to a head shows above this row.

Source: Devlin et al. (NAACL 2019), section 5.3, for the idea of reading a frozen BERT; they put an LSTM on its states.

Choices made: the head is that of all other rows (`recipe.head: linear`), so it is the harness that makes and trains
it. Without a head there is nothing to train, which a run says beforehand. The recipe's lr is without effect.
"""

from dataclasses import dataclass
from typing import Any

from harness.method import Defaults, Method, Paper


class HeadOnly(Method):
    """No tensors of its own; the head is counted apart, as everywhere."""

    name = "head_only"
    paper = Paper("devlin-etal-2019-bert", "https://aclanthology.org/N19-1423/")
    defaults = Defaults(recipe={"lr": 1e-3})

    @dataclass(frozen=True, kw_only=True)
    class HP:
        """There is nothing to set."""

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """None: the head has a group of the harness's own."""
        return []
