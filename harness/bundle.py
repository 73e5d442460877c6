"""One bundle as a piece of work that any process can do: load, build, train, hand over results."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes

from harness import provenance
from harness.backbone import Backbone
from harness.caches import cached_backbone, cached_task
from harness.cell_state import Outcome
from harness.data import Encoded, TaskData, cut_references
from harness.errors import UserError
from harness.flops import MatmulParams, matmul_params, peak_flops
from harness.memory import reset_peak_memory
from harness.method import Method, Registered, Rule, checked_groups, load_file
from harness.predict import score_split
from harness.protocol import Place, resolve
from harness.racing import Race
from harness.results import PredictionRow
from harness.schema import BackboneRecord, Cell, DevScore, Failure, MetricRecord, ParamCounts, Result
from harness.token_cache import cached_encode
from harness.train import BundleTrainer, OnStep
from harness.usage import rule_usage, usage_of

# on a processor, tensors of larger micro-batches leave its caches, and a step takes longer, not shorter
MICRO_BATCH_TOKENS = {"cpu": 4_096}


@dataclass(frozen=True)
class Bundle:
    """Cells that share a forward pass, and what is needed to compute them; picklable."""

    cells: tuple[Cell, ...]
    method_files: dict[str, Path]
    backbone: str
    data_dir: str | None
    suite_folder: str
    """Where the suite file lies, for paths that it declares."""
    micro_batch_tokens: int | None
    races: tuple[Race, ...] = ()
    compile: bool = False


@dataclass(frozen=True)
class Product:
    """A cell's result with the contents of the files beside it."""

    result: Result
    predictions: list[PredictionRow]
    tensors: bytes | None


OnProduct = Callable[[Product], None]


def execute(bundle: Bundle, on_step: OnStep, on_product: OnProduct) -> None:
    """Compute a bundle; every cell ends as a product, done or failed.

    Passes through what no other cell could survive: UserError (weights or rows that cannot be read, a results
    folder that cannot be written) and the user's interrupt.
    """
    finished: set[tuple[str, str]] = set()

    def hand_over(product: Product) -> None:
        on_product(product)
        finished.add((product.result.cell.label, product.result.cell_id))

    started = provenance.now()
    data = cached_task(bundle.cells[0], bundle.data_dir, bundle.suite_folder)
    failure = _attempt(bundle, data, started, on_step, hand_over)
    rest = [cell for cell in bundle.cells if (cell.label, cell.cell_id) not in finished]
    if failure is not None and len(bundle.cells) == 1:
        hand_over(_failed(bundle, rest[0], failure, started))
    elif failure is not None:
        # one bad cell must not take the others along: each goes on alone, on a device that is free again
        for cell in rest:
            execute(replace(bundle, cells=(cell,), races=()), on_step, on_product)


def _attempt(bundle: Bundle, data: TaskData, started: str, on_step: OnStep, on_product: OnProduct) -> Failure | None:
    """Compute the bundle; return why it could not be finished. The exception, and all it holds, ends here."""
    try:
        registered = {cell.method: _registered(bundle, cell.method) for cell in bundle.cells}
        cls = registered[bundle.cells[0].method].cls
        if cls is not None and issubclass(cls, Rule):
            rule = cls(data.task.targets)
            on_product(_rule_product(bundle.cells[0], rule, data, registered[bundle.cells[0].method], started))
        else:
            _train(bundle, data, registered, started, on_step, on_product)
    except UserError:
        raise
    except Exception as error:  # recorded as the failure of a cell, with its traceback
        return describe_failure(error)
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return None


def _train(
    bundle: Bundle,
    data: TaskData,
    registered: dict[str, Registered],
    started: str,
    on_step: OnStep,
    on_product: OnProduct,
) -> None:
    cells = bundle.cells
    backbone = cached_backbone(bundle.backbone, cells[0].recipe.precision)
    data = cut_references(data, backbone)
    with torch.random.fork_rng():
        methods = [_build(cell, registered[cell.method], backbone) for cell in cells]
        torch.manual_seed(cells[0].seed)
        encoded = _encode(cells[0], data, backbone)
        max_tokens = bundle.micro_batch_tokens or default_tokens(backbone)
        trainer = BundleTrainer(cells, methods, data, encoded, backbone, max_tokens, bundle.races)
        layer_side = [method for method in methods if method.is_layer_side()]
        assert not layer_side or len(methods) == 1, "a layer-side method runs alone"
        matmul = matmul_params(backbone)
        backbone.compile(bundle.compile and not layer_side)
        try:
            for method in layer_side:
                method.attach(backbone)
            if bundle.micro_batch_tokens is None:
                trainer.probe()
            reset_peak_memory()
            trainer.run(
                on_step,
                lambda outcome: on_product(_product(bundle, outcome, data, backbone, registered, started, matmul)),
            )
        finally:
            for method in layer_side:
                method.detach(backbone)


def default_tokens(backbone: Backbone) -> int:
    """Token budget of a micro-batch where neither the suite nor a probe sets one."""
    return MICRO_BATCH_TOKENS.get(backbone.device.type, 32_768)


def _encode(cell: Cell, data: TaskData, backbone: Backbone) -> dict[str, Encoded]:
    length = cell.recipe.max_source_length or data.task.max_source_length
    return {name: cached_encode(data.split(name), backbone, data.task, length) for name in ("train", "dev", "test")}


