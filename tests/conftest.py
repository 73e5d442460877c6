"""Shared pieces: small suites on the shipped backbone, and where real data is, if it is here."""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import settings
from paths import ROOT

from harness.data.tasks import micro

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


# Nothing here imports torch: the process that only hands tests to two others would spend 6 s on it.
# Tests run in two processes, and more threads than cores make tiny products slower.
os.environ["OMP_NUM_THREADS"] = "1"  # PyTorch reads it when it is imported
# with torch and transformers imported each full collection walks millions of objects: 71 s of processor became 62
gc.set_threshold(100_000, 50, 1_000)
# an example may wait for a busy machine; nothing here asserts a time
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
os.environ["HARNESS_CACHE"] = "off"  # tests leave nothing in the user's cache


ALL_ROWS = dict(micro.SIZES)
FEW_ROWS = {"train": 300, "validation": 40, "test": 40}


@contextlib.contextmanager
def micro_rows(sizes: dict[str, int]) -> Iterator[None]:
    """Let the micro tasks have splits of these sizes in this process; new processes have them in full."""

    from harness.data import splits

    def forget() -> None:
        splits._load_rows.cache_clear()
        splits._draw_rows.cache_clear()

    with patch.dict(micro.SIZES, sizes):
        forget()
        try:
            yield
        finally:
            forget()


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """No power cut is tested, and each of thousands of small files would wait 4 ms for the disk, or 40. Processes that
    tests start and kill do wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", os.fstat)  # a closed file is still an error
        yield


@pytest.fixture(scope="session", autouse=True)
def one_tree_of_commands() -> Iterator[None]:
    """Typer makes the tree of all commands anew at each call, though it is always the same: 34 ms of processor."""
    from typer import main, testing

    made_once = functools.cache(main.get_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "get_command", made_once)
        patch.setattr(testing, "_get_command", made_once)
        yield


@pytest.fixture(scope="module")
def few_rows() -> Iterator[None]:
    """Few rows, where no test asks for a score: to answer 200 of dev and 400 of test takes most of a short run, and to
    make and tokenise 2,000 of train most of what is left."""
    with micro_rows(FEW_ROWS):
        yield


@pytest.fixture(scope="module")
def fewest_rows() -> Iterator[None]:
    """As few as a short run can be told from another by, where no test counts them either."""
    with micro_rows({"train": 64, "validation": 12, "test": 12}):
        yield


@pytest.fixture
def all_rows() -> Iterator[None]:
    """All rows again, for a test of a file with `few_rows` that asks for a score after all."""
    with micro_rows(ALL_ROWS):
        yield


@pytest.fixture(scope="module")
def forked_team() -> Iterator[None]:
    """The processes of a team are forked from one that has imported everything; each import takes 6 s of processor."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["harness.train.bundle"])

    def context(method: str) -> object:
        assert method == "spawn", "what a run asks for, and what is exchanged here"
        return forking

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.multiprocessing.get_context", context)
        yield


@pytest.fixture(scope="session")
def small_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of SMALL_SUITE, trained once for all tests that only read them."""
    from harness.runner.run_suite import run

    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(SMALL_SUITE)
    with micro_rows(ALL_ROWS):  # in full, whichever test asks first
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


def pytest_configure() -> None:
    """Let SlipCover see methods/: what is loaded by its path it sees only in the process that it starts itself."""
    if "SLIPCOVER_ENABLED" in os.environ and "PYTEST_XDIST_WORKER" in os.environ:
        from slipcover import pytest_plugin, wrap_spec_from_file_location

        wrap_spec_from_file_location(pytest_plugin._slipcover_instance, pytest_plugin._file_matcher)


def pytest_collection_finish() -> None:
    """Keep all that is imported by now out of the collector's sight: it stays, and the benchmarks ask for full
    collections, each of which walked through torch and transformers for half a second."""
    gc.collect()
    gc.freeze()


DEAREST = (
    "test_distributed.py", "test_ray.py", "test_compile.py", "test_suites_all.py", "test_sharding.py", "test_kill.py",
    "test_network_matrix.py", "test_methods.py",
)  # fmt: skip
"""Files whose single tests take longest, the longest first: 58 s for one of them alone on two idle cores, 10 s for one
of the last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the dearest files: at the end they would leave one process to work and the other to wait."""
    items.sort(key=lambda item: DEAREST.index(item.path.name) if item.path.name in DEAREST else len(DEAREST))
