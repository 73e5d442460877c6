"""The plan of a suite: which cells it has, which are done, missing or stale, and which can be trained now."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.backbone import Placement, is_encoder, local_tokenizer, require_safetensors, weights_fingerprint
from harness.data import Task, cell_rows, require_folder, template_digest
from harness.errors import UserError
from harness.garbage import without_gc
from harness.method import MethodSpecs, Registered, SourceFile, discover
from harness.provenance import sha256_file
from harness.results import (
    Result,
    ResultStore,
    chosen_run,
    next_cells,
    next_repeats,
    num_to_repeat,
    num_to_train,
    superseded,
    tensors_path,
)
from harness.runner.resolve_suite import resolve_suite
from harness.runner.study import Study, require_optuna
from harness.suite import Cell, Group, GroupIndex, Key, Overrides, Point, SourceKey, Start, Suite, source_of


@dataclass
class Plan:
    """A suite with its groups of cells, the methods and tasks that they name, and their stored results."""

    suite: Suite
    groups: list[Group]
    methods: Mapping[str, Registered]
    tasks: dict[str, Task]
    store: ResultStore
    data_dir: str | None
    results: list[dict[Point, Result]]
    """For each group its stored results, by (grid point, seed)."""
    superseded: dict[Key, Result] = field(default_factory=dict)
    """By cell key, results of earlier versions of a task or protocol. Their cells are trained only with
    `--rerun stale`."""
    refused: dict[Key, Result] = field(default_factory=dict)
    """By cell key, stored results which say that a cell does not fit its backbone. Each run judges that anew."""
    unresolved: dict[int, list[Cell]] = field(default_factory=dict)
    """By number of their group, stored points of earlier searches that the suite's settings no longer give."""
    studies: dict[int, Study] = field(default_factory=dict)
    """By number of their group, the searches by `tpe`, whose next points follow from results."""
    _fingerprints: dict[tuple[str, str], str] = field(default_factory=dict)

    @functools.cached_property
    def index(self) -> GroupIndex:
        """Where a cell or a source stands in `groups`."""
        return GroupIndex(self.groups)

    @property
    def per_seed(self) -> bool:
        """Whether each seed searches the whole grid (`tuning.seeds: each`), not only the first."""
        return self.suite.file.tuning.seeds == "each"

    def pending(self) -> list[Cell]:
        """Cells that can be trained now.

        The further seeds of a group wait until its grid is complete, and cells that start from others (`init_from`)
        wait until those are done. The cells of a table entry wait for the sources of all of them, since they may race.
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
        """Missing cells of the table, and the missing cells that those start from.

        The further seeds of a group are among them once it is known which grid point won. A source that no missing cell
        needs is not trained.
        """
        table = [cell for i, group in enumerate(self.groups) if not group.is_source for cell in self._next(i)]
        sources: dict[int, list[Cell]] = {}
        waiting = list(table)
        while waiting:
            for start in waiting.pop().init_from:
                index = self.index.of_source(source_of(start))
                if index is not None and self.groups[index].is_source and index not in sources:
                    sources[index] = self._next(index)
                    waiting += sources[index]
        # a source may share cells with the table; by key, each is trained once
        return list({cell.key: cell for cell in [*itertools.chain.from_iterable(sources.values()), *table]}.values())

    def _next(self, index: int) -> list[Cell]:
        """The missing cells of a group that selection asks for at this moment."""
        while self.grow(index):
            pass
        group = self.groups[index]
        if group.repeat > 1:
            first = index - group.repeat + 1
            keys = next_repeats(group, self.results[index], self.results[first])
        else:
            keys = next_cells(group, self.results[index], self.per_seed)
        cells = [group.cells[key] for key in keys]
        return [cell for cell in cells if cell.key not in self.superseded]

    def grow(self, index: int) -> dict[Point, Cell]:
        """Add the next points of a search to its group, once what they follow from is known; return their cells."""
        group, study = self.groups[index], self.studies.get(index)
        if group.repeat > 1:
            return self._follow(index)
        if study is None or not group.num_to_come:
            return {}
        seed = group.seeds[0]
        told = [self.results[index].get((point, seed)) for point in range(group.num_earlier, len(group.points))]
        points = study.next_points(group.points[group.num_earlier :], told)
        if not points:
            return {}
        self.groups[index] = grown = group.with_points(points)
        made = {point: cell for point, cell in grown.cells.items() if point not in group.cells}
        self.index.add(index, made)
        return made

    def _follow(self, index: int) -> dict[Point, Cell]:
        """Give a group of repeats the points that the group which it repeats has got."""
        group = self.groups[index]
        first = self.groups[index - group.repeat + 1]
        if len(first.points) == len(group.points):
            return {}
        self.groups[index] = grown = first.repeated(group.repeat)
        made = {point: cell for point, cell in grown.cells.items() if point not in group.cells}
        self.index.add(index, made)
        return made

    def source(self, start: Start) -> Result | None:
        """The result that a cell starts from, perhaps a failure; None if there is none yet."""
        return self._result_of(source_of(start))

    def _result_of(self, source: SourceKey) -> Result | None:
        index = self.index.of_source(source)
        return None if index is None else chosen_run(self.groups[index], self.results[index], source[-1])

    def start_files(self, cell: Cell) -> tuple[SourceFile, ...]:
        """The files of tensors that a cell starts from; empty for most cells."""
        return tuple(self._start_file(start) for start in cell.init_from)

    def _start_file(self, start: Start) -> SourceFile:
        if start.file is not None:
            path = Path(self.suite.folder) / start.file
            config = None if start.adapter is None else start.config
            return SourceFile(start.title, path, sha256_file(path), config=config)
        result = self.source(start)
        assert result is not None, "a cell is trained after its sources"
        source, problem = result.cell, result.failure.message if result.failure else ""
        path = tensors_path(self.store.path(source))
        backbone = self.suite.backbone_sources[source.backbone]
        method_file = self.methods[source.method].path
        return SourceFile(start.title, path, result.files.tensors, source, method_file, backbone, problem)

    def stages(self) -> tuple[list[Cell], list[Cell]]:
        """Pending cells in two lists: grids and entries without a grid, and the winners' further seeds and repeats."""
        further = {
            group.cells[(point, seed)].key
            for group in self.groups
            if group.repeat > 1 or (group.num_points > 1 and not self.per_seed)
            for point in range(len(group.points))
            for seed in (group.seeds if group.repeat > 1 else group.seeds[1:])
        }
        pending = self.pending()
        return (
            [cell for cell in pending if cell.key not in further],
            [cell for cell in pending if cell.key in further],
        )

    def load(self, cell: Cell) -> Result | None:
        """The stored result of a cell, or None.

        A cell that lost a race was not trained to its end. It counts only in a suite that races too.
        """
        result = self.store.load(cell)
        lost_race = result is not None and result.raced_out_at is not None
        return None if lost_race and not self.suite.file.tuning.prunes else result

    def num_cells(self, group: Group) -> int:
        """Number of a group's cells that are trained in all: its grid on the first seed, its winner on the others."""
        return group.num_cells(self.per_seed)

    def num_missing(self, index: int) -> int:
        """Number of a group's cells that will be trained, as far as is known before its search has ended."""
        group, results = self.groups[index], self.results[index]
        if group.repeat > 1:
            return num_to_repeat(group, results, self.results[index - group.repeat + 1], self.per_seed)
        return num_to_train(group, results, self.per_seed)

    def record(self, result: Result) -> None:
        """Add a new result to the groups that hold its cell: two if a source shares it with the table."""
        for index, point in self.index.of_cell(result.key):
            self.results[index][point] = result

    def has_result(self, cell: Cell) -> bool:
        """Whether a cell of this plan has a result."""
        return any(point in self.results[index] for index, point in self.index.of_cell(cell.key))

    def is_stale(self, result: Result) -> bool:
        """Whether the method's file, the weights, the chat template, the rows or the source cells have changed since.

        For a failure only the file and the sources count: it may have no record of weights and rows.
        """
        cell = result.cell
        if result.status == "unfit":
            return False
        if result.method_sha256 != self.methods[cell.method].spec.source_sha256:
            return True
        if self._starts_moved(result):
            return True
        if result.status == "failed" or result.data is None or result.backbone is None:
            return False
        return self._weights_moved(result) or self._template_moved(result) or self._data_moved(result)

    def _starts_moved(self, result: Result) -> bool:
        """Whether a source was trained again since, or is stale itself."""
        for start, record in zip(result.cell.init_from, result.starts, strict=False):
            found = None if start.file is not None else self.source(start)
            if found is not None and (found.files.tensors != record.tensors or self.is_stale(found)):
                return True
        return False

    def _weights_moved(self, result: Result) -> bool:
        """Whether the backbone's weights are others now; not for a rule, and not while they are not on this machine."""
        assert result.backbone is not None
        if result.backbone.source == "none":
            return False
        backbone = self.suite.backbone_sources[result.cell.backbone]
        quantization = result.cell.recipe.quantization
        if (backbone, quantization) not in self._fingerprints:
            self._fingerprints[backbone, quantization] = weights_fingerprint(backbone, quantization)
        return self._fingerprints[backbone, quantization] not in (result.backbone.fingerprint, "unresolved")

    def _template_moved(self, result: Result) -> bool:
        """Whether the tokenizer has another chat template now than the one in which texts were read, or one at last."""
        assert result.data is not None
        task, backbone = self.tasks[result.cell.task], self.suite.backbone_sources[result.cell.backbone]
        prompts = list(zip(result.data.prompts, task.parts or (task,), strict=False))
        told = {prompt.template for prompt, _ in prompts if prompt.form == "chat"}
        if any(prompt.form == "plain" and part.form == "auto" for prompt, part in prompts):
            told.add(None)
        tokenizer = local_tokenizer(backbone) if told else None
        if tokenizer is None or told == {template_digest(tokenizer)}:
            return False
        return told != {None} or not is_encoder(backbone)  # which is plain whatever template its tokenizer has

    def _data_moved(self, result: Result) -> bool:
        """Whether the task's rows are others now, as far as they are on this machine."""
        task = self.tasks[result.cell.task]
        if not (task.is_here or self.data_dir):
            return False  # a plan downloads nothing; a report still flags results made with different rows
        try:
            found = cell_rows(result.cell, self.data_dir, self.suite.folder).record.fingerprint
        except UserError:
            return False  # without the rows nothing can be compared, and nothing of the result is wrong
        assert result.data is not None
        return found != result.data.fingerprint


