"""Train one bundle of cells, in this process or another: load rows and weights, build methods, train, pass on results.

`train_bundle` is the whole of it. A bundle that breaks off is tried again in smaller ones, so that one bad cell does
not take the others along.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from harness import provenance
from harness.backbone import (
    DEFAULT_PLACEMENT,
    Backbone,
    BackboneChanged,
    MatmulParams,
    Placement,
    Seal,
    load_backbone,
    matmul_params,
    meta_backbone,
    reset_peak_memory,
)
from harness.data import (
    Cuts,
    DataRecord,
    Encoded,
    Task,
    TaskData,
    WritingRecord,
    cached_encode,
    cell_rows,
    cut_references,
    encode_choices,
    has_cut_references,
    join_encoded,
    longest_answer,
    make_form,
    require_known_ids,
    writings,
)
from harness.method import CellError, Method, Rule, SourceFile, head_targets, load_file
from harness.results import Failure, NotStored
from harness.suite import NO_TEXT, Cell, Key, Measure
from harness.train.caches import cached_tokenizer, drop_backbone, sealed_backbone
from harness.train.cell_result import BundleFacts, OnCellResult, failed_result, rule_result, trained_result
from harness.train.cell_state import Outcome, describe_failure
from harness.train.checkpoint import CheckpointPlan, CheckpointWriter
from harness.train.data_parallel import ALONE, UNSHARDED, MemberDied, Send, Team, run_team
from harness.train.forgetting import read_general_text
from harness.train.fsdp import shard, trains_backbone
from harness.train.loop import BundleTrainer, OnStep
from harness.train.method_fit import build_method, build_to_train, try_detaching
from harness.train.network_limits import require_positions
from harness.train.race import Race

MICRO_BATCH_TOKENS = {"cpu": 2_048}
"""Token budget of a micro-batch by kind of device. On a CPU, the tensors of 4,096 tokens left its caches, and a step
took longer."""
OTHER_MICRO_BATCH_TOKENS = 32_768
"""Token budget on other devices, until the probe of a CUDA device replaces it; running out of memory halves it."""
MOST_DEATHS = 3
"""Processes or workers that a bundle may lose in a row without getting further. One may be killed for lack of memory by
chance; the third time the bundle itself is the likely cause."""


@dataclass(frozen=True)
class Bundle:
    """Cells that share forward passes of one backbone, and all that a process needs to train them; picklable."""

    cells: tuple[Cell, ...]
    method_files: dict[str, Path]
    """By method name."""
    backbone: str
    """Folder or hub id of the backbone."""
    data_dir: str | None
    suite_folder: str
    """Where the suite file lies; paths in it are relative to this folder."""
    micro_batch_tokens: int | None
    """Token budget that the suite sets, if it does."""
    races: tuple[Race, ...] = ()
    checkpoint: CheckpointPlan | None = None
    """None if checkpoints are off."""
    starts: Mapping[Key, tuple[SourceFile, ...]] = field(default_factory=dict)
    """By cell key, the files that its tensors start from."""
    placement: Placement = DEFAULT_PLACEMENT
    processes: int = 1
    """Processes that train it together, each on its own device."""
    sharding: Literal["none", "fsdp"] = "none"
    """Whether the processes divide the weights among them; only for a method that trains all weights."""
    compile: bool = False
    """Whether the backbone is compiled by torch.compile."""
    measure: Measure = field(default_factory=Measure)
    """What is measured beside scores."""


@dataclass
class BundleListener:
    """The functions that a bundle calls as it goes on."""

    on_step: OnStep
    on_product: OnCellResult
    """Called with what is stored of each cell, as soon as it ends."""
    say: Callable[[str], None] = field(default=lambda text: None)
    """Called with a line for the user."""


def train_bundle(bundle: Bundle, listener: BundleListener) -> None:
    """Train a bundle; every cell ends with something to store, done or failed.

    An attempt that fails is followed by another: without the checkpoint, if going on from that is what failed, or else
    in smaller bundles, down to single cells. A cell that fails alone is passed on as failed, and so are all cells
    when rows, weights or method files cannot be loaded.

    Raises NotStored (the results folder cannot be written) and Stopped, since no other cell could go on either.
    """
    work = _Attempt(bundle, listener)
    failure = work.run()
    if failure is not None and work.is_restoring:
        listener.say(f"a checkpoint could not be continued from ({failure.message}); its cells start anew")
        CheckpointWriter(bundle.checkpoint).clear()
        work = _Attempt(replace(bundle, cells=tuple(work.left)), listener)
        failure = work.run()
    if failure is not None and (len(bundle.cells) == 1 or not work.is_ready):
        for cell in list(work.left):  # nothing is left to divide, or what all cells need is missing
            work.give_up(cell, failure)
    elif failure is not None:
        if work.guilty in work.left:
            work.give_up(work.guilty, failure)
        smaller = _divided(work.left, work.guilty, work.is_changed)
        how = "one by one" if len(smaller) == len(work.left) else "apart"
        what = f"{len(work.left)} cells {'are trained again' if work.is_changed else 'go on'} {how}"
        listener.say(f"a bundle of {len(bundle.cells)} cells broke off ({failure.message}); {what}")
        for cells in smaller:
            # a race needs all its points in one bundle; points that are apart train to their end
            races = tuple(race for race in bundle.races if sum(map(race.holds, cells)) == race.num_points)
            checkpoint = None if bundle.checkpoint is None else bundle.checkpoint.of_cells(cells)
            train_bundle(replace(bundle, cells=cells, races=races, checkpoint=checkpoint), listener)
    CheckpointWriter(bundle.checkpoint).clear()


def _divided(cells: Sequence[Cell], guilty: Cell | None, is_changed: bool) -> list[tuple[Cell, ...]]:
    """The smaller bundles in which the cells of a bundle that broke off go on; usually each cell alone.

    If a method changed the backbone, the fault is in the code of one method. If the cell is known (`guilty`), cells
    of other methods stay together and those of its method go alone. If it is not, each method gets a bundle.
    """
    methods = {cell.method for cell in cells}
    if not is_changed or (guilty is None and len(methods) == 1):
        return [(cell,) for cell in cells]
    if guilty is None:
        return [tuple(cell for cell in cells if cell.method == method) for method in sorted(methods)]
    others = tuple(cell for cell in cells if cell.method != guilty.method)
    alone: list[tuple[Cell, ...]] = [(cell,) for cell in cells if cell.method == guilty.method]
    return [others, *alone] if others else alone


class _Attempt:
    """One work to train a bundle, and which of its cells have not ended yet (`left`)."""

    def __init__(self, bundle: Bundle, listener: BundleListener, team: Team = ALONE) -> None:
        self.bundle = bundle
        self.listener = listener
        self.team = team
        self.left = list(bundle.cells)
        self.registered = {cell.method: load_file(bundle.method_files[cell.method]) for cell in bundle.cells}
        hashes = {name: registered.spec.source_sha256 for name, registered in self.registered.items()}
        self.common = BundleFacts(
            provenance.utc_now(), bundle.suite_folder, hashes, len(bundle.cells), bundle.starts, bundle.processes
        )
        self.is_ready = False
        """Whether rows and weights are loaded; what fails from then on may be the fault of one cell."""
        self.is_restoring = False
        """Whether a checkpoint is being loaded; what fails now is the checkpoint's fault."""
        self.is_changed = False
        """Whether a method has changed the backbone; all cells that are left must be trained again then."""
        self.guilty: Cell | None = None
        """The cell whose method changed it, if that is known."""

    def run(self) -> Failure | None:
        """Train the bundle; return why it could not be finished, or None.

        The exception is turned into a record here, so that it does not keep tensors on the device alive for the next
        work. Raises NotStored and Stopped.
        """
        try:
            self._run()
        except NotStored:
            raise
        except BackboneChanged as error:
            self.is_changed = True
            return describe_failure(error)
        except (Exception, SystemExit) as error:  # SystemExit: a method's code may call exit()
            return describe_failure(error.__cause__ if isinstance(error, CellError) and error.__cause__ else error)
        finally:
            if self.is_changed:
                drop_backbone()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return None

    def give_up(self, cell: Cell, failure: Failure) -> None:
        """Pass on a cell as failed, without what its training has cost."""
        self.listener.on_product(failed_result(cell, failure, self.common))
        self.left.remove(cell)

    def _run(self) -> None:
        """Load the rows, then score a rule, or train here or in several processes."""
        for registered in self.registered.values():
            if registered.cls is None:
                raise ImportError(registered.spec.error)
        data = cell_rows(self.bundle.cells[0], self.bundle.data_dir, self.bundle.suite_folder)
        cell = self.bundle.cells[0]
        cls = self.registered[cell.method].cls
        if cls is not None and issubclass(cls, Rule):
            if has_cut_references(data.task):
                data = cut_references(data, cached_tokenizer(self.bundle.backbone))
            self.is_ready = True
            self.listener.on_product(rule_result(cell, cls, data, self.common))
            self.left.remove(cell)
        elif self.bundle.processes > 1 and self.team.size == 1:
            self._train_in_processes()
        else:
            self._train(data)

    def _train_in_processes(self) -> None:
        """Train the bundle in new processes, and again when one was killed; each reads rows and method files itself."""

        def take(message: tuple[str, Any]) -> None:
            kind, value = message
            self.is_restoring = False  # a process that reports a step has loaded its checkpoint
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
            self.is_restoring = self.bundle.checkpoint is not None and self.bundle.checkpoint.path.exists()
            bundle, count = replace(self.bundle, cells=tuple(self.left), sharding=sharding), len(self.left)
            try:
                run_team(bundle.processes, _train_as_member, (bundle, self.common), take)
            except MemberDied as error:
                deaths = deaths + 1 if len(self.left) == count else 1
                if deaths == MOST_DEATHS:
                    raise
                self.listener.say(f"{error}; new processes go on from the last checkpoint, if there is one")

    def _is_to_shard(self) -> bool:
        """Whether the suite asks for sharded weights, and the method trains all of them."""
        cell = self.bundle.cells[0]
        cls = self.registered[cell.method].cls
        if self.bundle.sharding == "none" or cls is None or issubclass(cls, Rule):
            return False
        backbone = meta_backbone(self.bundle.backbone, cell.recipe.quantization)
        return trains_backbone(build_method(cell, cls, backbone), backbone)

    def _backbone(self) -> tuple[Backbone, Seal | None]:
        """The backbone, and the proof of what it was when it was loaded; without one if its weights will be sharded."""
        bundle, recipe = self.bundle, self.bundle.cells[0].recipe
        if self._is_member_with_shards:  # to the CPU: no device may be able to hold all of it
            return load_backbone(bundle.backbone, recipe.precision, "cpu", placement=bundle.placement), None
        return sealed_backbone(bundle.backbone, recipe.precision, recipe.quantization, bundle.placement)

    @property
    def _is_member_with_shards(self) -> bool:
        return self.bundle.sharding == "fsdp" and self.team.size > 1

    def _train(self, data: TaskData) -> None:
        """Tokenise the rows, build the methods, and train them in this process."""
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
            _require_room(bundle.cells[0], methods, data.task, encoded, backbone)
            cells = list(self.left)
            if seal is not None:
                try_detaching(methods[0], backbone, seal)
            # each process computes other rows, so each needs dropout of its own
            torch.manual_seed(bundle.cells[0].seed + self.team.rank)
            matmul = matmul_params(backbone)  # before a method changes its layers
            if methods[0].linear_head is not None:
                matmul = replace(matmul, head=methods[0].num_head)
            backbone.compile(bundle.compile and not methods[0].is_layer_side())
            sharding = shard(backbone, methods[0], self.team) if self._is_member_with_shards else UNSHARDED
            max_tokens = bundle.micro_batch_tokens or sharding.default_tokens or default_tokens(backbone)
            try:
                trainer = BundleTrainer(
                    cells,
                    methods,
                    data,
                    encoded,
                    backbone,
                    max_tokens,
                    bundle.races,
                    self.team,
                    sharding,
                    seal,
                    bundle.suite_folder,
                )
                with contextlib.nullcontext() if sharding.is_sharded else trainer.fused.attached():
                    self._train_from_checkpoint(trainer, data, matmul)
            except BackboneChanged as error:
                self.guilty = None if error.cell is None else cells[error.cell]
                raise

    def _built(self, backbone: Backbone, task: Task, seal: Seal | None) -> list[Method]:
        """The methods of the cells that are left.

        A cell whose method cannot be built, or whose general text cannot be read, is passed on as failed.
        """
        methods = []
        for cell in self.bundle.cells:
            try:
                cls = self.registered[cell.method].cls
                assert cls is not None
                assert issubclass(cls, Method)
                if cell.recipe.forgetting_text != NO_TEXT:  # it is needed at the end, and this machine may not have it
                    read_general_text(cell.recipe.forgetting_text, self.bundle.suite_folder)
                starts = self.common.starts.get(cell.key, ())
                methods.append(build_to_train(cell, cls, backbone, task, starts, seal))
            except BackboneChanged:
                self.guilty = cell
                raise
            except Exception as error:
                if len(self.bundle.cells) == 1:
                    raise
                self.give_up(cell, describe_failure(error))
        return methods

    def _train_from_checkpoint(self, trainer: BundleTrainer, data: TaskData, matmul: MatmulParams) -> None:
        """Load the checkpoint, if there is one, and train every cell to its end."""
        plan, backbone = self.bundle.checkpoint, trainer.backbone
        if self.bundle.micro_batch_tokens is None:
            trainer.probe()
        self.is_restoring = plan is not None and plan.path.exists()
        if plan is not None and trainer.restore(plan):
            self.listener.say(f"continued from a checkpoint at step {trainer.step:,}")
        self.is_restoring = False
        reset_peak_memory()  # so that the peak is that of training, not of the probe

        def pass_on(outcome: Outcome) -> None:
            is_stored = outcome.failure is None and outcome.raced_out_at is None
            tensors = trainer.sharding.whole_tensors(outcome.method) if is_stored else {}
            if is_stored and self.team.size == 1:
                try:
                    outcome.answering = trainer.answering_cost(outcome, self.bundle.measure)
                except BackboneChanged:
                    raise
                except Exception as error:  # a finished cell is worth more than what its answering costs
                    problem = f"{type(error).__name__}: {error}".splitlines()[0]
                    self.listener.say(f"{outcome.cell.label}: what answering costs was not measured ({problem})")
            if self.team.rank == 0:
                self.listener.on_product(trained_result(outcome, tensors, data, backbone, matmul, self.common))
            self.left.remove(outcome.cell)

        trainer.run(self.listener.on_step, pass_on, CheckpointWriter(plan, self.listener.say))


