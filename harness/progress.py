"""What a run shows while it works: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from harness.schema import Cell, DevScore, Result

PLAIN_EVERY_S = 10.0


class Progress:
    """Counts cells and steps, measures speed, estimates the time left. Writes nothing when `quiet`."""

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr, quiet=quiet, soft_wrap=True)
        self.live = self.console.is_terminal and not quiet
        self.num_cells = 0
        self.num_done = 0
        self.work_left = 0.0
        self.work_done = 0.0
        self.bundle: tuple[Cell, ...] = ()
        self._bundle_work = 0.0
        self._first_step: int | None = None
        self._last_wait = ""
        self._started = self._bundle_started = self._last_line = time.monotonic()
        self._bars: RichProgress | None = None
        self._run_bar = self._bundle_bar = TaskID(0)

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
            self._bundle_bar = self._bars.add_task("bundle", total=1, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def expect(self, num_cells: int, work: float) -> None:
        """Announce cells to train and their work in row-steps (steps x batch size)."""
        self.num_cells += num_cells
        self.work_left += work
        if self._bars:
            self._bars.update(self._run_bar, total=self.num_cells)

    def start_bundle(self, cells: Sequence[Cell]) -> None:
        """A bundle begins."""
        self.bundle = tuple(cells)
        self._bundle_work = 0.0
        self._first_step = None
        self._bundle_started = self._last_line = time.monotonic()
        if self._bars:
            self._bars.update(self._bundle_bar, description=self._title(), completed=0, total=None, note="")
        else:
            self._line(f"bundle: {self._title()}")

    def step(self, step: int, steps: int, scores: dict[str, DevScore]) -> None:
        """A step of the current bundle is done; `scores` are the newest dev scores by cell_id."""
        if self._first_step is None:
            self._first_step = step - 1  # more than 0 where a checkpoint was continued from
        begun = self._first_step
        rows = (max(0, min(step, c.recipe.steps) - begun) * c.recipe.batch_size for c in self.bundle)
        self._bundle_work = float(sum(rows))
        rate = (step - begun) / max(1e-9, time.monotonic() - self._bundle_started)
        best = f", best dev {max(score.selection for score in scores.values()):.1f}" if scores else ""
        note = f"{rate:.1f} steps/s{best}, {self._time_left()}"
        if self._bars:
            self._bars.update(self._bundle_bar, completed=step, total=steps, note=note)
        elif time.monotonic() - self._last_line > PLAIN_EVERY_S:
            self._line(f"  step {step:,}/{steps:,}, {note}")

    def cell_done(self, result: Result) -> None:
        """A cell is stored."""
        self.num_done += 1
        spent = work(result.cell) if result.usage is None or result.usage.num_steps else 0.0
        steps = result.cell.recipe.steps
        self.work_done += spent * (result.raced_out_at or steps) / steps
        self.work_left -= spent
        self._bundle_work = max(0.0, self._bundle_work - spent)
        self._line(f"[{self.num_done}/{self.num_cells}] {_name(result.cell)}: {_outcome(result)}")
        if self._bars:
            self._bars.update(self._run_bar, completed=self.num_done, note=self._time_left())

    def found(self, result: Result) -> None:
        """Another process has stored a cell."""
        self.num_done += 1
        self.work_left -= work(result.cell) if result.usage is None or result.usage.num_steps else 0.0
        self._line(f"[{self.num_done}/{self.num_cells}] {_name(result.cell)}: by another process, {_outcome(result)}")
        if self._bars:
            self._bars.update(self._run_bar, completed=self.num_done, note=self._time_left())

    def waiting(self, num_cells: int) -> None:
        """Nothing is left for this process at the moment."""
        text = f"waiting for {num_cells} cells that other processes train"
        if self._bars:
            self._bars.update(self._bundle_bar, description=text, completed=0, total=None, note="")
        elif text != self._last_wait:
            self._line(text)
        self._last_wait = text

    def say(self, text: str) -> None:
        """Print one line above the display."""
        self._line(text)

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.console.print(text, markup=False, highlight=False)

    def _title(self) -> str:
        first = self.bundle[0]
        labels = ", ".join(dict.fromkeys(cell.label for cell in self.bundle))
        return f"{first.task} on {first.backbone}: {len(self.bundle)} x {labels}"

    def _time_left(self) -> str:
        done = self.work_done + self._bundle_work
        elapsed = time.monotonic() - self._started
        if done <= 0 or elapsed < 1:
            return "time left unknown"
        seconds = max(0.0, (self.work_left - self._bundle_work) * elapsed / done)
        return f"{_duration(seconds)} left"


def work(cell: Cell) -> float:
    """Rows that training a cell goes through, the unit of the time left."""
    return float(cell.recipe.steps * cell.recipe.batch_size)


def _name(cell: Cell) -> str:
    grid = " ".join(f"{key.split('.', 1)[1]}={value}" for key, value in cell.grid.items())
    return f"{cell.label} {cell.task} {cell.backbone} seed {cell.seed} {grid}".rstrip()


def _outcome(result: Result) -> str:
    if result.dev and result.raced_out_at is not None:
        return f"dev {result.dev.score:.1f}, left the race at step {result.raced_out_at:,}"
    if result.dev and result.selected_step is not None:
        return f"dev {result.dev.score:.1f} at step {result.selected_step:,}"
    lines = result.failure.message.strip().splitlines() if result.failure else []
    return f"FAILED: {lines[-1] if lines else 'no reason given'}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
