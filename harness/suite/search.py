"""The search of one table entry by `random` or `tpe`: its space, its budget, and the points that need no result.

Those of `random` and the first ones of `tpe` depend on the suite alone. Setting k of draw i comes from the search seed,
k and i, so that two methods with the same range are tried at the same values. `runner/study.py` asks for the others.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.errors import UserError
from harness.suite.ranges import Range
from harness.suite.sweeps import Point, Space

DRAWS_PER_TRIAL = 100
"""Draws after which a space counts as too small for its trials: rounding leaves few values in a narrow range."""


@dataclass(frozen=True)
class Search:
    """How the points of one table entry are chosen."""

    strategy: Literal["random", "tpe"]
    space: Space
    trials: int
    """Points that are tried in all, those that fail included."""
    seed: int
    startup: int
    """With `tpe`, how many points are drawn at random before results guide the others."""
    batch: int
    """With `tpe`, how many of these others are asked for at a time."""

    @property
    def name(self) -> str:
        """Its strategy and a hash of what decides its points. More trials are the same search, another range is not."""
        spelled = {key: asdict(item) if isinstance(item, Range) else item for key, item in self.space.items()}
        content = [spelled, self.seed, self.startup if self.strategy == "tpe" else None]
        return f"{self.strategy}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]}"

    def first_points(self) -> list[Point]:
        """Return the points that need no result: all of `random`, the first ones of `tpe`. Raises UserError."""
        return self.random_points(min(self.trials, self.startup) if self.strategy == "tpe" else self.trials)

    def random_points(self, count: int) -> list[Point]:
        """Return this many different points. Raises UserError if the space seems to hold fewer."""
        found: dict[str, Point] = {}
        for draw in range(DRAWS_PER_TRIAL * count):
            point = {key: self._drawn(key, item, draw) for key, item in self.space.items()}
            found.setdefault(json.dumps(point, sort_keys=True), point)
            if len(found) == count:
                return list(found.values())
        raise UserError(f"holds fewer than {count} different points to try", field=", ".join(self.space))

    def holds(self, point: Point) -> bool:
        """Whether a point has a value of this space for each of its settings, and nothing else."""
        if point.keys() != self.space.keys():
            return False
        found = [(item, point[key]) for key, item in self.space.items()]
        return all(item.holds(value) if isinstance(item, Range) else value in item for item, value in found)

    def end_of_batch(self, first: int) -> int:
        """Return the number of the trial after those that are asked for together with trial `first`."""
        return min(self.trials, self.startup if first < self.startup else first + self.batch)

    def batch_of(self, trial: int) -> tuple[int, int]:
        """Return the first trial of the batch that holds `trial`, and the one after its last."""
        if trial < self.startup:
            return 0, min(self.startup, self.trials)
        first = trial - (trial - self.startup) % self.batch
        return first, self.end_of_batch(first)

    def _drawn(self, key: str, item: list[Any] | Range, draw: int) -> Any:
        share = random.Random(f"{self.seed} {key} {draw}").random()
        return item.at(share) if isinstance(item, Range) else item[int(share * len(item))]


def corners(space: Mapping[str, list[Any] | Range]) -> list[Point]:
    """Return a point for each end of each range and each listed value, the other settings at their first."""
    ends = {key: [item.low, item.high] if isinstance(item, Range) else item for key, item in space.items()}
    start = {key: values[0] for key, values in ends.items()}
    return [{**start, key: value} for key, values in ends.items() for value in values]
