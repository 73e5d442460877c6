"""A run that goes on finds its checkpoint although all cells of some methods of the bundle are finished."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

import pytest
from kill_harness import lay_out, outcomes, suite_text

import harness
from harness.runner.engines import LocalEngine
from harness.runner.progress import Progress
from harness.train.bundle import Bundle
from harness.train.cell_result import CellResult, OnCellResult

SUITE = suite_text(steps=4, every=2)
METHODS = ["prompt_tuning", "dept"]


class Killed(BaseException):
    """Ends a run at once, as SIGKILL does."""


class DyingEngine(LocalEngine):
    """Dies once `most` products have been stored."""

    def __init__(self, most: int) -> None:
        self.most = most

    def run(self, bundles: Iterable[Bundle], progress: Progress, on_product: OnCellResult) -> None:
        def counted(product: CellResult) -> None:
            if self.most == 0:
                raise Killed
            self.most -= 1
            on_product(product)

        super().run(bundles, progress, counted)


class ListeningEngine(LocalEngine):
    """Keeps what is said on the way."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def run(self, bundles: Iterable[Bundle], progress: Progress, on_product: OnCellResult) -> None:
        with patch.object(progress, "say", self.said.append):
            super().run(bundles, progress, on_product)


def run(folder: Path, engine: LocalEngine) -> None:
    harness.run(folder / "suite.yaml", methods=METHODS, results=folder / "results", quiet=True, engine=engine)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody has stopped."""
    folder = tmp_path_factory.mktemp("runs") / "untouched"
    lay_out(folder, SUITE)
    run(folder, LocalEngine())
    return folder


@pytest.mark.parametrize("most", [1, 2, 3])
def test_what_is_left_of_a_bundle_goes_on_from_its_checkpoint(most: int, untouched: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    lay_out(killed, SUITE)
    with pytest.raises(Killed):
        run(killed, DyingEngine(most))
    listening = ListeningEngine()
    run(killed, listening)
    assert "continued from a checkpoint at step 4" in listening.said
    assert outcomes(killed, exact=True) == outcomes(untouched, exact=True)
