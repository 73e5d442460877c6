"""What a suite costs beside training grows with its cells and no faster: calls are counted, nothing is timed."""

from __future__ import annotations

import cProfile
from collections import Counter
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from conftest import micro_rows

import harness
from benchmarks.loading import SHAPES, STAGES, stages

OWN = str(Path(harness.__file__).parent)
SIZES = {"deep": (10, 20, 30), "wide": (8, 16, 24)}
"""Cells of three suites of a shape; every second one of a wide suite should be of each of its two tasks."""


def calls(work: Any) -> Counter[str]:
    """How often each function of the program is called, generators each time that they go on."""
    found: Counter[str] = Counter()
    profile = cProfile.Profile(subcalls=False, builtins=False)
    profile.runcall(work)
    for entry in profile.getstats():
        if isinstance(entry.code, CodeType) and entry.code.co_filename.startswith(OWN):
            found[f"{Path(entry.code.co_filename).name} {entry.code.co_qualname}"] += entry.callcount
    return found


@pytest.fixture(scope="module", params=list(SHAPES))
def counted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Counter[str]]]:
    """By stage, the calls at each size; a first suite, whose calls nobody counts, fills the caches of the process."""
    found: dict[str, list[Counter[str]]] = {stage: [] for stage in STAGES}
    sizes = SIZES[request.param]
    with micro_rows({"train": 40, "validation": 10, "test": 10}):  # read under the profiler, they took a quarter
        for number, size in enumerate((sizes[0], *sizes)):
            folder = tmp_path_factory.mktemp("suite")
            suite = folder / "suite.yaml"
            suite.write_text(SHAPES[request.param](size))
            for stage, work in stages(suite, folder).items():
                if number:
                    found[stage].append(calls(work))
                else:
                    work()
    return found


@pytest.mark.parametrize("stage", list(STAGES))
def test_each_further_cell_costs_as_many_calls(counted: dict[str, list[Counter[str]]], stage: str) -> None:
    small, middle, large = counted[stage]
    faster = {
        name: (small[name], middle[name], count)
        for name, count in large.items()
        # a handful of calls more is what a cache or a table's width may cost
        if count - middle[name] > 1.1 * (middle[name] - small[name]) + 5
    }
    assert not faster
    assert large.total() > small.total(), "nothing was counted"
