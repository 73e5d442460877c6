"""The stages in which the micro T5 is pretrained: how long, how fast, and on which mixture.

The first stage teaches all tasks at once. Each later one turns to what was still missing: sentiment and question
answering first, then swapped roles, which entailment and paraphrase need. The last teaches the model to find its
prefix among other words, so that a prompt can be learnt bit by bit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Shares:
    """The shares of the mixture's parts; what they leave of 1 is span corruption."""

    sentiment: float
    entailment: float
    paraphrase: float
    similarity: float
    acceptability: float
    qa: float
    roles: float
    unprompted: float = 0.06

    def parts(self) -> dict[str, float]:
        """Return the shares by name."""
        return asdict(self)


@dataclass(frozen=True)
class Stage:
    """A stretch of training with an optimiser of its own.

    The learning rate rises to `rate` and falls to zero over `schedule` steps, of which the first `steps` are taken.
    Dropout is on from the share `dropout_from` of the schedule.
    """

    steps: int
    schedule: int
    rate: float
    dropout_from: float
    shares: Shares
    scattered: float = 0.0
    """Share of the supervised rows whose prefix is spread among other words."""


STAGES: tuple[Stage, ...] = (
    Stage(7_000, 7_000, 1e-2, 0.8, Shares(0.10, 0.22, 0.15, 0.14, 0.11, 0.14, roles=0.0)),
    Stage(2_000, 5_000, 7e-3, 0.9, Shares(0.15, 0.22, 0.15, 0.06, 0.11, 0.17, roles=0.0)),
    Stage(3_000, 5_000, 7e-3, 0.9, Shares(0.15, 0.22, 0.16, 0.04, 0.07, 0.14, roles=0.12)),
    Stage(4_500, 4_500, 8e-3, 0.9, Shares(0.06, 0.30, 0.28, 0.04, 0.05, 0.07, roles=0.08)),
    Stage(6_000, 6_000, 6e-3, 0.92, Shares(0.06, 0.30, 0.26, 0.04, 0.05, 0.08, roles=0.10)),
    Stage(3_000, 3_000, 5e-3, 0.8, Shares(0.14, 0.20, 0.18, 0.06, 0.12, 0.12, roles=0.04), scattered=0.6),
)
