"""What a run answered on one split, and the right answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Answers:
    """What one run answered on one split, and the right answers."""

    predictions: Sequence[str]
    """[N], one per row."""
    references: Sequence[Sequence[str]]
    """[N], the accepted answers of each row."""

    @property
    def rows(self) -> int:
        """Hash of the references. Runs with the same hash answered the same rows, so their answers can be paired."""
        return hash(tuple(tuple(refs) for refs in self.references))

    def __add__(self, other: Answers) -> Answers:
        return Answers([*self.predictions, *other.predictions], [*self.references, *other.references])
