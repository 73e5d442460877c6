"""LoRA: low-rank updates of the attention's query and value projections (Hu et al., ICLR 2022), through PEFT.

W' = W + (alpha / R) B A with A [R, in] kaiming-uniform and B [out, R] zero, on q and v of every attention; in training
y = W x + (alpha / R) B A dropout(x). R 32, alpha 32, dropout 0.1, lr 3e-4.

Source: ylsung/Ladder-Side-Tuning, seq2seq/lora (layers.py, config.py), from which the published T5-base figure (3.8M)
comes. Its configs/lora.json trains BitFit's bias vectors too, and utils/utils.py all that has "bias" in its name, so
the two tables of relative positions as well (`relative_attention_bias`, 768 weights): `biases: true`, 3,820,644.

Choice made: LoRA as defined, 3,538,944 parameters on T5-base.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftConfig

from harness.method import (
    AddedBiases,
    Backbone,
    Defaults,
    LayerChange,
    LowRank,
    Paper,
    PeftMethod,
    TrainedPositions,
    require_positive,
    sweep,
)

ADAPTER_NAME = "default"  # PEFT's own choice where there is one adapter only


class LoRA(PeftMethod):
    """Published T5-base rows (3.8M) also train biases; by default this is LoRA as defined."""

    name = "lora"
    paper = Paper(
        "hu-etal-2022-lora",
        "https://openreview.net/forum?id=nZeVKeeFYf9",
        params={"t5-base": 3_800_000},
        params_note="The published rows also train biases (280,932) and position tables (768).",
    )
    defaults = Defaults(recipe={"lr": sweep(1e-4, 3e-4, 1e-3)})
    is_positionwise = True

    @dataclass(frozen=True, kw_only=True)
    class HP:
        rank: int = 32  # R
        alpha: float = 32
        dropout: float = 0.1
        biases: bool = False

        def __post_init__(self) -> None:
            require_positive(self, "rank")
            if not self.alpha > 0:  # at 0 nothing of B A counts, and nothing trains
                raise ValueError(f"alpha must be positive, got {self.alpha}")
            if not 0 <= self.dropout < 1:
                raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        self.biases = AddedBiases(backbone) if hp.biases else None
        self.positions = TrainedPositions(backbone) if hp.biases else None

    def peft_config(self, hp: Any, backbone: Backbone) -> PeftConfig:
        """PEFT's configuration; PEFT knows the names of the projections."""
        return LoraConfig(r=hp.rank, lora_alpha=hp.alpha, lora_dropout=hp.dropout)

    def layer_changes(self) -> Sequence[LayerChange]:
        """Low-rank updates with PEFT's tensors, which the harness computes for many cells at once, and biases."""
        updates = [LayerChange(original, low_rank=_update(tuner)) for original, tuner in self.tuners()]
        extras = [module for module in (self.biases, self.positions) if module is not None]
        return [*updates, *(change for module in extras for change in module.changes())]


def _update(tuner: Any) -> LowRank:
    """(alpha / R) B A dropout(x) with the tensors of PEFT's layer for one projection."""
    a, b = tuner.lora_A[ADAPTER_NAME], tuner.lora_B[ADAPTER_NAME]
    return LowRank(a, b, tuner.scaling[ADAPTER_NAME], tuner.lora_dropout[ADAPTER_NAME])