@without_gc
def make_plan(
    path: str | Path, overrides: Overrides, results: str | Path, data_dir: str | None, method_dirs: Sequence[str] = ()
) -> Plan:
    """Load a suite file, make its cells, and look up their results. Writes nothing.

    Raises UserError for every mistake of the user's that shows without rows and weights.
    """
    require_folder(data_dir)
    methods = discover(*method_dirs)
    resolved = resolve_suite(path, overrides, MethodSpecs(methods))
    suite, groups = resolved.suite, resolved.groups
    for name in suite.backbones:
        require_safetensors(suite.backbone_sources[name], resolved.backbones_where)
    store = ResultStore(results)
    plan = Plan(suite, groups, methods, resolved.tasks, store, data_dir, [])
    for index, group in enumerate(groups):
        if group.repeat > 1:
            groups[index] = groups[index - group.repeat + 1].repeated(group.repeat)
        elif group.points[0]:  # all of them before any is looked up, since the index is made then
            groups[index] = _with_earlier(plan, index, group)
    for index, group in enumerate(groups):
        plan.results.append({})
        _look_up(plan, index, group.cells)
        while made := plan.grow(index):
            _look_up(plan, index, made)
    if any(plan.groups[index].num_to_come for index in plan.studies):
        require_optuna(suite.document.where("tuning", "strategy"))
    missing = [
        cell
        for group, results in zip(groups, plan.results, strict=True)
        for key, cell in group.cells.items()
        if key not in results
    ]
    plan.superseded = superseded(store, missing)
    return plan