def _train_as_member(team: Team, send: Send, bundle: Bundle, common: BundleFacts) -> None:
    """What one of several processes does; `send` passes on steps, results and lines. Raises RuntimeError if it
    fails."""
    listener = BundleListener(
        lambda *step: send(("step", step)), lambda made: send(("product", made)), lambda line: send(("line", line))
    )
    work = _Attempt(bundle, listener, team)
    work.common = common
    failure = work.run()
    if failure is not None:
        raise RuntimeError(f"{failure.type}: {failure.message}\n{failure.traceback}")


def _require_room(
    cell: Cell, methods: Sequence[Method], task: Task, encoded: Mapping[str, Encoded], backbone: Backbone
) -> None:
    """Raise UserError where prompt, text and the longest choice do not fit the network: choices are never cut."""
    if not any(part.is_ranked for part in task.parts or (task,)):
        return
    prompt = max(method.num_positions if backbone.kind.name == "decoder" else method.num_prompt_tokens
                 for method in methods)  # fmt: skip
    source = cell.recipe.max_source_length or task.max_source_length
    target = longest_answer(encoded, task, backbone, cell.recipe.label_tokens)
    require_positions(backbone, prompt, source, target, field=cell.task)


def default_tokens(backbone: Backbone) -> int:
    """Token budget of a micro-batch if neither the suite nor a probe sets one."""
    return MICRO_BATCH_TOKENS.get(backbone.device.type, OTHER_MICRO_BATCH_TOKENS)


