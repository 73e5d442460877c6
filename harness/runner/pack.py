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
from harness.suite import Cell, Group, Key
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


def _bundle(plan: Plan, cells: Sequence[Cell], races: Mapping[Key, Race]) -> Bundle:
    """These cells as a bundle, with all that the process which trains them has to know of the plan."""
    execution = plan.suite.file.execution
    return Bundle(
        cells=tuple(cells),
        method_files={cell.method: plan.methods[cell.method].path for cell in cells},
        backbone=plan.suite.backbone_sources[cells[0].backbone],
        data_dir=plan.data_dir,
        suite_folder=plan.suite.folder,
        micro_batch_tokens=execution.micro_batch_tokens,
        races=tuple(dict.fromkeys(race for cell in cells if (race := races.get(cell.key)))),
        compile=execution.compile,
        measure=plan.suite.file.measure,
        placement=backbone_placement(plan),
        processes=execution.processes,
        sharding=execution.sharding,
        starts={cell.key: plan.start_files(cell) for cell in cells if cell.init_from},
    )


def _even_parts(plan: Plan, together: Sequence[Cell], races: Mapping[Key, Race]) -> Iterator[list[Cell]]:
    """Cut cells into parts of about equal size, at most `bundle_cells`; a race is never cut.

    Equal parts, because a last part of one cell would run the whole backbone for its few rows.
    """
    limit, part = plan.suite.file.execution.bundle_cells, list[Cell]()
    even = math.ceil(len(together) / math.ceil(len(together) / limit))
    for _, cells in itertools.groupby(together, lambda cell: races.get(cell.key) or cell.key):
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


def _races(plan: Plan) -> dict[Key, Race]:
    """The race of each cell that is in one: points that are trained at one time, in one bundle, and for as many steps.

    What is rerun of a search may be of several batches. Those never raced each other, so each batch is a race.
    """
    tuning, races = plan.suite.file.tuning, dict[Key, Race]()
    if not tuning.prunes:
        return races
    at_once = tuning.begin == "at_once"
    for group in (group for group in plan.groups if group.repeat == 1):
        for points in _batches(group):
            cells = [group.cells[(point, group.seeds[0])] for point in points]
            shared = {(_bundle_key(plan, cell), cell.recipe.steps, cell.recipe.eval_every) for cell in cells}
            if len(cells) > 1 and len(shared) == 1:
                for seed in group.seeds if plan.per_seed else group.seeds[:1]:
                    race = Race(group.label, seed, len(cells), at_once, cells[0].study, cells[0].grid_index)
                    races |= {group.cells[(point, seed)].key: race for point in points}
    return races


def _batches(group: Group) -> Iterator[range]:
    """The points that train at one time: a whole grid, and of a search by `tpe` each batch that was asked for.

    Points that were tried before the search are in none: they raced elsewhere.
    """
    search, first, end = group.search, group.num_earlier, len(group.points)
    while first < end:
        guided = search is not None and search.strategy == "tpe"
        last = group.num_earlier + search.batch_of(first - group.num_earlier)[1] if search and guided else end
        yield range(first, min(last, end))
        first = last


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
