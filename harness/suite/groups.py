"""Groups: the cells of each table entry. A group is made after the groups that its cells start from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from harness.errors import UserError, require_choice
from harness.suite import protocol as protocol_module
from harness.suite.blocks import Draw
from harness.suite.cell import Cell, Mixture, Part, Start
from harness.suite.cell_limit import CellLimit, EntryCount
from harness.suite.few_shot_seeds import few_shot_draws
from harness.suite.file_schema import ADAPTER, ExceptionRule, MethodSpec, SourceChoice
from harness.suite.init_from import GRID_KEY, INIT_FROM, start_from_cells, start_from_file
from harness.suite.load import Suite, short_name
from harness.suite.resolve_settings import (
    EntrySettings,
    GridPoint,
    TaskSpec,
    num_points,
    resolve_entry,
    resolve_points,
)
from harness.suite.search import Search
from harness.suite.trained_adapter import start_from_adapter

SOURCES_SUITE = "sources"
"""Suite name under which source cells are stored that are in no table. Suites share them, so each is trained once."""
EntryName = tuple[str, str, str]
"""(row, task, backbone)"""
CellsAt = dict[tuple[int, int], Cell]
"""(index of the grid point, seed) -> cell."""


@dataclass(frozen=True)
class Group:
    """One entry of the final table: a method on a task and backbone, over grid points and seeds."""

    label: str
    method: str
    task: str
    backbone: str
    points: tuple[dict[str, Any], ...]
    seeds: tuple[int, ...]
    cells: CellsAt
    k: int | None = None
    """Number of training rows of a few-shot entry; None for all rows."""
    is_source: bool = False
    """Whether the group is no table entry, and is trained only because other cells start from it."""
    repeat: int = 1
    """Which training of its cells this is. A group of repeats stands right behind the one that it repeats, with the
    same grid points and seeds; of its cells those are trained whose point won there."""
    shared_seeds: frozenset[int] = frozenset()
    """Of a source: the seeds whose cells are also in a table entry. They are trained once and belong to both."""
    search: Search | None = None
    """How the points are drawn; None for a grid. By `tpe` the group grows as results come in (`with_points`)."""
    num_earlier: int = 0
    """How many of the first points are none of today's grid or search but were tried for this entry before, by another
    grid or over other ranges."""
    make_cells: Callable[[Sequence[dict[str, Any]], Sequence[int], str], CellsAt] = field(
        default=lambda points, indices, study: {}, repr=False, compare=False
    )
    """(points, their numbers in the search, its name) -> their cells, keyed from 0 on."""

    @property
    def num_points(self) -> int:
        """Points in all, also those that are not known yet."""
        return len(self.points) if self.search is None else self.num_earlier + self.search.trials

    @property
    def num_to_come(self) -> int:
        """Trials whose points are not known yet, since they follow from results."""
        return self.num_points - len(self.points)

    def with_points(self, points: Sequence[dict[str, Any]]) -> Group:
        """Return the group with the points of its next trials."""
        assert self.search is not None
        first = len(self.points)
        numbers = range(first - self.num_earlier, first - self.num_earlier + len(points))
        made = self._in_place(self.make_cells(points, numbers, self.search.name))
        cells = {(first + index, seed): cell for (index, seed), cell in made.items()}
        return replace(self, points=(*self.points, *points), cells={**self.cells, **cells})

    def behind(self, earlier: Sequence[Cell]) -> Group:
        """Return the group with points in front that were tried for this entry before, given by their stored cells."""
        made = [self._in_place(self.make_cells([cell.grid], [cell.grid_index], cell.study)) for cell in earlier]
        before = {(at, seed): cell for at, cells in enumerate(made) for (_, seed), cell in cells.items()}
        after = {(point + len(earlier), seed): cell for (point, seed), cell in self.cells.items()}
        points = (*(cell.grid for cell in earlier), *self.points)
        return replace(self, points=points, cells={**before, **after}, num_earlier=len(earlier))

    def _in_place(self, made: CellsAt) -> CellsAt:
        """Return cells of further points, those of shared seeds under the suite of the table entry they belong to."""
        suites = {seed: self.cells[(0, seed)].suite for seed in self.seeds}
        return {
            at: cell if cell.suite == suites[at[1]] else cell.model_copy(update={"suite": suites[at[1]]})
            for at, cell in made.items()
        }

    def num_cells(self, per_seed: bool) -> int:
        """Return how many cells selection will ask for: the grid for the first seed, then the winner for the others.

        With `per_seed` it is the grid for every seed. Cells that a source shares with the table count in the table.
        """
        own = len(self.seeds) - len(self.shared_seeds)
        if self.repeat > 1:
            return len(self.seeds)
        if per_seed:
            return self.num_points * own
        return own + (self.num_points - 1 if self.seeds[0] not in self.shared_seeds else 0)

    def own_cells(self) -> dict[tuple[int, int], Cell]:
        """Return the cells that are in no other group."""
        return {point: cell for point, cell in self.cells.items() if point[1] not in self.shared_seeds}

    def repeated(self, repeat: int) -> Group:
        """Return the group of the same cells, trained once more."""
        cells = {point: cell.model_copy(update={"repeat": repeat}) for point, cell in self.cells.items()}
        return replace(self, repeat=repeat, cells=cells)

    def sharing(self, row: Group) -> Group:
        """Return this source with the cells of the table's `row` instead of its own for the seeds that both have."""
        shared = frozenset(self.seeds) & frozenset(row.seeds)
        return replace(
            self,
            shared_seeds=shared,
            cells={point: row.cells[point] if point[1] in shared else cell for point, cell in self.cells.items()},
        )


