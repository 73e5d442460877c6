"""One bundle as a piece of work that any process can do: load, build, train, hand over results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from harness import provenance
from harness.backbone import Backbone
from harness.blame import CellError
from harness.building import build_method, build_to_train, try_detaching
from harness.caches import cached_task, cached_tokenizer, drop_backbone, sealed_backbone
from harness.cell_state import Outcome, describe_failure
from harness.checkpoint import CheckpointPlan, Keeper
from harness.data import Encoded, TaskData, cut_references, has_cut_references
from harness.distributed import ALONE, MemberDied, Send, Team, run_team
from harness.flops import MatmulParams, matmul_params
from harness.heads import class_targets
from harness.limits import check_ids
from harness.loading import DEFAULT_PLACEMENT, Placement, load_backbone, meta_backbone
from harness.memory import reset_peak_memory
from harness.method import Method, Rule, load_file
from harness.mixture import join_encoded
from harness.products import Circumstances, OnProduct, failed_product, rule_product, trained_product
from harness.racing import Race
from harness.results import NotStored
from harness.schema import Cell, Cuts, DataRecord, Failure, Key
from harness.seal import BackboneChanged, Seal
from harness.sharding import UNSHARDED, shard, trains_backbone
from harness.starting import StartFile
from harness.tasks.record import Task
from harness.token_cache import cached_encode
from harness.train import BundleTrainer, OnStep

# on a processor, tensors of larger micro-batches leave its caches, and a step takes longer, not shorter
MICRO_BATCH_TOKENS = {"cpu": 2_048}
MOST_DEATHS = 3
"""Times that a bundle may lose a process, or a worker, without getting any further."""


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
    checkpoint: CheckpointPlan | None = None
    starts: Mapping[Key, tuple[StartFile, ...]] = field(default_factory=dict)
    """By key, what a cell's tensors start from."""
    placement: Placement = DEFAULT_PLACEMENT
    processes: int = 1
    """Processes that train it together, each on its own device."""
    sharding: Literal["none", "fsdp"] = "none"
    """Whether those divide the weights among them, if its method trains all of them."""
    compile: bool = False


@dataclass
class Listener:
    """Whom a bundle tells of its progress."""

    on_step: OnStep
    on_product: OnProduct
    say: Callable[[str], None] = field(default=lambda text: None)


def execute(bundle: Bundle, listener: Listener) -> None:
    """Compute a bundle; every cell ends as a product, done or failed.

    Passes through what no other cell could survive: NotStored (a results folder that cannot be written), and a
    request to stop.
    """
    work = _Work(bundle, listener)
    failure = work.compute()
    if failure is not None and work.restored:
        listener.say(f"a checkpoint could not be continued from ({failure.message}); its cells start anew")
        Keeper(bundle.checkpoint).clear()
        work = _Work(replace(bundle, cells=tuple(work.left)), listener)
        failure = work.compute()
    if failure is not None and (len(bundle.cells) == 1 or not work.is_ready):
        for cell in list(work.left):  # what all cells need is not there
            work.hand_over(cell, failure)
    elif failure is not None:
        # one bad cell must not take the others along: they go on apart, on a device that is free again
        if work.guilty in work.left:
            work.hand_over(work.guilty, failure)
        parts = _apart(work.left, work.guilty, work.is_changed)
        how = "one by one" if len(parts) == len(work.left) else "apart"
        what = f"{len(work.left)} cells {'are trained again' if work.is_changed else 'go on'} {how}"
        listener.say(f"a bundle of {len(bundle.cells)} cells broke off ({failure.message}); {what}")
        for cells in parts:
            races = tuple(race for race in bundle.races if sum(map(race.holds, cells)) == race.num_points)
            kept = None if bundle.checkpoint is None else bundle.checkpoint.of_cells(cells)
            execute(replace(bundle, cells=cells, races=races, checkpoint=kept), listener)
    Keeper(bundle.checkpoint).clear()


def _apart(cells: Sequence[Cell], guilty: Cell | None, is_changed: bool) -> list[tuple[Cell, ...]]:
    """How the cells of a bundle that broke off go on: each alone.

    Where the backbone was changed, the fault is in the code of one method, so the cells of others can stay together:
    all of them where the method is known, those of one method where it is not.
    """
    methods = {cell.method for cell in cells}
    if not is_changed or (guilty is None and len(methods) == 1):
        return [(cell,) for cell in cells]
    if guilty is None:
        return [tuple(cell for cell in cells if cell.method == method) for method in sorted(methods)]
    others = tuple(cell for cell in cells if cell.method != guilty.method)
    alone: list[tuple[Cell, ...]] = [(cell,) for cell in cells if cell.method == guilty.method]
    return [others, *alone] if others else alone


