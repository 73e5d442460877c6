"""The display of a run: bars on a terminal, plain lines elsewhere; one bundle or many at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from harness.results import DevScore, Result, data_notes
from harness.screen import on_screen
from harness.suite import Cell, Key

PLAIN_EVERY_S = 10.0
"""Seconds between two lines about a bundle where there is no terminal: 360 lines an hour in a log file."""


@dataclass(eq=False)
class Running:
    """A bundle in training, as the display knows it."""

    cells: tuple[Cell, ...]
    where: str = ""
    """The worker that trains it; empty for this process."""
    bar: TaskID | None = None
    work: float = 0.0
    """Rows that its cells without a result have been trained on since the display began."""
    first_step: int | None = None
    """The step at which it began: more than 0 after a checkpoint."""
    left: list[Cell] = field(init=False)
    """Cells that are not stored yet."""
    started: float = field(default_factory=time.monotonic)
    last_line: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.left = list(self.cells)

    @property
    def title(self) -> str:
        first = self.cells[0]
        labels = ", ".join(dict.fromkeys(cell.label for cell in self.cells))
        worker = f" [{self.where}]" if self.where else ""
        return f"{first.task} on {first.backbone}: {len(self.cells)} x {labels}{worker}"


class Progress:
    """Shows cells done, steps, speed and time left; prints nothing if `quiet`.

    The time left is that of the rows still to train (`work`) at the mean speed since the start.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr, quiet=quiet, soft_wrap=True)
        self.live = self.console.is_terminal and not quiet
        self.num_cells = 0
        self.num_done = 0
        self.work_left = 0.0
        self.work_done = 0.0
        self.running: list[Running] = []
        self._last_wait = ""
        self._noted: set[str] = set()
        """Notes on rows that were printed; they are the same for many cells."""
        self._started = time.monotonic()
        self._bars: RichProgress | None = None
        self._run_bar = TaskID(0)

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        if self.live:
            self._bars = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            )
            self._bars.start()
            self._run_bar = self._bars.add_task("cells", total=self.num_cells, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def expect(self, num_cells: int, work: float) -> None:
        """Announce how many cells are left to train, and their work in row-steps (steps x batch size)."""
        self.num_cells = self.num_done + num_cells
        self.work_left = work
        if self._bars:
            self._bars.update(self._run_bar, total=self.num_cells)

    def start_bundle(self, cells: Sequence[Cell], where: str = "") -> Running:
        """A bundle begins, here or on the worker `where`; return it for `step` and `end_bundle`."""
        bundle = Running(tuple(cells), where)
        self.running.append(bundle)
        if self._bars:
            bundle.bar = self._bars.add_task(bundle.title, total=None, note="")
        else:
            self._line(f"bundle: {bundle.title}")
        return bundle

    def step(self, step: int, steps: int, scores: dict[Key, DevScore], bundle: Running | None = None) -> None:
        """Show that a bundle has done a step. `scores` are its newest dev scores by cell key.

        Without `bundle`, it is the one that began last.
        """
        bundle = bundle or self.running[-1]
        if bundle.first_step is None:
            bundle.first_step = step - 1
        begun = bundle.first_step
        rows = (max(0, min(step, c.recipe.steps) - begun) * c.recipe.batch_size for c in bundle.left)
        bundle.work = float(sum(rows))
        now = time.monotonic()
        rate = (step - begun) / max(1e-9, now - bundle.started)
        best = f", best dev {max(score.selection for score in scores.values()):z.1f}" if scores else ""
        note = f"{_speed(rate)}{best}, {self._time_left()}"
        if self._bars and bundle.bar is not None:
            self._bars.update(bundle.bar, completed=step, total=steps, note=note)
        elif now - bundle.last_line > PLAIN_EVERY_S:
            bundle.last_line = now
            self._line(f"  {bundle.title}: step {step:,}/{steps:,}, {note}" if bundle.where else
                       f"  step {step:,}/{steps:,}, {note}")  # fmt: skip

    def end_bundle(self, bundle: Running) -> None:
        """Remove a bundle that is finished, or whose worker is gone."""
        if bundle in self.running:
            self.running.remove(bundle)
        if self._bars and bundle.bar is not None:
            self._bars.remove_task(bundle.bar)

    def cell_done(self, result: Result) -> None:
        """Show that this process has stored a cell.

        A cell that lost a race counts as work for the steps that it took; the rest of its work is no longer left.
        """
        self.num_done += 1
        spent = work(result.cell) if result.usage is None or result.usage.num_steps else 0.0
        steps = result.cell.recipe.steps
        self.work_done += spent * (result.raced_out_at or steps) / steps
        self.work_left -= spent
        for bundle in self.running:
            if result.cell in bundle.left:
                bundle.left.remove(result.cell)
                bundle.work = max(0.0, bundle.work - spent)
        self._line(f"[{self.num_done}/{self.num_cells}] {_name(result.cell)}: {_outcome(result)}")
        for note in data_notes([result]):
            if note not in self._noted:
                self._noted.add(note)
                self._line(note)
        if self._bars:
            self._bars.update(self._run_bar, completed=self.num_done, note=self._time_left())

    def found(self, result: Result) -> None:
        """Show that another process has stored a cell."""
        self.num_done += 1
        self.work_left -= work(result.cell) if result.usage is None or result.usage.num_steps else 0.0
        self._line(f"[{self.num_done}/{self.num_cells}] {_name(result.cell)}: by another process, {_outcome(result)}")
        if self._bars:
            self._bars.update(self._run_bar, completed=self.num_done, note=self._time_left())

    def waiting(self, num_cells: int) -> None:
        """Show that other processes train all cells that are left."""
        text = f"waiting for {num_cells} cells that other processes train"
        if self._bars:
            self._bars.update(self._run_bar, note=text)
        elif text != self._last_wait:
            self._line(text)
        self._last_wait = text

    def say(self, text: str) -> None:
        """Print one line above the display."""
        self._line(text)

    def _line(self, text: str) -> None:
        # from Python nobody has made the streams lenient, and rich ends the run for one character that a screen lacks
        self.console.print(on_screen(text, self.console.file), markup=False, highlight=False)

    def _time_left(self) -> str:
        under_way = sum(bundle.work for bundle in self.running)
        done = self.work_done + under_way
        elapsed = time.monotonic() - self._started
        if done <= 0 or elapsed < 1:
            return "time left unknown"
        seconds = max(0.0, (self.work_left - under_way) * elapsed / done)
        return f"{_duration(seconds)} left"


def work(cell: Cell) -> float:
    """Rows that a cell is trained on in all; the display counts work in them."""
    return float(cell.recipe.steps * cell.recipe.batch_size)


def _name(cell: Cell) -> str:
    grid = " ".join(f"{key.split('.', 1)[1]}={value}" for key, value in cell.grid.items())
    again = f" repeat {cell.repeat}" if cell.repeat > 1 else ""
    return f"{cell.label} {cell.task} {cell.backbone} seed {cell.seed}{again} {grid}".rstrip()


def _outcome(result: Result) -> str:
    if result.dev and result.raced_out_at is not None:
        return f"dev {_dev(result)}, left the race at step {result.raced_out_at:,}"
    if result.dev and result.selected_step is not None:
        return f"dev {_dev(result)} at step {result.selected_step:,}"
    lines = result.failure.message.strip().splitlines() if result.failure else []
    return f"FAILED: {lines[-1] if lines else 'no reason given'}"


def _dev(result: Result) -> str:
    """The dev score as reported, and what has chosen if that is another metric: steps were shown with that one."""
    assert result.dev is not None
    chosen_by = result.metrics.selection if result.metrics else ""
    other = result.dev.metrics.get(chosen_by, result.dev.score)
    reported = f"{result.dev.score:z.1f}"
    return reported if f"{other:z.1f}" == reported else f"{reported}, {chosen_by} {other:z.1f}"


def _speed(steps_per_s: float) -> str:
    """Steps a second, or seconds a step where that is more than one, so that the number never reads 0.0."""
    return f"{steps_per_s:.1f} steps/s" if steps_per_s >= 1 else f"{1 / max(1e-9, steps_per_s):.1f} s/step"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