def _encode(cell: Cell, data: TaskData, backbone: Backbone) -> tuple[dict[str, Encoded], DataRecord]:
    """Token ids of each split, and the record of the rows with how many texts were cut.

    A head has class numbers, or the numbers asked for, in the place of target ids. Raises UserError if the
    tokenizer gives an id that the backbone has no embedding for.
    """
    length = cell.recipe.max_source_length or data.task.max_source_length
    splits = {name: data.split(name) for name in ("train", "dev", "test")}
    if data.parts:
        encodings, records = zip(*(_encode(cell, part, backbone) for part in data.parts), strict=True)
        names = [part.task.name for part in data.parts]
        by_part = _writing_records(cell, data.task, backbone)  # tasks of a mixture may share their limit
        by_task = {
            name: record.model_copy(update={"writing": own})
            for name, record, own in zip(names, records, by_part, strict=True)
        }
        joined = {name: join_encoded([encoding[name] for encoding in encodings]) for name in splits}
        return joined, data.record.model_copy(update={"parts": by_task})
    encoded = {name: cached_encode(rows, backbone, data.task, length) for name, rows in splits.items()}
    for name in ("dev", "test"):  # training takes the right choice's text alone
        encoded[name] = replace(encoded[name], choices=encode_choices(splits[name], backbone, data.task))
    for name, rows in encoded.items():
        require_known_ids(rows, backbone, f"{data.task.name} {name}")
    (written,) = _writing_records(cell, data.task, backbone)
    # a task without a limit of its own writes what is trained on, which was cut there and is counted already
    limit = written.max_new_tokens if written is not None and data.task.max_new_tokens else None
    cuts = Cuts(
        source_limit=length,
        target_limit=data.task.max_target_length,
        sources={name: part.num_cut_sources for name, part in encoded.items()},
        targets={name: part.num_cut_targets for name, part in encoded.items()},
        cuts_references=has_cut_references(data.task),
        unwritten={}
        if limit is None
        else {name: int((np.diff(part.target_offsets) > limit).sum()) for name, part in encoded.items()},
    )
    tokens = {name: len(part.choices.ids) for name, part in encoded.items() if part.choices is not None}
    prompt = make_form(data.task, backbone).record
    changes = {"cuts": cuts, "prompt": prompt, "choice_tokens": tokens, "writing": written}
    record = data.record.model_copy(update=changes)
    if cell.recipe.has_head:
        return {name: head_targets(encoded[name], rows, data.task) for name, rows in splits.items()}, record
    return encoded, record


def _writing_records(cell: Cell, task: Task, backbone: Backbone) -> list[WritingRecord | None]:
    """How the answers of a task, or of each task of a mixture, are written; None where a head or a ranking has them."""
    if cell.recipe.has_head or not backbone.writes_text:
        return [None] * max(1, len(task.parts))
    found = writings(task, backbone, cell.recipe.label_tokens)
    return [
        None
        if part.is_ranked
        else WritingRecord(
            max_new_tokens=own.max_new_tokens, end_ids=list(own.end_ids), num_beams=own.num_beams, stop=list(own.stop)
        )
        for part, own in zip(task.parts or (task,), found, strict=True)
    ]
