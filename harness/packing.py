"""Which cells share a forward pass: the cells of a plan as bundles."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence

from harness.bundle import Bundle
from harness.errors import UserError
from harness.method import Method, Rule
from harness.planning import Plan, placement
from harness.racing import Race
from harness.schema import Cell


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
            compile=plan.suite.file.execution.compile,
            placement=placement(plan),
            processes=plan.suite.file.execution.processes,
            sharding=plan.suite.file.execution.sharding,
            starts={cell.key: plan.start_files(cell) for cell in part if cell.init_from},
        )
        for part in parts
    ]


def _parts(plan: Plan, bundle: Sequence[Cell], races: Mapping[tuple[str, ...], Race]) -> Iterator[list[Cell]]:
    """Cut a bundle into even parts of at most `bundle_cells`. Raises UserError for a race that is larger."""
    limit, part = plan.suite.file.execution.bundle_cells, list[Cell]()
    even = math.ceil(len(bundle) / math.ceil(len(bundle) / limit))
    for _, cells in itertools.groupby(bundle, lambda cell: races.get(_place(cell)) or cell.key):
        unit = list(cells)
        if len(unit) > limit:
            raise UserError(
                f"'{unit[0].label}' races {len(unit)} grid points in one bundle, execution.bundle_cells is {limit}",
                where=plan.suite.document.where("tuning"),
                hint="Raise execution.bundle_cells, or search with tuning.strategy: grid.",
            )
        if len(part) >= even or (part and len(part) + len(unit) > limit):
            yield part
            part = []
        part = [*part, *unit]
    if part:
        yield part


def _races(plan: Plan) -> dict[tuple[str, ...], Race]:
    """The grids that can race, by the place of their cells: their points share a bundle and its evaluations."""
    tuning, races = plan.suite.file.tuning, dict[tuple[str, ...], Race]()
    if tuning.strategy == "grid":
        return races
    at_once = tuning.begin == "at_once"
    for group in plan.groups:
        cells = [group.cells[(point, group.seeds[0])] for point in range(len(group.points))]
        shared = {(_bundle_key(plan, cell), cell.recipe.steps, cell.recipe.eval_every) for cell in cells}
        if len(cells) > 1 and len(shared) == 1:
            for seed in group.seeds if plan.per_seed else group.seeds[:1]:
                races[_place(group.cells[(0, seed)])] = Race(group.label, seed, len(cells), at_once)
    return races


def _place(cell: Cell) -> tuple[str, ...]:
    """Label, task, backbone, seed and shots: what the grid points of one search have in common."""
    shots = "" if cell.few_shot is None else str(cell.few_shot.k)
    return cell.label, cell.task, cell.backbone, str(cell.seed), shots


def _bundle_key(plan: Plan, cell: Cell) -> str:
    """Cells with equal keys may share a bundle; input-side and layer-side cells are not mixed."""
    cls = plan.methods[cell.method].cls
    alone = cls is None or issubclass(cls, Rule) or cls.runs_alone()
    recipe = cell.recipe
    shared = [cell.backbone, cell.task, recipe.precision, recipe.backbone_dropout, recipe.max_source_length]
    if not alone and cls is not None and issubclass(cls, Method) and cls.is_layer_side():
        shared.append("layers")
    if cell.few_shot is not None:
        shared.append(cell.few_shot.model_dump_json())
    return json.dumps([*shared, recipe.quantization, recipe.head, recipe.label_tokens, cell.key if alone else ""])