class GroupBuilder:
    """Makes the groups of a suite. A group asks for the groups that its cells start from, and those are made first."""

    def __init__(
        self,
        suite: Suite,
        methods: Mapping[str, MethodSpec],
        tasks: Mapping[str, TaskSpec],
        labels: Mapping[str, str],
        rows: Iterable[tuple[EntryName, int | None]],
        limit: CellLimit,
    ) -> None:
        """`rows` are the table entries: (row, task, backbone), and the number of few-shot rows or None."""
        self.suite = suite
        self.methods = methods
        self.tasks = tasks
        self.labels = labels
        self.places = {place for place, _ in rows}
        self.limit = limit
        self.rows: dict[tuple[EntryName, int | None], Group] = {}
        self.sources: dict[EntryName, Group] = {}
        self.open: list[EntryName] = []
        """Groups being made, each asked for by the one before. One asked for again would start from itself."""

    def row(self, place: EntryName, k: int | None = None) -> Group:
        """Return a group of the suite's table; with `k`, of its few-shot entries."""
        if (place, k) not in self.rows:
            method = self.labels[place[0]]
            seeds = self._row_seeds(place, method, k)
            self.rows[(place, k)] = self._make(place, seeds, method, self.suite.file.suite, k)
        return self.rows[(place, k)]

    def _row_seeds(self, place: EntryName, method: str, k: int | None) -> tuple[int, ...]:
        """The seeds of a table entry; the first alone where no seed changes what was trained elsewhere."""
        seeds = _seeds(self.suite, self.tasks[place[1]], k)
        return seeds[:1] if self.methods[method].answers_from_files else seeds

    def count(self, place: EntryName, k: int | None = None, seeds: Sequence[int] = ()) -> EntryCount:
        """Return how many cells a group will have, before it is made; for `seeds` if given, else for the suite's."""
        label, task, backbone = place
        method = self.labels.get(label) or self._method(label, "")
        points = num_points(_entry(self.suite, label, self.methods[method], self.tasks[task], backbone, k))
        return EntryCount(f"{label} on {task}", points, len(seeds or self._row_seeds(place, method, k)))

    def source(self, place: EntryName, seeds: Sequence[int] | None, where: str) -> dict[int, Group]:
        """Return seed of the source -> the group that cells start from, for `seeds`; for the first seed if None."""
        method = self._method(place[0], where)
        # the first seed searches the grid, so it is needed even where cells start from other seeds
        first = _seeds(self.suite, self.tasks[place[1]])[0]
        wanted = (first,) if seeds is None else seeds
        found: dict[int, Group] = {}
        if self._is_in_table(place):
            row = self.row(place)
            own = set(row.seeds)
            found = {seed: row for seed in wanted if seed in own}
        apart = [seed for seed in wanted if seed not in found]
        if apart:
            found |= dict.fromkeys(apart, self._apart(place, (first, *apart), method))
        return found

    def _apart(self, place: EntryName, seeds: Sequence[int], method: str) -> Group:
        """Return the group of a source that is in no table, with at least these seeds."""
        known = self.sources.get(place)
        before = known.seeds if known else ()
        # the group grows when another cell asks for more seeds; cells that are the same are equal, so none is doubled
        every = tuple(dict.fromkeys((*before, *seeds)))
        if known is None or len(every) > len(before):
            self.limit.add_source(self.count(place, seeds=every[len(before) :]))
            made = self._make(place, every, method, self._suite_of(place), is_source=True)
            self.sources[place] = made.sharing(self.row(place)) if self._is_in_table(place) else made
        return self.sources[place]

    def _is_in_table(self, place: EntryName) -> bool:
        """Return whether a table entry can be the source. Few-shot entries cannot: sources are trained on all rows."""
        return place in self.places and not self.suite.file.few_shot

    def _suite_of(self, place: EntryName) -> str:
        """Return the suite under which a source is stored: its own if only a filter hides it there, else SOURCES."""
        label, task, backbone = place
        file = self.suite.file
        in_table = label in file.methods and task in file.tasks and backbone in map(short_name, file.backbones)
        return file.suite if in_table and place not in self.places else SOURCES_SUITE

    def _make(
        self,
        place: EntryName,
        seeds: Sequence[int],
        method: str,
        suite_name: str,
        k: int | None = None,
        is_source: bool = False,
    ) -> Group:
        if place in self.open:
            chain = " <- ".join(f"{label} on {task}" for label, task, _ in (*self.open, place))
            where = self.suite.document.where(*suite_block(self.suite, place[0]), INIT_FROM)
            raise UserError(f"would start from itself: {chain}", where=where, field=place[0])
        self.open.append(place)
        try:
            made = self._group(place, seeds, self.methods[method], suite_name, k)
            return replace(made, is_source=is_source)
        finally:
            self.open.pop()

    def _method(self, label: str, where: str) -> str:
        """Return the method of a row that a cell starts from. Raises UserError for an unknown name and for a rule."""
        file = self.suite.file
        rows = file.sources if label in file.sources else file.methods
        method = str(method_of_row(rows[label], label, self.methods)) if label in rows else label
        if method not in self.methods:
            problem = f"no row and no method is called '{label}'" if label == method else f"unknown method '{method}'"
            choices = {*self.methods, *file.methods, *file.sources}
            if label in rows:
                block, choices = "sources" if rows is file.sources else "methods", {*self.methods}
                where = self.suite.document.where(block, label)
                if label == method:
                    problem = f"row '{label}' names no method, and no method is called so"
            raise UserError(problem, where=where, value=method, choices=sorted(choices))
        if self.methods[method].is_rule:
            raise UserError(f"'{label}' trains nothing, so no cell can start from it", where=where)
        return method

    def _group(self, place: EntryName, seeds: Sequence[int], spec: MethodSpec, suite_name: str, k: int | None) -> Group:
        suite, (label, task_name, backbone) = self.suite, place
        task = self.tasks[task_name]
        entry = _entry(suite, label, spec, task, backbone, k)
        points, search = resolve_entry(entry)
        draws = self._draws(task, k, seeds)
        # each choice once: a grid of hundreds of points names the same few
        choices = dict.fromkeys(choice for point in points for choice in point.init_from)
        starts = {choice: self._starts(choice, place, seeds) for choice in choices}

        def cells_of(point: GridPoint, number: int, study: str) -> dict[int, Cell]:
            return {
                seed: Cell(
                    suite=suite_name,
                    label=label,
                    method=spec.name,
                    hp=point.hp,
                    task=task.name,
                    task_version=task.version,
                    backbone=backbone,
                    seed=seed,
                    protocol=suite.protocol.reference,
                    task_rules=suite.protocol.task_fields(task.name, task.benchmark),
                    definition=suite.file.define_tasks.get(task.name),
                    mixture=self._mixture(task.name),
                    few_shot=draws[seed],
                    row_limit=suite.file.rows.get(task.name),
                    recipe=point.recipe,
                    init_from=[starts[choice][seed] for choice in point.init_from],
                    grid=point.point,
                    grid_index=number,
                    study=study,
                    search_seed=seed if suite.file.tuning.seeds == "each" else seeds[0],
                )
                for seed in seeds
            }

        def make_cells(found: Sequence[dict[str, Any]], numbers: Sequence[int], study: str) -> CellsAt:
            resolved = zip(resolve_points(entry, found), numbers, strict=True)
            made = [cells_of(point, number, study) for point, number in resolved]
            return {(at, seed): cell for at, cells in enumerate(made) for seed, cell in cells.items()}

        cells: CellsAt = {}
        kept: list[dict[str, Any]] = []
        ids: set[str] = set()
        """Of the first seed's cells: of two that are the same, every seed's are."""
        for point in points:
            made = cells_of(point, len(kept), search.name if search else "")
            cell_id = made[seeds[0]].cell_id  # one id is enough, and each is a hash of the whole cell
            if cell_id in ids:
                self._require_swept_source(made[seeds[0]], label)
                continue
            ids.add(cell_id)
            cells |= {(len(kept), seed): cell for seed, cell in made.items()}
            kept.append(point.point)
        return Group(
            label, spec.name, task.name, backbone, tuple(kept), tuple(seeds), cells, k, search=search,
            make_cells=make_cells,
        )  # fmt: skip

    def _draws(self, task: TaskSpec, k: int | None, seeds: Sequence[int]) -> Mapping[int, Draw | None]:
        """Return training seed -> the few-shot draw that it sees."""
        file, protocol = self.suite.file, self.suite.protocol
        own_seeds = file.seeds or protocol.seeds(_where(task, k))
        where = self.suite.document.where("few_shot", "draw_seeds")
        return few_shot_draws(file.few_shot, k, protocol.draw_rule, own_seeds, seeds, where)

    def _mixture(self, name: str) -> Mixture | None:
        """Return a mixture of the suite, with what decides the rows of each of its tasks; None for a single task."""
        file, protocol = self.suite.file, self.suite.protocol
        declared = file.define_mixtures.get(name)
        if declared is None:
            return None
        parts = [
            Part(
                task=part,
                task_version=self.tasks[part].version,
                task_rules=protocol.task_fields(part, self.tasks[part].benchmark),
                definition=file.define_tasks.get(part),
            )
            for part in declared.tasks
        ]
        return Mixture(parts=parts, sampling=declared.sampling, temperature=declared.temperature)

    def _require_swept_source(self, cell: Cell, label: str) -> None:
        """Raise UserError if two grid points are the same cell. Swept sources may be the same for one task."""
        if GRID_KEY not in cell.grid:
            where = self.suite.document.where(*suite_block(self.suite, label))
            raise UserError("two points of its grid are the same cell", where=where, field=label)

    def _starts(self, choice: SourceChoice, place: EntryName, seeds: Sequence[int]) -> dict[int, Start]:
        """Return seed -> what the cells of a group start from."""
        label, task, backbone = place
        suite = self.suite
        where = suite.document.where(*suite_block(suite, label), INIT_FROM)
        if choice.file is not None:
            return dict.fromkeys(seeds, start_from_file(choice, suite.folder, where))
        if choice.adapter is not None:
            return dict.fromkeys(seeds, start_from_adapter(choice, suite.folder, where))
        source_task = require_choice(choice.task or task, self.tasks, kind="task", where=where)
        source_backbone = require_choice(choice.backbone or backbone, suite.backbone_sources, kind="backbone",
                                         where=where)  # fmt: skip
        found = (str(choice.method), source_task, source_backbone)
        groups = self.source(found, seeds if choice.seed == "own" else None, where)
        starts = {
            seed: start_from_cells(choice, group.cells, len(group.points), seed, _study(group))
            for seed, group in groups.items()
        }
        return starts if choice.seed == "own" else dict.fromkeys(seeds, *starts.values())


