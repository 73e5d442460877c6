"""DoRA: LoRA on the direction of a weight, its magnitude trained apart (Liu et al., ICML 2024), through PEFT.

W' = m * (W + (alpha / R) B A) / ||W + (alpha / R) B A||, the norm per output (row of W [out, in]), m [out] starting as
||W||, so that W' = W at the start; A [R, in] kaiming-uniform, B [out, R] zero; on q and v of every attention. The
gradient does not pass the norm (section 4.3). 3,594,240 parameters on T5-base.

With dropout, PEFT lets both the update and the change of the magnitude see dropout(x).

Source: huggingface/peft, tuners/lora/layer.py and dora.py.

Choice made: rank, alpha and dropout are LoRA's here, so that the two rows differ in the magnitude alone.
"""

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftConfig

from harness.method import Backbone, Defaults, Paper, PeftMethod, require_positive, sweep


class DoRA(PeftMethod):
    """LoRA's tensors and one magnitude per output of the projection."""

    name = "dora"
    paper = Paper("liu-etal-2024-dora", "https://proceedings.mlr.press/v235/liu24bn.html")
    defaults = Defaults(recipe={"lr": sweep(1e-4, 3e-4, 1e-3)})
    is_positionwise = True

    @dataclass(frozen=True, kw_only=True)
    class HP:
        rank: int = 32  # R
        alpha: float = 32
        dropout: float = 0.1

        def __post_init__(self) -> None:
            require_positive(self, "rank")
            if not self.alpha > 0:  # at 0 nothing of B A counts, and nothing trains
                raise ValueError(f"alpha must be positive, got {self.alpha}")
            if not 0 <= self.dropout < 1:
                raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    def peft_config(self, hp: Any, backbone: Backbone) -> PeftConfig:
        """LoRA's configuration with the magnitude switched on; PEFT knows the names of the projections."""
        return LoraConfig(r=hp.rank, lora_alpha=hp.alpha, lora_dropout=hp.dropout, use_dora=True)
