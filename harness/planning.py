"""Before anything is trained: resolve a suite, check it against methods, backbones and data, see what is done."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from harness.backbone import Backbone
from harness.bundle import build_method
from harness.caches import cached_backbone, cached_task
from harness.checkpoint import name_of
from harness.errors import UserError
from harness.families import block_of
from harness.group_index import GroupIndex, Key, Source, source_of
from harness.heads import check_head
from harness.lineage import INIT_FROM
from harness.loading import Placement, fingerprint, meta_backbone, resolve
from harness.method import Method, Registered, Rule, discover
from harness.metrics import get_metric
from harness.provenance import sha256_file
from harness.results import ResultStore, tensors_path
from harness.schema import Cell, Result, Start
from harness.selection import chosen, next_cells
from harness.sources import MissingData, require_folder
from harness.staleness import superseded
from harness.starting import StartFile, handed_over, prompt_file
from harness.suite import Group, Overrides, Suite, expand, load_suite
from harness.tasks import Task
from harness.tasks.own import suite_tasks


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
    superseded: dict[tuple[str, str], Result] = field(default_factory=dict)
    """By label and cell_id, results of earlier versions of task or protocol; their cells wait until asked for."""
    _fingerprints: dict[tuple[str, str], str] = field(default_factory=dict)

    @functools.cached_property
    def index(self) -> GroupIndex:
        return GroupIndex(self.groups)

    @property
    def per_seed(self) -> bool:
        return self.suite.file.tuning.seeds == "each"

    def pending(self) -> list[Cell]:
        """Cells to train now; a winner's further seeds follow once its grid is complete, others once their sources are.

        The cells of an entry wait for each other's sources, since they may race.
        """
        ready = []
        is_there = functools.cache(lambda source: self._result_of(source) is not None)
        for _, cells in itertools.groupby(self.asked(), lambda cell: (cell.label, cell.task, cell.backbone)):
            entry = list(cells)
            starts = [start for cell in entry for start in cell.init_from]
            if all(start.file is not None or is_there(source_of(start)) for start in starts):
                ready += entry
        return ready

    def asked(self) -> list[Cell]:
        """Missing cells of the table, and those that they start from; of a winner's further seeds, those known."""
        rows = [cell for i, group in enumerate(self.groups) if not group.is_source for cell in self._next(i)]
        sources: dict[int, list[Cell]] = {}
        waiting = list(rows)
        while waiting:
            for start in waiting.pop().init_from:
                index = self.index.of_source(source_of(start))
                if index is not None and self.groups[index].is_source and index not in sources:
                    sources[index] = self._next(index)
                    waiting += sources[index]
        return [*itertools.chain.from_iterable(sources.values()), *rows]

    def _next(self, index: int) -> list[Cell]:
        group = self.groups[index]
        cells = [group.cells[key] for key in next_cells(group, self.results[index], self.per_seed)]
        return [cell for cell in cells if name_of(cell) not in self.superseded]

    def source(self, start: Start) -> Result | None:
        """The result that a cell starts from, a failure where its source failed; None while there is none."""
        return self._result_of(source_of(start))

    def _result_of(self, source: Source) -> Result | None:
        index = self.index.of_source(source)
        return None if index is None else chosen(self.groups[index], self.results[index], source[-1])

    def start_files(self, cell: Cell) -> tuple[StartFile, ...]:
        """Where the tensors lie that a cell starts from."""
        return tuple(self._start_file(start) for start in cell.init_from)

    def _start_file(self, start: Start) -> StartFile:
        if start.file is not None:
            path = Path(self.suite.folder) / start.file
            return StartFile(start.title, path, sha256_file(path))
        result = self.source(start)
        assert result is not None, "a cell is trained after its sources"
        cell, problem = result.cell, result.failure.message if result.failure else ""
        path = tensors_path(self.store.path(cell))
        source = self.suite.backbone_sources[cell.backbone]
        method_file = self.methods[cell.method].path
        return StartFile(start.title, path, result.files.tensors, cell, method_file, source, problem)

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
        return self.suite.file.tuning.num_cells(len(group.points), len(group.seeds))

    def record(self, result: Result) -> None:
        """Take in a new result."""
        for index, key in self.index.of_cell(result.cell):
            self.results[index][key] = result

    def has_result(self, cell: Cell) -> bool:
        """Whether a cell of this plan has its result."""
        return any(key in self.results[index] for index, key in self.index.of_cell(cell))

    def is_stale(self, result: Result) -> bool:
        """Whether the method's source, the weights or the rows have changed since `result` was made."""
        cell = result.cell
        if result.method_sha256 != self.methods[cell.method].spec.source_sha256:
            return True
        if self._starts_moved(result):
            return True
        if result.status == "failed" or result.data is None or result.backbone is None:
            return False
        return self._weights_moved(result) or self._data_moved(result)

    def _starts_moved(self, result: Result) -> bool:
        """Whether a source has been made anew, or would be."""
        for start, record in zip(result.cell.init_from, result.starts, strict=False):
            found = None if start.file is not None else self.source(start)
            if found is not None and (found.files.tensors != record.tensors or self.is_stale(found)):
                return True
        return False

    def _weights_moved(self, result: Result) -> bool:
        assert result.backbone is not None
        if result.backbone.source == "none":
            return False
        source = self.suite.backbone_sources[result.cell.backbone]
        quantization = result.cell.recipe.quantization
        if (source, quantization) not in self._fingerprints:
            self._fingerprints[source, quantization] = fingerprint(source, quantization)
        return self._fingerprints[source, quantization] not in (result.backbone.fingerprint, "unresolved")

    def _data_moved(self, result: Result) -> bool:
        task = self.tasks[result.cell.task]
        if not (task.is_here or self.data_dir):
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
    require_folder(data_dir)
    methods = discover(*method_dirs)
    suite = load_suite(path, overrides)
    tasks = suite_tasks(suite)
    groups = expand(suite, {n: m.spec for n, m in methods.items()}, {n: t.spec for n, t in tasks.items()})
    where = "--backbones" if overrides.backbones else suite.document.where("backbones")
    for name in suite.backbones:
        resolve(suite.backbone_sources[name], where)
    store = ResultStore(results)
    plan = Plan(suite, groups, methods, tasks, store, data_dir, [])
    for group in groups:
        loaded = {key: plan.load(cell) for key, cell in group.cells.items()}
        plan.results.append({key: result for key, result in loaded.items() if result is not None})
    missing = [
        cell
        for group, results in zip(groups, plan.results, strict=True)
        for key, cell in group.cells.items()
        if key not in results
    ]
    plan.superseded = superseded(store, missing)
    return plan


