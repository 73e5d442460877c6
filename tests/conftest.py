"""Shared pieces: small suites on the shipped backbone, and where real data is, if it is here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from paths import ROOT

from harness.runner.run_suite import run

SHARED = ROOT.parent / "shared"

SMALL_SUITE = """\
suite: small
backbones: [micro-t5]
tasks: [micro_sentiment]
seeds: [1, 2]
recipe: {steps: 4, batch_size: 4, eval_every: 2, warmup_steps: 1, warmup_max_share: 1.0, backbone_dropout: false}
methods:
  majority:
  prompt_tuning: {prompt_length: 4, recipe: {lr: {sweep: [0.1, 0.3]}}}
  dept: {prompt_length: 3, budget_length: 6, added_lr: 0.001, recipe: {lr: 0.1}}
"""


# tests run in two processes; more threads than cores make tiny products slower
torch.set_num_threads(1)
os.environ["HARNESS_CACHE"] = "off"  # tests leave nothing in the user's cache


@pytest.fixture(scope="session")
def small_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of SMALL_SUITE, trained once for all tests that only read them."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(SMALL_SUITE)
    summary = run(folder / "small.yaml", results=folder / "results", quiet=True)
    assert summary.num_failed == 0
    return folder / "results"


@pytest.fixture
def write_suite(tmp_path: Path) -> Callable[[str], Path]:
    """Write a suite text to a file and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "suite.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real data sets, where there is one."""
    path = Path(os.environ.get("HARNESS_DATA", SHARED / "data"))
    if not (path / "superglue" / "CB").is_dir():
        pytest.skip("no real data: set HARNESS_DATA to a folder with superglue/CB")
    return path


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The folder with small real checkpoints, where there is one."""
    path = Path(os.environ.get("HARNESS_MODELS", SHARED / "models"))
    if not (path / "stories260k").is_dir():
        pytest.skip("no real checkpoints: set HARNESS_MODELS to a folder with stories260k")
    return path


DEAREST = ("test_distributed.py", "test_ray.py", "test_suites_all.py", "test_sharding.py", "test_kill.py")
"""Files whose single tests take longest, the longest first: 58 s for one of them alone on two idle cores."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the dearest files: at the end they would leave one process to work and the other to wait."""
    items.sort(key=lambda item: DEAREST.index(item.path.name) if item.path.name in DEAREST else len(DEAREST))
