"""Before anything is trained: which cells fit their backbones, and whether rows and weights are there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from harness import provenance
from harness.backbone import Backbone
from harness.building import build_method
from harness.caches import cached_backbone, cached_task
from harness.errors import UserError
from harness.families import block_of
from harness.fit import misfit
from harness.group_index import source_of
from harness.heads import check_head
from harness.limits import check_positions, target_tokens
from harness.lineage import INIT_FROM
from harness.loading import meta_backbone
from harness.method import Method
from harness.metrics import get_metric
from harness.namesakes import refuse_namesakes
from harness.planning import Plan, placement
from harness.products import Circumstances, failed_product
from harness.schema import Cell, Failure, Key, Result, Start
from harness.sources import MissingData
from harness.starting import handed_over, prompt_file

Misfits = dict[Key, UserError]
"""What does not fit, and why."""


def check_cells(plan: Plan, cells: Iterable[Cell], weights: bool = True) -> Misfits:
    """Say which cells of a run do not fit their backbones; read the rows and weights of those that do.

    Without `weights`, those are left to other processes, so that this one takes no memory for them.
    Raises UserError, before anything is written, for what concerns more than a row, and where nothing fits.
    """
    cells = list(cells)
    misfits = find_misfits(plan, cells)
    cells = [cell for cell in cells if cell.key not in misfits]
    _read_rows(plan, cells)
    trained = [cell for cell in cells if _class(plan, cell) is not None]
    for name, recipe in {cell.backbone: cell.recipe for cell in trained}.items():
        # where other processes train, they load it
        if weights and plan.suite.file.execution.processes == 1:
            source = plan.suite.backbone_sources[name]
            cached_backbone(source, recipe.precision, recipe.quantization, placement(plan))
    refuse_namesakes(plan)  # a hub id may have been fetched just now
    return misfits


def find_misfits(plan: Plan, cells: Iterable[Cell]) -> Misfits:
    """Judge each method with its settings, sources, task and backbone, on shapes alone.

    A suite goes on without the rows that do not fit. Raises UserError if there are no others that train.
    """
    found: dict[str, UserError | None] = {}
    misfits: Misfits = {}
    cells = list(cells)
    for cell in cells:
        if _class(plan, cell) is None:
            continue
        key = _identity(cell)
        if key not in found:
            found[key] = _misfit(plan, cell)
        error = found[key]
        if error is not None:
            misfits[cell.key] = error
    # sources are trained for the rows that start from them, so they alone are nothing to go on for
    sources = {cell.key for group in plan.groups if group.is_source for cell in group.cells.values()}
    rows = [cell for cell in cells if cell.key not in sources]
    trained = [cell for cell in rows if plan.methods[cell.method].cls is None or _class(plan, cell) is not None]
    has_results = any(plan.results)
    if misfits and trained and not has_results and all(cell.key in misfits for cell in trained):
        lines = lines_of(misfits)
        if len(lines) == 1:
            raise next(iter(misfits.values()))
        raise UserError(f"nothing that it trains fits: {'; '.join(lines)}", where=plan.suite.document.path)
    return misfits


def lines_of(misfits: Mapping[Key, UserError]) -> list[str]:
    """Each row that does not fit with its reason, once."""
    return list(dict.fromkeys(f"{label} {error.problem}" for (_, label, _), error in misfits.items()))


def refusal(plan: Plan, cell: Cell, error: UserError) -> Result:
    """What is stored for a cell that does not fit: a row of the table, without a score and with the reason."""
    sources = {cell.method: plan.methods[cell.method].spec.source_sha256}
    common = Circumstances(provenance.now(), plan.suite.folder, sources, 1, {}, 1)
    failure = Failure(type="Misfit", message=error.problem, traceback="")
    return failed_product(cell, failure, common).result.model_copy(update={"status": "unfit"})


def _misfit(plan: Plan, cell: Cell) -> UserError | None:
    """Why a cell cannot be trained on its backbone; None where it can, or where its method's own code is broken."""
    source, quantization = plan.suite.backbone_sources[cell.backbone], cell.recipe.quantization
    backbone = meta_backbone(source, quantization, True)
    where = plan.suite.document.where(*block_of(plan.suite, cell.label))
    try:
        check_head(cell.recipe.head, plan.tasks[cell.task], backbone, plan.suite.document.where("recipe"))
        sources = [_shapes_of(plan, start) for start in cell.init_from]
        cls = _class(plan, cell)
        assert cls is not None
        reason = misfit(cls, cell.hp, source, quantization, cell.recipe.lr)
        if reason is None:
            method = build_method(cell, cls, backbone, where)
            _check_starts(plan, cell, method, sources)
            _check_positions(plan, cell, method.num_prompt_tokens, backbone)
            reason = misfit(cls, cell.hp, source, quantization, cell.recipe.lr, sources) if sources else None
    except UserError as error:
        return error
    except Exception:  # a mistake in a method's code is recorded as the failure of its cells
        return None
    if reason is None:
        return None
    return UserError(f"does not fit backbone '{cell.backbone}': {reason}", where=where, field=f"methods.{cell.label}")


def _check_starts(plan: Plan, cell: Cell, method: Method, sources: Sequence[Mapping[str, Tensor]]) -> None:
    """Let a method without weights start from sources without weights. Raises UserError where shapes do not fit."""
    if not cell.init_from:
        return
    where = plan.suite.document.where(*block_of(plan.suite, cell.label), INIT_FROM)
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
        error = _misfit(plan, source)
        if error is not None:
            raise UserError(f"starts from {start.title}, which {error.problem}", where=error.where, field=error.field)
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


def _identity(cell: Cell) -> str:
    """The same for cells that fit or do not fit for the same reason."""
    recipe, starts = cell.recipe, [start.identity for start in cell.init_from]
    network = [cell.backbone, cell.task, recipe.max_source_length, recipe.quantization, recipe.head]
    parts = [cell.label, cell.method, cell.hp, *network, recipe.label_tokens, starts]
    return json.dumps(parts, sort_keys=True)


def _class(plan: Plan, cell: Cell) -> type[Method] | None:
    """The method of a cell; None for a rule, which needs no backbone, and for a broken file."""
    cls = plan.methods[cell.method].cls
    return cls if cls is not None and issubclass(cls, Method) else None


def _build(plan: Plan, cell: Cell, backbone: Backbone) -> Method:
    cls = _class(plan, cell)
    assert cls is not None
    return build_method(cell, cls, backbone, plan.suite.document.where(*block_of(plan.suite, cell.label)))


def _check_positions(plan: Plan, cell: Cell, prompt_tokens: int, backbone: Backbone) -> None:
    """Raise UserError unless prompt, text and target fit the backbone's positions."""
    task = plan.tasks[cell.task]
    source = cell.recipe.max_source_length or task.max_source_length
    target = 0 if cell.recipe.head == "linear" else target_tokens(task, backbone, cell.recipe.label_tokens)
    place, field = plan.suite.document.path, f"{cell.label} on {cell.task}"
    check_positions(backbone, prompt_tokens, source, target, place, field)