class _Work:
    """One attempt at a bundle, and which of its cells are finished."""

    def __init__(self, bundle: Bundle, listener: Listener, team: Team = ALONE) -> None:
        self.bundle = bundle
        self.listener = listener
        self.team = team
        self.left = list(bundle.cells)
        self.registered = {cell.method: load_file(bundle.method_files[cell.method]) for cell in bundle.cells}
        sources = {name: registered.spec.source_sha256 for name, registered in self.registered.items()}
        self.common = Circumstances(
            provenance.now(), bundle.suite_folder, sources, len(bundle.cells), bundle.starts, bundle.processes
        )
        self.is_ready = False
        """Whether rows, weights and methods are loaded, so that what fails now may be one cell's fault."""
        self.restored = False
        self.is_changed = False
        """Whether a method has changed the backbone, so that nothing of what is not handed over counts."""
        self.guilty: Cell | None = None
        """The cell whose method did, where that is known."""

    def compute(self) -> Failure | None:
        """Compute the bundle; return why it could not be finished. The exception, and all it holds, ends here."""
        try:
            self._compute()
        except NotStored:
            raise
        except BackboneChanged as error:
            self.is_changed = True
            return describe_failure(error)
        except (Exception, SystemExit) as error:  # recorded as the failure of a cell, with its traceback
            return describe_failure(error.__cause__ if isinstance(error, CellError) and error.__cause__ else error)
        finally:
            if self.is_changed:
                drop_backbone()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return None

    def hand_over(self, cell: Cell, failure: Failure) -> None:
        """Hand over a cell that failed before there was anything to train."""
        self.listener.on_product(failed_product(cell, failure, self.common))
        self.left.remove(cell)

    def _compute(self) -> None:
        for registered in self.registered.values():
            if registered.cls is None:
                raise ImportError(registered.spec.error)
        data = cached_task(self.bundle.cells[0], self.bundle.data_dir, self.bundle.suite_folder)
        cell = self.bundle.cells[0]
        cls = self.registered[cell.method].cls
        if cls is not None and issubclass(cls, Rule):
            if has_cut_references(data.task):
                data = cut_references(data, cached_tokenizer(self.bundle.backbone))
            self.is_ready = True
            self.listener.on_product(rule_product(cell, cls(data.task.targets), data, self.common))
            self.left.remove(cell)
        elif self.bundle.processes > 1 and self.team.size == 1:
            self._train_in_processes()
        else:
            self._train(data)

    def _train_in_processes(self) -> None:
        """Let new processes train the bundle; rows and method files are read again there."""

        def take(message: tuple[str, Any]) -> None:
            kind, value = message
            self.restored = False
            if kind == "step":
                self.listener.on_step(*value)
            elif kind == "line":
                self.listener.say(value)
            else:
                self.listener.on_product(value)
                self.left.remove(value.result.cell)

        self.is_ready = True
        sharding: Literal["none", "fsdp"] = "fsdp" if self._is_to_shard() else "none"
        deaths = 0
        while self.left:
            self.restored = self.bundle.checkpoint is not None and self.bundle.checkpoint.path.exists()
            bundle, count = replace(self.bundle, cells=tuple(self.left), sharding=sharding), len(self.left)
            try:
                run_team(bundle.processes, _train_as_member, (bundle, self.common), take)
            except MemberDied as error:
                deaths = deaths + 1 if len(self.left) == count else 1
                if deaths == MOST_DEATHS:
                    raise
                self.listener.say(f"{error}; new processes go on from the last checkpoint, if there is one")

    def _is_to_shard(self) -> bool:
        """Whether weights are to be divided, and there is a method that trains them."""
        cell = self.bundle.cells[0]
        cls = self.registered[cell.method].cls
        if self.bundle.sharding == "none" or cls is None or issubclass(cls, Rule):
            return False
        backbone = meta_backbone(self.bundle.backbone, cell.recipe.quantization)
        return trains_backbone(build_method(cell, cls, backbone), backbone)

    def _backbone(self) -> tuple[Backbone, Seal | None]:
        bundle, recipe = self.bundle, self.bundle.cells[0].recipe
        if self._is_member_with_shards:  # no device need hold all of it, and it ends with this process
            return load_backbone(bundle.backbone, recipe.precision, "cpu", placement=bundle.placement), None
        return sealed_backbone(bundle.backbone, recipe.precision, recipe.quantization, bundle.placement)

    @property
    def _is_member_with_shards(self) -> bool:
        return self.bundle.sharding == "fsdp" and self.team.size > 1

    def _train(self, data: TaskData) -> None:
        bundle = self.bundle
        backbone, seal = self._backbone()
        data = cut_references(data, backbone.tokenizer)
        with torch.random.fork_rng():
            encoded, record = _encode(bundle.cells[0], data, backbone)
            data = replace(data, record=record)
            self.is_ready = True
            methods = self._built(backbone, data.task, seal)
            if not self.left:
                return
            cells = list(self.left)
            if seal is not None:
                try_detaching(methods[0], backbone, seal)
            torch.manual_seed(
                bundle.cells[0].seed + self.team.rank
            )  # the dropout to come is of other rows in each process
            matmul = matmul_params(backbone)  # of the network as it is before a method changes its layers
            if methods[0].linear_head is not None:
                matmul = replace(matmul, head=methods[0].num_head)
            backbone.compile(bundle.compile and not methods[0].is_layer_side())
            sharding = shard(backbone, methods[0], self.team) if self._is_member_with_shards else UNSHARDED
            max_tokens = bundle.micro_batch_tokens or sharding.default_tokens or default_tokens(backbone)
            try:
                trainer = BundleTrainer(
                    cells, methods, data, encoded, backbone, max_tokens, bundle.races, self.team, sharding, seal
                )
                with contextlib.nullcontext() if sharding.is_sharded else trainer.fused.attached():
                    self._run(trainer, data, matmul)
            except BackboneChanged as error:
                self.guilty = None if error.cell is None else cells[error.cell]
                raise

    def _built(self, backbone: Backbone, task: Task, seal: Seal | None) -> list[Method]:
        """The methods of the cells; a cell whose tensors cannot be created is handed over as failed."""
        methods = []
        for cell in self.bundle.cells:
            try:
                cls = self.registered[cell.method].cls
                assert cls is not None
                assert issubclass(cls, Method)
                starts = self.common.starts.get(cell.key, ())
                methods.append(build_to_train(cell, cls, backbone, task, starts, seal))
            except BackboneChanged:
                self.guilty = cell
                raise
            except Exception as error:
                if len(self.bundle.cells) == 1:
                    raise
                self.hand_over(cell, describe_failure(error))
        return methods

    def _run(self, trainer: BundleTrainer, data: TaskData, matmul: MatmulParams) -> None:
        plan, backbone = self.bundle.checkpoint, trainer.backbone
        if self.bundle.micro_batch_tokens is None:
            trainer.probe()
        self.restored = plan is not None and plan.path.exists()
        if plan is not None and trainer.restore(plan):
            self.listener.say(f"continued from a checkpoint at step {trainer.step:,}")
        self.restored = False
        reset_peak_memory()

        def hand_over(outcome: Outcome) -> None:
            is_stored = outcome.failure is None and outcome.raced_out_at is None
            tensors = trainer.sharding.whole_tensors(outcome.method) if is_stored else {}
            if self.team.rank == 0:
                self.listener.on_product(trained_product(outcome, tensors, data, backbone, matmul, self.common))
            self.left.remove(outcome.cell)

        trainer.run(self.listener.on_step, hand_over, Keeper(plan, self.listener.say))