def _look_up(plan: Plan, index: int, cells: Mapping[Point, Cell]) -> None:
    """Add the stored results of a group's cells to the plan."""
    for key, cell in cells.items():
        result = plan.load(cell)
        if result is not None and result.status == "unfit":
            plan.refused[result.key] = result
        elif result is not None:
            plan.results[index][key] = result


def _with_earlier(plan: Plan, index: int, group: Group) -> Group:
    """The group of a grid or search behind the points that its table entry has stored from another one.

    They were tried, so a table counts them, and one of them may win. What a search itself has stored tells which
    points its trials had.
    """
    search, first = group.search, group.cells[(0, group.seeds[0])]
    name, settings = search.name if search else "", set(first.grid)
    own = {cell.cell_id for cell in group.cells.values()}
    stored = [
        result
        # a grid needs none of its own results here, so an unedited one reads nothing
        for result in plan.store.beside(first, own if search is None else ())
        if (result.cell.repetition, result.cell.repeat) == (first.repetition, 1)
        and result.group_id == first.group_id
        and result.status != "unfit"
    ]
    if search is not None and search.strategy == "tpe":
        known = [result.cell for result in stored if result.cell.study == name]
        plan.studies[index] = Study(search, known, plan.suite.document.where("tuning", "strategy"))
    earlier = [
        result.cell
        for result in stored
        if (search is None or result.cell.study != name)
        and set(result.cell.grid) == settings
        and result.cell_id not in own
        # what lost a race would be trained again to its end: it counts only in a suite that races too
        and (result.raced_out_at is None or plan.suite.file.tuning.prunes)
    ]
    earlier.sort(key=lambda cell: (cell.grid_index, cell.cell_id))
    kept = [cell for cell in earlier if _is_still_given(group, cell)]
    if len(kept) < len(earlier):
        plan.unresolved[index] = [cell for cell in earlier if cell not in kept]
    return group.behind(kept) if kept else group


def _is_still_given(group: Group, cell: Cell) -> bool:
    """Whether the settings of a stored point, resolved today, give the stored cell; else it is of no use here."""
    try:
        made = group.make_cells([cell.grid], [cell.grid_index], cell.study)
    except UserError:  # a value that the method or the recipe takes no more
        return False
    return made[(0, cell.seed)].cell_id == cell.cell_id


def backbone_placement(plan: Plan) -> Placement:
    """The suite's settings of how backbones are loaded: over which devices, and whether activations are recomputed."""
    execution = plan.suite.file.execution
    return Placement(execution.device_map, execution.gradient_checkpointing)