def check_fit(plan: Plan, cells: Iterable[Cell], to_run: bool = True, weights: bool = True) -> None:
    """Build each distinct method on a backbone without weights; before a run, read all rows and weights too.

    Without `weights`, those are left to other processes, so that this one takes no memory for them.
    Raises UserError, before anything is written.
    """
    cells = list(cells)
    backbones: dict[tuple[str, str], Backbone] = {}
    misfits: dict[str, dict[str, UserError]] = {}
    for cell in _distinct(plan, cells):
        stored = (cell.backbone, cell.recipe.quantization)
        if stored not in backbones:
            backbones[stored] = meta_backbone(plan.suite.backbone_sources[cell.backbone], cell.recipe.quantization)
        check_head(cell.recipe.head, plan.tasks[cell.task], backbones[stored], plan.suite.document.where("recipe"))
        try:
            method = _build(plan, cell, backbones[stored])
            _check_starts(plan, cell, method)
            prompt_tokens = method.num_prompt_tokens
        except UserError as error:
            misfits.setdefault(cell.label, {})[cell.backbone] = error
        except Exception:  # a mistake in a method's code is recorded as the failure of its cells
            continue
        else:
            # unlike a misfit, this would not fail by itself: a network may run on past its positions
            _check_positions(plan, cell, prompt_tokens, backbones[stored])
    for errors in misfits.values():
        # what fits one backbone and not another is no mistake in the suite: those cells are recorded as failed
        if len(errors) == len({name for name, _ in backbones}):
            raise next(iter(errors.values()))
    if to_run:
        _read_rows(plan, cells)
    if to_run and weights:
        for name, recipe in {cell.backbone: cell.recipe for cell in cells}.items():
            # rules need none; where other processes train, they load it
            if (name, recipe.quantization) in backbones and plan.suite.file.execution.processes == 1:
                source = plan.suite.backbone_sources[name]
                cached_backbone(source, recipe.precision, recipe.quantization, placement(plan))


