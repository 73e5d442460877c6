"""Bundles of a plan: cells that share a forward pass, in even parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMALL_SUITE

from harness.runner.pack import pack
from harness.runner.plan import make_plan
from harness.suite.make_groups import Overrides


@pytest.mark.parametrize(("limit", "sizes"), [(64, [13]), (13, [13]), (12, [7, 6]), (5, [5, 5, 3]), (1, [1] * 13)])
def test_a_bundle_that_is_too_large_is_cut_evenly(
    limit: int, sizes: list[int], write_suite: Callable[[str], Path], tmp_path: Path
) -> None:
    seeds = ", ".join(str(seed) for seed in range(13))
    text = SMALL_SUITE.replace("seeds: [1, 2]", f"seeds: [{seeds}]") + f"execution: {{bundle_cells: {limit}}}\n"
    plan = make_plan(write_suite(text), Overrides(methods=["dept"]), tmp_path, None)
    (group,) = plan.groups
    bundles = pack(plan, list(group.cells.values()))
    assert [len(bundle.cells) for bundle in bundles] == sizes
    assert [cell for bundle in bundles for cell in bundle.cells] == list(group.cells.values())
