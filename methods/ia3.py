"""(IA)^3: trained factors on keys, values and the feed-forward's inner activations (Liu et al., NeurIPS 2022).

k <- l_k * k, v <- l_v * v in every attention, cross-attention included (l [H]), and W_o (l_ff * act(W_i x)) in every
feed-forward part (l_ff [F]); all factors start at one. Through PEFT. lr 3e-3.

Source: huggingface/peft, tuners/ia3/layer.py.

Choices made: the method as defined, 129,024 parameters on T5-base. The published T5-base figure (55.3K) counts l_k
and l_v only, 55,296: `targets: attention`. The paper's unlikelihood and length-normalised losses belong to its T-Few
recipe and are left out, as the harness trains every method with one loss.
"""

from dataclasses import dataclass
from typing import Any, Literal

from peft import IA3Config, PeftConfig

from harness.method import Backbone, Defaults, Paper, PeftMethod, sublayers_of, sweep

# in T5; in Llama, BART and OPT; in BERT; in DeBERTa
KEYS_AND_VALUES = {"k", "v", "k_proj", "v_proj", "key", "value", "key_proj", "value_proj"}


class IA3(PeftMethod):
    """One vector per key projection, value projection and feed-forward part."""

    name = "ia3"
    paper = Paper(
        "liu-etal-2022-tfew",
        "https://arxiv.org/abs/2205.05638",
        params={"t5-base": 55_300},
        params_note="The printed figure leaves out the feed-forward vectors (73,728): targets: attention.",
    )
    defaults = Defaults(recipe={"lr": sweep(1e-3, 3e-3, 1e-2)})
    is_positionwise = True

    @dataclass(frozen=True, kw_only=True)
    class HP:
        targets: Literal["all", "attention"] = "all"  # `attention` leaves l_ff out

    def peft_config(self, hp: Any, backbone: Backbone) -> PeftConfig:
        """PEFT's configuration, with the full names of the modules that are scaled."""
        names = {id(module): name for name, module in backbone.model.named_modules()}
        attention = [name for name in names.values() if name.rpartition(".")[2] in KEYS_AND_VALUES]
        if not attention:
            raise ValueError(f"keys and values of {type(backbone.model).__name__} are no modules of their own")
        outputs = [names[id(part.output)] for part in sublayers_of(backbone) if part.kind == "ffn"]
        feedforward = outputs if hp.targets == "all" else []
        # l_ff scales the inner activations, which are W_o's input: PEFT does so for what it is told is feed-forward
        return IA3Config(target_modules=attention + feedforward, feedforward_modules=feedforward)
