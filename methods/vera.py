"""VeRA: one frozen random pair of matrices for all layers, scaled by trained vectors (Kopiczko et al., ICLR 2024).

W' = W + diag(b) B diag(d) A on q and v of every attention: A [R, in] and B [out, R] are kaiming-uniform, frozen, shared
and drawn from `projection_seed`, so inference keeps the vectors and that number; d [R] starts at 0.1, b [out] at 0.
73,728 parameters on T5-base with R = 256. Through PEFT. lr about ten times LoRA's.

Source: huggingface/peft, tuners/vera (layer.py, model.py, config.py): d_initial 0.1, kaiming-uniform with gain sqrt(2).

Choice made: the projections come from their own seed, the same in all runs, as in PEFT; runs therefore differ only in
data order and dropout.
"""

from dataclasses import dataclass
from typing import Any

from peft import PeftConfig, VeraConfig

from harness.method import Backbone, Defaults, Paper, PeftMethod, require_positive, sweep


class VeRA(PeftMethod):
    """The trained tensors are the vectors b and d of every projection."""

    name = "vera"
    paper = Paper("kopiczko-etal-2024-vera", "https://openreview.net/forum?id=NjNfLdxr3A")
    defaults = Defaults(recipe={"lr": sweep(1e-3, 4e-3, 1e-2)})
    is_positionwise = True

    @dataclass(frozen=True, kw_only=True)
    class HP:
        rank: int = 256  # R
        d_initial: float = 0.1
        dropout: float = 0.0
        projection_seed: int = 0

        def __post_init__(self) -> None:
            require_positive(self, "rank")
            if self.d_initial == 0:
                raise ValueError("d_initial must not be 0: with b = 0 no vector would ever get a gradient")
            if not 0 <= self.dropout < 1:
                raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    def stores_frozen(self) -> bool:
        """No: `projection_seed` draws the projections again."""
        return False

    def peft_config(self, hp: Any, backbone: Backbone) -> PeftConfig:
        """PEFT's configuration; PEFT knows the names of the projections."""
        return VeraConfig(
            r=hp.rank,
            projection_prng_key=hp.projection_seed,
            vera_dropout=hp.dropout,
            d_initial=hp.d_initial,
        )
