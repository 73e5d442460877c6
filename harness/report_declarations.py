"""Layouts of tables and figures, as files of `report/layouts/` and the `report:` block of a suite file declare them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from harness.declarations import Strict

Value = str | int | float | bool | None
Condition = Value | list[Value]
Where = dict[str, Condition]
"""Setting -> its value or one of several: suite, backbone, label, method, task, benchmark, protocol, hp.KEY,
recipe.KEY, few_shot.k and whatever else a result's cell holds. None asks that the cell does not have it."""
Show = Literal["score", "params", "kept", "ms/step", "relative time", "peak MiB"]
LayoutName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,79}$")]


class Line(Strict):
    """A row or a column of a table; with `over`, one for each of the `values`."""

    title: str | list[str] = ""
    """Several texts where the table has several heads; {value} is the title of the value of `over`."""
    group: str = ""
    """What stands over neighbouring columns, or between rows."""
    where: Where = {}
    """Settings of the cells that this line shows."""
    show: Show | None = None
    """None takes what the other axis shows, or the score."""
    metric: str | None = None
    """One metric of the test split instead of the reported score."""
    over: str | None = None
    """Setting that makes one line for each of the `values`."""
    values: dict[str, str] | list[Value] = []
    """Value -> its title, or values that are their own titles."""
    average: str | None = None
    """Title of one more line: the mean over the values, missing unless each is there. `over: task` only."""
    mean_over: list[str] = []
    """Tasks whose mean this line is; it is missing unless each has a score."""
    published: str | None = None
    """What the published record calls the method of this line."""
    only_published: bool = False
    """Nothing here measures this line: it stands among the published ones only."""

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
    """The shape of one table."""

    title: str
    """Title of the table."""
    caption: str = ""
    """Text below the title."""
    where: Where = {}
    """What every entry has in common."""
    heads: list[str] = Field(["method"], min_length=1)
    """Titles of the columns that name a row."""
    rows: list[Line] = Field(min_length=1)
    """The rows, from top to bottom."""
    columns: list[Line] = Field(min_length=1)
    """The columns, from left to right."""
    best: Literal["column", "row", "none"] = "column"
    """Along which axis the best and the second best score are marked."""
    published: str | None = None
    """Record, or RECORD:TABLE, whose numbers stand below the measured rows."""


class Axis(Strict):
    """The swept setting of a figure."""

    setting: str
    """A key as in `where`, or `size`, the parameters of the backbone."""
    title: str
    """Label of the axis."""
    log: bool = False
    """Whether the axis is logarithmic."""


class Curve(Strict):
    """One line of a figure; without any, each method is one."""

    title: str
    """Name in the legend."""
    where: Where = {}
    """Settings of the cells that it shows."""


class Panel(Strict):
    """One panel: the mean over `tasks`."""

    title: str
    """Title of the panel."""
    tasks: list[str] = Field(min_length=1)
    """Tasks whose mean it shows."""


class TimeRow(Strict):
    """Where the training times of a figure come from; without conditions, from the runs that were scored."""

    where: Where = {}
    """Settings of the cells whose times are shown."""
    tasks: list[str] = []
    """Empty takes those of the panel."""


class Gates(Strict):
    """Names of stored tensors; {i} counts the spaces from 0."""

    prompt: str
    """[P, H]"""
    weight: str
    """[1, H] of one space."""
    bias: str
    """[1] of one space."""


class Categories(Strict):
    """The values of a setting that have no order stand side by side; a panel for each part of the results."""

    setting: str
    """A key as in `where`."""
    title: str
    """Label of the axis."""
    panels: list[Curve] = []
    """Without any: all results in one."""


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
    """Of a swept setting; without any: one for each task."""
    curves: list[Curve] = []
    """The lines; without any, each method is one."""
    time: TimeRow | None = None
    """A second row of panels: training time per step, relative to the largest x of the first curve."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> FigureLayout:
        if sum(part is not None for part in (self.x, self.gates, self.categories)) != 1:
            raise ValueError("a figure has one of x, gates and categories")
        if self.x is None and (self.panels or self.curves or self.time is not None):
            raise ValueError("panels, curves and time belong to a figure with x")
        return self


class ReportBlock(Strict):
    """The `report` block of a suite file: which layouts show its results."""

    tables: list[LayoutName] = []
    """Names of shipped layouts, or of those below."""
    figures: list[LayoutName] = []
    """Names of shipped figure layouts, or of those below."""
    define_tables: dict[LayoutName, TableLayout] = {}
    """Tables of your own, by name."""
    define_figures: dict[LayoutName, FigureLayout] = {}
    """Figures of your own, by name."""

    @field_validator("tables", "figures")
    @classmethod
    def _no_repeats(cls, value: list[str]) -> list[str]:
        repeated = sorted({name for name in value if value.count(name) > 1})
        if repeated:
            raise ValueError(f"lists {', '.join(repeated)} more than once")
        return value


def spelled(value: Any) -> str:
    """A value as its title: 0.5 -> "0.5", True -> "yes", None -> "none"."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
