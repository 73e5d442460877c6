"""Pack the cells of a plan into bundles: which of them share forward passes."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence

from harness.backbone import meta_backbone
from harness.errors import UserError
from harness.method import Method, Rule
from harness.runner.plan import Plan, backbone_placement
from harness.suite import Cell, Group
from harness.train import Bundle, Race


def pack(plan: Plan, cells: Sequence[Cell]) -> list[Bundle]:
    """Put cells that can share forward passes into bundles of at most `execution.bundle_cells`.

    The grid points of a race stay together, since they are compared at the same steps. Raises UserError for a race with
    more points than a bundle may hold.
    """
    sharing: dict[str, list[Cell]] = {}
    for cell in cells:
        sharing.setdefault(_bundle_key(plan, cell), []).append(cell)
    races = _races(plan)
    return [_bundle(plan, part, races) for together in sharing.values() for part in _even_parts(plan, together, races)]


def _bundle(plan: Plan, cells: Sequence[Cell], races: Mapping[tuple[str, ...], Race]) -> Bundle:
    """These cells as a bundle, with all that the process which trains them has to know of the plan."""
    execution = plan.suite.file.execution
    return Bundle(
        cells=tuple(cells),
        method_files={cell.method: plan.methods[cell.method].path for cell in cells},
        backbone=plan.suite.backbone_sources[cells[0].backbone],
        data_dir=plan.data_dir,
        suite_folder=plan.suite.folder,
        micro_batch_tokens=execution.micro_batch_tokens,
        races=tuple(dict.fromkeys(race for cell in cells if (race := races.get(_search_key(cell))))),
        compile=execution.compile,
        measure=plan.suite.file.measure,
        placement=backbone_placement(plan),
        processes=execution.processes,
        sharding=execution.sharding,
        starts={cell.key: plan.start_files(cell) for cell in cells if cell.init_from},
    )


def _even_parts(plan: Plan, together: Sequence[Cell], races: Mapping[tuple[str, ...], Race]) -> Iterator[list[Cell]]:
    """Cut cells into parts of about equal size, at most `bundle_cells`; a race is never cut.

    Equal parts, because a last part of one cell would run the whole backbone for its few rows.
    """
    limit, part = plan.suite.file.execution.bundle_cells, list[Cell]()
    even = math.ceil(len(together) / math.ceil(len(together) / limit))
    for _, cells in itertools.groupby(together, lambda cell: races.get(_search_key(cell)) or cell.key):
        unit = list(cells)  # the points of a race, or one cell
        if len(unit) > limit:
            raise UserError(
                f"'{unit[0].label}' races {len(unit)} grid points in one bundle, execution.bundle_cells is {limit}",
                where=plan.suite.document.where("tuning"),
                hint="Raise execution.bundle_cells, or search without halving.",
            )
        if len(part) >= even or (part and len(part) + len(unit) > limit):
            yield part
            part = []
        part = [*part, *unit]
    if part:
        yield part


def _races(plan: Plan) -> dict[tuple[str, ...], Race]:
    """The grids that can race, by `_search_key`: those whose points share a bundle, its steps and its evaluations."""
    tuning, races = plan.suite.file.tuning, dict[tuple[str, ...], Race]()
    if not tuning.prunes:
        return races
    at_once = tuning.begin == "at_once"
    for group in (group for group in plan.groups if group.repeat == 1):
        cells = [group.cells[(point, group.seeds[0])] for point in _racing_points(group)]
        shared = {(_bundle_key(plan, cell), cell.recipe.steps, cell.recipe.eval_every) for cell in cells}
        if len(cells) > 1 and len(shared) == 1:
            for seed in group.seeds if plan.per_seed else group.seeds[:1]:
                races[_search_key(group.cells[(0, seed)])] = Race(group.label, seed, len(cells), at_once)
    return races


def _racing_points(group: Group) -> range:
    """The points that train at one time: a whole grid, or of a search by `tpe` the batch that was asked for last."""
    last = len(group.points) - group.num_earlier
    if group.search is None:
        return range(len(group.points))
    first = group.search.batch_of(last - 1)[0] if group.search.strategy == "tpe" else 0
    return range(group.num_earlier + first, len(group.points))


def _search_key(cell: Cell) -> tuple[str, ...]:
    """What the grid points of one search have in common: label, task, backbone, seed, repeat and number of shots."""
    shots = "" if cell.few_shot is None else str(cell.few_shot.k)
    return cell.label, cell.task, cell.backbone, str(cell.seed), str(cell.repeat), shots


@functools.lru_cache(maxsize=8)
def _takes_prefixes(source: str) -> bool:
    """Whether a backbone is a decoder that takes keys and values in front of its rows."""
    return meta_backbone(source).takes_prefixes


def _bundle_key(plan: Plan, cell: Cell) -> str:
    """A key that is equal for cells which may share a bundle.

    They must have the same backbone, rows and precision, the same dropout in the backbone, and the same kind of method:
    the changes of layer-side cells would also change the rows of input-side cells. A method that runs alone gets its
    cell's own key. One that gives keys and values stands beside the input-side cells of a decoder.
    """
    cls = plan.methods[cell.method].cls
    if cls is not None and issubclass(cls, Method):
        cls = cls.for_settings(cls.HP(**cell.hp))
    gives = cls is not None and issubclass(cls, Method) and cls.gives_keys_and_values()
    gives = gives and _takes_prefixes(plan.suite.backbone_sources[cell.backbone])
    alone = cls is None or issubclass(cls, Rule) or (cls.runs_alone() and not gives)
    recipe = cell.recipe
    shared = [cell.backbone, cell.task, recipe.precision, recipe.backbone_dropout, recipe.max_source_length]
    if not alone and not gives and cls is not None and issubclass(cls, Method) and cls.is_layer_side():
        shared.append("layers")
    if cell.few_shot is not None:
        shared.append(cell.few_shot.model_dump_json())
    if cell.row_limit is not None:
        shared.append(cell.row_limit.model_dump_json())
    return json.dumps(
        [*shared, recipe.quantization, recipe.head, recipe.pooling, recipe.label_tokens, cell.key if alone else ""]
    )
