"""BitFit: only bias vectors train (Ben Zaken et al., ACL 2022).

y = W x + b for every linear module in the layers (q, k, v, o, wi, wo), y = g * x / rms(x) + b for every norm in them,
logits = W h + b: b trains. Outside the layers what has a bias trains it too, such as BERT's norm of the embeddings.
T5 has no biases, so zero vectors are added. lr 3e-4.

Source: rabeehk/compacter, seq2seq/third_party/models/t5/modeling_t5.py and utils/utils.py: what has ".bias" in its name
trains, so T5's tables of relative positions (`relative_attention_bias.weight`) do not.

Choices made, those of the code behind the published T5 figure (Compacter's): the norm behind the last layer of a stack
gets none (`final_norms: true` adds them); the logits get one per token of T5's tokenizer, 32,100, since that code cuts
the embedding to it (`head: all` takes the embedding's 32,128 rows, `none` no bias there).
On T5 a key's bias shifts all scores of a query alike, so softmax cancels it: 27,648 of the parameters are without
effect, here as there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.method import AddedBiases, Backbone, Defaults, LayerChange, Method, Paper, sweep


class BitFit(Method):
    """280,932 parameters on T5-base: attention 110,592, feed-forward 92,160, norms 46,080, logits 32,100."""

    name = "bitfit"
    paper = Paper(
        "ben-zaken-etal-2022-bitfit", "https://aclanthology.org/2022.acl-short.1/", params={"t5-base": 280_000}
    )
    defaults = Defaults(recipe={"lr": sweep(1e-4, 3e-4, 1e-3)})
    is_positionwise = True

    @dataclass(frozen=True, kw_only=True)
    class HP:
        head: Literal["tokenizer", "all", "none"] = "tokenizer"  # which logits get a bias
        final_norms: bool = False

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        self.biases = AddedBiases(backbone, hp.head, hp.final_norms)

    def layer_changes(self) -> Sequence[LayerChange]:
        """Every bias b added to its module's output, [..., out] -> [..., out]."""
        return self.biases.changes()
