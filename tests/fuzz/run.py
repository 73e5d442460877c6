"""The fuzzer's loop: inputs are made from a seed alone, so that any of them can be made again."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .sandbox import Figures, try_one
from .targets import Target


def run_target(target: Target, indices: Sequence[int], seed: int, scratch: Path) -> Figures:
    """Try inputs of a target; each has a folder of its own that is gone afterwards."""
    figures = Figures()
    for index in indices:
        folder = scratch / "input"
        folder.mkdir()
        act = target.make(random.Random(f"{seed} {target.name} {index}"), folder)
        num_broken, started = len(figures.broken), time.perf_counter()
        try_one(act, scratch, figures)
        figures.slowest_s = max(figures.slowest_s, time.perf_counter() - started)
        figures.broken[num_broken:] = [f"{target.name} {index}: {text}" for text in figures.broken[num_broken:]]
        shutil.rmtree(folder)
    return figures


def shares(found: Sequence[Target], num_inputs: int) -> Iterator[tuple[Target, int]]:
    """Each target with its number of inputs; together at least `num_inputs`."""
    total = sum(target.share for target in found)
    for target in found:
        yield target, -(-num_inputs * target.share // total)
