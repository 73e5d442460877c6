"""Before anything is trained: resolve a suite, check it against methods, backbones and data, see what is done."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.backbone import Backbone, fingerprint, meta_backbone, resolve
from harness.bundle import Bundle, build_method
from harness.caches import cached_backbone, cached_task
from harness.checkpoint import name_of
from harness.errors import UserError
from harness.method import Method, Registered, Rule, discover
from harness.metrics import get_metric
from harness.racing import Race
from harness.results import ResultStore
from harness.schema import Cell, Result
from harness.selection import next_cells
from harness.sources import MissingData
from harness.suite import Group, Overrides, Suite, expand, load_suite
from harness.tasks import Task
from harness.tasks.own import suite_tasks

Key = tuple[int, int]
"""(grid point, seed) of a cell within its group."""


@dataclass
class Plan:
    """A suite resolved: its groups, the registry they refer to, and what the results folder holds of them."""

    suite: Suite
    groups: list[Group]
    methods: dict[str, Registered]
    tasks: dict[str, Task]
    store: ResultStore
    data_dir: str | None
    results: list[dict[Key, Result]]
    """Per group, the stored results."""
    _fingerprints: dict[str, str] = field(default_factory=dict)

    @property
    def per_seed(self) -> bool:
        return self.suite.file.tuning.seeds == "each"

    def pending(self) -> list[Cell]:
        """Cells to train now; the winner's further seeds follow once a grid is complete."""
        return [
            group.cells[key]
            for group, results in zip(self.groups, self.results, strict=True)
            for key in next_cells(group, results, self.per_seed)
        ]

    def stages(self) -> tuple[list[Cell], list[Cell]]:
        """Pending cells apart: those of the searches and of entries without one, and winners' further seeds."""
        further = {
            name_of(group.cells[(point, seed)])
            for group in self.groups
            if len(group.points) > 1 and not self.per_seed
            for point in range(len(group.points))
            for seed in group.seeds[1:]
        }
        pending = self.pending()
        return (
            [cell for cell in pending if name_of(cell) not in further],
            [cell for cell in pending if name_of(cell) in further],
        )

    def load(self, cell: Cell) -> Result | None:
        """The stored result of a cell, if it counts: a full search has to train anew what left a race."""
        result = self.store.load(cell)
        left_race = result is not None and result.raced_out_at is not None
        return None if left_race and self.suite.file.tuning.strategy != "halving" else result

    def num_cells(self, group: Group) -> int:
        """Cells that selection will ask for in all: the grid, then the winner's other seeds."""
        if self.per_seed:
            return len(group.points) * len(group.seeds)
        return len(group.points) + len(group.seeds) - 1

    def record(self, result: Result) -> None:
        """Take in a new result."""
        for group, results in zip(self.groups, self.results, strict=True):
            for key, cell in group.cells.items():
                if cell.cell_id == result.cell_id and cell.label == result.cell.label:
                    results[key] = result

    def is_stale(self, result: Result) -> bool:
        """Whether the method's source, the weights or the rows have changed since `result` was made."""
        cell = result.cell
        if result.method_sha256 != self.methods[cell.method].spec.source_sha256:
            return True
        if result.status == "failed" or result.data is None or result.backbone is None:
            return False
        return self._weights_moved(result) or self._data_moved(result)

    def _weights_moved(self, result: Result) -> bool:
        assert result.backbone is not None
        if result.backbone.source == "none":
            return False
        source = self.suite.backbone_sources[result.cell.backbone]
        if source not in self._fingerprints:
            self._fingerprints[source] = fingerprint(source)
        return self._fingerprints[source] not in (result.backbone.fingerprint, "unresolved")

    def _data_moved(self, result: Result) -> bool:
        task = self.tasks[result.cell.task]
        if not (task.generate or task.files or self.data_dir):
            return False  # a plan downloads nothing; a report still flags results made with different rows
        try:
            found = cached_task(result.cell, self.data_dir, self.suite.folder).record.fingerprint
        except UserError:
            return False  # without the rows nothing can be compared, and nothing of the result is wrong
        assert result.data is not None
        return found != result.data.fingerprint


