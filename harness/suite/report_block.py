"""What the YAML of a table or figure layout may hold, as strict pydantic models.

Layouts are files in `suite/report_layouts/`, or stand in the `report:` block of a suite file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from harness.suite.blocks import Strict

Value = str | int | float | bool | None
Condition = Value | list[Value]
Where = dict[str, Condition]
"""Setting -> the value that a result must have, or a list of accepted values.

Settings are suite, backbone, label, method, task, benchmark, protocol, hp.KEY, recipe.KEY, few_shot.k and the other
fields of a cell. The value None asks for cells that do not have the setting."""
Show = Literal["score", "params", "kept", "ms/step", "relative time", "peak MiB"]
Bold = Literal["ties", "best"]
"""What is bold: the best and all that no test can tell from it, or the highest score whatever the tests say."""
ReportSeeds = Literal["all", "others"]
"""Whether the seed that chose the grid point is among those that are reported."""
LayoutName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,79}$")]


class Line(Strict):
    """A row or a column of a table. With `over` it stands for several: one for each of the `values`."""

    title: str | list[str] = ""
    """One text per head column of the table; {value} is replaced by the title of the value of `over`."""
    group: str = ""
    """Title over neighbouring columns, or above a section of rows."""
    where: Where = {}
    """Settings of the cells that this line shows."""
    show: Show | None = None
    """None takes what the other axis shows; the score if that is None too."""
    metric: str | None = None
    """Name of one metric to show instead of the reported score, from the test split."""
    over: str | None = None
    """Setting that makes one line for each of the `values`."""
    values: dict[str, str] | list[Value] = []
    """Value -> title; in a list each value is its own title."""
    average: str | None = None
    """Title of one more line: the mean over the values, empty unless all have a score. Needs `over: task`."""
    mean_over: list[str] = []
    """Makes the line the mean over these tasks; it is empty unless every task has a score."""
    published: str | None = None
    """Name of this line's method in the published record."""
    only_published: bool = False
    """The line has published numbers only; no result is looked for."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> Line:
        if bool(self.over) != bool(self.values):
            raise ValueError("over and values need each other")
        if self.over and self.mean_over:
            raise ValueError("mean_over is for a line that stands for itself, without over")
        if self.average and self.over != "task":
            raise ValueError("average is the mean over tasks; it needs over: task")
        if self.only_published and not self.published:
            raise ValueError("only_published needs published, the name in the record")
        return self


class TableLayout(Strict):
    """The rows, columns and captions of one table."""

    title: str
    """Title of the table."""
    caption: str = ""
    """Text below the title."""
    where: Where = {}
    """Conditions on every entry of the table."""
    heads: list[str] = Field(["method"], min_length=1)
    """Titles of the first columns, which name the row."""
    rows: list[Line] = Field(min_length=1)
    """The rows, from top to bottom."""
    columns: list[Line] = Field(min_length=1)
    """The columns, from left to right."""
    best: Literal["column", "row", "none"] = "column"
    """Where the best and the second best score are marked: in each column, in each row, or nowhere."""
    published: str | None = None
    """RECORD or RECORD:TABLE: published numbers to show below the measured rows."""


class Axis(Strict):
    """The x axis of a figure: a setting with several values."""

    setting: str
    """A key as in `where`, or `size`: the number of parameters of the backbone."""
    title: str
    """Label of the axis."""
    log: bool = False
    """Whether the axis is logarithmic."""


class Curve(Strict):
    """One line of a figure. A figure without curves has one line per method."""

    title: str
    """Name in the legend."""
    where: Where = {}
    """Settings of the cells that it shows."""


class Panel(Strict):
    """One panel of a figure; it shows the mean over `tasks`."""

    title: str
    """Title of the panel."""
    tasks: list[str] = Field(min_length=1)
    """Tasks whose mean it shows."""


class TimeRow(Strict):
    """Which runs give the training times of a figure; without conditions the runs that give the scores."""

    where: Where = {}
    """Settings of the cells whose times are shown."""
    tasks: list[str] = []
    """Empty takes the tasks of the panel."""


class Gates(Strict):
    """Names of the stored tensors that make gate weights; {i} is the index of a space, from 0.

    Shapes: P prompt tokens, H hidden size.
    """

    prompt: str
    """[P, H]: the prompt."""
    weight: str
    """[1, H]: the gate of space i."""
    bias: str
    """[1]: the bias of space i."""


class Categories(Strict):
    """An x axis of values without an order, such as tasks: they stand side by side, in one or several panels."""

    setting: str
    """A key as in `where`."""
    title: str
    """Label of the axis."""
    panels: list[Curve] = []
    """One panel per entry; without entries, one panel with all results."""


class FigureLayout(Strict):
    """A figure: score against a swept setting or by category, or gate weights per prompt token."""

    title: str
    """Title of the figure."""
    where: Where = {}
    """What all its results have in common."""
    x: Axis | None = None
    """The setting along the x axis."""
    gates: Gates | None = None
    """Stored tensors from which gate weights per prompt token are drawn."""
    categories: Categories | None = None
    """A setting whose values stand side by side."""
    panels: list[Panel] = []
    """For a figure with `x`; without entries, one panel per task."""
    curves: list[Curve] = []
    """The lines; without any, each method is one."""
    time: TimeRow | None = None
    """Adds a second row of panels: training time per step, divided by that at the largest x of the first curve."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> FigureLayout:
        if sum(part is not None for part in (self.x, self.gates, self.categories)) != 1:
            raise ValueError("a figure has one of x, gates and categories")
        if self.x is None and (self.panels or self.curves or self.time is not None):
            raise ValueError("panels, curves and time belong to a figure with x")
        return self


class ReportBlock(Strict):
    """The `report` block of a suite file: which layouts show its results, and how."""

    tables: list[LayoutName] = []
    """Names of shipped layouts, or of those in `define_tables`."""
    figures: list[LayoutName] = []
    """Names of shipped figure layouts, or of those below."""
    define_tables: dict[LayoutName, TableLayout] = {}
    """Tables of your own, by name."""
    define_figures: dict[LayoutName, FigureLayout] = {}
    """Figures of your own, by name."""
    bold: Bold = "ties"
    """What is bold: the best and all that tests cannot tell from it (`ties`), or the highest score (`best`)."""
    report_seeds: ReportSeeds = "all"
    """With `others`, the seed whose dev score chose the grid point is in no mean, interval or test."""

    @field_validator("tables", "figures")
    @classmethod
    def _no_repeats(cls, value: list[str]) -> list[str]:
        repeated = sorted({name for name in value if value.count(name) > 1})
        if repeated:
            raise ValueError(f"lists {', '.join(repeated)} more than once")
        return value


def spelled(value: Any) -> str:
    """A value as text for titles and comparisons: 0.5 -> "0.5", True -> "yes", None -> "none"."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
