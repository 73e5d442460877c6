"""Live curves of a run in TensorBoard, Weights & Biases or MLflow, through accelerate's trackers.

Each cell is a run of its own in the tool: its settings, dev scores, training loss and learning rate by step, and its
test scores at the end. Tracking changes nothing of training: the tool gets only what the display gets too, and if it
fails, it is left out and training goes on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from harness.errors import UserError
from harness.results import DevScore, Result
from harness.runner.progress import Progress, Running
from harness.suite import Cell, Key
from harness.train import lr_factor

Tool = Literal["tensorboard", "wandb", "mlflow"]
LR_POINTS = 200
"""About so many points of a cell's learning rate are logged: enough for a smooth curve, without a request each step."""


@dataclass
class _Run:
    """The tracked run of one cell."""

    cell: Cell
    tracker: GeneralTracker
    extra: dict[str, Any]
    """Arguments by which each call of the tool reaches this run and not another one that is open."""
    last_dev: int = 0
    """Step of the newest dev score that was logged."""


class TrackedProgress(Progress):
    """The usual display, which also passes on what it is told to a tool; the tool's files go to `folder`.

    Raises UserError if the tool's package is not installed.
    """

    def __init__(self, tool: Tool, folder: Path, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        if importlib.util.find_spec(tool) is None:
            hint = f"pip install {tool}, or for tensorboard pip install 'peft-harness[track]'"
            raise UserError(f"needs the package {tool}", field="--track", hint=hint)
        PartialState()  # accelerate's trackers write their own log only once it exists
        self.tool, self.folder = tool, folder
        self.runs: dict[Key, _Run] = {}
        self.is_broken = False

    def start_bundle(self, cells: Sequence[Cell], where: str = "") -> Running:
        bundle = super().start_bundle(cells, where)
        self._try(lambda: self._open(cells))
        return bundle

    def step(self, step: int, steps: int, scores: dict[Key, DevScore], bundle: Running | None = None) -> None:
        bundle = bundle or self.running[-1]
        super().step(step, steps, scores, bundle)
        self._try(lambda: self._log(step, scores, bundle.cells))

    def cell_done(self, result: Result) -> None:
        super().cell_done(result)
        self._try(lambda: self._close(result))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._try(lambda: [run.tracker.finish() for run in self.runs.values()])

    def _try(self, action: Callable[[], object]) -> None:
        """Call the tool; if that fails, print one line and never call it again."""
        if self.is_broken:
            return
        try:
            action()
        except Exception as error:  # whatever a foreign service throws
            self.is_broken = True
            self.say(f"{self.tool} failed and is left out from here on: {type(error).__name__}: {error}")

    def _open(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            tracker, extra = start_tracker(self.tool, cell, self.folder)
            self.runs[cell.key] = _Run(cell, tracker, extra)

    def _log(self, step: int, scores: Mapping[Key, DevScore], cells: Sequence[Cell]) -> None:
        for cell in cells:
            if cell.key in self.runs:
                self._log_step(self.runs[cell.key], step, scores.get(cell.key))

    def _log_step(self, run: _Run, step: int, score: DevScore | None) -> None:
        recipe, values = run.cell.recipe, {}
        if step <= recipe.steps and step % max(1, recipe.steps // LR_POINTS) == 0:
            values["lr"] = recipe.lr * lr_factor(recipe, step - 1)
        if score is not None and score.step > run.last_dev:
            run.last_dev = score.step
            values |= {f"dev/{name}": value for name, value in score.metrics.items()}
            values |= {} if score.train_loss is None else {"train_loss": score.train_loss}
        if values:
            run.tracker.log(values, step=step, **run.extra)

    def _close(self, result: Result) -> None:
        run = self.runs.pop(result.key, None)
        if run is None:
            return
        if result.test is not None:
            values = {"test/score": result.test.score, **{f"test/{k}": v for k, v in result.test.metrics.items()}}
            # not at the selected step: a tool may take no step that lies before another
            run.tracker.log(values, step=run.cell.recipe.steps, **run.extra)
        run.tracker.finish()


def start_tracker(tool: Tool, cell: Cell, folder: Path) -> tuple[GeneralTracker, dict[str, Any]]:
    """Open a run with a cell's settings; return the tracker, and the arguments that its `log` needs beside the
    values."""
    name = f"{cell.task}/{cell.label}/{cell.backbone}/{cell.cell_id}"
    if tool == "tensorboard":
        tracker: GeneralTracker = TensorBoardTracker(f"{cell.suite}/{name}", str(folder / tool))
    elif tool == "wandb":
        # without create_new a second run of the same process would end the first
        made: dict[str, Any] = {
            "name": name,
            "group": f"{cell.task}/{cell.label}",
            "dir": str(folder),
            "reinit": "create_new",
            "config": settings_of(cell),
        }
        tracker = WandBTracker(cell.suite, **made)
    else:
        tracker = MLflowTracker(experiment_name=cell.suite, run_name=name)
    folder.mkdir(parents=True, exist_ok=True)
    tracker.start()
    if tool != "wandb":  # which has them from its start: afterwards they would go to the process's one global run
        tracker.store_init_configuration(settings_of(cell))
    if tool != "mlflow":
        return tracker, {}
    import mlflow

    # MLflow has one active run in a process; the others are reached by their id
    run_id = mlflow.active_run().info.run_id
    mlflow.end_run()
    return tracker, {"run_id": run_id}


def settings_of(cell: Cell) -> dict[str, bool | int | float | str]:
    """What a tool shows of a cell: names, seed, recipe and hp, each as a number or a text."""
    flat: dict[str, Any] = {key: getattr(cell, key) for key in ("suite", "task", "label", "method", "backbone", "seed")}
    flat |= {f"recipe.{key}": value for key, value in cell.recipe.model_dump(mode="json").items()}
    flat |= {f"hp.{key}": value for key, value in cell.hp.items()}
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in flat.items()}