def make_plan(
    path: str | Path, overrides: Overrides, results: str | Path, data_dir: str | None, method_dirs: Sequence[str] = ()
) -> Plan:
    """Resolve a suite file. Raises UserError for anything the user can mend; writes nothing."""
    methods = discover(*method_dirs)
    suite = load_suite(path, overrides)
    tasks = suite_tasks(suite)
    groups = expand(suite, {n: m.spec for n, m in methods.items()}, {n: t.spec for n, t in tasks.items()})
    where = "--backbones" if overrides.backbones else suite.document.where("backbones")
    for source in suite.backbone_sources.values():
        resolve(source, where)
    store = ResultStore(results)
    plan = Plan(suite, groups, methods, tasks, store, data_dir, [])
    for group in groups:
        loaded = {key: plan.load(cell) for key, cell in group.cells.items()}
        plan.results.append({key: result for key, result in loaded.items() if result is not None})
    return plan


def check_fit(plan: Plan, cells: Iterable[Cell], to_run: bool = True, weights: bool = True) -> None:
    """Build each distinct method on a backbone without weights; before a run, read all rows and weights too.

    Without `weights`, those are left to other processes, so that this one takes no memory for them.
    Raises UserError, before anything is written.
    """
    cells = list(cells)
    backbones: dict[str, Backbone] = {}
    misfits: dict[str, dict[str, UserError]] = {}
    for cell in _distinct(plan, cells):
        if cell.backbone not in backbones:
            backbones[cell.backbone] = meta_backbone(plan.suite.backbone_sources[cell.backbone])
        try:
            method = _build(plan, cell, backbones[cell.backbone])
        except UserError as error:
            misfits.setdefault(cell.label, {})[cell.backbone] = error
        else:
            # unlike a misfit, this would not fail by itself: a network may run on past its positions
            _check_positions(plan, cell, method, backbones[cell.backbone])
    for errors in misfits.values():
        # what fits one backbone and not another is no mistake in the suite: those cells are recorded as failed
        if len(errors) == len(backbones):
            raise next(iter(errors.values()))
    if to_run:
        _read_rows(plan, cells)
    if to_run and weights:
        for name, precision in {cell.backbone: cell.recipe.precision for cell in cells}.items():
            if name in backbones:  # rules need none
                cached_backbone(plan.suite.backbone_sources[name], precision)


def _read_rows(plan: Plan, cells: Sequence[Cell]) -> None:
    """Load every task's rows and metrics. Raises UserError; where rows are missing, it says which tasks have theirs."""
    there, missing = [], []
    for name, cell in {cell.task: cell for cell in cells}.items():
        for metric in plan.tasks[name].metrics:
            get_metric(metric)
        try:
            cached_task(cell, plan.data_dir, plan.suite.folder)
        except MissingData as error:
            missing.append(error)
        except UserError:
            raise
        except Exception:  # a mistake in reading one task is recorded as the failure of its cells
            continue
        else:
            there.append(name)
    if missing:
        hint = f"The rows of the others are there: --tasks {','.join(there)}" if there else missing[0].hint
        raise UserError(missing[0].problem, where=missing[0].where, field=missing[0].field, hint=hint)


def _distinct(plan: Plan, cells: Sequence[Cell]) -> Iterator[Cell]:
    """One cell for each way in which a method can be built."""
    seen: set[str] = set()
    for cell in cells:
        cls = plan.methods[cell.method].cls
        identity = json.dumps([cell.method, cell.hp, cell.backbone, cell.recipe.max_source_length], sort_keys=True)
        if identity not in seen and cls is not None and not issubclass(cls, Rule):
            seen.add(identity)
            yield cell


def _build(plan: Plan, cell: Cell, backbone: Backbone) -> Method:
    cls = plan.methods[cell.method].cls
    assert cls is not None
    assert issubclass(cls, Method)
    return build_method(cell, cls, backbone, plan.suite.document.where("methods", cell.label))