def _study(group: Group) -> str:
    """What decides the points of a search by `tpe`, which are not known beforehand; empty for any other group."""
    search = group.search
    return f"{search.name} {search.trials}" if search and search.strategy == "tpe" else ""


def method_of_row(own: Mapping[str, Any], label: str, methods: Mapping[str, MethodSpec]) -> Any:
    """Return the method of a row: the one that it names, else of its own name; of an adapter the one that reads it."""
    if ADAPTER in own and "method" not in own:
        return next((name for name in sorted(methods) if methods[name].answers_from_files), label)
    return own.get("method", label)


def suite_block(suite: Suite, label: str) -> tuple[Literal["methods", "sources"], str]:
    """Return where the suite file declares a row: `methods`, or `sources` if only that has it."""
    only_source = label in suite.file.sources and label not in suite.file.methods
    return ("sources" if only_source else "methods"), label


def _seeds(suite: Suite, task: TaskSpec, k: int | None = None) -> tuple[int, ...]:
    return tuple(suite.overrides.seeds or suite.file.seeds or suite.protocol.seeds(_where(task, k)))


def _where(task: TaskSpec, k: int | None) -> protocol_module.Scope:
    return protocol_module.Scope(task.name, task.benchmark, few_shot=k is not None)


def _entry(suite: Suite, label: str, spec: MethodSpec, task: TaskSpec, backbone: str, k: int | None) -> EntrySettings:
    applying = {i: r for i, r in enumerate(suite.file.exceptions) if _applies(r, label, task.name, backbone)}
    return EntrySettings(
        document=suite.document,
        label=label,
        spec=spec,
        protocol=suite.protocol,
        recipe=suite.file.recipe,
        own=suite.file.methods.get(label, suite.file.sources.get(label, {})),
        exceptions=applying,
        overrides=suite.overrides.settings,
        task=task,
        backbone=backbone,
        block=suite_block(suite, label)[0],
        few_shot=k is not None,
        is_encoder=backbone in suite.encoders,
        tuning=suite.file.tuning,
    )


def _applies(rule: ExceptionRule, label: str, task: str, backbone: str) -> bool:
    where = rule.where
    return (
        (not where.tasks or task in where.tasks)
        and (not where.methods or label in where.methods)
        and (not where.backbones or backbone in map(short_name, where.backbones))
    )