def build_method(cell: Cell, cls: type[Method], backbone: Backbone, where: str | None = None) -> Method:
    """Create a cell's tensors. Raises UserError, at `where`, if settings do not fit the backbone."""
    try:
        method = cls(cls.HP(**cell.hp), backbone)
        checked_groups(method, cell.recipe.lr)
        return method
    except ValueError as error:
        problem = f"does not fit backbone '{cell.backbone}': {error}"
        raise UserError(problem, where=where, field=f"methods.{cell.label}") from None


def _build(cell: Cell, registered: Registered, backbone: Backbone) -> Method:
    """The same seed gives the same tensors, whatever else is in the bundle."""
    assert registered.cls is not None
    assert issubclass(registered.cls, Method)
    torch.manual_seed(cell.seed)
    return registered.cls(registered.cls.HP(**cell.hp), backbone).to(backbone.device)


def _registered(bundle: Bundle, method: str) -> Registered:
    registered = load_file(bundle.method_files[method])
    if registered.cls is None:
        raise ImportError(registered.spec.error)
    return registered


def _product(
    bundle: Bundle,
    outcome: Outcome,
    data: TaskData,
    backbone: Backbone,
    registered: dict[str, Registered],
    started: str,
    matmul: MatmulParams,
) -> Product:
    sha256 = registered[outcome.cell.method].spec.source_sha256
    if outcome.failure is not None:
        failure = describe_failure(outcome.failure).model_copy(update={"step": outcome.failed_at})
        return _failed(bundle, outcome.cell, failure, started)
    method = outcome.method
    peak = peak_flops(_device_name(backbone), outcome.cell.recipe.precision)
    result = Result(
        cell_id=outcome.cell.cell_id,
        group_id=outcome.cell.group_id,
        status="done",
        cell=outcome.cell,
        protocol=_protocol_values(outcome.cell, data.task.benchmark),
        metrics=_metric_record(data),
        dev_history=outcome.history,
        selected_step=outcome.selected_step,
        raced_out_at=outcome.raced_out_at,
        dev=outcome.scores["dev"],
        test=outcome.scores.get("test"),
        params=ParamCounts(num_trained=method.num_trained, num_kept=method.num_kept),
        usage=usage_of(outcome, len(bundle.cells), matmul, peak),
        data=data.record,
        backbone=backbone.record,
        method_sha256=sha256,
        provenance=provenance.collect(_device_name(backbone)),
        started_at=started,
        finished_at=provenance.now(),
    )
    if outcome.raced_out_at is not None:
        return Product(result, _prediction_rows(data, outcome.answers), None)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in method.state_dict().items()}
    return Product(result, _prediction_rows(data, outcome.answers), safetensors_bytes(tensors))


def _rule_product(cell: Cell, rule: Rule, data: TaskData, registered: Registered, started: str) -> Product:
    """Score a rule; there is nothing to select, so its history has the one step 0."""
    begin = time.perf_counter()
    targets = [example.target for example in data.train]
    answers = {name: rule.answers(targets, len(data.split(name)), cell.seed) for name in ("dev", "test")}
    scores = {name: score_split(data.task, data.split(name), answers[name]) for name in answers}
    selection = scores["dev"].metrics[data.task.selection]
    elapsed = time.perf_counter() - begin
    result = Result(
        cell_id=cell.cell_id,
        group_id=cell.group_id,
        status="done",
        cell=cell,
        protocol=_protocol_values(cell, data.task.benchmark),
        metrics=_metric_record(data),
        dev_history=[DevScore(step=0, selection=selection, metrics=scores["dev"].metrics)],
        selected_step=0,
        selection_rule="nothing is selected",
        dev=scores["dev"],
        test=scores["test"],
        params=ParamCounts(num_trained=0, num_kept=0),
        usage=rule_usage(elapsed),
        data=data.record,
        backbone=BackboneRecord(source="none", revision="none", fingerprint="none", num_params=0),
        method_sha256=registered.spec.source_sha256,
        provenance=provenance.collect("cpu"),
        started_at=started,
        finished_at=provenance.now(),
    )
    return Product(result, _prediction_rows(data, answers), None)


def describe_failure(error: BaseException) -> Failure:
    """An exception as a record, with its own traceback only."""
    trace = "".join(traceback.format_exception(error, chain=error.__cause__ is not None))
    return Failure(type=type(error).__name__, message=str(error), traceback=trace)


def _failed(bundle: Bundle, cell: Cell, failure: Failure, started: str) -> Product:
    result = Result(
        cell_id=cell.cell_id,
        group_id=cell.group_id,
        status="failed",
        cell=cell,
        protocol=_protocol_values(cell, cached_task(cell, bundle.data_dir, bundle.suite_folder).task.benchmark),
        failure=failure,
        method_sha256=load_file(bundle.method_files[cell.method]).spec.source_sha256,
        provenance=provenance.collect("unknown"),
        started_at=started,
        finished_at=provenance.now(),
    )
    return Product(result, [], None)


def _protocol_values(cell: Cell, benchmark: str) -> dict[str, Any]:
    return resolve(cell.protocol).acting(Place(cell.task, benchmark, cell.method, cell.backbone))


def _metric_record(data: TaskData) -> MetricRecord:
    task = data.task
    return MetricRecord(
        reported=list(task.reported),
        extra=[name for name in task.metrics if name not in task.reported],
        selection=task.selection,
        labels=task.targets,
    )


def _prediction_rows(data: TaskData, answers: dict[str, list[str]]) -> list[PredictionRow]:
    return [
        (split, index, list(example.references), answer)
        for split in ("dev", "test")
        if split in answers
        for index, (example, answer) in enumerate(zip(data.split(split), answers[split], strict=True))
    ]


def _device_name(backbone: Backbone) -> str:
    return torch.cuda.get_device_name() if backbone.device.type == "cuda" else backbone.device.type