def _check_starts(plan: Plan, cell: Cell, method: Method) -> None:
    """Let a method without weights start from sources without weights. Raises UserError where shapes do not fit."""
    if not cell.init_from:
        return
    where = plan.suite.document.where(*block_of(plan.suite, cell.label), INIT_FROM)
    sources = [_shapes_of(plan, start) for start in cell.init_from]
    try:
        method.start_from(sources)
    except ValueError as error:
        titles = " + ".join(start.title for start in cell.init_from)
        raise UserError(f"cannot start from {titles}: {error}", where=where, field=cell.label) from None


def _shapes_of(plan: Plan, start: Start) -> dict[str, Tensor]:
    """What a source will hand over, as tensors without values."""
    if start.file is not None:
        found = prompt_file(Path(plan.suite.folder) / start.file)
    else:
        index = plan.index.of_source(source_of(start))
        assert index is not None, "a source has a group of its own"
        source = plan.groups[index].cells[(0, start.seed)]
        found = handed_over(_build(plan, source, meta_backbone(plan.suite.backbone_sources[source.backbone])))
    return {name: tensor.to("meta") for name, tensor in found.items()}


def _read_rows(plan: Plan, cells: Sequence[Cell]) -> None:
    """Load every task's rows and metrics. Raises UserError; where rows are missing, it says which tasks have theirs."""
    there, missing = [], []
    for (name, _), cell in {(cell.task, cell.few_shot): cell for cell in cells}.items():
        for task in plan.tasks[name].parts or (plan.tasks[name],):
            for metric in task.metrics:
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
        hint = (
            f"The rows of the others are there: --tasks {','.join(dict.fromkeys(there))}" if there else missing[0].hint
        )
        raise UserError(missing[0].problem, where=missing[0].where, field=missing[0].field, hint=hint)


def _distinct(plan: Plan, cells: Sequence[Cell]) -> Iterator[Cell]:
    """One cell for each way in which a method can be built."""
    seen: set[str] = set()
    for cell in cells:
        cls = plan.methods[cell.method].cls
        recipe, starts = cell.recipe, [start.identity for start in cell.init_from]
        network = [cell.backbone, recipe.max_source_length, recipe.quantization, recipe.head]
        identity = json.dumps([cell.method, cell.hp, *network, starts], sort_keys=True)
        if identity not in seen and cls is not None and not issubclass(cls, Rule):
            seen.add(identity)
            yield cell


def _build(plan: Plan, cell: Cell, backbone: Backbone) -> Method:
    cls = plan.methods[cell.method].cls
    assert cls is not None
    assert issubclass(cls, Method)
    return build_method(cell, cls, backbone, plan.suite.document.where(*block_of(plan.suite, cell.label)))


def _check_positions(plan: Plan, cell: Cell, prompt_tokens: int, backbone: Backbone) -> None:
    """Raise UserError unless prompt, text and target fit the backbone's positions."""
    task = plan.tasks[cell.task]
    length = cell.recipe.max_source_length or task.max_source_length
    target = 4 if task.kind == "classification" and task.target_style == "digits" else task.max_target_length
    needed = prompt_tokens + length + target
    if backbone.max_positions is not None and needed > backbone.max_positions:
        raise UserError(
            f"needs {needed} positions ({prompt_tokens} prompt + {length} source + {target} target), "
            f"backbone '{cell.backbone}' has {backbone.max_positions}",
            where=plan.suite.document.path,
            field=f"{cell.label} on {cell.task}",
            hint="Lower prompt_length or recipe.max_source_length.",
        )


def placement(plan: Plan) -> Placement:
    """Where the suite wants backbones, and what a forward pass keeps."""
    execution = plan.suite.file.execution
    return Placement(execution.device_map, execution.gradient_checkpointing)