def _train_as_member(team: Team, send: Send, bundle: Bundle, common: Circumstances) -> None:
    """The work of one of several processes; the first of them tells of it."""
    listener = Listener(
        lambda *step: send(("step", step)), lambda made: send(("product", made)), lambda line: send(("line", line))
    )
    work = _Work(bundle, listener, team)
    work.common = common
    failure = work.compute()
    if failure is not None:
        raise RuntimeError(f"{failure.type}: {failure.message}\n{failure.traceback}")


def default_tokens(backbone: Backbone) -> int:
    """Token budget of a micro-batch where neither the suite nor a probe sets one."""
    return MICRO_BATCH_TOKENS.get(backbone.device.type, 32_768)


def _encode(cell: Cell, data: TaskData, backbone: Backbone) -> tuple[dict[str, Encoded], DataRecord]:
    """The splits as token ids, and the record of the rows with what was cut."""
    length = cell.recipe.max_source_length or data.task.max_source_length
    splits = {name: data.split(name) for name in ("train", "dev", "test")}
    if data.parts:
        parts, records = zip(*(_encode(cell, part, backbone) for part in data.parts), strict=True)
        known = {part.task.name: record for part, record in zip(data.parts, records, strict=True)}
        joined = {name: join_encoded([part[name] for part in parts]) for name in splits}
        return joined, data.record.model_copy(update={"parts": known})
    encoded = {name: cached_encode(rows, backbone, data.task, length) for name, rows in splits.items()}
    for name, rows in encoded.items():
        check_ids(rows, backbone, f"{data.task.name} {name}")
    cuts = Cuts(
        source_limit=length,
        target_limit=data.task.max_target_length,
        sources={name: part.num_cut_sources for name, part in encoded.items()},
        targets={name: part.num_cut_targets for name, part in encoded.items()},
        cuts_references=has_cut_references(data.task),
    )
    record = data.record.model_copy(update={"cuts": cuts})
    if cell.recipe.head == "linear":
        return {name: class_targets(encoded[name], rows, data.task) for name, rows in splits.items()}, record
    return encoded, record