def _check_positions(plan: Plan, cell: Cell, method: Method, backbone: Backbone) -> None:
    """Raise UserError unless prompt, text and target fit the backbone's positions."""
    task = plan.tasks[cell.task]
    length = cell.recipe.max_source_length or task.max_source_length
    target = 4 if task.kind == "classification" and task.target_style == "digits" else task.max_target_length
    needed = method.num_prompt_tokens + length + target
    if backbone.max_positions is not None and needed > backbone.max_positions:
        raise UserError(
            f"needs {needed} positions ({method.num_prompt_tokens} prompt + {length} source + {target} target), "
            f"backbone '{cell.backbone}' has {backbone.max_positions}",
            where=plan.suite.document.path,
            field=f"{cell.label} on {cell.task}",
            hint="Lower prompt_length or recipe.max_source_length.",
        )


def pack(plan: Plan, cells: Sequence[Cell]) -> list[Bundle]:
    """Put cells that can share a forward pass into bundles; the points of a race stay together."""
    bundles: dict[str, list[Cell]] = {}
    for cell in cells:
        bundles.setdefault(_bundle_key(plan, cell), []).append(cell)
    races = _races(plan)
    parts = [part for bundle in bundles.values() for part in _parts(plan, bundle, races)]
    return [
        Bundle(
            tuple(part),
            {cell.method: plan.methods[cell.method].path for cell in part},
            plan.suite.backbone_sources[part[0].backbone],
            plan.data_dir,
            plan.suite.folder,
            plan.suite.file.execution.micro_batch_tokens,
            tuple(dict.fromkeys(race for cell in part if (race := races.get(_place(cell))))),
        )
        for part in parts
    ]


def _parts(plan: Plan, bundle: Sequence[Cell], races: Mapping[tuple[str, ...], Race]) -> Iterator[list[Cell]]:
    """Cut a bundle into parts of at most `bundle_cells`. Raises UserError for a race that is larger."""
    limit, part = plan.suite.file.execution.bundle_cells, list[Cell]()
    for _, cells in itertools.groupby(bundle, lambda cell: races.get(_place(cell)) or cell.cell_id):
        unit = list(cells)
        if len(unit) > limit:
            raise UserError(
                f"'{unit[0].label}' races {len(unit)} grid points in one bundle, execution.bundle_cells is {limit}",
                where=plan.suite.document.where("tuning"),
                hint="Raise execution.bundle_cells, or search with tuning.strategy: grid.",
            )
        if part and len(part) + len(unit) > limit:
            yield part
            part = []
        part = [*part, *unit]
    if part:
        yield part


def _races(plan: Plan) -> dict[tuple[str, ...], Race]:
    """The grids that can race, by the place of their cells: their points share a bundle and its evaluations."""
    if plan.suite.file.tuning.strategy == "grid":
        return {}
    races = {}
    for group in plan.groups:
        cells = [group.cells[(point, group.seeds[0])] for point in range(len(group.points))]
        shared = {(_bundle_key(plan, cell), cell.recipe.steps, cell.recipe.eval_every) for cell in cells}
        if len(cells) > 1 and len(shared) == 1:
            for seed in group.seeds if plan.per_seed else group.seeds[:1]:
                races[_place(group.cells[(0, seed)])] = Race(group.label, seed, len(cells))
    return races


def _place(cell: Cell) -> tuple[str, ...]:
    """Label, task, backbone and seed: what the grid points of one search have in common."""
    return cell.label, cell.task, cell.backbone, str(cell.seed)


def _bundle_key(plan: Plan, cell: Cell) -> str:
    """Cells with equal keys may share a bundle; rules and layer-side methods run alone."""
    cls = plan.methods[cell.method].cls
    alone = cls is None or issubclass(cls, Rule) or cls.is_layer_side()
    recipe = cell.recipe
    shared = [cell.backbone, cell.task, recipe.precision, recipe.backbone_dropout, recipe.max_source_length]
    return json.dumps([*shared, f"{cell.label} {cell.cell_id}" if alone else ""])
